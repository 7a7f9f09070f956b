r"""Draw what image classifiers learned: sheets of kernels and Grad-CAM, side by side (thesis figures 3.4 to 3.6).

    redundancy-hf explain-images --models runs/plain/seed-0 runs/s4/seed-0 --dataset_name uoft-cs/cifar10 \
        --output_dir runs/pictures
    redundancy-hf explain-images --models runs/s4/seed-0 --dataset_name photos --output_dir runs/pictures

Writes kernels_first.png (kernels of the first convolution as images), kernels_second.png (the first layer that can
share, with all kernels that are applied; duplicates show the sharing) and grad_cam.png (test images with the regions of
the third convolutional layer that speak for the correct class). Kernels lie where their most similar ones of the first
model lie. Works on any saved folder or Hub name of a shared Xception, EfficientNet or ResNet.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.utils import logging as transformers_logging

from redundancy_hf.command import parse_arguments, write_record

from ..data import ImageTaskArguments, load_task
from ..explain import draw_grad_cam, draw_kernel_sheets


@dataclass
class ExplainArguments:
    models: list[str] = field(metadata={"help": "Saved folders or Hub names; the first one is the reference."})
    names: list[str] | None = field(default=None, metadata={"help": "What to call them; by default as their folders."})
    output_dir: str = field(default="runs/pictures", metadata={"help": "Folder for the pictures."})
    layer: str | None = field(
        default=None, metadata={"help": "Module for Grad-CAM; by default the third convolutional layer."}
    )
    num_images: int = field(default=6, metadata={"help": "Test images for Grad-CAM."})
    trust_remote_code: bool = field(default=True, metadata={"help": "Run the code that lies in the folders."})


def load_models(arguments: ExplainArguments) -> dict:
    """Load the models by name."""
    names = arguments.names or [Path(model).name for model in arguments.models]
    if len(names) != len(arguments.models) or len(set(names)) != len(names):
        raise ValueError(f"every model needs a name of its own, got {names}; set --names.")
    return {
        name: AutoModelForImageClassification.from_pretrained(
            model, trust_remote_code=arguments.trust_remote_code
        ).eval()
        for name, model in zip(names, arguments.models, strict=True)
    }


def choose_images(split: Dataset, number: int) -> Dataset:
    """Take the first images of every class in turn."""
    labels, seen = split["labels"][:], Counter[int]()
    turns = []
    for row, label in enumerate(labels):
        turns.append((seen[label], row))
        seen[label] += 1
    return split.select([row for _, row in sorted(turns)[:number]])


def main():
    arguments, task_arguments = parse_arguments((ExplainArguments, ImageTaskArguments), __doc__)
    transformers_logging.disable_progress_bar()
    if arguments.num_images < 1:
        raise ValueError(f"--num_images must be at least 1, got {arguments.num_images}.")
    models = load_models(arguments)
    task = load_task(task_arguments)
    folder = Path(arguments.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    similarity = {
        name: draw_kernel_sheets(models, layer, folder / f"kernels_{name}.png")
        for layer, name in enumerate(("first", "second"))
    }
    chosen = choose_images(task.splits["test"], arguments.num_images)
    processor = AutoImageProcessor.from_pretrained(arguments.models[0])
    images = [image.convert("RGB") for image in chosen["image"]]
    pixels = processor(images, return_tensors="pt")["pixel_values"]
    draw_grad_cam(models, images, pixels, list(chosen["labels"]), folder / "grad_cam.png", arguments.layer)
    write_record(str(folder / "kernels.json"), cosine_similarity=similarity)
    print(f"wrote kernels_first.png, kernels_second.png, grad_cam.png and kernels.json in {folder}")
