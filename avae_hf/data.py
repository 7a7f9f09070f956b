"""Data for the autoencoder: images or voxels as tensors, each put in a random pose (R. Bidart, thesis 2023, 4.1.5).

Training draws a new pose at every access; the poses of validation and test are drawn once, with a seed. Everything is
kept in memory, as the image processor gives it. Letters: N inputs, B of them in a batch, C channels, P pose numbers.
"""

import hashlib
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import ClassLabel, Dataset
from torch.utils.data import default_collate
from transformers import AutoImageProcessor

from redundancy_hf.images import DIGITS, ImageDataArguments, complete_splits, find_columns, read_image_splits
from redundancy_hf.record import make_flags

from .configuration_avae import TRANSFORMS, AVAEConfig
from .image_processing_avae import AVAEImageProcessor
from .layers_avae import affine_matrix, invert_affine, warp
from .pose_search_avae import draw_poses

logger = logging.getLogger(__name__)
# what a command says on standard output
screen = logging.getLogger("screen")
# settings that choose poses and no rows
POSES = ("augment", "max_translation", "max_log_scale", "max_shear")
# column of the ids of labels
IDS = "class ids"


@dataclass
class ShapeTaskArguments(ImageDataArguments):
    dataset_name: str = field(
        default=DIGITS,
        metadata={
            "help": "digits (scikit-learn's, embedded), a folder of train, validation and test parquet files, a folder "
            "of images (train/CLASS/*.png) or of meshes (CLASS/train/*.off, as ModelNet comes), one parquet file, or a "
            "name on the Hub."
        },
    )
    classes: list[str] | None = field(default=None, metadata={"help": "Use only these classes, e.g. chair."})
    object_size: int | None = field(
        default=None, metadata={"help": "Resize inputs to so many pixels or voxels before they are padded."}
    )
    normalize: bool = field(
        default=False, metadata={"help": "Subtract the training data's mean and divide by its deviation."}
    )
    augment: list[str] = field(
        default_factory=lambda: ["rotation"],
        metadata={"help": "What is random about the poses: rotation, translation, scale, shear, or none."},
    )
    max_translation: float = field(default=0.2, metadata={"help": "Largest translation, in half sides of the image."})
    max_log_scale: float = field(default=0.25, metadata={"help": "Largest logarithm of a scale."})
    max_shear: float = field(default=0.5, metadata={"help": "Largest shear, the tangent of its angle."})

    def check(self):
        super().check()
        if self.augment != ["none"] and not set(self.augment) <= set(TRANSFORMS):
            raise ValueError(f"`augment` must be some of {TRANSFORMS}, or none, got {self.augment}.")

    def pose_config(self, spatial_dims: int, background: float = 0.0) -> AVAEConfig:
        """Say by a configuration what poses the data get.

        Raises:
            StrictDataclassClassValidationError: A transform is unknown, or a limit negative.
        """
        return AVAEConfig(
            spatial_dims=spatial_dims,
            transforms=[] if self.augment == ["none"] else self.augment,
            max_translation=self.max_translation,
            max_log_scale=self.max_log_scale,
            max_shear=self.max_shear,
            background=background,
        )


class ShapeTaskFlags(make_flags(ShapeTaskArguments)):  # type: ignore[misc]
    """Of [`ShapeTaskArguments`] what is given; what is not may stand in a model's `task.json`."""


