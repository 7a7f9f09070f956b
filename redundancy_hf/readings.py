"""Readings of a test split: which rows were read for which models, and what that leaves for a certificate.

`test_readings.jsonl`, one line per reading, only grows, in every model folder that was read for and in the folders of
its search or training, which share it; `test_readings/` holds the rows of each by their hashes.

What a certificate of reading k (1, 2, ...) may risk is halved by every reading before it: (1 - confidence) / 2^(k - 1).
Whoever reads the same rows again knows what the earlier readings said, and what is judged next may have been made or
picked by that. If each of them said "good enough" or "not yet", there are at most 2^(k - 1) ways to go on, and with an
equal share of the risk for each it adds up to 1 - confidence, whichever was taken: Bonferroni over what might have been
judged, not only over what was. Besides, the risks of all later readings together are no more than that of the first,
however many there are. No more than those answers is accounted for: who tunes by the digits of a test score needs other
rows.
"""

import datetime
import itertools
import json
import logging
import shutil
import typing
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub.dataclasses import type_validator

from .record import COLUMNS, LIMITS, SOURCE, TASK_FILE, TaskRecord, is_other_data, read_record

logger = logging.getLogger(__name__)

FILE = "test_readings.jsonl"
ROWS = "test_readings"
# of the rows; fewer are texts that occur twice by nature, as 16 of CoLA's test split in its train split
LARGEST_SHARE = 0.05


@dataclass(frozen=True)
class Evidence:
    """The rows that a certificate rests on.

    Attributes:
        kept: Their indices.
        num_dropped: Rows left out because a training or a choice had read them.
        reading: 1, 2, ...: which reading of these rows it is.
        vouched: Models of which only the user's word says that they have not seen them.
    """

    kept: np.ndarray
    num_dropped: int
    reading: int
    vouched: tuple[str, ...] = ()

    def count_candidates(self, number: int) -> int:
        """Give the number of candidates to correct for, of so many that are judged now."""
        return number * 2 ** (self.reading - 1)

    @property
    def sentences(self) -> str:
        """What a certificate must say of its rows; empty where there is nothing to say."""
        parts = []
        if self.num_dropped:
            parts.append(f"{self.num_dropped:,} more examples were left out, which a training or a choice had read.")
        if self.reading > 1:
            parts.append(
                f"This was reading {self.reading} of these examples; each one before it halves the risk that is left, "
                f"so that a candidate counts as {self.count_candidates(1)}."
            )
        if self.vouched:
            parts.append(
                f"That nothing of {' and '.join(self.vouched)} was trained or chosen on these examples is the user's "
                "own word (--unseen)."
            )
        return "".join(f" {part}" for part in parts)


@dataclass(frozen=True)
class ReadModel:
    """A model that examples are read for.

    Attributes:
        name: As the user has it.
        folder: Where its files are.
        record: Its `task.json`; `None` where it has none.
        is_here: Whether the folder is the user's own, and not a cache of the Hub.
    """

    name: str
    folder: Path
    record: TaskRecord | None
    is_here: bool

    @property
    def public_name(self) -> str:
        """Its name for what may be published; of a folder elsewhere only the last part."""
        is_elsewhere = self.is_here and (Path(self.name).is_absolute() or ".." in Path(self.name).parts)
        return Path(self.name).name if is_elsewhere else self.name

    @property
    def places(self) -> list[Path]:
        """The folders that know of its readings: its own, and those of its search or training."""
        return [self.folder.resolve(), *(self.record.studies if self.record else ())] if self.is_here else []

    def with_rows_of(self, record: TaskRecord | None) -> "ReadModel":
        """Take the hashes of what it has read from a record of the same splits, if it was published without."""
        if self.record is None or record is None:
            return self
        return replace(self, record=self.record.with_rows_of(record))

    def has_seen(self, rows: np.ndarray) -> np.ndarray | None:
        """Say which rows its training or a choice in it has read, (N,) booleans; `None` where that is not known."""
        seen = None if self.record is None else self.record.seen
        return None if seen is None else np.isin(rows, seen)


def open_model(name: str, folder: Path) -> ReadModel:
    """Read a model's `task.json`; one from the Hub cannot know where anything lies here."""
    record, is_here = read_record(folder), Path(name).is_dir()
    if record is not None and not is_here:
        record = replace(record, dataset_path=None, studies=())
    return ReadModel(name, folder, record, is_here)


def choose_arguments(
    kind: type, models: Sequence[ReadModel], typed: Mapping[str, Any], free: Sequence[str] = ()
) -> Any:
    """Say how to read the data that models are evaluated on: as the first `task.json` has it, else as typed.

    Of another data set that is named, the record's columns and limits do not count.

    Args:
        kind: Dataclass of the arguments.
        models: In the order of the command.
        typed: Flags of the command; `None` where one was not given, and those of another dataclass are left out.
        free: Flags that choose no rows and may differ from the record.

    Raises:
        ValueError: A flag contradicts the record, or the data are not where they were.
    """
    types = typing.get_type_hints(kind)
    given = {key: value for key, value in typed.items() if value is not None and key in types}
    lead = next((model for model in models if model.record is not None), None)
    if lead is None or lead.record is None:
        return kind(**given)
    known = {key: value for key, value in lead.record.arguments.items() if key in types}
    if known.get("dataset_name") is None:
        known.pop("dataset_name", None)
    for key, value in known.items():
        try:
            type_validator(key, value, types[key])
        except TypeError as error:
            raise ValueError(
                f"{lead.name}/{TASK_FILE} has {key} {value!r}, which is of another type; restore it."
            ) from error
    if is_other_data(lead.record, given):
        return kind(**{key: value for key, value in known.items() if key not in (*COLUMNS, *LIMITS, *SOURCE)} | given)
    for key, value in given.items():
        # how many rows of the test split are read changes none of the others
        if key not in (*free, "dataset_name", "max_test_samples") and key in known and value != known[key]:
            raise ValueError(
                f"{lead.name} was trained with {key} {known[key]} (its {TASK_FILE}), and --{key} says {value}; leave "
                "the flag out, or evaluate on another data set by --dataset_name."
            )
    return kind(**known | given | {"dataset_name": lead.record.find_source(lead.name)})


