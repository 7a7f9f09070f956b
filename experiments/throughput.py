r"""Compare models and ways to batch by how many texts they classify in a second.

    python experiments/throughput.py --models runs/imdb/full runs/imdb/best \
        --dataset_name stanfordnlp/imdb --results_file results/throughput_imdb.json

The first folder is the model without reductions; as stock RoBERTa, on unsorted batches that are padded to their longest
text, it is the reference. Four ways to batch the same texts:

- padded: unsorted, every batch padded to the longest of all texts
- unsorted: every batch padded to its own longest text
- sorted: by length first, then as above
- bucketed: by the power of two that a text fits in, padded to it, so that there are few shapes
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from classformer_hf import ClassformerForSequenceClassification
from classformer_hf.architectures import build_stock
from classformer_hf.throughput import BATCHINGS, AllBatches, make_batches
from redundancy_hf.command import parse_arguments, run_command, write_record
from redundancy_hf.data import load_task, tokenize
from redundancy_hf.folders import is_export
from redundancy_hf.limits import load_tokenizer
from redundancy_hf.readings import choose_arguments, open_model
from redundancy_hf.record import make_flags
from redundancy_hf.runtimes import ExportedClassifier
from redundancy_hf.task import TaskArguments
from redundancy_hf.timing import hardware_fingerprint, measure_latency

REFERENCE = "stock unsorted"


@dataclass
class ThroughputArguments:
    models: list[str] = field(
        metadata={"help": "Folders of Classformers, the first one without reductions, or of exports."}
    )
    batch_size: int = field(default=32, metadata={"help": "Texts per batch."})
    num_texts: int = field(default=512, metadata={"help": "Texts of the test split, drawn at random."})
    rounds: int = field(default=8, metadata={"help": "Rounds of interleaved timing."})
    device: str = field(default="cpu", metadata={"help": "Where the models run."})
    results_file: str | None = field(default=None, metadata={"help": "JSON file for the table."})


def load_model(folder: str) -> Any:
    """Load a Classformer, or open an export."""
    if is_export(Path(folder)):
        return ExportedClassifier.from_pretrained(folder, num_threads=1)
    return ClassformerForSequenceClassification.from_pretrained(folder).eval()


def main():
    arguments, flags = parse_arguments((ThroughputArguments, make_flags(TaskArguments)), __doc__)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    for name in ("batch_size", "num_texts", "rounds"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(arguments, name)}.")
    read = [open_model(folder, Path(folder)) for folder in arguments.models]
    task_arguments = choose_arguments(TaskArguments, read, vars(flags))
    tokenizer = load_tokenizer(arguments.models[0])
    split = tokenize(load_task(task_arguments), tokenizer, task_arguments.max_length).splits["test"]
    drawn = np.random.default_rng(0).permutation(len(split))[: arguments.num_texts]
    texts = [split[int(row)]["input_ids"] for row in drawn]
    loaded = [load_model(folder) for folder in arguments.models]
    is_exported = [isinstance(model, ExportedClassifier) for model in loaded]
    if is_exported[0]:
        raise ValueError(
            f"the first of --models is the reference and needs weights, {arguments.models[0]} is an export."
        )
    if any(is_exported) and arguments.device != "cpu":
        raise ValueError(f"exports run on the CPU, got --device {arguments.device}.")
    models: dict[str, Any] = {"stock": build_stock(loaded[0])}
    models |= {Path(folder).name: model for folder, model in zip(arguments.models, loaded, strict=True)}
    if len(models) <= len(loaded):
        raise ValueError(f"--models need folders of different names, got {', '.join(arguments.models)}.")
    batches = {name: make_batches(texts, name, arguments.batch_size, tokenizer.pad_token_id or 0) for name in BATCHINGS}
    device = torch.device(arguments.device)
    batches = {
        name: [{key: value.to(device) for key, value in batch.items()} for batch in some]
        for name, some in batches.items()
    }
    runs = {
        f"{name} {batching}": AllBatches(model.to(device), batches[batching])
        for name, model in models.items()
        for batching in BATCHINGS
    }
    with tqdm(total=arguments.rounds + 1, desc="timing", unit="round") as bar:
        # other runtimes work in threads of their own
        clock = "process_cpu" if any(is_exported) else None
        found = measure_latency(runs, [{}], REFERENCE, arguments.rounds, 1, bar.update, clock)
    tokens = sum(map(len, texts))
    rows = []
    for name in models:
        for batching in BATCHINGS:
            latency = found[f"{name} {batching}"]
            padded = sum(batch["input_ids"].numel() for batch in batches[batching])
            rows.append(
                {
                    "model": name,
                    "gamma": getattr(models[name].config, "gamma", None),
                    "eta": getattr(models[name].config, "eta", None),
                    "batching": batching,
                    "padding": 1 - tokens / padded,
                    "num_batches": len(batches[batching]),
                    **asdict(latency),
                }
            )
            print(
                f"{name:24} {batching:9} {1 / latency.ratio:.2f}x [{1 / latency.ratio_high:.2f} "
                f"{1 / latency.ratio_low:.2f}], {100 * rows[-1]['padding']:.0f} % padding"
            )
    write_record(
        arguments.results_file,
        dataset=Path(str(task_arguments.dataset_name)).name,
        batch_size=arguments.batch_size,
        num_texts=len(texts),
        mean_tokens=tokens / len(texts),
        hardware=hardware_fingerprint(device),
        rows=rows,
    )


if __name__ == "__main__":
    run_command(main)
