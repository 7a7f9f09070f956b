"""What a classifier of images is given: its image processor, and the augmentation of train.

Augmentation is the thesis' (R. Bidart, 2023, section 3.6): random crops of the padded image and flips for small images,
random resized crops for large ones. Everything runs on Pillow and torch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import PIL.Image
import torch
from datasets import DatasetDict
from transformers import BaseImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from redundancy_hf.images import ImageDataArguments, ImageTask
from redundancy_hf.record import make_flags


@dataclass
class ImageTaskArguments(ImageDataArguments):
    image_size: int | None = field(default=None, metadata={"help": "Height and width, in pixels; the model's if none."})
    crop_pct: float | None = field(
        default=None,
        metadata={"help": "Evaluate on the middle of the image, this share of its shorter side; without it, on all."},
    )
    image_mean: list[float] = field(
        default_factory=lambda: list(IMAGENET_DEFAULT_MEAN),
        metadata={"help": "Mean of red, green and blue, from 0 to 1."},
    )
    image_std: list[float] = field(
        default_factory=lambda: IMAGENET_DEFAULT_STD[:], metadata={"help": "Standard deviation of the channels."}
    )
    augmentation: str = field(
        default="crop_flip",
        metadata={
            "help": "crop_flip (pad, crop, mirror: small images), crop (digits must not be mirrored), resized_crop "
            "(large images) or none."
        },
    )
    crop_padding: int = field(default=4, metadata={"help": "Pixels of padding that crop_flip and crop crop from."})

    def check(self):
        super().check()
        known = ("crop_flip", "crop", "resized_crop", "none")
        if self.augmentation not in known:
            raise ValueError(f"`augmentation` must be one of {known}, got {self.augmentation!r}.")
        if len(self.image_mean) != 3 or len(self.image_std) != 3 or min(self.image_std) <= 0:
            raise ValueError("`image_mean` and `image_std` need three numbers each, the deviations above 0.")
        if self.crop_pct is not None and not 0 < self.crop_pct <= 1:
            raise ValueError(f"`crop_pct` must be above 0 and at most 1, got {self.crop_pct}.")
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"`image_size` must be at least 1, got {self.image_size}.")
        if self.crop_padding < 0:
            raise ValueError(f"`crop_padding` must not be negative, got {self.crop_padding}.")


class ImageTaskFlags(make_flags(ImageTaskArguments)):  # type: ignore[misc]
    """Of [`ImageTaskArguments`] what is given; what is not may stand in a model's `task.json`."""


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
