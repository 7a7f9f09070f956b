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

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from frame import command_of, describe_runs, format_table, speedup
from torch import nn
from tuning import take_turns

from classformer_hf import ClassformerForSequenceClassification
from classformer_hf.architectures import build_stock
from classformer_hf.search import Schedule
from redundancy_hf.command import write_record
from redundancy_hf.data import load_task, tokenize
from redundancy_hf.folders import is_export
from redundancy_hf.limits import load_tokenizer
from redundancy_hf.readings import choose_arguments, open_model
from redundancy_hf.runtimes import ExportedClassifier
from redundancy_hf.task import TaskArguments, TaskFlags
from redundancy_hf.timing import hardware_fingerprint

BATCHINGS = ("padded", "unsorted", "sorted", "bucketed")


class AllBatches(nn.Module):
    """A model that runs through prepared batches when it is called."""

    def __init__(self, model: nn.Module, batches: list[dict[str, torch.Tensor]]):
        super().__init__()
        self.model, self.batches = model, batches

    def forward(self):
        for batch in self.batches:
            self.model(**batch)


def draw_texts(split: Any, number: int) -> list[list[int]]:
    return [split[int(row)]["input_ids"] for row in np.random.default_rng(0).permutation(len(split))[:number]]


def make_batches(texts: list[list[int]], batching: str, size: int, pad_token_id: int) -> list[dict[str, torch.Tensor]]:
    """Cut texts, as token ids, into padded inputs of a model, in one of the `BATCHINGS`; all texts, each once."""
    longest = max(map(len, texts))

    def round_up(length: int) -> int:
        return min(1 << (length - 1).bit_length(), longest)

    if batching in ("sorted", "bucketed"):
        texts = sorted(texts, key=len)
    batches = []
    for _, group in itertools.groupby(texts, lambda text: round_up(len(text)) if batching == "bucketed" else 0):
        members = list(group)
        for rows in (members[start : start + size] for start in range(0, len(members), size)):
            width = {"padded": longest, "bucketed": round_up(len(rows[-1]))}.get(batching, max(map(len, rows)))
            ids = torch.tensor([[*row, *[pad_token_id] * (width - len(row))] for row in rows])
            mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
            batches.append({"input_ids": ids, "attention_mask": mask})
    return batches


def load_models(folders: list[str], device: str) -> dict[str, Any]:
    """Load Classformers, or open exports, by the names of their folders, and the first one as stock RoBERTa.

    Raises:
        ValueError: The first folder has no weights, an export is not to run on the CPU, or two have one name.
    """
    if is_export(Path(folders[0])):
        raise ValueError(f"the first of --models is the reference and needs weights, {folders[0]} is an export.")
    found: dict[str, Any] = {}
    for folder in map(Path, folders):
        if not is_export(folder):
            found[folder.name] = ClassformerForSequenceClassification.from_pretrained(folder).eval()
        elif device == "cpu":
            found[folder.name] = ExportedClassifier.from_pretrained(folder, num_threads=1)
        else:
            raise ValueError(f"exports run on the CPU, got --device {device}.")
    models = {"stock": build_stock(next(iter(found.values()))), **found}
    if len(models) <= len(folders):
        raise ValueError(f"--models need folders of different names, got {', '.join(folders)}.")
    return {name: model.to(device) for name, model in models.items()}


def run(
    models: list[str],
    task: TaskFlags,
    batch_size: int = 32,
    num_inputs: int = 512,
    rounds: int = 8,
    device: str = "cpu",
    results_file: str | None = None,
) -> dict[str, Any] | None:
    """Time all models on all batches, side by side.

    Args:
        models: Folders of Classformers, the first one without reductions, or of exports.
        task: The data, where they are not those of the first folder.
        batch_size: Texts per batch.
        num_inputs: Texts of the test split, drawn at random.
        rounds: Rounds of interleaved timing.
        device: Where the models run.
        results_file: JSON file for the table.
    """
    torch.set_num_threads(1)
    for name, value in (("batch_size", batch_size), ("num_inputs", num_inputs), ("rounds", rounds)):
        if value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}.")
    read = [open_model(folder, Path(folder)) for folder in models]
    arguments = choose_arguments(TaskArguments, read, vars(task))
    tokenizer = load_tokenizer(models[0])
    texts = draw_texts(tokenize(load_task(arguments), tokenizer, arguments.max_length).splits["test"], num_inputs)
    loaded = load_models(models, device)
    batches = {
        batching: [
            {key: value.to(device) for key, value in batch.items()}
            for batch in make_batches(texts, batching, batch_size, tokenizer.pad_token_id or 0)
        ]
        for batching in BATCHINGS
    }
    runs = {(name, way): AllBatches(model, some) for name, model in loaded.items() for way, some in batches.items()}
    # other runtimes work in threads of their own
    has_exports = any(isinstance(model, ExportedClassifier) for model in loaded.values())
    clock = "process_cpu" if has_exports else None
    rows, tokens = [], sum(map(len, texts))
    for (name, batching), latency in take_turns(runs, [{}], ("stock", "unsorted"), rounds, 1, clock).items():
        padding = 1 - tokens / sum(batch["input_ids"].numel() for batch in batches[batching])
        schedule = {key: getattr(loaded[name].config, key, None) for key in ("gamma", "eta")}
        about = {"batching": batching, "padding": padding, "num_batches": len(batches[batching])}
        rows.append({"model": name, **schedule, **about, **latency})
    return write_record(
        results_file,
        dataset=Path(str(arguments.dataset_name)).name,
        batch_size=batch_size,
        num_texts=len(texts),
        mean_tokens=tokens / len(texts),
        hardware=hardware_fingerprint(torch.device(device)),
        rows=rows,
    )


def table(records: dict) -> str:
    """Texts per second of models and ways to batch, relative to stock on unsorted batches."""
    rows = []
    for record in records.values():
        dataset, batchings = record["dataset"].upper(), list(dict.fromkeys(row["batching"] for row in record["rows"]))
        for model in dict.fromkeys(row["model"] for row in record["rows"]):
            own = [row for row in record["rows"] if row["model"] == model]
            name = f"`{Schedule.from_config(own[0]).key}`" if own[0]["gamma"] else "stock RoBERTa"
            rows.append([dataset, name, *map(speedup, own)])
        rows.append([dataset, "padding, %", *(f"{100 * row['padding']:.0f}" for row in record["rows"][: len(own)])])
    texts = "; ".join(
        f"{r['dataset'].upper()} {r['num_texts']} texts of {r['mean_tokens']:.0f} tokens in the mean, in batches of "
        f"{r['batch_size']}, {r['rows'][0]['rounds']} rounds"
        for r in records.values()
    )
    note = (
        f"Texts per second relative to stock RoBERTa on unsorted batches, median and quartiles of rounds; {texts}. "
        f"{describe_runs(records)}"
    )
    return format_table(["dataset", "schedule", *batchings], rows, note)


main = command_of(run, __doc__, show=lambda record: table({"": record}))
