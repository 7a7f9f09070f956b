"""Data sets of images as raw splits, however they are stored."""

import glob
from collections.abc import Callable
from pathlib import Path

from datasets import Dataset, load_dataset

from .failures import first_line
from .splits import name_splits, read_saved

Read = Callable[[Path], dict[str, Dataset] | None]


def read_image_splits(
    dataset_name: str, config_name: str | None = None, read_other: Read | None = None, other: str = ""
) -> tuple[str, dict[str, Dataset]]:
    """Read the raw splits of a data set of images.

    Args:
        dataset_name: Parquet file, folder of parquet files or of images in folders per class, what `save_to_disk`
            left, or name on the Hub.
        config_name: Configuration on the Hub.
        read_other: Asked first for a folder; `None` where the folder is of another kind.
        other: What it reads, for the error.

    Returns:
        A name for the task, and "train" with what else there is of "validation" and "test".

    Raises:
        ValueError: Nothing can be read, there is no train split, two are of one name, or one is empty.
    """
    name, path = dataset_name, Path(dataset_name).expanduser()
    if not path.exists() and (path.suffix or name.startswith((".", "/", "~"))):
        raise ValueError(f"there is no file or folder {name}; check the path.")
    try:
        if path.is_file():
            found = {"train": load_dataset("parquet", data_files=glob.escape(str(path)), split="train")}
        elif path.is_dir():
            found = (read_other(path) if read_other else None) or read_saved(path) or _read_folder(path)
        else:
            found = dict(load_dataset(name, config_name))
    # the libraries below raise errors of many kinds, from connections to parsers
    except Exception as error:
        raise ValueError(
            f"could not read {name!r} ({first_line(error)}); it must be a parquet file, a folder of parquet files or "
            f"of images in folders per class{other}, or a name on a Hub that can be reached."
        ) from error
    names = name_splits(found)
    if len(set(names.values())) < len(names):
        raise ValueError(
            f"{name} has two splits for one of {sorted(set(names.values()))}, found {list(found)}; keep one."
        )
    splits = {names[split]: rows for split, rows in found.items() if split in names}
    if "train" not in splits:
        raise ValueError(f"{name} has no train split, found {list(found)}; name a folder or file train.")
    empty = [split for split, rows in splits.items() if not len(rows)]
    if empty:
        raise ValueError(f"split {empty[0]!r} of {name} is empty; add images or remove it.")
    return path.resolve().stem if path.exists() else name, {"train": splits.pop("train"), **splits}


def _read_folder(path: Path) -> dict[str, Dataset]:
    if files := _find_parquet(path):
        return dict(load_dataset("parquet", data_files=files))
    return dict(load_dataset("imagefolder", data_dir=glob.escape(str(path))))


def _find_parquet(folder: Path) -> dict[str, list[str]]:
    """Find the parquet files of every split, which may come in shards and, as on the Hub, in a folder `data`."""
    files: dict[str, list[str]] = {}
    for place in (folder, folder / "data"):
        for file in sorted(place.iterdir()) if place.is_dir() and not files else ():
            if file.suffix.lower() == ".parquet":
                # a name may hold what a pattern means something by
                files.setdefault(file.stem.split("-")[0], []).append(glob.escape(str(file)))
    return files


__all__ = ["read_image_splits"]
