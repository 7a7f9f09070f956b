"""Data sets of images: how they are read, whatever stores them, as raw splits with known columns; tasks of classes."""

import glob
import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from datasets import ClassLabel, Dataset, DatasetDict, Image, load_dataset

from .failures import first_line
from .labels import SINGLE_LABEL, encode_labels, is_labelled
from .splits import SplitArguments, carve_splits, choose_splits, draw_splits, find_files, read_saved

logger = logging.getLogger(__name__)
# what a command says on standard output
screen = logging.getLogger("screen")

Read = Callable[[Path], dict[str, Dataset] | None]
DIGITS = "digits"
LABEL_COLUMNS = ("label", "labels", "fine_label", "class")


@dataclass
class ImageDataArguments(SplitArguments):
    """Which images are read, whatever is done with them."""

    dataset_name: str = field(
        default=DIGITS,
        metadata={
            "help": "digits (scikit-learn's, embedded), a folder of train, validation and test parquet files, a folder "
            "of images (train/CLASS/*.png), one parquet file, or a name on the Hub."
        },
    )
    image_column: str | None = field(default=None, metadata={"help": "Column of the image; inferred if not given."})

    @property
    def is_local(self) -> bool:
        """Whether a folder or file here is read."""
        return self.dataset_name != DIGITS and Path(self.dataset_name).expanduser().exists()


def read_image_splits(
    arguments: ImageDataArguments, read_other: Read | None = None, other: str = ""
) -> tuple[str, dict[str, Dataset]]:
    """Read the raw splits of a data set of images.

    Args:
        arguments: Name a parquet file, a folder of parquet files or of images in folders per class, what
            `save_to_disk` left, a data set on the Hub, or the embedded digits.
        read_other: Asked first for a folder; `None` where the folder is of another kind.
        other: What it reads, for the error.

    Returns:
        A name for the task, and "train" with what else there is of "validation" and "test".

    Raises:
        ValueError: Nothing can be read, there is no train split, two are of one name, or one is empty.
    """
    name = arguments.dataset_name
    if name == DIGITS:
        return name, _read_digits()
    path = Path(name).expanduser()
    if not path.exists() and (path.suffix or name.startswith((".", "/", "~"))):
        raise ValueError(f"there is no file or folder {name}; check the path.")
    try:
        if path.is_file():
            found = {"train": load_dataset("parquet", data_files=glob.escape(str(path)), split="train")}
        elif path.is_dir():
            found = (read_other(path) if read_other else None) or read_saved(path) or _read_folder(path)
        else:
            found = dict(load_dataset(name, arguments.dataset_config_name))
    # the libraries below raise errors of many kinds, from connections to parsers
    except Exception as error:
        raise ValueError(
            f"could not read {name!r} ({first_line(error)}); it must be a parquet file, a folder of parquet files or "
            f"of images in folders per class{other}, or a name on a Hub that can be reached."
        ) from error
    splits = choose_splits(name, found)
    return path.resolve().stem if path.exists() else name, {"train": splits.pop("train"), **splits}


def find_columns(
    splits: dict[str, Dataset], arguments: ImageDataArguments, names: tuple[str, ...] = (), is_labelled: bool = True
) -> tuple[str, Any]:
    """Find the columns of images and labels, where they are not given.

    Args:
        splits: As [`read_image_splits`] gives them.
        arguments: May name the columns.
        names: Of columns that may take the place of one of images.
        is_labelled: Whether there must be labels.

    Returns:
        The columns; `None` for labels that there are none of.

    Raises:
        ValueError: A column cannot be found.
    """
    train = splits["train"]
    images = [name for name, feature in train.features.items() if isinstance(feature, Image)]
    images = images or [name for name in names if name in train.column_names]
    if arguments.image_column is None and len(images) != 1:
        kinds = "images or voxels" if names else "images"
        raise ValueError(
            f"one column must hold {kinds}, found {images} among {train.column_names}; name it by `image_column`."
        )
    usual = [name for name in LABEL_COLUMNS if name in train.column_names]
    classes = [name for name, feature in train.features.items() if isinstance(feature, ClassLabel)]
    labels = usual or (classes if len(classes) == 1 or not is_labelled else [])
    if arguments.label_column is None and is_labelled and not labels:
        raise ValueError(f"no column of labels found among {train.column_names}; name it by `label_column`.")
    found = arguments.image_column or images[0], arguments.label_column or next(iter(labels), None)
    for split_name, split in splits.items():
        for column in filter(None, found):
            if column not in split.column_names:
                raise ValueError(
                    f"column {column!r} is not in split {split_name!r}, found {split.column_names}; name the columns "
                    "by `image_column` and `label_column`."
                )
    return found


