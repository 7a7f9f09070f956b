"""Compare saved image classifiers: accuracy, stored parameters, file size, operations and time, side by side.

    redundancy-hf compare-images --models runs/plain/seed-42 runs/shared/seed-42
    redundancy-hf compare-images --models google/efficientnet-b0 runs/shared/seed-42 --dataset_name photos --rounds 50

The data are read as the first model's `task.json` says, or, without that file, as the flags say. Works on any saved
folder of an image classifier, through the Auto classes and the image processor in the folder. All models take turns,
for one image and for a batch, on one thread; times are relative to the first model in the same round, and a second copy
of it, the control, shows how far a ratio is from 1 by chance.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification

from redundancy_hf.command import parse_call, write_record
from redundancy_hf.images import load_task
from redundancy_hf.readings import choose_arguments, open_model, record_reading
from redundancy_hf.record import hash_arrays
from redundancy_hf.timing import hardware_fingerprint
from redundancy_hf.training import load_folder

from ..cost import count_expanded_parameters, count_flops, forward_call, measure_ratios
from ..data import EvaluationTransform, ImageTaskArguments, ImageTaskFlags
from ..training import match_labels, measure_accuracy


def measure_times(models: dict[str, Any], pixels: torch.Tensor, rounds: int) -> dict[str, dict]:
    """Time the models against the first one, on the images given."""
    first, *_ = models
    calls = {name: forward_call(model, pixels) for name, model in models.items()}
    calls["control"] = forward_call(copy.deepcopy(models[first]), pixels)
    return measure_ratios(calls, first, rounds)


def count_costs(folder: str, model: Any, pixels: torch.Tensor) -> dict[str, int]:
    """Count what a saved model stores, applies and computes for one image."""
    return {
        "stored_parameters": model.num_parameters(),
        "expanded_parameters": count_expanded_parameters(model),
        "file_bytes": sum(file.stat().st_size for file in Path(folder).glob("*.safetensors")),
        "flops": count_flops(model, pixels),
    }


def print_table(rows: list[dict]):
    """Print a line per model."""
    width = max(len(row["model"]) for row in rows)
    print(f"{'':{width}}  accuracy         parameters: stored  as applied   file, kB    MFLOPs   time, 1 image  batch")
    for row in rows:
        print(
            f"{row['model']:{width}}  {row['accuracy']:.3f} +- {row['standard_error']:.3f}"
            f"{row['stored_parameters']:>21,}{row['expanded_parameters']:>12,}{row['file_bytes'] / 1000:>11,.0f}"
            f"{row['flops'] / 1e6:>10.1f}{row['time_one']['ratio']:>16.2f}{row['time_batch']['ratio']:>7.2f}"
        )


def write_examples(split: Any, label_names: list[str], folder: Path, number: int = 4):
    """Write some images as PNG, named by their labels."""
    folder.mkdir(parents=True, exist_ok=True)
    for row, example in enumerate(split.select(range(min(number, len(split))))):
        label = "".join(letter if letter.isalnum() else "_" for letter in label_names[example["labels"]])
        example["image"].save(folder / f"{row}_label_{label}.png")


def compare_image_classifiers(
    models: Sequence[str],
    task: ImageTaskFlags = ImageTaskFlags(),
    split: str = "test",
    batch_size: int = 32,
    rounds: int = 20,
    trust_remote_code: bool = True,
    examples_dir: str | None = None,
    results_file: str | None = None,
) -> dict[str, Any]:
    """Compare saved image classifiers, and print a line for each.

    Args:
        models: Saved folders; the first one is what the others are compared with.
        task: The images; what is not given is as the first model's `task.json` says.
        split: What accuracy is measured on: validation or test.
        batch_size: Images at a time, beside one at a time.
        rounds: Rounds in which every model is timed.
        trust_remote_code: Run the code that lies in the folders.
        examples_dir: Write a few images of the split there as PNG.
        results_file: JSON file for all numbers.

    Returns:
        The record: "rows", one per model, "controls" and "hardware".

    Raises:
        ValueError: A folder or the data cannot be read, or the models do not know the labels.
    """
    models = [models] if isinstance(models, str) else models
    if split not in ("validation", "test"):
        raise ValueError(f'`split` must be "validation" or "test", got {split!r}.')
    torch.set_num_threads(1)
    networks = {name: load_folder(name, AutoModelForImageClassification, trust_remote_code) for name in models}
    transforms = {
        name: EvaluationTransform(AutoImageProcessor.from_pretrained(name, trust_remote_code=trust_remote_code))
        for name in models
    }
    read = [open_model(name, Path(name)) for name in models]
    data = load_task(choose_arguments(ImageTaskArguments, read, vars(task)))
    for network in networks.values():
        match_labels(network.config, data.label_names)
    images = data.splits[split]
    sample = images.select(range(min(batch_size, len(images))))
    batch = torch.stack(sample.with_transform(transforms[models[0]])[:]["pixel_values"])
    one, many = (measure_times(networks, pixels, rounds) for pixels in (batch[:1], batch))
    rows = [
        {
            "model": name,
            **measure_accuracy(network, images.with_transform(transforms[name]), batch_size, data.label_names),
            **count_costs(name, network, batch[:1]),
            "time_one": one[name],
            "time_batch": many[name],
        }
        for name, network in networks.items()
    ]
    record_reading(read, hash_arrays(images["image"]), dataset=data.name, split=split)
    print_table(rows)
    print(
        f"{data.name}, {split} split, n = {len(images)}; times relative to the first model, processor time on one "
        f"thread, median of {rounds} rounds; control (a copy of the first): {one['control']['ratio']:.2f} and "
        f"{many['control']['ratio']:.2f}; batch: {len(batch)} images"
    )
    if examples_dir is not None:
        write_examples(sample, data.label_names, Path(examples_dir))
    controls = {"one": one["control"], "batch": many["control"]}
    found = {"hardware": hardware_fingerprint(), "rows": rows, "controls": controls, "batch_size": len(batch)}
    return write_record(results_file, **found)


def main():
    compare_image_classifiers(**parse_call(compare_image_classifiers, __doc__))
