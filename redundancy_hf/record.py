"""The hand-over `task.json`: what the training or search behind a model folder read, and how to read it again.

Beside it lies `task_rows.npz`: 64-bit hashes of the normalised inputs of every split, without labels. By them an
evaluation tells which rows have been seen, wherever the data lie now and however they are split. What is published says
neither (short texts could be guessed from their hashes) nor where local files lie.
"""

import dataclasses
import hashlib
import json
import os
import typing
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

TASK_FILE = "task.json"
TASK_ROWS = "task_rows.npz"
# arguments that name columns, those that only limit a split, and those that say which data set it is
COLUMNS = ("text_column", "text_pair_column", "label_column", "image_column")
LIMITS = ("max_train_samples", "max_validation_samples", "max_test_samples")
SOURCE = ("dataset_name", "dataset_config_name")
# what a training and a choice between models read
READ = ("train", "validation")
# the key of what the training of the checkpoint had read before
BEFORE = "checkpoint"


def hash_texts(columns: Sequence[Iterable[str]]) -> np.ndarray:
    """Hash rows of one or two columns to 64 bits, (N,), whatever their case, blanks and spellings in Unicode."""

    def normalise(text: str) -> str:
        return " ".join(unicodedata.normalize("NFKC", text).casefold().split())

    # no normalised text holds a line break
    return _hash("\n".join(map(normalise, row)).encode() for row in zip(*columns, strict=True))


def hash_arrays(arrays: Iterable[Any]) -> np.ndarray:
    """Hash decoded images, or other arrays, to 64 bits; images of any mode as RGB."""
    read = (np.asarray(value.convert("RGB") if hasattr(value, "convert") else value) for value in arrays)
    return _hash(str(array.shape).encode() + array.tobytes() for array in read)


def hash_input(value: Any) -> np.ndarray:
    """Hash one input of a pipeline, an image or a mapping of one or two texts; (1,)."""
    return hash_texts([[text] for text in value.values()]) if isinstance(value, Mapping) else hash_arrays([value])


def _hash(contents: Iterable[bytes]) -> np.ndarray:
    digests = (hashlib.blake2b(content, digest_size=8).digest() for content in contents)
    return np.frombuffer(b"".join(digests), dtype="<u8")


