"""Tasks: a data set of texts as splits with known text columns, labels and metric, and what it is read by."""

import hashlib
import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from datasets import DatasetDict

from .record import TaskRecord, make_flags
from .splits import SplitArguments


@dataclass
class TaskArguments(SplitArguments):
    """How a data set of texts is read."""

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "GLUE task (cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte), name on the Hub, folder with train, "
            "validation and test files, or one file (parquet, csv, tsv, json, jsonl, also .gz); write ./mrpc for a "
            "folder that is named like a task. Without it, or as standard_library: the embedded demo task, whose "
            "columns are fixed."
        },
    )
    text_column: str | None = field(default=None, metadata={"help": "Column of the text; inferred if not given."})
    text_pair_column: str | None = field(default=None, metadata={"help": "Column of the second text of a pair."})
    problem_type: str | None = field(
        default=None,
        metadata={
            "help": "single_label_classification, regression or multi_label_classification; inferred from the labels."
        },
    )
    metric_name: str | None = field(
        default=None,
        metadata={
            "help": "accuracy, f1, macro_f1, matthews_correlation or spearmanr. By default GLUE's, else accuracy, "
            "spearmanr for a regression, micro F1 for multi-label."
        },
    )
    max_length: int = field(default=128, metadata={"help": "Longest input, in tokens; longer ones are truncated."})
    label_order: list[str] | None = field(
        default=None,
        metadata={
            "help": "The labels in the order of the model's outputs, where its own names do not say it, as LABEL_0 "
            "does not. The class that a metric is of stays the same."
        },
    )

    def check(self):
        super().check()
        if self.max_length < 1:
            raise ValueError(f"`max_length` must be at least 1, got {self.max_length}.")
        if self.text_pair_column and not self.text_column:
            raise ValueError(
                f"`text_pair_column` {self.text_pair_column!r} is the second text of a pair; name the first by "
                "`text_column`."
            )


class TaskFlags(make_flags(TaskArguments)):  # type: ignore[misc]
    """Of [`TaskArguments`] what is given, as flags of a command; what is not may stand in a model's `task.json`."""


@dataclass(frozen=True)
class Task:
    """A data set that a model can be trained on.

    Args:
        name: For reports.
        splits: "train", "validation" and, unless taken away, "test": the text columns and "labels", or model inputs and
            "labels".
        text_columns: One, or two for pairs.
        problem_type: "single_label_classification", "regression" or "multi_label_classification".
        label_names: In the order of the ids; a regression has one.
        metric_name: What `metrics.compute_score` computes.
        truncated: Number of inputs cut per split; empty before `tokenize`.
        label_column: What the data set calls its column of labels.
        output_names: The labels in the order of a head's outputs, as the user says, for a head that does not say it.
        record: How all that was read, for `task.json`; it knows the test split even where that is taken away.
    """

    name: str
    splits: DatasetDict
    text_columns: tuple[str, ...]
    problem_type: str
    label_names: list[str]
    metric_name: str
    truncated: dict[str, int] = field(default_factory=dict)
    label_column: str = "labels"
    output_names: list[str] | None = None
    record: TaskRecord | None = field(default=None, repr=False, compare=False)

    @property
    def num_labels(self) -> int:
        return len(self.label_names)

    @property
    def head_config(self) -> dict[str, Any]:
        """What a model's config must say to fit the task."""
        names = dict(enumerate(self.label_names))
        return {
            "num_labels": self.num_labels,
            "id2label": names,
            "label2id": {name: index for index, name in names.items()},
            "problem_type": self.problem_type,
        }

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits over what a search depends on: train, validation, labels and metric, not the test split."""
        settings = [self.text_columns, self.problem_type, self.label_names, self.metric_name]
        settings += [] if self.output_names is None else [self.output_names]
        digest = hashlib.sha256(json.dumps(settings).encode())
        for name in ("train", "validation"):
            for batch in self.splits[name].iter(batch_size=1000):
                digest.update(json.dumps(batch, sort_keys=True).encode())
        return digest.hexdigest()[:16]

    def without_test(self) -> "Task":
        """Return the task as a search may see it."""
        kept = [name for name in self.splits if name != "test"]
        truncated = {name: count for name, count in self.truncated.items() if name in kept}
        return replace(self, splits=DatasetDict({name: self.splits[name] for name in kept}), truncated=truncated)
