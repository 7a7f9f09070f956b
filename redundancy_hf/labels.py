"""Label columns: which problem they pose, and their values as a classification head takes them.

Splits are compared by the names of labels, not by their ids, so files that order the classes differently agree.
"""

import logging
import math
from dataclasses import dataclass
from typing import Any

from datasets import ClassLabel, Dataset, LargeList, List, Value
from datasets.features.features import FeatureType

# what a command says on standard output
screen = logging.getLogger("screen")

SINGLE_LABEL = "single_label_classification"
REGRESSION = "regression"
MULTI_LABEL = "multi_label_classification"

# numbers of more different values are no classes, unless they are integers
MAX_NUMBERED_CLASSES = 20
# what files write where a value is missing, and what may be a class
MISSING_WORDS = ("na", "n/a", "nan", "none", "null", "")

LABEL_COLUMNS = ("label", "labels", "target", "targets", "class", "category", "score")


@dataclass(frozen=True)
class Labels:
    """Labels of all splits: class ids, or 0-1 rows, or values, with their names and their feature type."""

    problem_type: str
    names: list[str]
    values: dict[str, list]
    feature: ClassLabel | Value | List


def find_label_column(train: Dataset, label_column: str | None = None) -> str:
    """Return the given column, or the first of `LABEL_COLUMNS` that is there.

    Raises:
        ValueError: The given column is missing, or none has a usual name.
    """
    if label_column is None:
        label_column = next((name for name in LABEL_COLUMNS if name in train.column_names), None)
        if label_column is None:
            raise ValueError(
                f"no label column: none of {list(LABEL_COLUMNS)} is in the train split, found {train.column_names}; "
                "name it by `label_column`."
            )
    elif label_column not in train.column_names:
        raise ValueError(f"`label_column` {label_column!r} is not in the train split, found {train.column_names}.")
    return label_column


def is_labelled(split: Dataset, train: Dataset, column: str) -> bool:
    """Tell whether a split has labels; GLUE's test splits hold -1 in every row, other data sets nothing."""
    if column not in split.column_names:
        return False
    placeholder = None if -1 in _read(train, column) else -1
    return not all(is_missing(label) or label == placeholder for label in _read(split, column))


def encode_labels(splits: dict[str, Dataset], column: str, problem_type: str | None = None) -> Labels:
    """Encode a label column.

    Without `problem_type`, lists are multi-label, floats are a regression, unless they are a few whole numbers, which
    is said, and anything else is single-label. A list holds the labels of its row; but if it holds floats or booleans,
    or if all lists have one length >= 2 and hold only 0 and 1, it holds one 0-1 entry per label. Classes are in the
    order in which the file names them, else sorted.

    Args:
        splits: Raw splits, each with the column, among them "train".
        column: Name of the label column.
        problem_type: Of the task, or `None` to infer it.

    Returns:
        The labels; a regression has one name, that of the column.

    Raises:
        ValueError: A label is missing, does not fit the problem type, or does not occur in train; or labels are numbers
            in words, which may be classes or not.
    """
    feature = splits["train"].features[column]
    values = {name: _read(split, column) for name, split in splits.items()}
    for name, labels in values.items():
        refuse_missing("label", column, name, labels)
    if problem_type is None:
        problem_type = _infer_problem_type(feature, column, [label for labels in values.values() for label in labels])
    for split in splits.values():
        _check_problem_type(split.features[column], column, problem_type)
    if problem_type == REGRESSION:
        numbers = {name: [_as_number(label, column) for label in labels] for name, labels in values.items()}
        return Labels(problem_type, [column], numbers, Value("float32"))
    # every row becomes the list of its labels, so that both kinds of classification go the same way
    if problem_type == SINGLE_LABEL:
        rows, counted = {name: [[as_class(label)] for label in labels] for name, labels in values.items()}, None
    else:
        rows, counted = _label_lists(feature, column, values)
    seen = {label for row in rows["train"] for label in row}
    _check_seen(rows, seen, column)
    classes = getattr(getattr(feature, "feature", feature), "names", counted) or sorted(seen)
    if len(classes) < 2:
        raise ValueError(
            f"classes must be at least two, label column {column!r} of train has only {classes}; add rows of another "
            "one, or, to evaluate on these alone, give --streaming --split train."
        )
    names = [str(label) for label in classes]
    if problem_type == SINGLE_LABEL:
        ids = {label: index for index, label in enumerate(classes)}
        encoded = {name: [ids[label] for (label,) in rows[name]] for name in rows}
        return Labels(problem_type, names, encoded, ClassLabel(names=names))
    flags = {name: [[float(label in row) for label in classes] for row in rows[name]] for name in rows}
    return Labels(problem_type, names, flags, List(Value("float32")))


def _read(split: Dataset, column: str) -> list:
    """Return the labels as plain values, class ids as class names and class ids below 0 as `None`."""
    feature = split.features[column]
    element = getattr(feature, "feature", feature)
    values = split[column][:]
    if not isinstance(element, ClassLabel):
        return values

    def name(index: int | None) -> str | None:
        return None if index is None or index < 0 else element.names[index]

    return [[name(index) for index in value] if isinstance(value, list) else name(value) for value in values]


