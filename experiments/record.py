"""What experiments with trainings share: a record that is written after every row, and what tables say of them."""

import json
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

from frame import percent, rename_settings

from redundancy_hf.command import describe_run, format_record
from redundancy_hf.timing import hardware_fingerprint


class Record:
    """What has been measured so far, so that the same command goes on where it was stopped.

    Args:
        path: JSON file; what an earlier command has measured is read.
        settings: What makes rows comparable.
        content: Begins a new record, beside `settings` and `rows`.

    Raises:
        ValueError: The file holds rows of other settings.
    """

    def __init__(self, path: str, settings: dict[str, Any], **content: Any):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        begun = {"settings": settings, **content, "rows": []}
        self.content = rename_settings(json.loads(self.path.read_text())) if self.path.exists() else begun
        if self.content["settings"] != settings:
            raise ValueError(f"{path} was made with other settings; use another --results_file, or the old ones.")
        self.content |= {**describe_run(), "hardware": hardware_fingerprint()}
        self.rows: list[dict] = self.content["rows"]

    def list_missing(self, **axes: Iterable) -> Iterator[dict[str, Any]]:
        """Give the combinations that have no row, one after the other."""
        for values in product(*axes.values()):
            key = dict(zip(axes, values, strict=True))
            if not any(key.items() <= row.items() for row in self.rows):
                yield key

    def add(self, *rows: dict[str, Any]):
        """Append rows, with the processor that measured them, and write."""
        self.rows += [{**row, "cpu": self.content["hardware"]["cpu"]} for row in rows]
        self.write()

    def write(self):
        self.path.write_text(format_record(self.content) + "\n")


def describe_settings(training: Any, data: Any, splits: dict[str, Collection], **settings: Any) -> dict[str, Any]:
    """Give what makes trainings with several seeds comparable: the data and its splits, the recipe, and more."""
    recipe = {name: value for name, value in training.describe_recipe().items() if name != "seed"}
    sizes = {name: len(split) for name, split in splits.items()}
    return {"task": data.fingerprint, "sizes": sizes, "recipe": recipe, **settings}


def choose(flag: str, wanted: Iterable[str] | None, known: Iterable[str]) -> list[str]:
    """Give the names that a flag asks for; all where it is not given.

    Raises:
        ValueError: It asks for one that is not known.
    """
    if unknown := sorted(set(wanted or []) - set(known)):
        raise ValueError(f"--{flag} has unknown {unknown}; there are {list(known)}.")
    return list(wanted or known)


def group_rows(rows: Iterable[dict], *names: str) -> dict[tuple, list[dict]]:
    """Collect rows of the same values, which are those of several seeds."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return groups


def mean_and_each(values: list[float], write: Callable[[float], str] = percent) -> str:
    """Write a mean, and what it is of; nothing where there is nothing."""
    values = [value for value in values if value is not None]
    if not values:
        return ""
    mean = write(sum(values) / len(values))
    return f"{mean} ({', '.join(map(write, values))})" if len(values) > 1 else mean


def describe_scale(record: dict, inputs: str) -> str:
    """Say how much was trained on what, how often, and on which processors."""
    sizes, epochs = record["settings"]["sizes"], float(record["settings"]["recipe"]["num_train_epochs"])
    seeds = ", ".join(map(str, sorted({row["seed"] for row in record["rows"]})))
    cpus = " and ".join(sorted({row["cpu"] for row in record["rows"]}))
    return (
        f"{sizes['train']:,} training and {sizes['test']:,} test {inputs}, {epochs:g} epochs, seeds {seeds}; {cpus}, "
        "1 thread. "
    )
