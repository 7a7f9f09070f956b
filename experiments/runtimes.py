r"""Compare schedules within and across runtimes and precisions, with their accuracy.

    python experiments/runtimes.py --models runs/sst2/full runs/sst2/best \
        --output_dir runs/runtimes-sst2 --results_file results/runtimes_sst2.json

The first folder is the model without reductions. All models in all variants are timed together, one text at a time, on
texts of the test split, which all are scored on too (a reading of it, which is written down); the reference is the
first folder as stock RoBERTa with eager attention. Time is the processor's for the whole process, because some runtimes
work in threads of their own. Exported graphs stay in OUTPUT_DIR and are used again.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from frame import command_of, describe_hardware, format_table, name_command, speedup
from tqdm import tqdm
from tuning import score, take_turns

from classformer_hf import ClassformerForSequenceClassification
from classformer_hf.architectures import build_stock
from classformer_hf.export import export_once
from classformer_hf.search import Schedule
from redundancy_hf.command import write_record
from redundancy_hf.data import load_task, tokenize
from redundancy_hf.evaluation import order_outputs
from redundancy_hf.folders import is_export
from redundancy_hf.limits import load_tokenizer
from redundancy_hf.metrics import majority_score
from redundancy_hf.readings import choose_arguments, open_model, record_reading
from redundancy_hf.runtimes import ExportedClassifier, check_runtime
from redundancy_hf.task import TaskArguments, TaskFlags
from redundancy_hf.timing import hardware_fingerprint, sample_inputs

STOCK = ("stock", "eager")
EXPORTED = "as exported"
VARIANTS = ("torch", "torch-compile", "torch-bf16", "onnx", "onnx-int8", "openvino")


def build(folder: str, variant: str, output: Path) -> Any:
    """Load a folder in a variant, or open an export."""
    if variant == EXPORTED:
        return ExportedClassifier.from_pretrained(folder, num_threads=1)
    runtime, _, precision = variant.partition("-")
    if runtime != "torch":
        return export_once(folder, runtime, precision == "int8", output / variant)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = ClassformerForSequenceClassification.from_pretrained(folder, dtype=dtype).eval()
    return torch.compile(model, dynamic=True) if precision == "compile" else model


def list_jobs(models: list[str], variants: Sequence[str]) -> list[tuple[str, str]]:
    """Give folders and variants; an export is of one.

    Raises:
        ValueError: A variant is unknown, the first folder has no weights, or two have one name.
    """
    for variant in variants:
        if variant not in VARIANTS:
            raise ValueError(f"--variants knows {', '.join(VARIANTS)}, got {variant}.")
        runtime, _, precision = variant.partition("-")
        check_runtime(runtime, precision == "int8")
    if is_export(Path(models[0])):
        raise ValueError(f"the first of --models is the reference and needs weights, got the export {models[0]}.")
    names = [Path(folder).name for folder in models]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"--models need different folder names, got {twice} twice.")
    return [(folder, variant) for folder in models for variant in ([EXPORTED] if is_export(Path(folder)) else variants)]


def run(
    models: list[str],
    output_dir: str,
    task: TaskFlags,
    variants: Sequence[str] = tuple(variant for variant in VARIANTS if variant != "torch-bf16"),
    num_inputs: int = 48,
    rounds: int = 20,
    results_file: str | None = None,
) -> dict[str, Any]:
    """Score and time all models in all variants.

    Args:
        models: Folders of trained Classformers, the first one without reductions; or of exports, which are compared as
            they are.
        output_dir: Folder for the exported graphs.
        task: The data, where they are not those of the first folder.
        variants: What to compare: torch, torch-compile, torch-bf16, onnx, onnx-int8, openvino.
        num_inputs: Texts that are timed, at quantiles of the length.
        rounds: Rounds of interleaved timing.
        results_file: JSON file for the table.
    """
    torch.set_num_threads(1)
    jobs = list_jobs(models, variants)
    read = [open_model(folder, Path(folder)) for folder in models]
    arguments = choose_arguments(TaskArguments, read, vars(task))
    tokenizer = load_tokenizer(models[0])
    data = tokenize(load_task(arguments), tokenizer, arguments.max_length)
    full = ClassformerForSequenceClassification.from_pretrained(models[0])
    built: dict[tuple[str, str], Any] = {
        STOCK: build_stock(full, attention="eager"),
        ("stock", "sdpa"): build_stock(full),
    }
    for folder, variant in tqdm(jobs, desc="loading and exporting", unit="model"):
        model = build(folder, variant, Path(output_dir) / Path(folder).name)
        built[Path(folder).name, model.variant if variant == EXPORTED else variant] = model
    rows = {}
    for name, model in tqdm(built.items(), desc="scoring", unit="model"):
        schedule = {key: getattr(model.config, key, None) for key in ("gamma", "eta")}
        _, scored = score(model, data, "test", tokenizer, order_outputs(model.config, data, name[0]))
        rows[name] = {"model": name[0], "variant": name[1], **schedule, **scored}
    if data.record is not None and data.record.rows is not None:
        record_reading(read, data.record.rows["test"], dataset=data.name, split="test")
    inputs = sample_inputs(data.splits["test"], num_inputs)
    for name, latency in take_turns(built, inputs, STOCK, rounds, clock="process_cpu").items():
        rows[name]["latency"] = latency
    return write_record(
        results_file,
        dataset=data.name,
        metric_name=data.metric_name,
        num_examples=len(data.splits["test"]),
        majority_score=majority_score(data, "test"),
        timed_lengths=[single["input_ids"].shape[1] for single in inputs],
        hardware=hardware_fingerprint(),
        rows=list(rows.values()),
    )


def table(record: dict) -> str:
    """Speed-up against stock by model and variant, with the schedule's own gain within each variant."""
    stock, *rows = record["rows"]
    by_name = {(row["model"], row["variant"]): row for row in rows}
    full = next(row["model"] for row in rows if row["gamma"])
    lines = []
    for row in rows:
        latency = row["latency"]
        # stock in another form has no schedule that could gain
        reference = by_name.get((full, row["variant"]), row)["latency"]
        schedule = f"`{Schedule.from_config(row).key}`" if row["gamma"] else "stock RoBERTa"
        scored = f"{row['score']:.3f} +- {row['standard_error']:.3f}", f"{100 * row['score'] / stock['score']:.1f}"
        gain = f"{reference['ratio'] / latency['ratio']:.2f}"
        lines.append([schedule, row["variant"], speedup(latency), gain, *scored])
    header = ["schedule", "runtime and precision", "x stock", "x by the schedule", "score", "% of stock"]
    note = (
        f"{record['dataset'].upper()}: x stock is against RoBERTa with eager attention in torch, float32, with the "
        f"weights of the first model ({record['metric_name']} {stock['score']:.3f}), in the same rounds, median and "
        f"quartiles of {stock['latency']['rounds']} rounds of processor time on {len(record['timed_lengths'])} texts "
        f"(median {int(np.median(record['timed_lengths']))} tokens), batch 1; score: {record['metric_name']} on the "
        f"test split, n = {record['num_examples']}, majority class {record['majority_score']:.3f}; "
        f"{describe_hardware(record)}. {name_command(record)}"
    )
    return format_table(header, lines, note)


main = command_of(run, __doc__, show=table)
