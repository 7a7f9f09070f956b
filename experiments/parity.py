r"""Check exported classifiers against the original over a grid of schedules, lengths and runtimes.

    python experiments/parity.py --model_name_or_path FacebookAI/roberta-base --output_dir runs/parity \
        --results_file results/export_parity.json

Every schedule is exported to every runtime with three numbers of kept leading tokens, and its logits are compared with
torch's on single texts and padded batches of 2 to 512 tokens, with token types where the tokenizer makes them. The head
is random, so that no training is needed; what differs is arithmetic. The same command resumes.
"""

import json
import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from classformer_hf import ClassformerForSequenceClassification, load_from_encoder
from classformer_hf.checkpoints import checkpoint_fingerprint
from classformer_hf.export import export
from classformer_hf.parity import LENGTHS, TOLERANCE, largest_difference
from classformer_hf.search.space import Schedule
from redundancy_hf.command import check_settings, parse_arguments, run_command, write_record
from redundancy_hf.limits import load_tokenizer
from redundancy_hf.runtimes import ExportedClassifier, check_runtime
from redundancy_hf.timing import hardware_fingerprint

ETAS = (0, 2, 8)


@dataclass
class ParityArguments:
    model_name_or_path: str = field(metadata={"help": "Folder or Hub name of the checkpoint."})
    runtimes: list[str] = field(default_factory=lambda: ["onnx", "openvino"], metadata={"help": "What to export to."})
    num_schedules: int = field(default=10, metadata={"help": "Schedules per runtime and eta, at most 10."})
    output_dir: str = field(default="runs/parity", metadata={"help": "Folder for what is done so far."})
    results_file: str | None = field(default=None, metadata={"help": "JSON file for the differences."})


def list_schedules(num_layers: int, num_schedules: int) -> list[list[int]]:
    """Give schedules of different kinds: none, single reductions early and late, several, and to one token."""
    third, last = num_layers // 3, num_layers - 1

    def reduce(**at: int) -> list[int]:
        return [at.get(f"layer_{index}", 1) for index in range(num_layers)]

    return [
        reduce(),
        reduce(layer_0=2),
        reduce(layer_1=4),
        reduce(**{f"layer_{third}": 2, f"layer_{2 * third}": 2}),
        reduce(**{f"layer_{last}": 2}),
        reduce(layer_0=8),
        reduce(layer_1=512),
        [2] * num_layers,
        reduce(layer_0=3, layer_1=5),
        reduce(**{f"layer_{last - 1}": 512, "layer_0": 2}),
    ][:num_schedules]


def measure(arguments: ParityArguments, schedule: Schedule, runtime: str, folder: Path) -> dict:
    """Export one schedule and compare it; the folder is used for the files and left empty."""
    torch.manual_seed(0)
    model = load_from_encoder(
        arguments.model_name_or_path, ClassformerForSequenceClassification, num_labels=2, **schedule.config
    ).eval()
    # logits of a random head are near 0, where every difference is small
    with torch.no_grad():
        num_tokens = min(100, model.config.max_position_embeddings // 2)
        ids = torch.arange(model.config.vocab_size // 2, model.config.vocab_size)[None, :num_tokens]
        model.classifier.out_proj.weight /= model(ids).logits.abs().max()
    model.save_pretrained(folder)
    load_tokenizer(arguments.model_name_or_path).save_pretrained(folder)
    exported = ExportedClassifier.from_pretrained(export(folder, runtime), num_threads=1)
    difference = largest_difference(model, exported)
    shutil.rmtree(folder)
    return {"runtime": runtime, "schedule": schedule.key, "difference": difference, "inputs": exported.input_names}


def read_rows(journal: Path, wanted: set[tuple[str, str]]) -> list[dict]:
    """Read what is done of a grid; a line that a kill cut short does not count."""
    rows = []
    for line in journal.read_text().splitlines() if journal.is_file() else []:
        with suppress(json.JSONDecodeError):
            row = json.loads(line)
            if (row["schedule"], row["runtime"]) in wanted:
                rows.append(row)
    return rows


def main():
    (arguments,) = parse_arguments((ParityArguments,), __doc__)
    for runtime in arguments.runtimes:
        check_runtime(runtime)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    num_layers = load_from_encoder(arguments.model_name_or_path).config.num_hidden_layers
    jobs = [
        (Schedule(tuple(gamma), eta), runtime)
        for runtime in arguments.runtimes
        for gamma in list_schedules(num_layers, arguments.num_schedules)
        for eta in ETAS
    ]
    output = Path(arguments.output_dir)
    check_settings(
        output / "settings.json", {"model": checkpoint_fingerprint(arguments.model_name_or_path)}, is_writer=True
    )
    journal = output / "rows.jsonl"
    rows = read_rows(journal, {(schedule.key, runtime) for schedule, runtime in jobs})
    done = {(row["schedule"], row["runtime"]) for row in rows}
    left = [(schedule, runtime) for schedule, runtime in jobs if (schedule.key, runtime) not in done]
    for schedule, runtime in tqdm(left, desc="exports", unit="export", initial=len(rows), total=len(jobs)):
        rows.append(measure(arguments, schedule, runtime, output / "model"))
        with journal.open("a") as stream:
            stream.write(json.dumps(rows[-1]) + "\n")
    worst = {name: max(row["difference"] for row in rows if row["runtime"] == name) for name in arguments.runtimes}
    for name, difference in worst.items():
        print(f"{name}: largest difference of a logit over {len(jobs) // len(worst)} schedules {difference:.1e}")
    write_record(arguments.results_file, lengths=list(LENGTHS), worst=worst, rows=rows, hardware=hardware_fingerprint())
    if max(worst.values()) > TOLERANCE:
        raise ValueError(f"an export differs by more than {TOLERANCE:g}: {worst}.")


if __name__ == "__main__":
    run_command(main)