def is_missing(label: Any) -> bool:
    """Tell whether a label, or one of a list, is missing."""
    # only NaN differs from itself
    return any(map(is_missing, label)) if isinstance(label, list) else label is None or label != label


def refuse_missing(kind: str, column: str, split_name: str, values: list) -> None:
    """Refuse a column of texts or labels, as `kind` says, that misses some.

    Raises:
        ValueError: Names the first row without a value.
    """
    if missing := [row for row, value in enumerate(values) if is_missing(value)]:
        raise ValueError(
            f"{kind} column {column!r} of split {split_name!r} misses {len(missing)} of {len(values)} {kind}s, the "
            f"first in row {missing[0]} (the first is 0); remove these rows or fill them in."
        )


def _infer_problem_type(feature: FeatureType, column: str, labels: list) -> str:
    """Say what labels pose, none of them missing, or refuse what may be classes or values."""
    dtype = feature.dtype if isinstance(feature, Value) else ""
    if isinstance(feature, List | LargeList):
        return MULTI_LABEL
    if dtype.startswith("float"):
        values = sorted(set(labels))
        if len(values) > MAX_NUMBERED_CLASSES or not all(value.is_integer() for value in values):
            return REGRESSION
        numbers = ", ".join(f"{value:g}" for value in values)
        screen.info(
            f"label column {column!r} holds the numbers {numbers}, which are read as classes; `problem_type` "
            "regression reads them as values."
        )
    elif dtype in ("string", "large_string"):
        _refuse_unclear_numbers(column, labels)
    return SINGLE_LABEL


def _refuse_unclear_numbers(column: str, labels: list[str]) -> None:
    numbers = {label for label in labels if is_number(label)}
    words = {label for label in labels} - numbers
    if not numbers or not all(word.strip().lower() in MISSING_WORDS for word in words):
        return
    if words:
        raise ValueError(
            f"label column {column!r} holds numbers and {', '.join(map(repr, sorted(words)))}: remove the rows where a "
            "number is missing, or give `problem_type` single_label_classification where that is a class."
        )
    if len(numbers) > MAX_NUMBERED_CLASSES or not all(float(label).is_integer() for label in numbers):
        raise ValueError(
            f"label column {column!r} holds {len(numbers)} different numbers as text, such as {min(numbers)!r}: give "
            "`problem_type` regression where they are values, single_label_classification where they are names."
        )


def _check_problem_type(feature: FeatureType, column: str, problem_type: str) -> None:
    dtype = feature.dtype if isinstance(feature, Value) else ""
    fits = {
        SINGLE_LABEL: isinstance(feature, Value | ClassLabel),
        # strings may be numbers
        REGRESSION: dtype.startswith(("int", "uint", "float", "string", "large_string")),
        MULTI_LABEL: isinstance(feature, List | LargeList),
    }
    if problem_type not in fits:
        raise ValueError(f"`problem_type` must be one of {list(fits)}, got {problem_type!r}.")
    if not fits[problem_type]:
        raise ValueError(
            f"label column {column!r} cannot be {problem_type}, it holds {feature}; change `problem_type` or "
            "`label_column`."
        )


def is_number(text: str) -> bool:
    """Tell whether a text is a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _as_number(label: Any, column: str) -> Any:
    if not isinstance(label, str):
        return label
    if not is_number(label):
        raise ValueError(
            f"label column {column!r} cannot be regression, it holds {label!r}; change `problem_type` or "
            "`label_column`."
        )
    return float(label)


def as_class(label: Any) -> Any:
    """Give a class as its name or number; a whole number that was read as a float is an integer.

    Raises:
        ValueError: It is no whole number.
    """
    if not isinstance(label, float):
        return label
    if not label.is_integer():
        raise ValueError(
            f"classes must be whole numbers or names, got {label}; for a regression give `problem_type` regression."
        )
    return int(label)


def _label_lists(feature: List | LargeList, column: str, values: dict[str, list]) -> tuple[dict, list[int] | None]:
    """Return every row as the list of its labels and, where rows held 0-1 entries, the classes that they count."""
    lists = [row for labels in values.values() for row in labels]
    widths = {len(row) for row in lists}
    is_binary = all(entry in (0, 1) for row in lists for entry in row)
    if isinstance(feature.feature, Value) and feature.feature.dtype.startswith(("float", "bool")):
        if not is_binary or len(widths) > 1:
            raise ValueError(
                f"lists of {feature.feature.dtype} must be 0-1 rows of one length, label column {column!r} has lengths "
                f"{sorted(widths)[:5]}; write 0 and 1, or lists of label names."
            )
    elif isinstance(feature.feature, ClassLabel) or not is_binary or len(widths) > 1 or widths <= {0, 1}:
        return values, None
    return {
        name: [[index for index, entry in enumerate(row) if entry] for row in labels] for name, labels in values.items()
    }, list(range(max(widths)))


def _check_seen(rows: dict[str, list], seen: set, column: str) -> None:
    for name in rows:
        unseen = sorted({label for row in rows[name] for label in row} - seen, key=str)
        if unseen:
            raise ValueError(
                f"every label must occur in train, but column {column!r} of split {name!r} has {unseen[:5]}, train "
                f"only {sorted(seen, key=str)[:20]}; remove those rows or add examples to train."
            )
