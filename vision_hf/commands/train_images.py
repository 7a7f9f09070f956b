r"""Train an image classifier whose convolutions share weights, by the recipes of the thesis (section 3.6).

    redundancy-hf train-images --preset author-cifar --dataset_name uoft-cs/cifar10 --augmentation crop_flip \
        --num_train_epochs 300 --lr_decay_epochs 50 --sharing_factor 4 --output_dir runs/s4
    redundancy-hf train-images --model_name_or_path google/efficientnet-b0 --dataset_name photos --sharing_factor 2

The first example trains the thesis author's small Xception on CIFAR-10; four channels use each depthwise kernel.
Every seed leaves a model folder OUTPUT_DIR/seed-N with its image processor; the same command resumes. Two processes on
a CPU: torchrun --nproc_per_node 2 -m redundancy_hf train-images ... --use_cpu
"""

from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForImageClassification

import vision_hf
from redundancy_hf.cards import name_dataset
from redundancy_hf.command import FLAGS, describe_flags, parse_call
from redundancy_hf.folders import save_folder
from redundancy_hf.images import ImageTask, load_task
from redundancy_hf.plan import Plan
from redundancy_hf.record import TaskRecord, describe_task, hash_arrays
from redundancy_hf.training import check_weights, describe_mean, parse_overrides, run_seeds

from ..conversion import share_weights
from ..data import ImageTaskArguments, build_image_processor
from ..training import (
    ImageTrainingArguments,
    build_classifier,
    build_trainer,
    estimate_statistics,
    train,
    write_card,
)

FAMILIES: dict[str, tuple[Any, str]] = {
    "xception": (vision_hf.SharedXceptionConfig, "author-vs"),
    "efficientnet": (vision_hf.SharedEfficientNetConfig, "b0"),
    "resnet": (vision_hf.SharedResNetConfig, "resnet-18-cifar"),
}
FACTORS = ("sharing_factor", "pointwise_sharing_factor", "channel_divisor")


def build_model(model: dict[str, Any], task: ImageTask) -> Any:
    """Build a new model from the arguments of [`train_image_classifier`]."""
    if model["family"] not in FAMILIES:
        raise ValueError(f"`family` must be one of {sorted(FAMILIES)}, got {model['family']!r}.")
    config_class, preset = FAMILIES[model["family"]]
    own = (*FACTORS, "grad_reduction", "image_size")
    overrides = parse_overrides(model["config_overrides"], config_class.from_preset(preset), own)
    factors = {name: model[name][0] if len(model[name]) == 1 else model[name] for name in FACTORS}
    overrides |= {**factors, "grad_reduction": model["grad_reduction"]}
    return build_classifier(config_class.from_preset(model["preset"] or preset, **overrides), task)


def load_model(model: dict[str, Any], task: ImageTask, arguments: ImageTaskArguments) -> Any:
    """Load the model to fine-tune with a head for the task; with a sharing factor, convert it first."""
    name = model["model_name_or_path"]
    try:
        config = AutoConfig.from_pretrained(name, **task.head_config)
    except OSError as error:
        raise ValueError(
            f"`model_name_or_path` {name!r} is neither a folder with a config.json nor a model on a Hub that can be "
            "reached."
        ) from error
    new = signature(train_image_classifier).parameters
    own = ("model_name_or_path", "sharing_factor")
    changed = [f"`{key}`" for key, value in model.items() if key not in own and value != _as_list(new[key].default)]
    if changed:
        raise ValueError(
            f"{', '.join(changed)} can only be of a new model; `model_name_or_path` has its own architecture."
        )
    check_weights(Path(name))
    found = AutoModelForImageClassification.from_pretrained(name, config=config, ignore_mismatched_sizes=True)
    factors = model["sharing_factor"]
    if factors != [1]:
        found = share_weights(found, factors[0] if len(factors) == 1 else factors)
        estimate_statistics(found, task, build_image_processor(arguments, found.config.image_size))
    return found


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def describe_images(task: ImageTask, arguments: ImageTaskArguments) -> TaskRecord:
    """Write down how images were read, their test split too, which nothing else has looked at."""
    return describe_task(
        "image-classification",
        task.name,
        asdict(arguments),
        task.label_names,
        {split: hash_arrays(rows["image"]) for split, rows in task.splits.items()},
        {split: rows["labels"][:] for split, rows in task.splits.items()},
        is_local=arguments.is_local,
    )


