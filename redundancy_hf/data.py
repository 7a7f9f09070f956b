"""Tasks: a data set, however it is stored, as splits with known text columns, labels and metric.

The GLUE tasks and their metrics are those of Bidart 2023 (University of Waterloo), section 5.2: all but WNLI, MNLI on
its matched split. The test split is for one final evaluation; where its labels are not public, as in GLUE, the
validation split takes its place, and a new validation split is carved from train.
"""

import logging
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase

from .columns import check_columns, describe_columns, find_text_columns
from .corpus import load_standard_library_task
from .labels import SINGLE_LABEL, encode_labels, find_label_column, is_labelled
from .metrics import DEFAULT_METRICS, check_metric
from .outputs import check_output_names
from .record import TaskRecord, describe_task, hash_texts
from .splits import GLUE_TASKS, carve_splits, draw_splits, read_splits
from .task import Task, TaskArguments

logger = logging.getLogger(__name__)
# what a command says on standard output
screen = logging.getLogger("screen")


# labels of so many classes are printed
MAX_NAMED = 10
EMBEDDED = "standard_library"


def load_task(arguments: TaskArguments, is_whole: bool = False) -> Task:
    """Load a data set, find out what it asks for, and print which columns are read.

    Raw text is left in its text columns, and the label column is called "labels". With `is_whole` the splits stay as
    they come, without carving those that are missing, to evaluate on every row.

    Raises:
        ValueError: The data set cannot be read, has no train split, an empty split or a missing value; a column cannot
            be found; a label does not occur in train; the metric or the label names do not fit; or an argument is out
            of range.
    """
    arguments.check()
    if arguments.dataset_name in (None, EMBEDDED):
        task = load_standard_library_task()
        screen.info(f"{task.name}: {describe_columns(task.splits['train'], task.text_columns, task.label_column)}")
    else:
        task = _build_task(arguments.dataset_name, arguments, is_whole)
    check_output_names(arguments.label_order, task.label_names)
    metric_name = arguments.metric_name or task.metric_name
    check_metric(metric_name, task.problem_type, task.num_labels)
    splits = DatasetDict(draw_splits(task.splits, arguments))
    sizes = ", ".join(f"{name} {len(split)}" for name, split in splits.items())
    names = f" ({', '.join(task.label_names)})" if 1 < task.num_labels <= MAX_NAMED else ""
    screen.info(
        f"{task.name}: {task.problem_type} of {task.num_labels} labels{names}, metric {metric_name}, rows: {sizes}"
    )
    task = replace(task, metric_name=metric_name, splits=splits, output_names=arguments.label_order)
    return replace(task, record=_record(task, arguments))


def _record(task: Task, arguments: TaskArguments) -> TaskRecord:
    """Write down how a task was read, with what was inferred."""
    name = arguments.dataset_name or EMBEDDED
    found: dict[str, Any] = {"dataset_name": name, "metric_name": task.metric_name}
    if name != EMBEDDED:
        found |= {"label_column": task.label_column, "problem_type": task.problem_type}
        found |= dict(zip(("text_column", "text_pair_column"), task.text_columns, strict=False))
    return describe_task(
        "text-classification",
        task.name,
        # the order of a checkpoint's outputs is none of the data's
        {key: value for key, value in (asdict(arguments) | found).items() if key != "label_order"},
        task.label_names,
        {split: hash_texts([rows[column] for column in task.text_columns]) for split, rows in task.splits.items()},
        {split: rows["labels"][:] for split, rows in task.splits.items()},
        is_local=name not in (EMBEDDED, *GLUE_TASKS) and Path(name).expanduser().exists(),
    )


def load_tasks(
    names: list[str], tokenizer: PreTrainedTokenizerBase, max_length: int, max_train_samples: int | None = None
) -> list[Task]:
    """Load and tokenise several tasks with what is inferred of each; see [`load_task`] and [`tokenize`].

    Raises:
        ValueError: Two have one name.
    """
    found = [load_task(TaskArguments(dataset_name=name, max_train_samples=max_train_samples)) for name in names]
    twice = sorted({task.name for task in found if [other.name for other in found].count(task.name) > 1})
    if twice:
        raise ValueError(f"two data sets are called {', '.join(twice)}, and names tell them apart; rename one.")
    return [tokenize(task, tokenizer, max_length) for task in found]


