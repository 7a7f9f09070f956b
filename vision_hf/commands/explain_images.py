r"""Draw what image classifiers learned: sheets of kernels and Grad-CAM, side by side (thesis figures 3.4 to 3.6).

    redundancy-hf explain-images --models runs/plain/seed-0 runs/s4/seed-0 --dataset_name uoft-cs/cifar10 \
        --output_dir runs/pictures
    redundancy-hf explain-images --models runs/s4/seed-0 --dataset_name photos --output_dir runs/pictures

Writes kernels_first.png (kernels of the first convolution as images), kernels_second.png (the first layer that can
share, with all kernels that are applied; duplicates show the sharing) and grad_cam.png (test images with the regions of
the third convolutional layer that speak for the correct class). Each kernel is drawn at the place of the
most similar kernel of the first model. Works on any saved folder or Hub name of a shared Xception, EfficientNet or
ResNet.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from datasets import Dataset
from transformers import AutoImageProcessor, AutoModelForImageClassification

from redundancy_hf.command import parse_call, write_record
from redundancy_hf.images import load_task

from ..data import ImageTaskArguments
from ..explain import draw_grad_cam, draw_kernel_sheets


def choose_images(split: Dataset, number: int) -> Dataset:
    """Take the first images of every class in turn."""
    turns = pd.Series(split["labels"][:])
    return split.select(turns.groupby(turns).cumcount().sort_values(kind="stable").index[:number])


def explain_images(
    models: Sequence[str],
    task: ImageTaskArguments,
    names: Sequence[str] | None = None,
    output_dir: str = "runs/pictures",
    layer: str | None = None,
    num_images: int = 6,
    trust_remote_code: bool = True,
) -> dict[str, dict]:
    """Draw the kernels of image classifiers and what they look at.

    Args:
        models: Saved folders or Hub names; the first one is the reference.
        task: The images; those of the test split are drawn.
        names: What to call them; by default as their folders.
        output_dir: Folder for the pictures.
        layer: Module for Grad-CAM; by default the third convolutional layer.
        num_images: Test images for Grad-CAM.
        trust_remote_code: Run the code that lies in the folders.

    Returns:
        How similar the kernels are to those of the first model, by sheet and name: see
        [`vision_hf.explain.draw_kernel_sheets`].

    Raises:
        ValueError: Two models have one name, or a model or the data cannot be read or drawn.
    """
    models = [models] if isinstance(models, str) else models
    if num_images < 1:
        raise ValueError(f"`num_images` must be at least 1, got {num_images}.")
    names = names or [Path(model).name for model in models]
    if len(names) != len(models) or len(set(names)) != len(names):
        raise ValueError(f"every model needs a name of its own, got {list(names)}; set `names`.")
    networks = {
        name: AutoModelForImageClassification.from_pretrained(model, trust_remote_code=trust_remote_code).eval()
        for name, model in zip(names, models, strict=True)
    }
    chosen = choose_images(load_task(task).splits["test"], num_images)
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    similarity = {
        name: draw_kernel_sheets(networks, number, folder / f"kernels_{name}.png")
        for number, name in enumerate(("first", "second"))
    }
    images = [image.convert("RGB") for image in chosen["image"]]
    pixels = AutoImageProcessor.from_pretrained(models[0])(images, return_tensors="pt")["pixel_values"]
    draw_grad_cam(networks, images, pixels, list(chosen["labels"]), folder / "grad_cam.png", layer)
    write_record(str(folder / "kernels.json"), cosine_similarity=similarity)
    print(f"wrote kernels_first.png, kernels_second.png, grad_cam.png and kernels.json in {folder}")
    return similarity


def main():
    explain_images(**parse_call(explain_images, __doc__))