def gather_evidence(
    models: Sequence[ReadModel], rows: np.ndarray, split: str, is_vouched: bool = False, is_read_again: bool = False
) -> Evidence:
    """Find the rows of a split, given by their hashes, that a certificate may rest on.

    Args:
        models: Those that it compares.
        rows: Hashes of what is to be read.
        split: Its name, for errors.
        is_vouched: Whether the user says that models of which nothing is known have not seen these rows.
        is_read_again: Whether the user knows that they have been read before.

    Raises:
        ValueError: It is not known what a model has seen, more than 5 % of the rows were, or they were read before.
    """
    is_dropped, unknown = np.zeros(len(rows), dtype=bool), dict[str, str]()
    for model in models:
        is_seen = model.has_seen(rows)
        if is_seen is None:
            unknown[model.name] = model.public_name
            continue
        if is_seen.sum() > LARGEST_SHARE * len(rows):
            raise ValueError(
                f"{is_seen.sum():,} of {len(rows):,} rows of the {split} split had been read by the training of "
                f"{model.name} or by a choice in it, more than {100 * LARGEST_SHARE:g} %, so there is no certificate; "
                "evaluate on the test split of the very data that it was trained on, or name data that it has not seen "
                "by --dataset_name."
            )
        is_dropped |= is_seen
    if unknown and not is_vouched:
        raise ValueError(
            f"nothing tells which rows {' and '.join(unknown)} was trained and chosen on (no {TASK_FILE} with hashes "
            "of them there, or at the classifier that it started from), so there is no certificate; if you know that "
            "these rows had no part in that, give your word by --unseen, and the certificate repeats it."
        )
    kept = np.flatnonzero(~is_dropped)
    if not len(kept):
        raise ValueError(f"the {split} split has no row that no training has seen, so there is no certificate.")
    earlier = find_readings(itertools.chain.from_iterable(model.places for model in models), rows[kept])
    if earlier and not is_read_again:
        last, times = earlier[-1], {1: "once", 2: "twice"}.get(len(earlier), f"{len(earlier)} times")
        raise ValueError(
            f"these rows of the {split} split have been read {times} before, last for "
            f"{' and '.join(last['models'])} on {last['time'][:10]}; a certificate from them again needs --read_again "
            "and more evidence, since every earlier reading halves the risk that is left."
        )
    return Evidence(kept, int(is_dropped.sum()), len(earlier) + 1, tuple(unknown.values()))


def find_readings(places: Iterable[Path], rows: np.ndarray) -> list[dict[str, Any]]:
    """List earlier readings of more than 5 % of the rows, oldest first; one that several places know counts once."""
    found: dict[str, dict[str, Any]] = {}
    for place in places:
        if not (place / FILE).is_file():
            continue
        for line in (place / FILE).read_text().splitlines():
            try:
                reading = json.loads(line)
                path = place / ROWS / f"{reading['id']}.npy"
                # of what is gone the worst is assumed
                is_of_these = not path.is_file() or np.isin(rows, np.load(path)).mean() > LARGEST_SHARE
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{place / FILE} is damaged, so it does not tell how often the test split was read; restore it."
                ) from error
            if is_of_these:
                found[reading["id"]] = reading
    return sorted(found.values(), key=lambda reading: reading["time"])


def record_reading(models: Iterable[ReadModel], rows: np.ndarray, is_required: bool = False, **facts: Any):
    """Write down that rows were read for models, of every model those that it had not seen.

    Of a model that is not here, or has no `task.json`, nothing is written, unless a certificate rests on it
    (`is_required`). `facts` are what else a person may want to know.

    Raises:
        OSError: A place cannot be written to, and a certificate rests on it.
    """
    by_place: dict[Path, np.ndarray] = {}
    models = list(models)
    for model in models:
        if model.record is not None or is_required:
            is_seen = model.has_seen(rows)
            unseen = rows if is_seen is None else rows[~is_seen]
            for place in model.places:
                by_place[place] = np.union1d(by_place.get(place, unseen), unseen)
    reading = {
        "id": uuid.uuid4().hex,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        # where they lie is known where this is read
        "models": ["/".join(Path(model.name).parts[-2:]) for model in models],
        **facts,
    }
    for place, hashes in by_place.items():
        if not len(hashes):
            continue
        try:
            (place / ROWS).mkdir(exist_ok=True)
            np.save(place / ROWS / f"{reading['id']}.npy", hashes)
            with (place / FILE).open("a") as stream:
                stream.write(json.dumps({**reading, "num_examples": len(hashes)}) + "\n")
        except OSError as error:
            if is_required:
                raise
            logger.warning(f"this reading of the test split is not recorded: {error}")


def copy_readings(folder: Path, other: Path):
    """Take what a folder knows of readings into the one that takes its place."""
    if (folder / FILE).is_file():
        shutil.copy(folder / FILE, other)
        shutil.copytree(folder / ROWS, other / ROWS, dirs_exist_ok=True)