@dataclass(frozen=True)
class TaskRecord:
    """What was read for a model.

    Attributes:
        kind: Pipeline of the model, such as "text-classification".
        dataset: Name for reports.
        arguments: How the data were read, by the names of the command's flags; columns, problem type and metric as they
            were found. `dataset_name` is `None` where that was a local file and the record has been published.
        label_names: In the order of the ids.
        splits: By name: "rows", their number, and "fingerprint", 16 hex digits of inputs and labels.
        dataset_path: Where local data lay.
        rows: Hashes by split, in its order; `None` where they are gone.
        before: Hashes of what the training of the checkpoint had read; `None` where that is not known.
        studies: Folders of the searches and trainings that this model belongs to; they share the test split.
    """

    kind: str
    dataset: str
    arguments: dict[str, Any]
    label_names: list[str]
    splits: dict[str, dict[str, Any]]
    dataset_path: str | None = None
    rows: dict[str, np.ndarray] | None = None
    before: np.ndarray | None = dataclasses.field(default_factory=lambda: np.array([], dtype=np.uint64))
    studies: tuple[Path, ...] = ()

    @property
    def chosen_on(self) -> np.ndarray | None:
        """Hashes of the rows that trained or chose the model itself; `None` where they are gone."""
        if self.rows is None:
            return None
        return np.concatenate([np.array([], dtype=np.uint64), *(self.rows[name] for name in READ if name in self.rows)])

    @property
    def seen(self) -> np.ndarray | None:
        """Hashes of those and of what the models before it have read; `None` where they are not all known."""
        own = self.chosen_on
        return None if own is None or self.before is None else np.union1d(own, self.before)

    def after(self, checkpoint: str | Path | None, *studies: Path, is_trained: bool = False) -> "TaskRecord":
        """Give the record of a model that starts from a checkpoint, whose training counts too if it has a record.

        Each of the studies, folders of a search or training that the model belongs to, needs a record of its own. With
        `is_trained` the checkpoint may have been trained on these very data: nothing is known without its record.
        """
        own = replace(self, studies=tuple(dict.fromkeys([*self.studies, *map(Path.resolve, studies)])))
        earlier = _read_beside(checkpoint)
        if earlier is None:
            return replace(own, before=None) if is_trained else own
        return own._add(earlier.with_rows_of(self).seen, earlier.studies)

    def by_choice_of(self, search: str | Path | None) -> "TaskRecord":
        """Give the record of a model whose schedule comes from a search, by its folder or a file in it."""
        earlier = _read_beside(search)
        return self if earlier is None else self._add(earlier.with_rows_of(self).chosen_on, earlier.studies)

    def _add(self, known: np.ndarray | None, studies: Iterable[Path]) -> "TaskRecord":
        before, own = None, self.chosen_on
        if known is not None and self.before is not None:
            before = np.union1d(self.before, known)
            before = before if own is None else np.setdiff1d(before, own)
        return replace(self, before=before, studies=tuple(dict.fromkeys([*self.studies, *studies])))

    def with_rows_of(self, other: "TaskRecord") -> "TaskRecord":
        """Take the hashes from a record of the same splits, if there are none, as in a folder that was published."""
        is_same = all(self.splits.get(name) == other.splits.get(name) for name in READ)
        return replace(self, rows=other.rows) if self.rows is None and is_same else self

    def write(self, folder: Path):
        """Write `task.json` and `task_rows.npz` into a folder."""
        root = folder.resolve()
        content = self._public() | {
            "arguments": self.arguments,
            "dataset_path": self.dataset_path,
            "studies": [Path(os.path.relpath(study, root)).as_posix() for study in self.studies],
        }
        (folder / TASK_FILE).write_text(json.dumps(content, indent=2) + "\n")
        if self.rows is not None:
            before = {} if self.before is None else {BEFORE: self.before}
            np.savez(folder / TASK_ROWS, allow_pickle=False, **self.rows, **before)

    def write_public(self, folder: Path):
        """Write what a stranger may know: no hashes, no places on this machine."""
        (folder / TASK_FILE).write_text(json.dumps(self._public(), indent=2) + "\n")
        (folder / TASK_ROWS).unlink(missing_ok=True)

    def _public(self) -> dict[str, Any]:
        is_local = self.dataset_path is not None
        return {
            "kind": self.kind,
            "dataset": self.dataset,
            "arguments": self.arguments | ({"dataset_name": None} if is_local else {}),
            "label_names": self.label_names,
            "splits": self.splits,
            "rows_read_before": None if self.before is None else len(self.before),
        }

    def is_source(self, dataset_name: str) -> bool:
        """Whether a name means the data set that was read."""
        if self.dataset_path is not None:
            named, known = Path(dataset_name).expanduser(), Path(self.dataset_path)
            if named.exists() and known.exists():
                return named.resolve() == known.resolve()
        return dataset_name == self.arguments.get("dataset_name")

    def find_source(self, name: str) -> str:
        """Give the data set's name or place as it can be read now.

        Raises:
            ValueError: The files are not where they were; names the model.
        """
        given = self.arguments.get("dataset_name")
        if self.dataset_path is None and given is not None:
            return given
        for place in filter(None, (self.dataset_path, given)):
            if Path(place).expanduser().exists():
                return place
        where = f" ({given})" if given else ""
        raise ValueError(
            f"{name} was trained on the local data set {self.dataset}{where}, which is not here; say by --dataset_name "
            "where it lies now, or which other one to read."
        )


