r"""Predict texts by every schedule of a small space with one supernet, for the studies that choose among them.

Example, in the folder of a finished search (or of experiments/supernet.py):

    python experiments/every_schedule.py --supernet runs/sst2/supernet --latency_table runs/sst2/latency_table.json \
        --dataset_name sst2 --max_train_samples 10000 --max_validation_samples 2000 \
        --predictions runs/sst2/validation.npz

What every schedule predicts for every text, and its latency relative to the full model, is for
experiments/certificate.py and experiments/length_policy.py. --split unused_train predicts rows of the training data
that neither training nor validation has seen (with --max_train_samples), --num_schedules takes fewer schedules.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import DatasetDict
from frame import command_of
from tqdm import tqdm

from classformer_hf.checkpoints import load_from_encoder
from classformer_hf.latency import LatencyTable
from classformer_hf.search import Schedule, SearchSpace
from classformer_hf.search.supernet import mean_flops, predict_schedules
from redundancy_hf.data import load_task, tokenize
from redundancy_hf.limits import load_tokenizer
from redundancy_hf.metrics import predictions_from_logits
from redundancy_hf.task import Task, TaskArguments
from redundancy_hf.timing import sample_inputs


def select_texts(arguments: TaskArguments, split: str, num_unused: int) -> Task:
    """Load the task with the wanted texts as its validation split."""
    task = load_task(arguments)
    if split == "unused_train":
        if arguments.max_train_samples is None:
            raise ValueError("--split unused_train needs --max_train_samples: all rows were used.")
        everything = load_task(replace(arguments, max_train_samples=None)).splits["train"]
        # the draw of load_task goes on where it stopped
        rows = np.random.default_rng(arguments.split_seed).permutation(len(everything))[arguments.max_train_samples :]
        texts = everything.select(np.sort(rows[:num_unused]))
    else:
        texts = task.splits[split]
    return replace(task, splits=DatasetDict({"train": task.splits["train"], "validation": texts}))


def measure_lengths(arguments: TaskArguments, tokenizer: Any) -> tuple[int, list[int]]:
    """Give the longest input and lengths to time at, in tokens, of the whole task, whatever split is predicted."""
    whole = tokenize(load_task(arguments).without_test(), tokenizer, arguments.max_length)
    longest = max(len(ids) for part in whole.splits.values() for ids in part["input_ids"])
    return longest, [row["input_ids"].shape[1] for row in sample_inputs(whole.splits["validation"])]


def list_schedules(space: SearchSpace, config: Any, lengths: list[int], number: int | None) -> list[Schedule]:
    """Give the schedules of a space, or so many that are evenly spaced in operations."""
    schedules = space.enumerate()
    if number is None:
        return schedules
    order = np.argsort(mean_flops(config, schedules, lengths))
    return [schedules[order[place]] for place in np.unique(np.linspace(0, len(order) - 1, number).round().astype(int))]


def run(
    supernet: str,
    latency_table: str,
    task: TaskArguments,
    predictions: str,
    gamma_options: Sequence[int] = (1, 2, 4),
    eta_options: Sequence[int] = (0, 2),
    max_reduction: float = 16,
    num_schedules: int | None = None,
    split: Literal["validation", "test", "unused_train"] = "validation",
    num_unused: int = 10000,
):
    """Predict and write.

    Args:
        supernet: Folder of the trained supernet.
        latency_table: latency_table.json of the machine.
        task: The data.
        predictions: npz file to write.
        gamma_options: Reduction factors.
        eta_options: Numbers of leading tokens.
        max_reduction: Cap of the space.
        num_schedules: Only so many, evenly spaced in operations.
        split: Texts to predict.
        num_unused: Rows for --split unused_train.
    """
    tokenizer = load_tokenizer(supernet)
    longest, lengths = measure_lengths(task, tokenizer)
    data = tokenize(select_texts(task, split, num_unused), tokenizer, task.max_length)
    texts = data.splits["validation"]
    model: Any = load_from_encoder(supernet, output_names=data.output_names, needs_head=True, **data.head_config)
    space = SearchSpace(
        model.config.num_hidden_layers, longest, gamma_options, eta_options, max_reduction=max_reduction
    )
    schedules = list_schedules(space, model.config, lengths, num_schedules)
    with tqdm(total=len(texts), desc=f"{len(schedules)} schedules", unit="text") as bar:
        logits = predict_schedules(model, schedules, texts, tokenizer, on_batch=bar.update)
    answers = np.stack([predictions_from_logits(data.problem_type, single) for single in logits])
    Path(predictions).parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        predictions,
        keys=np.array([schedule.key for schedule in schedules]),
        predictions=answers.astype(np.float32 if answers.dtype.kind == "f" else np.int8),
        references=np.asarray(texts["labels"]),
        lengths=np.array([len(ids) for ids in texts["input_ids"]], np.int16),
        latency_ratio=LatencyTable.load(latency_table).predict_ratios(schedules, lengths),
    )
    print(f"{predictions}: {len(schedules)} schedules, {len(texts)} texts")


main = command_of(run, __doc__)
