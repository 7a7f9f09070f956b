"""Fine-tunings that experiments share: of variants, on tasks, with seeds; and models that take turns on a clock."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from classformer_hf.training import ClassformerTrainingArguments, fine_tune
from redundancy_hf.command import check_settings
from redundancy_hf.evaluation import predict
from redundancy_hf.metrics import compute_score, majority_score, predictions_from_logits, standard_error
from redundancy_hf.task import Task
from redundancy_hf.timing import measure_latency
from redundancy_hf.training import list_seeds, run_seed


def score(model: Any, task: Task, split: str, tokenizer: Any, outputs: Any = slice(None)) -> tuple[np.ndarray, dict]:
    """Predict a split with the outputs that are its labels; gives the predictions, and score and standard error."""
    logits = predict(model, task.splits[split], tokenizer)[:, outputs]
    predictions = predictions_from_logits(task.problem_type, logits)
    given = (task.metric_name, predictions, np.asarray(task.splits[split]["labels"]))
    return predictions, {"score": compute_score(*given), "standard_error": standard_error(*given)}


def take_turns(
    models: Mapping[Any, Any],
    inputs: Sequence[Mapping[str, torch.Tensor]],
    reference: Any,
    rounds: int,
    warmup: int = 2,
    clock: Any = None,
    what: str = "timing",
) -> dict[Any, dict[str, Any]]:
    """Time models in rounds in which each takes every input; gives the fields of their `Latency` by name."""
    with tqdm(total=rounds + warmup, desc=what, unit="round") as bar:
        found = measure_latency(models, inputs, reference, rounds, warmup, bar.update, clock)
    return {name: asdict(latency) for name, latency in found.items()}


def fine_tune_all(
    variants: Mapping[str, Callable[[Task], Any]],
    tasks: Sequence[Task],
    tokenizer: Any,
    training: ClassformerTrainingArguments,
    seeds: int,
    settings: Mapping[str, Mapping[str, Any]],
) -> Iterator[tuple[str, Path, Task, dict[str, Any]]]:
    """Fine-tune every variant on every task with every seed and score it on the test split, or read what is finished.

    Args:
        variants: By name, what gives the model to start from; what is random in it comes from the seed.
        tasks: Tokenised.
        tokenizer: Pads the batches.
        training: The recipe, its first seed, and the folder for everything.
        seeds: Number of them.
        settings: Of every variant, what beside data and recipe must be the same for its folders to go on.

    Yields:
        Name, folder (with `predictions.npy` of the test split), task, and scores with the standard error over examples.
    """
    numbers = list_seeds(training.seed, seeds)
    jobs = [(task, seed, name) for task in tasks for seed in numbers for name in variants]
    for task, seed, name in tqdm(jobs, desc="fine-tuning", unit="model", disable=training.disable_tqdm):

        def train(own: Any, folder: Path, task=task, name=name) -> dict[str, Any]:
            model = variants[name](task)
            tuned = fine_tune(model, task, tokenizer, own, resume=True)
            predictions, tested = score(model, task, "test", tokenizer)
            folder.mkdir(parents=True, exist_ok=True)
            np.save(folder / "predictions.npy", predictions)
            row = {"dataset": task.name, "metric_name": task.metric_name, "seed": own.seed}
            row |= {"validation_score": tuned.score, **{f"test_{key}": value for key, value in tested.items()}}
            return row | {"seconds": round(tuned.seconds, 1)}

        folder = Path(str(training.output_dir)) / task.name / name / f"seed-{seed}"
        wanted = {**settings[name], "dataset": task.fingerprint, "recipe": training.describe_recipe()}
        check_settings(folder / "settings.json", wanted, is_writer=True)
        row = run_seed(train, training, folder, seed, "row.json")
        print(f"{task.name} {name} seed {seed}: test {task.metric_name} {row['test_score']:.4f}", flush=True)
        yield name, folder, task, row


def describe_task(task: Task) -> dict[str, Any]:
    return {
        "num_examples": {name: len(split) for name, split in task.splits.items()},
        "majority_score": majority_score(task, "test"),
        "metric_name": task.metric_name,
    }