def describe_task(
    kind: str,
    dataset: str,
    arguments: Mapping[str, Any],
    label_names: Sequence[str],
    rows: Mapping[str, np.ndarray],
    labels: Mapping[str, Any],
    is_local: bool,
) -> TaskRecord:
    """Make the record of data that were just read; of every split the hashes of its rows, and its labels for JSON."""
    splits = {}
    for name, hashes in rows.items():
        digest = hashlib.sha256(hashes.tobytes() + json.dumps(labels[name]).encode())
        splits[name] = {"rows": len(hashes), "fingerprint": digest.hexdigest()[:16]}
    path = str(Path(str(arguments["dataset_name"])).expanduser().resolve()) if is_local else None
    return TaskRecord(kind, dataset, dict(arguments), list(label_names), splits, path, dict(rows))


def join_records(records: Sequence[TaskRecord], checkpoint: str, study: Path) -> TaskRecord:
    """Make the record of an encoder that was trained from a checkpoint on the train splits of several tasks."""
    shared = {name: records[0].arguments[name] for name in ("max_length", "max_train_samples", "split_seed")}
    whole = TaskRecord(
        "multitask",
        ", ".join(one.dataset for one in records),
        {"dataset_names": [one.dataset for one in records], **shared},
        [],
        {f"train of {one.dataset}": one.splits["train"] for one in records},
        rows={"train": np.concatenate([one.rows["train"] for one in records if one.rows is not None])},
    )
    return whole.after(checkpoint, study)


def read_record(folder: Path) -> TaskRecord | None:
    """Read a folder's record; `None` where it has none, as of checkpoints and of folders from elsewhere.

    Raises:
        ValueError: It is damaged.
    """
    if not (folder / TASK_FILE).is_file():
        return None
    try:
        content = json.loads((folder / TASK_FILE).read_text())
        types = {"kind": str, "dataset": str, "arguments": dict, "splits": dict}
        if not all(isinstance(content[name], of_type) for name, of_type in types.items()):
            raise TypeError("an entry is of another type")
        rows, before = None, None
        if (folder / TASK_ROWS).is_file():
            with np.load(folder / TASK_ROWS, allow_pickle=False) as stored:
                rows = {name: stored[name] for name in stored}
                before = rows.pop(BEFORE, None)
        elif content["rows_read_before"] == 0:
            before = np.array([], dtype=np.uint64)
        places = [(folder / str(study)).resolve() for study in content.get("studies", [])]
        return TaskRecord(
            content["kind"],
            content["dataset"],
            content["arguments"],
            [str(name) for name in content["label_names"]],
            content["splits"],
            content.get("dataset_path"),
            rows,
            before,
            # a folder that was moved alone has left its search, and must not take another place for it
            tuple(place for place in places if (place / TASK_FILE).is_file()),
        )
    # of parsers, of archives, and of a file that holds something else
    except Exception as error:
        raise ValueError(
            f"{folder / TASK_FILE} or {TASK_ROWS} beside it is damaged ({type(error).__name__}: {error}); restore it, "
            "or delete both, and the folder is one of which nothing is known."
        ) from error


def read_max_length(folder: Path) -> int | None:
    """Read to how many tokens the texts were cut that a folder's model was trained on; `None` where nothing says."""
    record = read_record(folder)
    length = record.arguments.get("max_length") if record else None
    return length if isinstance(length, int) else None


def _read_beside(path: str | Path | None) -> TaskRecord | None:
    """Read the record of a folder, or the one beside a file; of a Hub name there is none."""
    if path is None:
        return None
    return read_record(Path(path).parent if Path(path).is_file() else Path(path))


def make_flags(kind: type) -> type:
    """Give a dataclass of arguments without its defaults, to tell what was typed; `None` is what was not."""
    # the parser of command lines changes the types of the fields themselves
    hints = typing.get_type_hints(kind)
    fields = [
        (field.name, hints[field.name] | None, dataclasses.field(default=None, metadata=field.metadata))
        for field in dataclasses.fields(kind)
    ]
    return dataclasses.make_dataclass(f"{kind.__name__}Flags", fields)


def is_other_data(record: TaskRecord, typed: Mapping[str, Any]) -> bool:
    """Whether typed flags name another data set than a record's."""
    name, config = (typed.get(key) for key in SOURCE)
    is_other_config = config is not None and config != record.arguments.get("dataset_config_name")
    return is_other_config or (name is not None and not record.is_source(name))
