"""Compare saved image classifiers: accuracy, stored parameters, file size, operations and time, side by side.

    redundancy-hf compare-images --models runs/plain/seed-42 runs/shared/seed-42
    redundancy-hf compare-images --models google/efficientnet-b0 runs/shared/seed-42 --dataset_name photos --rounds 50

The data are read as the first model's `task.json` says, or as the flags do where there is none. Works on any saved
folder of an image classifier, through the Auto classes and the image processor in the folder. All models take turns,
for one image and for a batch, on one thread; times are relative to the first model in the same round, and a second copy
of it, the control, shows how far a ratio is from 1 by chance.
"""

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.utils import logging as transformers_logging

from redundancy_hf.command import parse_arguments, write_record
from redundancy_hf.readings import choose_arguments, open_model, record_reading
from redundancy_hf.record import hash_arrays, make_flags
from redundancy_hf.timing import hardware_fingerprint
from redundancy_hf.training import check_weights

from ..cost import count_expanded_parameters, count_flops, forward_call, measure_ratios
from ..data import EvaluationTransform, ImageTaskArguments, load_task
from ..training import match_labels, measure_accuracy


@dataclass
class CompareArguments:
    models: list[str] = field(metadata={"help": "Saved folders; the first one is what the others are compared with."})
    split: str = field(default="test", metadata={"help": "What accuracy is measured on: validation or test."})
    batch_size: int = field(default=32, metadata={"help": "Images at a time, beside one at a time."})
    rounds: int = field(default=20, metadata={"help": "Rounds in which every model is timed."})
    trust_remote_code: bool = field(default=True, metadata={"help": "Run the code that lies in the folders."})
    examples_dir: str | None = field(default=None, metadata={"help": "Write a few images of the split there as PNG."})
    results_file: str | None = field(default=None, metadata={"help": "JSON file for all numbers."})


def load_folder(folder: str, trust_remote_code: bool) -> tuple[Any, Any]:
    """Load a model and its image processor.

    Raises:
        ValueError: There is no such folder.
    """
    if not (Path(folder) / "config.json").is_file():
        raise ValueError(f"{folder} is no saved model: it has no config.json; train one first.")
    check_weights(Path(folder))
    model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=trust_remote_code)
    return model.eval(), AutoImageProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code)


def measure_times(models: dict[str, Any], pixels: torch.Tensor, rounds: int) -> dict[str, dict]:
    """Time the models against the first one, on the images given."""
    first, *_ = models
    calls = {name: forward_call(model, pixels) for name, model in models.items()}
    calls["control"] = forward_call(copy.deepcopy(models[first]), pixels)
    ratios = measure_ratios(calls, first, rounds=rounds, seconds_per_call=0.02)
    return {name: vars(ratio) for name, ratio in ratios.items()}


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


def main():
    arguments, flags = parse_arguments((CompareArguments, make_flags(ImageTaskArguments)), __doc__)
    transformers_logging.disable_progress_bar()
    if arguments.split not in ("validation", "test"):
        raise ValueError(f'--split must be "validation" or "test", got {arguments.split!r}.')
    torch.set_num_threads(1)
    loaded = {folder: load_folder(folder, arguments.trust_remote_code) for folder in arguments.models}
    read = [open_model(folder, Path(folder)) for folder in arguments.models]
    task = load_task(choose_arguments(ImageTaskArguments, read, vars(flags)))
    models = {folder: model for folder, (model, _) in loaded.items()}
    for model in models.values():
        match_labels(model.config, task.label_names)
    split = task.splits[arguments.split]
    sample = split.select(range(min(arguments.batch_size, len(split))))
    processor = loaded[arguments.models[0]][1]
    batch = torch.stack(sample.with_transform(EvaluationTransform(processor))[:]["pixel_values"])
    one, many = (measure_times(models, pixels, arguments.rounds) for pixels in (batch[:1], batch))
    rows = [
        {
            "model": folder,
            **measure_accuracy(
                model, split.with_transform(EvaluationTransform(own)), arguments.batch_size, task.label_names
            ),
            "stored_parameters": model.num_parameters(),
            "expanded_parameters": count_expanded_parameters(model),
            "file_bytes": sum(file.stat().st_size for file in Path(folder).glob("*.safetensors")),
            "flops": count_flops(model, batch[:1]),
            "time_one": one[folder],
            "time_batch": many[folder],
        }
        for folder, (model, own) in loaded.items()
    ]
    record_reading(read, hash_arrays(split["image"]), dataset=task.name, split=arguments.split)
    print_table(rows)
    print(
        f"{task.name}, {arguments.split} split, n = {len(split)}; times relative to the first "
        f"model, processor time on one thread, median of {arguments.rounds} rounds; control (a copy of the first): "
        f"{one['control']['ratio']:.2f} and {many['control']['ratio']:.2f}; batch: {len(batch)} images"
    )
    if arguments.examples_dir is not None:
        write_examples(sample, task.label_names, Path(arguments.examples_dir))
    write_record(
        arguments.results_file,
        hardware=hardware_fingerprint(),
        rows=rows,
        controls={"one": one["control"], "batch": many["control"]},
        batch_size=len(batch),
    )


def write_examples(split: Any, label_names: list[str], folder: Path, number: int = 4):
    """Write some images as PNG, named by their labels."""
    folder.mkdir(parents=True, exist_ok=True)
    for row, example in enumerate(split.select(range(min(number, len(split))))):
        label = "".join(letter if letter.isalnum() else "_" for letter in label_names[example["labels"]])
        example["image"].save(folder / f"{row}_label_{label}.png")
