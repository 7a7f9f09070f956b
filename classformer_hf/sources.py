"""Where a task's splits come from: GLUE and the rest of the Hub, a local folder, or one file."""

import re
from pathlib import Path

from datasets import Dataset, load_dataset

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
    "train": "train",
    **dict.fromkeys(("validation", "validation_matched", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "test_matched"), "test"),
}
BUILDERS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json"}
# plain text has no labels
TEXT_BUILDERS = {**BUILDERS, ".txt": "text"}
SHARD = re.compile(r"-\d+-of-\d+$")


def read_splits(
    dataset_name: str, config_name: str | None = None, builders: dict[str, str] = BUILDERS
) -> tuple[str, dict[str, Dataset]]:
    """Read the raw splits of a data set.

    A name in `GLUE_TASKS` is that task on the Hub. Splits are recognised by the names in `SPLIT_NAMES`, others are left
    out. One file is a train split.

    Args:
        dataset_name: GLUE task, local folder or file, or name on the Hub.
        config_name: Configuration on the Hub.
        builders: What reads a file, by its ending.

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
    elif path.is_dir():
        name, splits = path.resolve().name, _read_folder(path, builders)
    elif path.is_file():
        name, splits = path.stem, {"train": _read_files([path], builders)}
    elif path.suffix in builders or dataset_name.startswith((".", "/", "~")):
        raise ValueError(f"there is no file or folder {dataset_name}; check the path.")
    else:
        splits = _read_hub(dataset_name, config_name)
        if config_name in GLUE_TASKS and dataset_name in ("glue", GLUE_REPOSITORY):
            name = config_name
    found = list(splits)
    chosen = [SPLIT_NAMES[split] for split in found if split in SPLIT_NAMES]
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"{dataset_name} has two splits for one of {sorted(set(chosen))}, found {found}; keep one.")
    splits = {SPLIT_NAMES[split]: rows for split, rows in splits.items() if split in SPLIT_NAMES}
    if "train" not in splits:
        raise ValueError(
            f"{dataset_name} has no train split, found {found}; a task needs one to learn from "
            "(to evaluate only, name the file itself, with --split all)."
        )
    for split, rows in splits.items():
        if not len(rows):
            raise ValueError(
                f"split {split!r} of {dataset_name} is empty; remove it, a missing one is carved from train."
            )
    return name, splits


def _read_hub(repository: str, config_name: str | None) -> dict[str, Dataset]:
    try:
        return dict(load_dataset(repository, config_name))
    # the libraries below raise errors of many kinds, from connections to parsers
    except Exception as error:
        config = f" ({config_name})" if config_name else ""
        raise ValueError(
            f"could not load {repository!r}{config} from the Hub, nor is it a local folder or file; check the name and "
            f"the connection, or give a local folder with train.parquet. {type(error).__name__}: {_first_line(error)}"
        ) from error


def _read_folder(folder: Path, builders: dict[str, str]) -> dict[str, Dataset]:
    """Read every file that is named like a split; one may come in shards such as train-00000-of-00002.parquet."""
    files: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir()):
        split = SHARD.sub("", file.stem)
        if file.suffix in builders and split in SPLIT_NAMES:
            files.setdefault(split, []).append(file)
    if not files:
        raise ValueError(
            f"folder {folder} has no file like train.parquet, found {sorted(file.name for file in folder.iterdir())}; "
            f"name the files train, validation and test, with one of the endings {list(builders)}."
        )
    return {split: _read_files(paths, builders) for split, paths in files.items()}


def _read_files(files: list[Path], builders: dict[str, str]) -> Dataset:
    names = [file.name for file in files]
    if len(files) > 1 and (
        len({file.suffix for file in files}) > 1 or not all(SHARD.search(file.stem) for file in files)
    ):
        raise ValueError(f"one split must come from one file or from its shards, found {names}; keep one of them.")
    suffix = files[0].suffix
    if suffix not in builders:
        raise ValueError(f"a data file must end in one of {list(builders)}, got {names[0]}.")
    try:
        return load_dataset(builders[suffix], data_files=[str(file) for file in files], split="train")
    # as above; an empty file ends in a StopIteration, one without rows in a ValueError
    except Exception as error:
        raise ValueError(
            f"could not read {', '.join(names)} ({_first_line(error.__cause__ or error)}); check that it is a "
            f"{builders[suffix]} file with at least one row."
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
