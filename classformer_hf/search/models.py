"""The trained models of a search: where they are, and what their validation says."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import extract_model_from_parallel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from redundancy_hf.evaluation import predict
from redundancy_hf.folders import save_folder
from redundancy_hf.metrics import compute_score, paired_standard_error, predictions_from_logits, standard_error
from redundancy_hf.task import Task
from redundancy_hf.timing import Target

from ..training import FineTuned
from .executors import on_main_process
from .space import Schedule

PREDICTIONS = "validation_predictions.npy"


class TrainedModels:
    """Folders of trained models, one per schedule, each with its predictions of the validation split.

    Args:
        root: Where the folders are.
        task: Tokenised task.
        tokenizer: Is saved with every model, and pads the batches.
        full: The unreduced schedule, whose predictions the others are paired with.
        target: Its number format is the one that scores are of.
    """

    def __init__(self, root: Path, task: Task, tokenizer: PreTrainedTokenizerBase, full: Schedule, target: Target):
        self.root, self.task, self.tokenizer, self.full, self.target = root, task, tokenizer, full, target

    def folder(self, schedule: Schedule) -> Path:
        return self.root / schedule.key

    def keep(self, schedule: Schedule, model: PreTrainedModel, result: FineTuned) -> dict[str, Any]:
        """Save a model as that of a schedule, in the main process, and put its validation into plain data."""
        return on_main_process(lambda: self._keep(schedule, model, result))

    def _keep(self, schedule: Schedule, model: PreTrainedModel, result: FineTuned) -> dict[str, Any]:
        # mixed precision leaves its wrapper on the model, which must not be saved with it
        trained: Any = extract_model_from_parallel(model, keep_fp32_wrapper=False)
        predictions = result.predictions
        if self.target.dtype != "float32":
            split = self.task.splits["validation"]
            logits = predict(trained.to(self.target.torch_dtype), split, self.tokenizer)
            predictions = predictions_from_logits(self.task.problem_type, logits)
        save_folder(trained, self.folder(schedule), self.tokenizer, self.task.record)
        np.save(self.folder(schedule) / PREDICTIONS, predictions)
        full = self.folder(self.full) / PREDICTIONS
        return {
            **describe_validation(self.task, predictions, np.load(full) if full.exists() else None),
            "score_as_is": result.score_as_is,
            "num_epochs": result.num_epochs,
            "train_seconds": round(result.seconds, 1),
        }

    def adopt(self, schedule: Schedule, model: Path):
        """Copy the model that an earlier study has trained for a schedule."""

        def copy():
            shutil.copytree(model, self.folder(schedule), dirs_exist_ok=True)
            if self.task.record is not None:
                self.task.record.write(self.folder(schedule))

        if not self.folder(schedule).exists():
            on_main_process(copy)


def describe_validation(task: Task, predictions: np.ndarray, full: np.ndarray | None = None) -> dict[str, Any]:
    """Put predictions of the validation split into plain data.

    Args:
        task: Has the labels.
        predictions: (N,) or (N, K).
        full: Those of the full model; without them `paired_standard_error`, that of the share of its score, is `None`.
    """
    name, references = task.metric_name, np.asarray(task.splits["validation"]["labels"])
    return {
        "score": compute_score(name, predictions, references),
        "standard_error": standard_error(name, predictions, references),
        "paired_standard_error": None if full is None else paired_standard_error(name, predictions, full, references),
        "metric_name": name,
        "num_examples": len(references),
    }
