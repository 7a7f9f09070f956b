"""Which output of a classification head means which label of a task: by its name, or as the user says."""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

# shorter beginnings of a name are no abbreviation of it
SHORTEST = 3


class LabelOrder(NamedTuple):
    """Of every label of a task the index of a head's output, and whether only their numbers say so."""

    outputs: list[int]
    is_assumed: bool = False


def find_label_order(
    found: Sequence[str], wanted: Sequence[str], output_names: Sequence[str] | None = None
) -> LabelOrder | None:
    """Find a task's labels among the names of a head's outputs; `None` where neither names nor the user say it.

    Names agree whatever their case and signs are, and where each is the beginning of one other: NEG and negative. Where
    a side only numbers its labels, their order is taken to be the same. `output_names`, the labels in the order of the
    outputs as the user says, counts where names do not agree.
    """
    if len(found) != len(wanted):
        return None
    numbers = list(range(len(wanted)))
    if len(wanted) == 1:  # a regression, whose output has the name of a column
        return LabelOrder(numbers)
    outputs = _match_names(found, wanted)
    if outputs is not None:
        return LabelOrder(outputs)
    if output_names is not None:
        return LabelOrder([list(output_names).index(label) for label in wanted])
    return LabelOrder(numbers, is_assumed=True) if _only_numbers(found) or _only_numbers(wanted) else None


def name_outputs(config: Any) -> list[str]:
    """Give the names of a classifier's outputs, in order."""
    return [str(config.id2label[index]) for index in range(config.num_labels)]


def describe_assumption(name: str, found: Sequence[str], wanted: Sequence[str]) -> str:
    """Say which output is taken for which label where names do not."""
    pairs = ", ".join(f"{output} is {label}" for output, label in zip(found, wanted, strict=True))
    return f"the order of the labels of `{name}` is assumed: {pairs}; --label_order gives another."


def check_output_names(output_names: Sequence[str] | None, label_names: Sequence[str]):
    """Refuse an order of the labels that leaves one out or names another.

    Raises:
        ValueError: Says so.
    """
    if output_names is not None and sorted(output_names) != sorted(label_names):
        raise ValueError(f"--label_order must be the labels {list(label_names)} in some order, got {output_names}.")


def _match_names(found: Sequence[str], wanted: Sequence[str]) -> list[int] | None:
    """Pair names off one to one, or not at all."""
    if sorted(found) == sorted(wanted) and len(set(found)) == len(found):
        return [found.index(label) for label in wanted]
    names, labels = [[normalise_name(name) for name in side] for side in (found, wanted)]
    for is_same in (str.__eq__, _is_abbreviation):
        pairs = [[index for index, name in enumerate(names) if is_same(name, label)] for label in labels]
        outputs = [indices[0] for indices in pairs if len(indices) == 1]
        if len(set(outputs)) == len(labels):
            return outputs
    return None


def normalise_name(name: str) -> str:
    """Give what counts of a label's name: letters and digits, without case; of LABEL_0 the number."""
    name = str(name).strip()
    try:
        number = float(name)
    except ValueError:
        number = math.nan
    if math.isfinite(number):  # that a column of numbers may have been read as
        return str(int(number)) if number.is_integer() else name
    return re.sub(r"^label(?=\d+$)", "", "".join(filter(str.isalnum, name.casefold())))


def _is_abbreviation(one: str, other: str) -> bool:
    short, long = sorted((one, other), key=len)
    return long == short or (len(short) >= SHORTEST and short.isalpha() and long.startswith(short))


def _only_numbers(names: Sequence[str]) -> bool:
    """Say whether names are LABEL_0, LABEL_1, ... or 0, 1, ..."""
    return [normalise_name(name) for name in names] == [str(index) for index in range(len(names))]
