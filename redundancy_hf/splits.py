"""Where a task's splits come from: GLUE and the rest of the Hub, a local folder, or one file."""

import glob
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, IterableDataset, load_dataset, load_from_disk

from .delimited import guess_csv_options, guess_encoding, type_columns
from .failures import first_line

GLUE_REPOSITORY = "nyu-mll/glue"
# text columns and metric
GLUE_TASKS = {
    "cola": (("sentence",), "matthews_correlation"),
    "sst2": (("sentence",), "accuracy"),
    "mrpc": (("sentence1", "sentence2"), "f1"),
    "stsb": (("sentence1", "sentence2"), "spearmanr"),
    "qqp": (("question1", "question2"), "f1"),
    "mnli": (("premise", "hypothesis"), "accuracy"),
    "qnli": (("question", "sentence"), "accuracy"),
    "rte": (("sentence1", "sentence2"), "accuracy"),
}
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "validation_matched", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "test_matched"), "test"),
}
# one of the two, as the other names say
UNCLEAR_NAMES = ("eval", "evaluation")
BUILDERS = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json"}
# plain text has no labels
TEXT_BUILDERS = {**BUILDERS, ".txt": "text"}
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
SHARD = re.compile(r"-\d+-of-\d+(-\w+)?$")
# what `save_to_disk` leaves
SAVED = ("dataset_dict.json", "state.json")


