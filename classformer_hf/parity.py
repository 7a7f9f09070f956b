"""What an export changes: logits, labels and score on the texts of a task, and answers by the texts beside them."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel

from redundancy_hf.evaluation import predict
from redundancy_hf.folders import EXPORT_INDEX
from redundancy_hf.labels import REGRESSION, SINGLE_LABEL
from redundancy_hf.metrics import compute_score, predictions_from_logits
from redundancy_hf.runtimes import ExportedClassifier
from redundancy_hf.task import Task

# of a logit in float32, or of the largest one where that is above 1
TOLERANCE = 1e-4
# of the check, odd ones among them
LENGTHS = (2, 7, 16, 33, 128, 512)
# of what is compared where there are no texts
NUM_RANDOM, LONGEST_RANDOM = 64, 128
BATCH_SIZE = 32


@dataclass(frozen=True)
class ExportReport:
    """A model and its export on the same texts.

    Attributes:
        texts: What they are.
        num_texts: Their number.
        difference: The largest of a logit.
        changed_labels: Texts with another label; `None` of a regression.
        metric_name: Of the scores; `None` without labels.
        score_before: Of the model.
        score_after: Of the export.
        batch_size: Texts of a batch of the export, in any order; otherwise it has read every text alone.
        batch_difference: The largest of a logit between alone and in a batch.
        batch_changed_labels: Texts whose label depends on that; `None` of a regression.
    """

    texts: str
    num_texts: int
    difference: float
    changed_labels: int | None
    metric_name: str | None
    score_before: float | None
    score_after: float | None
    batch_size: int
    batch_difference: float
    batch_changed_labels: int | None

    @property
    def verdict(self) -> str:
        """Say what changes by the export, in one sentence."""
        score = ""
        if self.metric_name is not None:
            score = f", {self.metric_name} {self.score_before:.4f} before and {self.score_after:.4f} after"
        return f"{self._count(self.changed_labels)}{score}, largest difference of a logit {self.difference:.1e}"

    @property
    def batch_verdict(self) -> str:
        """Say what changes by the texts beside a text, in one sentence."""
        return (
            f"{self._count(self.batch_changed_labels)} in batches of {self.batch_size}, largest difference of a logit "
            f"{self.batch_difference:.1e}"
        )

    @property
    def content(self) -> dict[str, Any]:
        """Give all of it for a record, with its sentences."""
        return {"verdict": self.verdict, "batch_verdict": self.batch_verdict, **asdict(self)}

    def _count(self, changed: int | None) -> str:
        texts = f"{self.num_texts} {self.texts}"
        return texts if changed is None else f"{changed} of {texts} {'gets' if changed == 1 else 'get'} another label"


def write_report(report: ExportReport, output: Path):
    """Keep a report in the index of an export, from where a model card tells it."""
    index = json.loads((output / EXPORT_INDEX).read_text())
    index["report"] = report.content
    (output / EXPORT_INDEX).write_text(json.dumps(index, indent=2) + "\n")


@torch.no_grad()
def largest_difference(model: PreTrainedModel, exported: ExportedClassifier) -> float:
    """Compare the logits of a model and its export on random texts, single and in padded batches.

    Returns:
        The largest difference of a logit, as a share of the largest logit where that is above 1.
    """
    config: Any = model.config
    generator = torch.Generator().manual_seed(0)
    largest, size = 0.0, 1.0
    for length in (one for one in LENGTHS if one <= int(exported.limits[-1])):
        # alone, and as the longest of a batch
        for batch in ([length], [length, max(1, length // 2), 2]):
            ids = torch.randint(config.vocab_size // 2, config.vocab_size, (len(batch), length), generator=generator)
            mask = (torch.arange(length) < torch.tensor(batch)[:, None]).long()
            inputs = {"input_ids": torch.where(mask == 1, ids, config.pad_token_id or 0), "attention_mask": mask}
            if "token_type_ids" in exported.input_names:
                types = torch.randint(config.type_vocab_size, ids.shape, generator=generator)
                inputs["token_type_ids"] = types * mask
            expected, found = model(**inputs).logits, exported(**inputs).logits
            largest = max(largest, (found - expected).abs().max().item())
            size = max(size, expected.abs().max().item())
    return largest / size


def compare_export(
    model: PreTrainedModel,
    exported: ExportedClassifier,
    tokenizer: Any,
    task: Task | None,
    max_texts: int,
    outputs: list[int] | None = None,
) -> ExportReport:
    """Run a model and its export on a task's validation split, or on random texts where there is none.

    Args:
        model: The original.
        exported: What was made of it.
        tokenizer: Of both.
        task: Tokenised.
        max_texts: Texts of the split, drawn at random; all where it has fewer.
        outputs: Of every label of the task the index of its output, as [`evaluation.order_outputs`] gives; in order by
            default.
    """
    texts, split, problem_type = choose_texts(model, exported, task, max_texts)
    order = outputs or list(range(len(model.config.id2label or {})))
    before = predict(model, split, tokenizer)[:, order]
    after = predict(exported, split, tokenizer, batch_size=1)[:, order]
    together = predict_in_batches(exported, split, tokenizer)[:, order]
    answers = [predictions_from_logits(problem_type, logits) for logits in (before, after, together)]
    scores: list[Any] = [None, None]
    if task is not None:
        scores = [compute_score(task.metric_name, answer, np.asarray(split["labels"])) for answer in answers[:2]]

    def count(one: np.ndarray, other: np.ndarray) -> int | None:
        is_other = (one != other).reshape(len(split), -1).any(axis=1)
        return None if problem_type == REGRESSION else int(is_other.sum())

    return ExportReport(
        texts=texts,
        num_texts=len(split),
        difference=float(np.abs(after - before).max()),
        changed_labels=count(answers[0], answers[1]),
        metric_name=None if task is None else task.metric_name,
        score_before=scores[0],
        score_after=scores[1],
        batch_size=BATCH_SIZE,
        batch_difference=float(np.abs(together - after).max()),
        batch_changed_labels=count(answers[1], answers[2]),
    )


def choose_texts(
    model: PreTrainedModel, exported: ExportedClassifier, task: Task | None, max_texts: int
) -> tuple[str, Dataset, str]:
    """Give what is compared: what it is called, tokenised texts, and the kind of their labels."""
    if task is not None:
        split = task.splits["validation"]
        drawn = np.random.default_rng(0).permutation(len(split))[:max_texts]
        return f"validation rows of {task.name}", split.select(drawn), task.problem_type
    problem_type = REGRESSION if model.config.num_labels == 1 else model.config.problem_type or SINGLE_LABEL
    return "random texts", make_random_texts(model.config, int(exported.limits[-1])), problem_type


def predict_in_batches(exported: ExportedClassifier, split: Dataset, tokenizer: Any) -> np.ndarray:
    """Compute an export's outputs for batches of texts of any length, which an int8 graph takes as they are."""
    was_alone, exported.one_at_a_time = exported.one_at_a_time, False
    try:
        starts = range(0, len(split), BATCH_SIZE)
        parts = [split.select(range(start, min(start + BATCH_SIZE, len(split)))) for start in starts]
        return np.concatenate([predict(exported, part, tokenizer, BATCH_SIZE) for part in parts])
    finally:
        exported.one_at_a_time = was_alone


def make_random_texts(config: Any, longest: int) -> Dataset:
    """Make tokenised texts of random words and lengths, always the same ones."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(2, min(longest, LONGEST_RANDOM), NUM_RANDOM, endpoint=True)
    ids = [generator.integers(config.vocab_size // 2, config.vocab_size, length).tolist() for length in lengths]
    return Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(one) for one in ids]})
