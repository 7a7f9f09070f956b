r"""Evaluate every schedule of a small space with one supernet: a table that samplers can race on.

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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from classformer_hf.checkpoints import load_from_encoder
from classformer_hf.latency import LatencyTable
from classformer_hf.search import SearchSpace
from classformer_hf.search.supernet import mean_flops, predict_schedules
from redundancy_hf.command import describe_command, parse_arguments, run_command
from redundancy_hf.data import load_task, tokenize
from redundancy_hf.limits import load_tokenizer
from redundancy_hf.metrics import compute_score, paired_standard_error, predictions_from_logits
from redundancy_hf.task import Task, TaskArguments
from redundancy_hf.timing import sample_inputs


@dataclass
class BenchmarkArguments:
    supernet: str = field(metadata={"help": "Folder of the trained supernet."})
    latency_table: str = field(metadata={"help": "latency_table.json of the machine."})
    gamma_options: list[int] = field(default_factory=lambda: [1, 2, 4], metadata={"help": "Reduction factors."})
    eta_options: list[int] = field(default_factory=lambda: [0, 2], metadata={"help": "Numbers of leading tokens."})
    max_reduction: float = field(default=16, metadata={"help": "Cap of the space."})
    num_schedules: int | None = field(default=None, metadata={"help": "Only so many, evenly spaced in operations."})
    split: str = field(
        default="validation",
        metadata={"help": "Texts to predict.", "choices": ["validation", "test", "unused_train"]},
    )
    num_unused: int = field(default=10000, metadata={"help": "Rows for --split unused_train."})
    results_file: str | None = field(default=None, metadata={"help": "Parquet file for the table."})
    predictions: str | None = field(default=None, metadata={"help": "npz file for the predictions."})


def select_split(benchmark: BenchmarkArguments, arguments: TaskArguments) -> Task:
    """Load the task with the wanted texts as its validation split."""
    task = load_task(arguments)
    if benchmark.split == "unused_train":
        if arguments.max_train_samples is None:
            raise ValueError("--split unused_train needs --max_train_samples: all rows were used.")
        everything = load_task(replace(arguments, max_train_samples=None)).splits["train"]
        # the draw of load_task goes on where it stopped
        rows = np.random.default_rng(arguments.split_seed).permutation(len(everything))[arguments.max_train_samples :]
        texts: Dataset = everything.select(np.sort(rows[: benchmark.num_unused]))
    else:
        texts = task.splits[benchmark.split]
    return replace(task, splits=DatasetDict({"train": task.splits["train"], "validation": texts}))


def main():
    benchmark, arguments = parse_arguments((BenchmarkArguments, TaskArguments), __doc__)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    tokenizer = load_tokenizer(benchmark.supernet)
    # the space is that of the whole task, whatever split is predicted
    whole = tokenize(load_task(arguments).without_test(), tokenizer, arguments.max_length)
    longest = max(len(ids) for split in whole.splits.values() for ids in split["input_ids"])
    lengths = [row["input_ids"].shape[1] for row in sample_inputs(whole.splits["validation"])]
    task = tokenize(select_split(benchmark, arguments), tokenizer, arguments.max_length)
    split = task.splits["validation"]
    model: Any = load_from_encoder(
        benchmark.supernet, output_names=task.output_names, needs_head=True, **task.head_config
    )
    space = SearchSpace(
        model.config.num_hidden_layers,
        longest,
        benchmark.gamma_options,
        benchmark.eta_options,
        max_reduction=benchmark.max_reduction,
    )
    schedules = space.enumerate()
    flops = mean_flops(model.config, schedules, lengths)
    if benchmark.num_schedules is not None:
        order = np.argsort(flops)
        kept = np.unique(np.linspace(0, len(order) - 1, benchmark.num_schedules).round().astype(int))
        schedules, flops = [schedules[i] for i in order[kept]], flops[order[kept]]
    table = LatencyTable.load(benchmark.latency_table)
    ratios = table.predict_ratios(schedules, lengths)
    with tqdm(total=len(split), desc=f"{len(schedules)} schedules", unit="text") as bar:
        logits = predict_schedules(model, schedules, split, tokenizer, on_batch=bar.update)
    predictions = np.stack([predictions_from_logits(task.problem_type, single) for single in logits])
    references, full = np.asarray(split["labels"]), schedules.index(space.full)
    if benchmark.predictions is not None:
        Path(benchmark.predictions).parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            benchmark.predictions,
            keys=np.array([schedule.key for schedule in schedules]),
            predictions=predictions.astype(np.float32 if predictions.dtype.kind == "f" else np.int8),
            references=references,
            lengths=np.array([len(ids) for ids in split["input_ids"]], np.int16),
            latency_ratio=ratios,
        )
    if benchmark.results_file is not None:
        name = task.metric_name
        columns = {
            "key": [schedule.key for schedule in schedules],
            "gamma": [list(schedule.gamma) for schedule in schedules],
            "eta": [schedule.eta for schedule in schedules],
            "score": [compute_score(name, single, references) for single in predictions],
            # of the ratio to the full model's score, here in units of the score
            "standard_error": [
                paired_standard_error(name, single, predictions[full], references)
                * compute_score(name, predictions[full], references)
                for single in predictions
            ],
            "latency_ratio": ratios,
            "flops_ratio": flops / flops.max(),
            "mean_log2_lengths": [list(row) for row in space.log2_lengths(schedules, lengths)],
            "dataset": [task.name] * len(schedules),
            "max_tokens": [space.max_tokens] * len(schedules),
        }
        about = {
            "command": describe_command(),
            "metric_name": name,
            "num_examples": len(references),
            "num_layers": space.num_layers,
            "latency_hardware": table.hardware,
        }
        metadata = {key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()}
        Path(benchmark.results_file).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns).replace_schema_metadata(metadata), benchmark.results_file)
        print(f"{benchmark.results_file}: {len(schedules)} schedules, full model {columns['score'][full]:.4f}")


if __name__ == "__main__":
    run_command(main)