@dataclass
class SplitArguments:
    """Which data set is read, and how its splits are made; each kind of data adds its own."""

    dataset_name: str | None = None
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of a data set on the Hub."})
    label_column: str | None = field(default=None, metadata={"help": "Column of the label; inferred if not given."})
    validation_fraction: float = field(
        default=0.1, metadata={"help": "Share of train that becomes a validation or test split that is missing."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on at most so many examples."})
    max_validation_samples: int | None = field(default=None, metadata={"help": "Validate on at most so many examples."})
    max_test_samples: int | None = field(default=None, metadata={"help": "Test on at most so many examples."})
    split_seed: int = field(default=42, metadata={"help": "Seed of carved splits and of drawn examples."})

    def check(self):
        """Refuse what is out of range.

        Raises:
            ValueError: Names the argument.
        """
        if not 0 < self.validation_fraction < 1:
            raise ValueError(
                f"`validation_fraction` is a share of train between 0 and 1, got {self.validation_fraction}."
            )
        for name in ("max_train_samples", "max_validation_samples", "max_test_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")


def read_splits(
    dataset_name: str, config_name: str | None = None, builders: dict[str, str] = BUILDERS
) -> tuple[str, dict[str, Dataset]]:
    """Read the raw splits of a GLUE task, a local folder or file, or a data set on the Hub.

    A name in `GLUE_TASKS` is that task on the Hub. Splits are recognised by the names in `SPLIT_NAMES`, others are left
    out. One file is a train split; `builders` says what reads it, by its ending.

    Returns:
        A name for the task, that of a GLUE task where it is one, and "train" with what else there is of "validation"
        and "test".

    Raises:
        ValueError: Nothing can be read, there is no train split, two files give one split, or a split is empty.
    """
    path = Path(dataset_name).expanduser()
    name = dataset_name
    if dataset_name in GLUE_TASKS:
        splits = _read_hub(GLUE_REPOSITORY, dataset_name)
    elif path.exists():
        name, splits = name_path(path), _read_path(path, builders)
    elif is_path(dataset_name, builders):
        raise ValueError(f"there is no file or folder {dataset_name}; check the path.")
    else:
        splits = _read_hub(dataset_name, config_name)
        if config_name in GLUE_TASKS and dataset_name in ("glue", GLUE_REPOSITORY):
            name = config_name
    return name, choose_splits(dataset_name, splits)


def stream_splits(
    dataset_name: str, config_name: str | None = None, builders: dict[str, str] = BUILDERS
) -> dict[str, IterableDataset]:
    """Open the splits of a local data set, or of one on the Hub, to be read while they are used.

    Columns of csv files hold text. A folder without files named like splits is read as the library `datasets` does.

    Raises:
        ValueError: There is no such file, or it cannot be read; the library raises errors of other kinds, too.
    """
    path = Path(dataset_name).expanduser()
    if not path.exists() and is_path(dataset_name, builders):
        raise ValueError(f"there is no file or folder {dataset_name}")
    splits: dict[str, IterableDataset]
    if path.exists() and (saved := read_saved(path)):
        splits = {split: rows.to_iterable_dataset() for split, rows in saved.items()}
    elif path.exists() and (files := find_files(path, builders)):
        splits = {split: load_files(paths, builders, streaming=True) for split, paths in files.items()}
    else:
        splits = dict(load_dataset(str(path) if path.exists() else dataset_name, config_name, streaming=True))
    return {name: splits[split] for split, name in name_splits(splits).items()}


def _read_hub(repository: str, config_name: str | None) -> dict[str, Dataset]:
    try:
        return dict(load_dataset(repository, config_name))
    # the libraries below raise errors of many kinds, from connections to parsers
    except Exception as error:
        config = f" ({config_name})" if config_name else ""
        raise ValueError(
            f"could not load {repository!r}{config} from the Hub, nor is it a local folder or file; check the name and "
            f"the connection, or give a local folder with train.parquet. {type(error).__name__}: {first_line(error)}"
        ) from error


def _read_path(path: Path, builders: dict[str, str]) -> dict[str, Dataset]:
    if saved := read_saved(path):
        return saved
    found = find_files(path, builders)
    if not found:
        raise ValueError(
            f"folder {path} has no file like train.parquet, found {sorted(file.name for file in path.iterdir())}; name "
            f"the files train, validation and test, with one of the endings {list(builders)}."
        )
    splits = {split: load_files(files, builders) for split, files in found.items()}
    of_csv = {split: rows for split, rows in splits.items() if builders[_part_name(found[split][0])[1]] == "csv"}
    return splits | type_columns(of_csv)


def carve_splits(
    splits: Mapping[str, Dataset], carve: Callable[[Dataset, str], tuple[Dataset, Dataset]]
) -> dict[str, Dataset]:
    """Make the validation split the test split if there is no other, and carve what is missing from train.

    `carve` parts train for a split of that name, in what is left and that split.
    """
    splits = dict(splits)
    if "test" not in splits and "validation" in splits:
        splits["test"] = splits.pop("validation")
    for name in ("test", "validation"):
        if name not in splits:
            splits["train"], splits[name] = carve(splits["train"], name)
    return {name: splits[name] for name in ("train", "validation", "test")}


def draw_splits(splits: Mapping[str, Dataset], arguments: SplitArguments) -> dict[str, Dataset]:
    """Draw at most as many rows of every split as asked for."""
    return {
        name: draw_rows(split, getattr(arguments, f"max_{name}_samples"), arguments.split_seed)
        for name, split in splits.items()
    }


def draw_rows(split: Dataset, number: int | None, seed: int) -> Dataset:
    """Draw at most so many rows, which stay in their order; all for `None`."""
    if number is None or number >= len(split):
        return split
    return split.select(np.sort(np.random.default_rng(seed).permutation(len(split))[:number]))


def read_saved(path: Path) -> dict[str, Dataset] | None:
    """Read a folder that `save_to_disk` left, if it is one."""
    if not any((path / file).is_file() for file in SAVED):
        return None
    saved = load_from_disk(path)
    return dict(saved) if isinstance(saved, DatasetDict) else {"train": saved}


def find_files(path: Path, builders: dict[str, str] = BUILDERS) -> dict[str, list[Path]]:
    """Find the files of a local data set by split: one file, or a folder of files that are named like splits.

    A split may come in shards such as train-00000-of-00002.parquet, all of them in a folder `data`, as on the Hub.
    """
    if path.is_file():
        return {"train": [path]}
    files: dict[str, list[Path]] = {}
    for folder in (path, path / "data"):
        for file in sorted(folder.iterdir()) if folder.is_dir() and not files else ():
            stem, ending = _part_name(file)
            split = SHARD.sub("", stem).lower()
            if ending in builders and (split in SPLIT_NAMES or split in UNCLEAR_NAMES):
                files.setdefault(split, []).append(file)
    return files


def load_files(files: list[Path], builders: dict[str, str] = BUILDERS, streaming: bool = False) -> Any:
    """Load one split from its file or shards, as a data set or as a stream; columns of csv files hold text.

    Raises:
        ValueError: They are of several kinds, or cannot be read.
    """
    names = [file.name for file in files]
    stems, endings = zip(*map(_part_name, files), strict=True)
    if len(files) > 1 and (len(set(endings)) > 1 or not all(SHARD.search(stem) for stem in stems)):
        raise ValueError(f"one split must come from one file or from its shards, found {names}; keep one of them.")
    ending = endings[0]
    if ending not in builders:
        raise ValueError(f"a data file must end in one of {list(builders)}, got {names[0]}.")
    is_packed = any(file.suffix.lower() in COMPRESSIONS for file in files)
    if is_packed and "[" in "".join(names):
        raise ValueError(f"the library `datasets` opens no compressed file with a [ in its name; rename {names[0]}.")
    options: dict[str, Any] = {}
    try:
        if builders[ending] == "csv":
            options = guess_csv_options(files)
        elif builders[ending] == "text":
            options = {"encoding": guess_encoding(files)}
            if is_packed and options["encoding"] != "utf-8":
                raise ValueError("the library `datasets` reads compressed texts in UTF-8 only; unpack it")
        # a name may hold what a pattern means something by
        options["data_files"] = [glob.escape(str(file)) for file in files]
        return load_dataset(builders[ending], split="train", streaming=streaming, **options)
    # as above; an empty file ends in a StopIteration, one without rows in a ValueError
    except Exception as error:
        raise ValueError(
            f"could not read {', '.join(names)} ({first_line(error.__cause__ or error)}); check that it is a "
            f"{builders[ending]} file with at least one row, and values of one type in every column."
        ) from error


def choose_splits(dataset_name: str, found: dict[str, Dataset]) -> dict[str, Dataset]:
    """Give what a data set has of "train", "validation" and "test", whatever it calls them.

    Raises:
        ValueError: There is no train split, two are of one name, or one is empty.
    """
    names = name_splits(found)
    if len(set(names.values())) < len(names):
        raise ValueError(
            f"{dataset_name} has two splits for one of {sorted(set(names.values()))}, found {list(found)}; keep one."
        )
    splits = {names[split]: rows for split, rows in found.items() if split in names}
    if "train" not in splits:
        raise ValueError(
            f"{dataset_name} has no train split, found {list(found)}; a task needs one to learn from "
            "(to evaluate only, name the file itself, with --split all)."
        )
    for split, rows in splits.items():
        if not len(rows):
            raise ValueError(
                f"split {split!r} of {dataset_name} is empty; remove it, a missing one is carved from train."
            )
    return splits


def name_splits(found: Iterable[str]) -> dict[str, str]:
    """Say which splits are train, validation and test; `eval` is what no other one is, and others are left out."""
    names = {split: SPLIT_NAMES[split.lower()] for split in found if split.lower() in SPLIT_NAMES}
    for split in found:
        free = [name for name in ("validation", "test") if name not in names.values()]
        if split.lower() in UNCLEAR_NAMES and free:
            names[split] = free[0]
    return names


def name_path(path: Path) -> str:
    """Name a data set after its folder or file."""
    return path.resolve().name if path.is_dir() else _part_name(path)[0]


def is_path(dataset_name: str, builders: dict[str, str] = BUILDERS) -> bool:
    """Tell whether a name must be that of a file or folder, and not one on the Hub."""
    return _part_name(Path(dataset_name))[1] in builders or dataset_name.startswith((".", "/", "~"))


def _part_name(file: Path) -> tuple[str, str]:
    """Give a file's name without its endings, and the last one but that of a compression, in lower case."""
    name = file.name
    for compression in COMPRESSIONS:
        name = name[: -len(compression)] if name.lower().endswith(compression) else name
    ending = Path(name).suffix
    return name.removesuffix(ending), ending.lower()
