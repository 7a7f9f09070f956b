r"""Compare schedules within and across runtimes and precisions, with their accuracy.

    python experiments/runtimes.py --models runs/sst2/full runs/sst2/best \
        --output_dir runs/runtimes-sst2 --results_file results/runtimes_sst2.json

The first folder is the model without reductions. All models in all variants are timed together, one text at a time, on
texts of the test split, which all are scored on too (a reading of it, which is written down); the reference is the
first folder as stock RoBERTa with eager attention. Time is the processor's for the whole process, because some runtimes
work in threads of their own. Exported graphs stay in OUTPUT_DIR and are used again.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from classformer_hf import ClassformerForSequenceClassification
from classformer_hf.architectures import build_stock
from classformer_hf.export import export_once
from redundancy_hf.command import parse_arguments, run_command, write_record
from redundancy_hf.data import load_task, tokenize
from redundancy_hf.evaluation import order_outputs, predict
from redundancy_hf.folders import is_export
from redundancy_hf.limits import load_tokenizer
from redundancy_hf.metrics import compute_score, majority_score, predictions_from_logits, standard_error
from redundancy_hf.readings import choose_arguments, open_model, record_reading
from redundancy_hf.record import make_flags
from redundancy_hf.runtimes import ExportedClassifier, check_runtime
from redundancy_hf.task import TaskArguments
from redundancy_hf.timing import hardware_fingerprint, measure_latency, sample_inputs

STOCK = "stock eager float32"
EXPORTED = "as exported"
VARIANTS = ("torch", "torch-compile", "torch-bf16", "onnx", "onnx-int8", "openvino")


@dataclass
class RuntimeArguments:
    models: list[str] = field(
        metadata={
            "help": "Folders of trained Classformers, the first one without reductions; or of exports, which are "
            "compared as they are."
        }
    )
    output_dir: str = field(metadata={"help": "Folder for the exported graphs."})
    variants: list[str] = field(
        default_factory=lambda: [variant for variant in VARIANTS if variant != "torch-bf16"],
        metadata={"help": f"What to compare: {', '.join(VARIANTS)}."},
    )
    num_inputs: int = field(default=48, metadata={"help": "Texts that are timed, at quantiles of the length."})
    rounds: int = field(default=20, metadata={"help": "Rounds of interleaved timing."})
    results_file: str | None = field(default=None, metadata={"help": "JSON file for the table."})


class Compiled(nn.Module):
    """A model compiled for any length; the original stays as it is."""

    def __init__(self, model: Any):
        super().__init__()
        self.config, self.model = model.config, model
        self.run = torch.compile(model, dynamic=True)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def forward(self, **inputs):
        return self.run(**inputs)


def build(folder: str, variant: str, output: Path) -> Any:
    """Load a folder in a variant, or open an export."""
    if is_export(Path(folder)):
        return ExportedClassifier.from_pretrained(folder, num_threads=1)
    runtime, _, precision = variant.partition("-")
    if runtime != "torch":
        return export_once(folder, runtime, precision == "int8", output / variant)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = ClassformerForSequenceClassification.from_pretrained(folder, dtype=dtype).eval()
    return Compiled(model) if precision == "compile" else model


def list_jobs(models: list[str], variants: list[str]) -> list[tuple[str, str]]:
    """Give folders and variants; an export is of one.

    Raises:
        ValueError: The first folder has no weights, or two have one name.
    """
    if is_export(Path(models[0])):
        raise ValueError(f"the first of --models is the reference and needs weights, got the export {models[0]}.")
    names = [Path(folder).name for folder in models]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"--models need different folder names, got {twice} twice.")
    return [(folder, variant) for folder in models for variant in ([EXPORTED] if is_export(Path(folder)) else variants)]


def check_variants(variants: list[str]):
    for variant in variants:
        if variant not in VARIANTS:
            raise ValueError(f"--variants knows {', '.join(VARIANTS)}, got {variant}.")
        runtime, _, precision = variant.partition("-")
        check_runtime(runtime, precision == "int8")


def main():
    arguments, flags = parse_arguments((RuntimeArguments, make_flags(TaskArguments)), __doc__)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    check_variants(arguments.variants)
    jobs = list_jobs(arguments.models, arguments.variants)
    read = [open_model(folder, Path(folder)) for folder in arguments.models]
    task_arguments = choose_arguments(TaskArguments, read, vars(flags))
    tokenizer = load_tokenizer(arguments.models[0])
    task = tokenize(load_task(task_arguments), tokenizer, task_arguments.max_length)
    split = task.splits["test"]
    full = ClassformerForSequenceClassification.from_pretrained(arguments.models[0])
    models: dict[str, Any] = {STOCK: build_stock(full, attention="eager"), "stock sdpa": build_stock(full)}
    about: dict[str, tuple[str, str]] = {STOCK: ("stock", "eager"), "stock sdpa": ("stock", "sdpa")}
    for folder, variant in tqdm(jobs, desc="loading and exporting", unit="model"):
        name = f"{Path(folder).name} {variant}"
        models[name] = build(folder, variant, Path(arguments.output_dir) / Path(folder).name)
        about[name] = (Path(folder).name, models[name].variant if variant == EXPORTED else variant)
    rows = []
    references = np.asarray(split["labels"])
    for name, model in tqdm(models.items(), desc="scoring", unit="model"):
        model_name, variant = about[name]
        config = model.config
        row: dict[str, Any] = {"model": model_name, "variant": variant}
        row |= {"gamma": getattr(config, "gamma", None), "eta": getattr(config, "eta", None)}
        logits = predict(model, split, tokenizer)[:, order_outputs(config, task, name)]
        predictions = predictions_from_logits(task.problem_type, logits)
        row["score"] = compute_score(task.metric_name, predictions, references)
        row["standard_error"] = standard_error(task.metric_name, predictions, references)
        rows.append(row)
    if task.record is not None and task.record.rows is not None:
        record_reading(read, task.record.rows["test"], dataset=task.name, split="test")
    inputs = sample_inputs(split, arguments.num_inputs)
    with tqdm(total=arguments.rounds + 2, desc="timing", unit="round") as bar:
        found = measure_latency(models, inputs, STOCK, arguments.rounds, 2, bar.update, clock="process_cpu")
    for row, name in zip(rows, models, strict=True):
        row["latency"] = asdict(found[name])
        print(f"{name:40} {1 / row['latency']['ratio']:.2f}x  {row['score']:.4f}")
    write_record(
        arguments.results_file,
        dataset=task.name,
        metric_name=task.metric_name,
        num_examples=len(split),
        majority_score=majority_score(task, "test"),
        timed_lengths=[single["input_ids"].shape[1] for single in inputs],
        hardware=hardware_fingerprint(),
        rows=rows,
    )


if __name__ == "__main__":
    run_command(main)
