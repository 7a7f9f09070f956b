"""Image classification tasks: a data set, however it is stored, as splits with known columns, and its augmentation.

The test split is for one final evaluation; a validation split that is missing is carved from train. Augmentation is
the thesis' (R. Bidart, 2023, section 3.6): random crops of the padded image and flips for small images, random resized
crops for large ones. Everything runs on Pillow and torch.
"""

import hashlib
import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import PIL.Image
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Image
from transformers import BaseImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from redundancy_hf.images import read_image_splits
from redundancy_hf.splits import draw_rows

logger = logging.getLogger(__name__)
# what a command says on standard output
screen = logging.getLogger("screen")

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LABEL_COLUMNS = ("label", "labels", "fine_label", "class")


@dataclass
class ImageTaskArguments:
    dataset_name: str = field(
        default="digits",
        metadata={
            "help": "digits (scikit-learn's, embedded), a folder of train, validation and test parquet files, a folder "
            "of images (train/CLASS/*.png), one parquet file, or a name on the Hub."
        },
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of a data set on the Hub."})
    image_column: str | None = field(default=None, metadata={"help": "Column of the image; inferred if not given."})
    label_column: str | None = field(default=None, metadata={"help": "Column of the label; inferred if not given."})
    image_size: int | None = field(default=None, metadata={"help": "Height and width, in pixels; the model's if none."})
    crop_pct: float | None = field(
        default=None,
        metadata={"help": "Evaluate on the middle of the image, this share of its shorter side; without it, on all."},
    )
    image_mean: list[float] = field(
        default_factory=lambda: list(IMAGENET_MEAN), metadata={"help": "Mean of red, green and blue, from 0 to 1."}
    )
    image_std: list[float] = field(
        default_factory=lambda: list(IMAGENET_STD), metadata={"help": "Standard deviation of the channels."}
    )
    augmentation: str = field(
        default="crop_flip",
        metadata={
            "help": "crop_flip (pad, crop, mirror: small images), crop (digits must not be mirrored), resized_crop "
            "(large images) or none."
        },
    )
    crop_padding: int = field(default=4, metadata={"help": "Pixels of padding that crop_flip and crop crop from."})
    validation_fraction: float = field(
        default=0.1, metadata={"help": "Share of train that becomes a validation or test split that is missing."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on at most so many images."})
    max_validation_samples: int | None = field(default=None, metadata={"help": "Validate on at most so many images."})
    max_test_samples: int | None = field(default=None, metadata={"help": "Test on at most so many images."})
    split_seed: int = field(default=42, metadata={"help": "Seed of carved splits and of drawn images."})


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


def load_task(arguments: ImageTaskArguments) -> ImageTask:
    """Load a data set, find its columns, and print which are read.

    Raises:
        ValueError: The data set cannot be read, has no train split or no images, a column cannot be found, a label is
            missing, or an argument is out of range.
    """
    _check_arguments(arguments)
    name, splits = read_splits(arguments)
    train = splits["train"]
    image_column = arguments.image_column or _find_image_column(train)
    label_column = arguments.label_column or _find_label_column(train)
    for split_name, split in splits.items():
        for column in (image_column, label_column):
            if column not in split.column_names:
                raise ValueError(
                    f"column {column!r} is not in split {split_name!r}, found {split.column_names}; name the columns "
                    "by --image_column and --label_column."
                )
        splits[split_name] = split.select_columns([image_column, label_column]).rename_columns(
            {column: name for column, name in ((image_column, "image"), (label_column, "labels")) if column != name}
        )
    label_names = _encode_labels(splits)
    splits = _complete_splits(splits, arguments)
    for split_name, split in splits.items():
        splits[split_name] = draw_rows(split, getattr(arguments, f"max_{split_name}_samples"), arguments.split_seed)
    sizes = ", ".join(f"{name} {len(split)}" for name, split in splits.items())
    columns = f"images from {image_column}, labels from {label_column}"
    screen.info(f"{name}: {columns}; {len(label_names)} classes, rows: {sizes}")
    return ImageTask(name, DatasetDict(splits), label_names)


def read_splits(arguments: ImageTaskArguments) -> tuple[str, dict[str, Dataset]]:
    """Read the embedded digits or another data set of images."""
    name = arguments.dataset_name
    return (name, load_digits()) if name == "digits" else read_image_splits(name, arguments.dataset_config_name)


def build_image_processor(arguments: ImageTaskArguments, image_size: int) -> BaseImageProcessor:
    """Build the processor that evaluation uses and that is saved beside the model."""
    options: dict[str, Any] = {"image_mean": arguments.image_mean, "image_std": arguments.image_std}
    size = arguments.image_size or image_size
    if arguments.crop_pct is None:
        return ViTImageProcessorPil(size={"height": size, "width": size}, do_convert_rgb=True, **options)
    options.update(size={"shortest_edge": round(size / arguments.crop_pct)}, crop_size={"height": size, "width": size})
    return CLIPImageProcessorPil(resample=PIL.Image.Resampling.BICUBIC, do_convert_rgb=True, **options)


def transform_splits(task: ImageTask, processor: Any, arguments: ImageTaskArguments) -> DatasetDict:
    """Let the splits give "pixel_values", (3, H, W), instead of images; train is augmented."""
    size = (processor.crop_size if processor.do_center_crop else processor.size)["height"]
    train = TrainTransform(arguments, size)
    return DatasetDict(
        {
            name: split.with_transform(train if name == "train" else EvaluationTransform(processor))
            for name, split in task.splits.items()
        }
    )


class EvaluationTransform:
    """A batch of images through the image processor."""

    def __init__(self, processor: BaseImageProcessor):
        self.processor = processor

    def __call__(self, batch: dict[str, list]) -> dict[str, Any]:
        images = [image.convert("RGB") for image in batch["image"]]
        pixels = self.processor(images, return_tensors="pt")["pixel_values"]
        return {"pixel_values": list(pixels), "labels": batch["labels"]}


class TrainTransform:
    """A batch of images, augmented, scaled and normalised.

    Chance is torch's, so that a run that is resumed at the end of an epoch repeats it; within an epoch the batch that
    is prepared in advance has already drawn.
    """

    def __init__(self, arguments: ImageTaskArguments, size: int):
        self.size, self.padding = size, arguments.crop_padding
        self.augment: Callable[[PIL.Image.Image], np.ndarray] = getattr(self, arguments.augmentation)
        self.mean = torch.tensor(arguments.image_mean)[:, None, None]
        self.std = torch.tensor(arguments.image_std)[:, None, None]

    def __call__(self, batch: dict[str, list]) -> dict[str, Any]:
        pixels = np.stack([self.augment(image.convert("RGB")) for image in batch["image"]])  # (B, H, W, 3)
        scaled = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        return {"pixel_values": list((scaled - self.mean) / self.std), "labels": batch["labels"]}

    def none(self, image: PIL.Image.Image) -> np.ndarray:
        """Resize only."""
        if image.size != (self.size, self.size):
            image = image.resize((self.size, self.size), PIL.Image.Resampling.BILINEAR)
        return np.asarray(image)

    def crop(self, image: PIL.Image.Image) -> np.ndarray:
        """Resize, pad with black and crop at a random place."""
        padding = self.padding
        padded = np.pad(self.none(image), ((padding, padding), (padding, padding), (0, 0)))
        top, left = torch.randint(0, 2 * padding + 1, (2,)).tolist()
        return padded[top : top + self.size, left : left + self.size]

    def crop_flip(self, image: PIL.Image.Image) -> np.ndarray:
        """Crop as above and mirror half of the images."""
        return _maybe_mirror(self.crop(image))

    def resized_crop(self, image: PIL.Image.Image) -> np.ndarray:
        """Crop 8 to 100 % of the area with a side ratio of 3/4 to 4/3, resize, mirror half of the images."""
        box = _random_box(image.width, image.height)
        image = image.resize((self.size, self.size), PIL.Image.Resampling.BICUBIC, box=box)
        return _maybe_mirror(np.asarray(image))


def _maybe_mirror(pixels: np.ndarray) -> np.ndarray:
    return pixels[:, ::-1] if torch.rand(()) < 0.5 else pixels


def _random_box(width: int, height: int) -> tuple[int, int, int, int]:
    """Draw a box as Inception's training does (Szegedy et al., 2015); after ten failures, the largest one allowed."""
    for _ in range(10):
        area = width * height * torch.empty(()).uniform_(0.08, 1).item()
        ratio = math.exp(torch.empty(()).uniform_(math.log(3 / 4), math.log(4 / 3)).item())
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            left = int(torch.randint(0, width - box_width + 1, ()))
            top = int(torch.randint(0, height - box_height + 1, ()))
            return left, top, left + box_width, top + box_height
    box_width, box_height = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - box_width) // 2, (height - box_height) // 2
    return left, top, left + box_width, top + box_height


def collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack examples; channels last, which convolutions on a CPU are faster with."""
    pixels = torch.stack([example["pixel_values"] for example in examples])
    labels = torch.tensor([example["labels"] for example in examples])
    return {"pixel_values": pixels.contiguous(memory_format=torch.channels_last), "labels": labels}


def _check_arguments(arguments: ImageTaskArguments):
    if not 0 < arguments.validation_fraction < 1:
        raise ValueError(f"--validation_fraction must be between 0 and 1, got {arguments.validation_fraction}.")
    known = ("crop_flip", "crop", "resized_crop", "none")
    if arguments.augmentation not in known:
        raise ValueError(f"--augmentation must be one of {known}, got {arguments.augmentation!r}.")
    if len(arguments.image_mean) != 3 or len(arguments.image_std) != 3 or min(arguments.image_std) <= 0:
        raise ValueError("--image_mean and --image_std need three numbers each, the deviations above 0.")
    if arguments.crop_pct is not None and not 0 < arguments.crop_pct <= 1:
        raise ValueError(f"--crop_pct must be above 0 and at most 1, got {arguments.crop_pct}.")
    for name in ("image_size", "max_train_samples", "max_validation_samples", "max_test_samples"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}.")
    if arguments.crop_padding < 0:
        raise ValueError(f"--crop_padding must not be negative, got {arguments.crop_padding}.")


def load_digits() -> dict[str, Dataset]:
    """Load the 1,797 handwritten digits, 8x8, that scikit-learn carries; the last 597 are the test split."""
    from sklearn.datasets import load_digits as read_digits

    data = read_digits()
    pixels = np.round(data.images * (255 / 16)).astype(np.uint8)
    images = [PIL.Image.fromarray(image) for image in pixels]
    whole = Dataset.from_dict({"image": images, "labels": data.target.tolist()}).cast_column("image", Image())
    whole = whole.cast_column("labels", ClassLabel(names=[str(digit) for digit in range(10)]))
    return {"train": whole.select(range(1200)), "test": whole.select(range(1200, 1797))}


def _find_image_column(train: Dataset) -> str:
    columns = [name for name, feature in train.features.items() if isinstance(feature, Image)]
    if len(columns) != 1:
        raise ValueError(
            f"one column must hold images, found {columns} among {train.column_names}; name it by --image_column."
        )
    return columns[0]


def _find_label_column(train: Dataset) -> str:
    classes = [name for name, feature in train.features.items() if isinstance(feature, ClassLabel)]
    usual = [name for name in LABEL_COLUMNS if name in train.column_names]
    for candidates in (usual, classes):
        if len(candidates) == 1 or candidates == usual != []:
            return candidates[0]
    raise ValueError(f"no column of labels found among {train.column_names}; name it by --label_column.")


def _encode_labels(splits: dict[str, Dataset]) -> list[str]:
    """Make the labels ids from 0, in place; a test split without labels is left out."""
    feature = splits["train"].features["labels"]
    if not isinstance(splits["train"].features["image"], Image):
        raise ValueError(
            f"the image column must hold images, got {splits['train'].features['image']}; name another by "
            "--image_column."
        )
    if isinstance(feature, ClassLabel):
        names, known = feature.names, dict(zip(range(feature.num_classes), range(feature.num_classes), strict=True))
    else:
        values = sorted({value for value in splits["train"]["labels"] if value is not None}, key=str)
        if values and all(isinstance(value, int) for value in values):
            values = sorted(values)
        names, known = [str(value) for value in values], {value: index for index, value in enumerate(values)}
    for split_name, split in list(splits.items()):
        labels = split["labels"][:]
        if split_name == "test" and all(label in (None, -1) for label in labels):
            logger.info("the test split has no labels and is left out")
            del splits[split_name]
            continue
        unknown = [row for row, label in enumerate(labels) if label not in known]
        if unknown:
            raise ValueError(
                f"split {split_name!r} has {len(unknown)} labels that train does not have or that are missing, the "
                f"first, {labels[unknown[0]]!r}, in row {unknown[0]} (the first is 0); remove these rows."
            )
        if not isinstance(feature, ClassLabel):
            ids = [known[label] for label in labels]
            column = ClassLabel(names=names)
            splits[split_name] = split.remove_columns("labels").add_column("labels", ids).cast_column("labels", column)
    if len(names) < 2:
        raise ValueError(f"a classifier needs at least two classes, found {names}.")
    return names


def _complete_splits(splits: dict[str, Dataset], arguments: ImageTaskArguments) -> dict[str, Dataset]:
    """Make the validation split the test split if there is no other, and carve what is missing from train."""
    splits = dict(splits)
    if "test" not in splits and "validation" in splits:
        splits["test"] = splits.pop("validation")
    for name in ("test", "validation"):
        if name not in splits:
            try:
                carved = splits["train"].train_test_split(
                    arguments.validation_fraction, stratify_by_column="labels", seed=arguments.split_seed
                )
            except ValueError as error:
                raise ValueError(
                    f"train has too few images ({len(splits['train'])}) to carve a {name} split with every class from "
                    f"it ({error}); add images or a {name} split."
                ) from error
            splits["train"], splits[name] = carved["train"], carved["test"]
    return {name: splits[name] for name in ("train", "validation", "test")}