class PoseDataset(torch.utils.data.Dataset):
    """Inputs with poses for the Trainer; [`collate`] puts them there.

    Args:
        images: Upright, (N, C, ...).
        labels: Classes, (N,); -1 where there are none.
        config: What the poses consist of.
        seed: Of poses that stay the same; `None` for new ones at every access.
    """

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, config: AVAEConfig, seed: int | None = None):
        self.images, self.labels, self.config = images, labels, config
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        self.poses = None if generator is None else draw_poses(config, len(images), generator)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        pose = draw_poses(self.config, 1)[0] if self.poses is None else self.poses[row]
        return {"pixel_values": self.images[row], "pose": pose, "labels": self.labels[row]}

    def collate(self, examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Stack examples and put every one in its pose, all at once."""
        batch = default_collate(examples)
        batch["pixel_values"] = put_in_pose(self.config, batch["pixel_values"], batch["pose"])
        return batch


def put_in_pose(config: AVAEConfig, images: torch.Tensor, pose: torch.Tensor) -> torch.Tensor:
    """Put upright inputs, (B, C, ...), in poses, (B, P)."""
    if not config.transforms:
        return images
    return warp(images, invert_affine(affine_matrix(config, pose)), config.background)


@dataclass(frozen=True)
class ShapeTask:
    """Splits of upright inputs.

    Args:
        name: For reports.
        images: By split, "train", "validation" and maybe "test", (N, C, ...).
        labels: By split, (N,).
        label_names: Names of the classes; empty without a column of them.
        processor: What made the tensors.
    """

    name: str
    images: dict[str, torch.Tensor]
    labels: dict[str, torch.Tensor]
    label_names: list[str]
    processor: AVAEImageProcessor

    @property
    def background(self) -> float:
        """Value of empty space."""
        processor = self.processor
        return -processor.image_mean / processor.image_std if processor.do_normalize else 0.0

    @property
    def config_settings(self) -> dict[str, Any]:
        """What the configuration of a model must say to fit the data."""
        processor = self.processor
        sizes = {"image_size": processor.image_size, "spatial_dims": processor.spatial_dims}
        sizes["in_channels"] = processor.num_channels
        normal = {"background": self.background, "output_activation": "identity"}
        return {**sizes, **(normal if processor.do_normalize else {})}

    @property
    def fingerprint(self) -> str:
        """16 hex digits over train and validation."""
        digest = hashlib.sha256()
        for name in ("train", "validation"):
            digest.update(self.images[name].numpy().tobytes() + self.labels[name].numpy().tobytes())
        return digest.hexdigest()[:16]

    def in_poses(self, split: str, arguments: ShapeTaskArguments) -> PoseDataset:
        """Give a split in random poses: fresh ones for train, seeded ones for the others."""
        config = arguments.pose_config(self.images[split].ndim - 2, self.background)
        seed = None if split == "train" else arguments.split_seed
        return PoseDataset(self.images[split], self.labels[split], config, seed)


def load_task(arguments: ShapeTaskArguments, processor: AVAEImageProcessor) -> ShapeTask:
    """Load a data set as tensors that a model takes, and print which columns are read.

    Args:
        arguments: Which data.
        processor: Of the model: one that is new, as of [`build_processor`], or that lies in its folder.

    Raises:
        ValueError: The data cannot be read or do not fit the model, a column or class does not exist, or an argument is
            out of range.
    """
    arguments.check()

    def read_solids(folder: Path) -> dict[str, Dataset] | None:
        has_meshes = next(folder.rglob("*.off"), None) is not None
        return read_meshes(folder, arguments.classes, processor.object_size or 24) if has_meshes else None

    name, splits = read_image_splits(arguments, read_solids, " or of .off meshes")
    kinds = ("voxels", "pixels", "image")
    image_column, label_column = find_columns(splits, arguments, kinds, is_labelled=False)
    label_names = _encode_labels(splits, label_column)
    if arguments.classes is not None:
        unknown = sorted(set(arguments.classes) - set(label_names))
        if unknown:
            raise ValueError(f"`classes` has {unknown}; the classes are {label_names or 'not given by any column'}.")
        wanted = [label_names.index(one) for one in arguments.classes]
        splits = {key: rows.select(np.flatnonzero(np.isin(rows[IDS][:], wanted))) for key, rows in splits.items()}
    images: dict[str, torch.Tensor] = {}
    labels: dict[str, torch.Tensor] = {}
    for key, split in complete_splits(splits, arguments).items():
        pixels = processor(_decode(split.remove_columns(IDS), image_column), return_tensors="pt")["pixel_values"]
        # voxel grids of nothing, which published data sets contain
        is_full = pixels.flatten(1).amax(1) > 0
        images[key], labels[key] = pixels[is_full], torch.tensor(split[IDS][:])[is_full]
        if not is_full.all():
            logger.info(f"{key}: {int((~is_full).sum())} empty inputs are left out")
        if not is_full.any():
            raise ValueError(f"split {key!r} of {name} has no input that is not empty.")
    if arguments.normalize and not processor.do_normalize:
        processor = _normalise(processor, images)
    sizes = ", ".join(f"{key} {len(values)}" for key, values in images.items())
    and_labels = f" and labels from {label_column}" if label_column else ""
    screen.info(f"{name}: inputs from {image_column}{and_labels}; rows: {sizes}")
    return ShapeTask(name, images, labels, label_names, processor)


def build_processor(
    arguments: ShapeTaskArguments, image_size: int, spatial_dims: int, in_channels: int
) -> AVAEImageProcessor:
    """Build the processor of a new model."""
    return AVAEImageProcessor(image_size, spatial_dims, in_channels, arguments.object_size)


def load_processor(arguments: ShapeTaskArguments, folder: str, trust_remote_code: bool = True) -> AVAEImageProcessor:
    """Load the processor of a saved model, which says how its data are made.

    Raises:
        ValueError: There is none, or the arguments want something else.
    """
    if arguments.object_size is not None or arguments.normalize:
        raise ValueError("`object_size` and `normalize` are for training; the folder's image processor has both.")
    try:
        return AutoImageProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except OSError as error:
        raise ValueError(f"{folder} has no image processor, preprocessor_config.json; train it anew.") from error


def read_meshes(folder: Path, classes: list[str] | None = None, resolution: int = 24) -> dict[str, Dataset]:
    """Voxelise meshes, CLASS/train/*.off and CLASS/test/*.off, by the library trimesh.

    Args:
        folder: As Princeton's ModelNet archives unpack.
        classes: Only these.
        resolution: Voxels along the longest side of a solid.

    Raises:
        ValueError: trimesh is not installed, or a file, which the message names, cannot be read.
    """
    try:
        import trimesh
    except ImportError as error:
        raise ValueError("meshes need trimesh: pip install 'redundancy-hf[meshes]'") from error
    names = sorted({file.parent.parent.name for file in folder.rglob("*.off")})
    found: dict[str, list[dict]] = {}
    for file in sorted(folder.rglob("*.off")):
        name, split = file.parent.parent.name, file.parent.name
        if classes is not None and name not in classes:
            continue
        try:
            mesh: Any = trimesh.load(_repair_header(file), file_type="off", force="mesh")
            grid = mesh.voxelized(max(mesh.extents) / (resolution - 1)).fill().matrix
        except Exception as error:
            raise ValueError(f"{file.name} is no mesh that can be read ({error})") from error
        voxels = np.asarray(grid, np.uint8)[:resolution, :resolution, :resolution]
        row = {"voxels": np.packbits(voxels).tobytes(), "shape": list(voxels.shape), "label": names.index(name)}
        found.setdefault(split, []).append(row)
    splits = {split: Dataset.from_list(rows) for split, rows in found.items()}
    return {split: rows.cast_column("label", ClassLabel(names=names)) for split, rows in splits.items()}


def _repair_header(file: Path):
    """Open a mesh; in some of ModelNet's files the counts stand on the line of the word OFF."""
    import io

    text = file.read_text()
    if text.startswith("OFF") and text[3:4] not in ("\n", "\r"):
        text = "OFF\n" + text[3:].lstrip()
    return io.BytesIO(text.encode())


def _encode_labels(splits: dict[str, Dataset], column: str | None) -> list[str]:
    """Give the splits, in place, ids of their labels, -1 where there are none, and give the names of the classes."""
    names: list[str] = []
    if column is not None:
        feature = splits["train"].features[column]
        names = (
            feature.names
            if isinstance(feature, ClassLabel)
            else sorted({str(value) for value in splits["train"][column]})
        )
    for key, split in splits.items():
        if column is None:
            ids = [-1] * len(split)
        elif isinstance(split.features[column], ClassLabel):
            ids = split[column][:]
        else:
            ids = pd.Categorical([str(value) for value in split[column]], names).codes.tolist()
        splits[key] = split.add_column(IDS, ids)
    return names


def _decode(split: Dataset, column: str) -> list[Any]:
    """Give images as Pillow has them, and arrays of packed or nested voxels."""
    values = split[column][:]
    if values and isinstance(values[0], bytes):
        if "shape" not in split.column_names:
            raise ValueError(
                f"column {column!r} holds packed voxels, which need a column 'shape', found {split.column_names}."
            )
        shapes = split["shape"][:]
        bits = [np.unpackbits(np.frombuffer(value, np.uint8)) for value in values]
        return [flat[: np.prod(shape)].reshape(shape) for flat, shape in zip(bits, shapes, strict=True)]
    if values and isinstance(values[0], list):
        arrays = [np.asarray(value) for value in values]
        if any(array.dtype.kind == "i" and not 0 <= array.min() <= array.max() <= 255 for array in arrays):
            raise ValueError(f"column {column!r} has whole numbers outside 0 to 255; scale them to floats in [0, 1].")
        return [array.astype(np.uint8) if array.dtype.kind == "i" else array for array in arrays]
    return values


def _normalise(processor: AVAEImageProcessor, images: dict[str, torch.Tensor]) -> AVAEImageProcessor:
    """Normalise all splits by train's mean and deviation, in place, and give the processor that does the same."""
    mean, deviation = images["train"].mean().item(), images["train"].std().item()
    for name in images:
        images[name] = (images[name] - mean) / deviation
    return processor.with_settings(do_normalize=True, image_mean=mean, image_std=deviation)