def train_image_classifier(
    task: ImageTaskArguments,
    training: ImageTrainingArguments,
    family: str = "xception",
    preset: str | None = None,
    config_overrides: str | None = None,
    sharing_factor: Sequence[int] = (1,),
    pointwise_sharing_factor: Sequence[int] = (1,),
    channel_divisor: Sequence[int] = (1,),
    grad_reduction: str = "mean",
    model_name_or_path: str | None = None,
    seeds: int = 1,
) -> list[dict[str, Any]]:
    """Train an image classifier with several seeds, each into a folder of its own, and print what they reach.

    Args:
        task: The images.
        training: The recipe, and the folder for everything.
        family: xception, efficientnet or resnet.
        preset: author-cifar, author-vs, full-728 | b0 to b7 | resnet-18, resnet-50, resnet-18-cifar. By default
            author-vs, b0 and resnet-18-cifar.
        config_overrides: Other settings of the configuration as JSON, e.g. '{"stage_channels": [64, 64, 64]}'.
        sharing_factor: Channels per kernel: one number, or one per stage. With --model_name_or_path the trained network
            is converted, and fine-tuned with shared kernels.
        pointwise_sharing_factor: The same for 1x1 convolutions; the thesis shares none.
        channel_divisor: Remove channels instead: divide the stages' widths.
        grad_reduction: mean or sum of the gradients that share a weight.
        model_name_or_path: Fine-tune this folder or Hub model instead of starting from scratch.
        seeds: Number of trainings, with seeds counted from --seed.

    Returns:
        What validation gave, by seed.

    Raises:
        ValueError: The data or the model cannot be read, arguments do not fit, or a folder holds another training.
    """
    model = {
        "family": family,
        "preset": preset,
        "config_overrides": config_overrides,
        "sharing_factor": list(sharing_factor),
        "pointwise_sharing_factor": list(pointwise_sharing_factor),
        "channel_divisor": list(channel_divisor),
        "grad_reduction": grad_reduction,
        "model_name_or_path": model_name_or_path,
    }
    whole = load_task(task)
    known, describe = whole.without_test(), cache(lambda: describe_images(whole, task))
    images = {k: v for k, v in asdict(task).items() if not k.startswith(("dataset", "max_test"))}
    settings = {"model": model, "dataset": known.fingerprint, "images": images, FLAGS: describe_flags(**asdict(task))}

    def train_seed(own: ImageTrainingArguments, folder: Path, plan: Plan) -> dict[str, Any]:
        network = load_model(model, known, task) if model_name_or_path else build_model(model, known)
        network.config.image_size = task.image_size or network.config.image_size
        processor = build_image_processor(task, network.config.image_size)
        trained = train(build_trainer(network, known, processor, task, own, plan=plan))
        if own.process_index == 0:
            save_folder(network, folder, processor)
            record = describe().after(model_name_or_path, folder.parent)
            # the seeds share one folder, which knows of every reading of the test split
            for place in (folder, folder.parent):
                record.write(place)
            facts = {"num_epochs": own.num_train_epochs, "seed": own.seed, "base_model": model_name_or_path}
            write_card(folder, network, trained, known, name_dataset(known.name, vars(task)), facts)
        return {"seed": own.seed, **asdict(trained), "parameters": network.num_parameters()}

    rows = run_seeds(train_seed, training, seeds, settings)
    if training.process_index == 0:
        for row in rows:
            print(f"seed {row['seed']}: validation accuracy {row['accuracy']:.4f}, {row['parameters']:,} parameters")
        print(describe_mean([row["accuracy"] for row in rows], training))
    return rows


def main():
    train_image_classifier(**parse_call(train_image_classifier, __doc__))
