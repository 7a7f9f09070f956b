r"""Check exported classifiers against the original over a grid of schedules, lengths and runtimes.

    python experiments/parity.py --model_name_or_path FacebookAI/roberta-base --output_dir runs/parity \
        --results_file results/export_parity.json

Every schedule is exported to every runtime with three numbers of kept leading tokens, and its logits are compared with
torch's on single texts and padded batches of 2 to 512 tokens, with token types where the tokenizer makes them. The head
is random, so that no training is needed; what differs is arithmetic. The same command resumes.
"""

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from frame import command_of, describe_hardware, format_table, name_command
from tqdm import tqdm

from classformer_hf import ClassformerForSequenceClassification, load_from_encoder
from classformer_hf.checkpoints import checkpoint_fingerprint
from classformer_hf.export import export
from classformer_hf.parity import LENGTHS, TOLERANCE, largest_difference
from classformer_hf.search.space import Schedule
from redundancy_hf.command import check_settings, write_record
from redundancy_hf.limits import load_tokenizer
from redundancy_hf.runtimes import ExportedClassifier, check_runtime
from redundancy_hf.timing import hardware_fingerprint

ETAS = (0, 2, 8)


def list_schedules(num_layers: int) -> list[tuple[int, ...]]:
    """Give schedules of different kinds: none, single reductions early and late, several, and to one token."""
    third, last = num_layers // 3, num_layers - 1
    everywhere = dict.fromkeys(range(num_layers), 2)
    kinds: list[dict[int, int]] = [{}, {0: 2}, {1: 4}, {third: 2, 2 * third: 2}, {last: 2}, {0: 8}, {1: 512}]
    kinds += [everywhere, {0: 3, 1: 5}, {last - 1: 512, 0: 2}]
    return [tuple(at.get(layer, 1) for layer in range(num_layers)) for at in kinds]


def measure(model_name_or_path: str, schedule: Schedule, runtime: str, folder: Path) -> dict:
    """Export one schedule and compare it; the folder is used for the files and left empty."""
    torch.manual_seed(0)
    model = load_from_encoder(
        model_name_or_path, ClassformerForSequenceClassification, num_labels=2, **schedule.config
    ).eval()
    # logits of a random head are near 0, where every difference is small
    with torch.no_grad():
        num_tokens = min(100, model.config.max_position_embeddings // 2)
        ids = torch.arange(model.config.vocab_size // 2, model.config.vocab_size)[None, :num_tokens]
        model.classifier.out_proj.weight /= model(ids).logits.abs().max()
    model.save_pretrained(folder)
    load_tokenizer(model_name_or_path).save_pretrained(folder)
    exported = ExportedClassifier.from_pretrained(export(folder, runtime), num_threads=1)
    difference = largest_difference(model, exported)
    shutil.rmtree(folder)
    return {"runtime": runtime, "schedule": schedule.key, "difference": difference, "inputs": exported.input_names}


def run(
    model_name_or_path: str,
    runtimes: Sequence[str] = ("onnx", "openvino"),
    num_schedules: int = 10,
    output_dir: str = "runs/parity",
    results_file: str | None = None,
) -> dict[str, Any] | None:
    """Export and compare what is not done yet.

    Args:
        model_name_or_path: Folder or Hub name of the checkpoint.
        runtimes: What to export to.
        num_schedules: Schedules per runtime and eta, at most 10.
        output_dir: Folder for what is done so far.
        results_file: JSON file for the differences.

    Raises:
        ValueError: An export differs by more than the tolerance.
    """
    for runtime in runtimes:
        check_runtime(runtime)
    torch.set_num_threads(1)
    schedules = list_schedules(load_from_encoder(model_name_or_path).config.num_hidden_layers)[:num_schedules]
    grid = [(runtime, Schedule(gamma, eta)) for runtime in runtimes for gamma in schedules for eta in ETAS]
    jobs = {(runtime, schedule.key): (schedule, runtime) for runtime, schedule in grid}
    output = Path(output_dir)
    check_settings(output / "settings.json", {"model": checkpoint_fingerprint(model_name_or_path)}, is_writer=True)
    journal, rows = output / "rows.jsonl", []
    for line in journal.read_text().splitlines() if journal.is_file() else []:
        with suppress(json.JSONDecodeError):  # a line that a kill cut short does not count
            row = json.loads(line)
            if jobs.pop((row["runtime"], row["schedule"]), None):
                rows.append(row)
    for job in tqdm(jobs.values(), desc="exports", unit="export", initial=len(rows), total=len(grid)):
        rows.append(measure(model_name_or_path, *job, output / "model"))
        with journal.open("a") as stream:
            stream.write(json.dumps(rows[-1]) + "\n")
    worst = {name: max(row["difference"] for row in rows if row["runtime"] == name) for name in runtimes}
    record = write_record(results_file, lengths=list(LENGTHS), worst=worst, rows=rows, hardware=hardware_fingerprint())
    if max(worst.values()) > TOLERANCE:
        raise ValueError(f"an export differs by more than {TOLERANCE:g}: {worst}.")
    return record


def table(record: dict) -> str:
    """Largest difference of a logit, by runtime and kept leading tokens."""
    rows = []
    for runtime in dict.fromkeys(row["runtime"] for row in record["rows"]):
        own = [row for row in record["rows"] if row["runtime"] == runtime]
        etas = sorted({Schedule.from_key(row["schedule"]).eta for row in own})
        worst = [max(row["difference"] for row in own if row["schedule"].endswith(f"_eta{eta}")) for eta in etas]
        rows.append([runtime, len(own), *(f"{value:.1e}" for value in worst)])
    header = ["runtime", "graphs", *(f"eta {eta}" for eta in etas)]
    has_types = all("token_type_ids" in row.get("inputs", ()) for row in record["rows"])
    types = ", token types among the inputs, logits of size 1" if has_types else ", without token types"
    note = (
        f"Largest difference of a logit from torch's, over texts of {', '.join(map(str, record['lengths']))} tokens, "
        f"alone and as the longest of a padded batch{types}; {describe_hardware(record)}. {name_command(record)}"
    )
    return format_table(header, rows, note)


main = command_of(run, __doc__, show=table)