def complete_splits(
    splits: dict[str, Dataset], arguments: ImageDataArguments, stratified_by: str | None = None
) -> dict[str, Dataset]:
    """Carve what is missing from train, and draw at most as many rows as asked for.

    Args:
        splits: "train", and maybe "validation" and "test".
        arguments: How much to carve and to draw.
        stratified_by: Column of classes of which every split gets its share.

    Raises:
        ValueError: Train has too few rows.
    """

    def carve(train: Dataset, name: str) -> tuple[Dataset, Dataset]:
        try:
            parts = train.train_test_split(
                arguments.validation_fraction, stratify_by_column=stratified_by, seed=arguments.split_seed
            )
        except ValueError as error:
            raise ValueError(
                f"train has too few images ({len(train)}) to carve a {name} split from it ({error}); add images or a "
                f"{name} split."
            ) from error
        return parts["train"], parts["test"]

    return draw_splits(carve_splits(splits, carve), arguments)


@dataclass(frozen=True)
class ImageTask:
    """A data set that a classifier of images can be trained on.

    Args:
        name: For reports.
        splits: "train", "validation" and, unless taken away, "test", with the columns "image" and "labels".
        label_names: In the order of the ids.
    """

    name: str
    splits: DatasetDict
    label_names: list[str]

    @property
    def head_config(self) -> dict[str, Any]:
        """What a model's config must say to fit the task."""
        names = dict(enumerate(self.label_names))
        return {"num_labels": len(names), "id2label": names, "label2id": {name: i for i, name in names.items()}}

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits over the labels of train and validation and the first 100 images of each."""
        digest = hashlib.sha256(json.dumps(self.label_names).encode())
        for name in ("train", "validation"):
            split = self.splits[name]
            digest.update(json.dumps(split["labels"][:]).encode())
            for image in split.select(range(min(100, len(split))))["image"]:
                digest.update(np.asarray(image.convert("RGB")).tobytes())
        return digest.hexdigest()[:16]

    def without_test(self) -> "ImageTask":
        """Return the task as whatever chooses between models may see it."""
        return replace(self, splits=DatasetDict({name: self.splits[name] for name in ("train", "validation")}))


def load_task(arguments: ImageDataArguments) -> ImageTask:
    """Load a data set, find its columns, and print which are read.

    Raises:
        ValueError: The data set cannot be read, has no train split or no images, a column cannot be found, a label is
            missing, or an argument is out of range.
    """
    arguments.check()
    name, splits = read_image_splits(arguments)
    image_column, label_column = find_columns(splits, arguments)
    train = splits["train"]
    if not isinstance(train.features[image_column], Image):
        raise ValueError(
            f"the image column must hold images, got {train.features[image_column]}; name another by `image_column`."
        )
    if "test" in splits and not is_labelled(splits["test"], train, label_column):
        logger.info("the test split has no labels and is left out")
        del splits["test"]
    labels = encode_labels(splits, label_column, SINGLE_LABEL)
    splits = {
        split_name: split.select_columns(image_column)
        .rename_columns({image_column: "image"})
        .add_column("labels", labels.values[split_name], feature=labels.feature)
        for split_name, split in splits.items()
    }
    splits = complete_splits(splits, arguments, stratified_by="labels")
    sizes = ", ".join(f"{name} {len(split)}" for name, split in splits.items())
    columns = f"images from {image_column}, labels from {label_column}"
    screen.info(f"{name}: {columns}; {len(labels.names)} classes, rows: {sizes}")
    return ImageTask(name, DatasetDict(splits), labels.names)


def _read_digits() -> dict[str, Dataset]:
    """Read the 1,797 handwritten digits, 8x8, that scikit-learn carries; the last 597 are the test split."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = np.round(data.images * (255 / 16)).astype(np.uint8)
    whole = Dataset.from_dict(
        {"image": [PIL.Image.fromarray(image) for image in pixels], "label": data.target.tolist()}
    )
    whole = whole.cast_column("image", Image()).cast_column("label", ClassLabel(names=list("0123456789")))
    return {"train": whole.select(range(1200)), "test": whole.select(range(1200, 1797))}


def _read_folder(path: Path) -> dict[str, Dataset]:
    if files := find_files(path, {".parquet": "parquet"}):
        # a name may hold what a pattern means something by
        escaped = {split: [glob.escape(str(file)) for file in shards] for split, shards in files.items()}
        return dict(load_dataset("parquet", data_files=escaped))
    return dict(load_dataset("imagefolder", data_dir=glob.escape(str(path))))
