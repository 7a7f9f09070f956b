r"""Evaluate every schedule of a small space with one supernet, for the studies that choose among them.

Example, in the folder of a finished search (or of experiments/supernet.py):

    python experiments/every_schedule.py --supernet runs/sst2/supernet --latency_table runs/sst2/latency_table.json \
        --dataset_name sst2 --max_train_samples 10000 --max_validation_samples 2000 \
        --results_file results/benchmark_sst2.parquet --predictions runs/sst2/validation.npz

A row is a schedule: score, its standard error paired with the full model's, latency and operations relative to the
full model, mean log2 length behind every layer. --predictions keeps what every schedule predicts for every text, for
experiments/certificate.py and experiments/length_policy.py; --split unused_train predicts rows of the
training data that neither training nor validation has seen (with --max_train_samples), --num_schedules takes fewer.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import DatasetDict
from frame import command_of
from tqdm import tqdm

from classformer_hf.checkpoints import load_from_encoder
from classformer_hf.latency import LatencyTable
from classformer_hf.search import Schedule, SearchSpace
from classformer_hf.search.supernet import mean_flops, predict_schedules
from redundancy_hf.command import describe_command
from redundancy_hf.data import load_task, tokenize
from redundancy_hf.limits import load_tokenizer
from redundancy_hf.metrics import compute_score, paired_standard_error, predictions_from_logits
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


def list_schedules(
    space: SearchSpace, config: Any, lengths: list[int], number: int | None
) -> tuple[list[Schedule], np.ndarray]:
    """Give the schedules of a space, or so many that are evenly spaced in operations, and their mean operations."""
    schedules = space.enumerate()
    flops = mean_flops(config, schedules, lengths)
    if number is not None:
        order = np.argsort(flops)
        kept = order[np.unique(np.linspace(0, len(order) - 1, number).round().astype(int))]
        schedules, flops = [schedules[index] for index in kept], flops[kept]
    return schedules, flops


def run(
    supernet: str,
    latency_table: str,
    task: TaskArguments,
    gamma_options: Sequence[int] = (1, 2, 4),
    eta_options: Sequence[int] = (0, 2),
    max_reduction: float = 16,
    num_schedules: int | None = None,
    split: Literal["validation", "test", "unused_train"] = "validation",
    num_unused: int = 10000,
    results_file: str | None = None,
    predictions: str | None = None,
) -> pd.DataFrame:
    """Evaluate and write.

    Args:
        supernet: Folder of the trained supernet.
        latency_table: latency_table.json of the machine.
        task: The data.
        gamma_options: Reduction factors.
        eta_options: Numbers of leading tokens.
        max_reduction: Cap of the space.
        num_schedules: Only so many, evenly spaced in operations.
        split: Texts to predict.
        num_unused: Rows for --split unused_train.
        results_file: Parquet file for the table.
        predictions: npz file for the predictions.
    """
    tokenizer = load_tokenizer(supernet)
    longest, lengths = measure_lengths(task, tokenizer)
    data = tokenize(select_texts(task, split, num_unused), tokenizer, task.max_length)
    texts = data.splits["validation"]
    model: Any = load_from_encoder(supernet, output_names=data.output_names, needs_head=True, **data.head_config)
    num_layers = model.config.num_hidden_layers
    space = SearchSpace(num_layers, longest, gamma_options, eta_options, max_reduction=max_reduction)
    schedules, flops = list_schedules(space, model.config, lengths, num_schedules)
    latencies = LatencyTable.load(latency_table)
    with tqdm(total=len(texts), desc=f"{len(schedules)} schedules", unit="text") as bar:
        logits = predict_schedules(model, schedules, texts, tokenizer, on_batch=bar.update)
    answers = np.stack([predictions_from_logits(data.problem_type, single) for single in logits])
    references, full = np.asarray(texts["labels"]), answers[schedules.index(space.full)]
    name = data.metric_name
    full_score = compute_score(name, full, references)
    columns = {
        "key": [schedule.key for schedule in schedules],
        "gamma": [list(schedule.gamma) for schedule in schedules],
        "eta": [schedule.eta for schedule in schedules],
        "score": [compute_score(name, single, references) for single in answers],
        # of the ratio to the full model's score, here in units of the score
        "standard_error": [paired_standard_error(name, one, full, references) * full_score for one in answers],
        "latency_ratio": latencies.predict_ratios(schedules, lengths),
        "flops_ratio": flops / flops.max(),
        "mean_log2_lengths": list(space.log2_lengths(schedules, lengths)),
        "dataset": data.name,
        "max_tokens": space.max_tokens,
    }
    table = pd.DataFrame(columns)
    if predictions is not None:
        write_predictions(predictions, table, answers, references, [len(ids) for ids in texts["input_ids"]])
    if results_file is not None:
        about = {"num_examples": len(references), "num_layers": num_layers, "latency_hardware": latencies.hardware}
        write_table(results_file, table, {"command": describe_command(), "metric_name": name, **about})
    return table


def write_predictions(path: str, table: pd.DataFrame, answers: np.ndarray, references: np.ndarray, lengths: list[int]):
    """Keep what every schedule predicts for every text."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        keys=table["key"].to_numpy(str),
        predictions=answers.astype(np.float32 if answers.dtype.kind == "f" else np.int8),
        references=references,
        lengths=np.array(lengths, np.int16),
        latency_ratio=table["latency_ratio"].to_numpy(),
    )


def write_table(path: str, table: pd.DataFrame, about: dict[str, Any]):
    """Write the table, and what it is of into the file's metadata."""
    metadata = {key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata(metadata), path)


main = command_of(run, __doc__)