def tokenize(task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Task:
    """Replace the text by model inputs, not padded; says how many inputs were truncated, of a pair the longer text.

    Raises:
        ValueError: The tokenizer pads left, `max_length` does not suit it, or the text columns are gone.
    """
    if tokenizer.padding_side == "left":
        raise ValueError(
            'the classification head reads position 0, so the tokenizer must pad right, got `padding_side` "left"; '
            'set `tokenizer.padding_side = "right"`.'
        )
    num_special = tokenizer.num_special_tokens_to_add(pair=len(task.text_columns) == 2)
    if not num_special < max_length <= tokenizer.model_max_length:
        raise ValueError(
            f"`max_length` must be above the {num_special} special tokens and at most the tokenizer's "
            f"`model_max_length` of {tokenizer.model_max_length}, got {max_length}; where the model has positions for "
            "less than its tokenizer says, that is the limit."
        )
    # the function below is hashed for the cache with all that it refers to, which should not be the whole task
    text_columns = list(task.text_columns)
    columns = next(iter(task.splits.values())).column_names
    if not set(text_columns) <= set(columns):
        raise ValueError(f"text columns {text_columns} are not in the task, found {columns}; tokenize once.")

    def encode(batch: dict[str, list]) -> dict[str, list]:
        texts = [batch[column] for column in text_columns]
        inputs = tokenizer(*texts, truncation=False, verbose=False)
        is_long = [len(ids) > max_length for ids in inputs["input_ids"]]
        for row in np.flatnonzero(is_long):
            shortened = tokenizer(*(column[row] for column in texts), truncation="longest_first", max_length=max_length)
            for name, values in shortened.items():
                inputs[name][row] = values
        return {**inputs, "truncated": is_long}

    splits = task.splits.map(encode, batched=True, remove_columns=sorted({*columns} - {"labels"}), desc="tokenize")
    truncated = {name: sum(split["truncated"][:]) for name, split in splits.items()}
    for name, count in truncated.items():
        if count:
            logger.warning(
                f"{count} of {len(splits[name])} inputs of {task.name} {name} ({count / len(splits[name]):.1%}) were "
                f"truncated to {max_length} tokens; a larger `max_length` keeps them whole."
            )
    return replace(task, splits=splits.remove_columns("truncated"), truncated=truncated)


def _build_task(dataset_name: str, arguments: TaskArguments, is_whole: bool) -> Task:
    name, splits = read_splits(dataset_name, arguments.dataset_config_name)
    train = splits["train"]
    label_column = find_label_column(train, arguments.label_column)
    given = tuple(column for column in (arguments.text_column, arguments.text_pair_column) if column)
    text_columns = find_text_columns(train, label_column, given)
    check_columns("train", train, text_columns, label_column)
    screen.info(f"{name}: {describe_columns(train, text_columns, label_column)}")
    if "test" in splits and not is_labelled(splits["test"], train, label_column):
        logger.info(f"the test split of {name} has no labels and is left out")
        del splits["test"]
    for split_name, split in splits.items():
        check_columns(split_name, split, text_columns, label_column)
    labels = encode_labels(splits, label_column, arguments.problem_type)
    splits = {
        split_name: split.select_columns(list(text_columns)).add_column(
            "labels", labels.values[split_name], feature=labels.feature
        )
        for split_name, split in splits.items()
    }
    glue_columns, metric_name = GLUE_TASKS.get(name, ((), None))
    # a folder can be named like a GLUE task and be something else
    if metric_name is None or not {*glue_columns, "label"} <= set(train.column_names):
        metric_name = DEFAULT_METRICS[labels.problem_type]
    if not is_whole:
        splits = carve_splits(splits, partial(_carve, arguments, labels.problem_type))
    return Task(
        name=name,
        splits=DatasetDict(splits),
        text_columns=text_columns,
        problem_type=labels.problem_type,
        label_names=labels.names,
        metric_name=metric_name,
        label_column=label_column,
    )


def _carve(arguments: TaskArguments, problem_type: str, train: Dataset, name: str) -> tuple[Dataset, Dataset]:
    """Part train for a split of that name; of every class its share."""
    labels = np.asarray(train["labels"][:]) if problem_type == SINGLE_LABEL else np.zeros(len(train))
    generator = np.random.default_rng(arguments.split_seed)
    held_out: list[int] = []
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        # a class keeps an example in train, and gives one if it has two
        held_out.extend(rows[: min(max(1, round(arguments.validation_fraction * len(rows))), len(rows) - 1)])
    if not held_out:
        raise ValueError(f"train has too few rows ({len(train)}) to carve a {name} split; add rows or a {name} file.")
    return train.select(np.setdiff1d(np.arange(len(train)), held_out)), train.select(np.sort(held_out))
