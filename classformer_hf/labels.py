"""Label columns: which problem they pose, and their values as a classification head takes them.

Splits are compared by the names of labels, not by their ids, so files that order the classes differently agree.
"""

from dataclasses import dataclass
from typing import Any

from datasets import ClassLabel, Dataset, LargeList, List, Value
from datasets.features.features import FeatureType

SINGLE_LABEL = "single_label_classification"
REGRESSION = "regression"
MULTI_LABEL = "multi_label_classification"

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
    return not all(_is_missing(label) or label == placeholder for label in _read(split, column))


def encode_labels(splits: dict[str, Dataset], column: str, problem_type: str | None = None) -> Labels:
    """Encode a label column.

    Without `problem_type`, floats are a regression, lists are multi-label and anything else is single-label. A list
    holds the labels of its row; but if it holds floats or booleans, or if all lists have one length >= 2 and hold only
    0 and 1, it holds one 0-1 entry per label. Classes are in the order in which the file names them, else sorted.

    Args:
        splits: Raw splits, each with the column, among them "train".
        column: Name of the label column.
        problem_type: Of the task, or `None` to infer it.

    Returns:
        The labels; a regression has one name, that of the column.

    Raises:
        ValueError: A label is missing, does not fit the problem type, or does not occur in train.
    """
    feature = splits["train"].features[column]
    values = {name: _read(split, column) for name, split in splits.items()}
    for name, labels in values.items():
        missing = [row for row, label in enumerate(labels) if _is_missing(label)]
        if missing:
            raise ValueError(
                f"label column {column!r} of split {name!r} misses {len(missing)} of {len(labels)} labels, the first "
                f"in row {missing[0]}; remove these rows or fill them in."
            )
    problem_type = _check_problem_type(feature, column, problem_type)
    for split in splits.values():
        _check_problem_type(split.features[column], column, problem_type)
    if problem_type == REGRESSION:
        return Labels(problem_type, [column], values, Value("float32"))
    # every row becomes the list of its labels, so that both kinds of classification go the same way
    if problem_type == SINGLE_LABEL:
        rows = {name: [[_as_class(label)] for label in labels] for name, labels in values.items()}
        counted = None
    else:
        rows, counted = _label_lists(feature, column, values)
    seen = {label for row in rows["train"] for label in row}
    _check_seen(rows, seen, column)
    classes = getattr(getattr(feature, "feature", feature), "names", counted) or sorted(seen)
    if len(classes) < 2:
        raise ValueError(f"classes must be at least two, label column {column!r} of train has only {classes}.")
    names = [str(label) for label in classes]
    if problem_type == SINGLE_LABEL:
        ids = {label: index for index, label in enumerate(classes)}
        encoded = {name: [ids[row[0]] for row in rows[name]] for name in rows}
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


def _is_missing(label: Any) -> bool:
    if isinstance(label, list):
        return any(_is_missing(element) for element in label)
    # only NaN differs from itself
    return label is None or label != label


def _check_problem_type(feature: FeatureType, column: str, problem_type: str | None) -> str:
    """Infer the problem type where it is not given, and check that the column can hold it."""
    is_list = isinstance(feature, List | LargeList)
    dtype = feature.dtype if isinstance(feature, Value) else ""
    is_number = dtype.startswith(("int", "uint", "float"))
    fits = {SINGLE_LABEL: isinstance(feature, Value | ClassLabel), REGRESSION: is_number, MULTI_LABEL: is_list}
    if problem_type is None:
        problem_type = MULTI_LABEL if is_list else REGRESSION if dtype.startswith("float") else SINGLE_LABEL
    if problem_type not in fits:
        raise ValueError(f"`problem_type` must be one of {list(fits)}, got {problem_type!r}.")
    if not fits[problem_type]:
        raise ValueError(
            f"label column {column!r} cannot be {problem_type}, it holds {feature}; change `problem_type` or "
            "`label_column`."
        )
    return problem_type


def _as_class(label: Any) -> Any:
    if not isinstance(label, float):
        return label
    if not label.is_integer():
        raise ValueError(
            f"classes must be whole numbers or names, got {label}; for a regression change `problem_type`."
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
    rows = {
        name: [[index for index, entry in enumerate(row) if entry] for row in labels] for name, labels in values.items()
    }
    return rows, list(range(max(widths)))


def _check_seen(rows: dict[str, list], seen: set, column: str) -> None:
    for name in rows:
        unseen = sorted({label for row in rows[name] for label in row} - seen, key=str)
        if unseen:
            raise ValueError(
                f"every label must occur in train, but column {column!r} of split {name!r} has {unseen[:5]}, train "
                f"only {sorted(seen, key=str)[:20]}; remove those rows or add examples to train."
            )
