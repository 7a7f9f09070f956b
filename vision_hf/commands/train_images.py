r"""Train an image classifier whose convolutions share weights, by the recipes of the thesis (section 3.6).

Examples: the thesis author's small Xception, each depthwise kernel used by four channels, on CIFAR-10:

    redundancy-hf train-images --preset author-cifar --dataset_name uoft-cs/cifar10 --augmentation crop_flip \
        --num_train_epochs 300 --lr_decay_epochs 50 --sharing_factor 4 --output_dir runs/s4
    redundancy-hf train-images --model_name_or_path google/efficientnet-b0 --dataset_name photos --sharing_factor 2

Every seed leaves a model folder OUTPUT_DIR/seed-N with its image processor; the same command resumes. Two processes on
a CPU: torchrun --nproc_per_node 2 -m redundancy_hf train-images ... --use_cpu
"""

import json
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForImageClassification
from transformers.utils import logging as transformers_logging

import vision_hf
from redundancy_hf.cards import name_dataset
from redundancy_hf.command import FLAGS, describe_flags, parse_arguments
from redundancy_hf.folders import save_folder
from redundancy_hf.plan import Plan
from redundancy_hf.record import TaskRecord, describe_task, hash_arrays
from redundancy_hf.training import check_weights, describe_mean, run_seeds

from ..conversion import share_weights
from ..data import ImageTask, ImageTaskArguments, build_image_processor, load_task
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


@dataclass
class ModelArguments:
    family: str = field(default="xception", metadata={"help": "xception, efficientnet or resnet."})
    preset: str | None = field(
        default=None,
        metadata={
            "help": "author-cifar, author-vs, full-728 | b0 to b7 | resnet-18, resnet-50, resnet-18-cifar. By default "
            "author-vs, b0 and resnet-18-cifar."
        },
    )
    config_overrides: str | None = field(
        default=None,
        metadata={"help": "Other settings of the configuration as JSON, e.g. '{\"stage_channels\": [64, 64, 64]}'."},
    )
    sharing_factor: list[int] = field(
        default_factory=lambda: [1],
        metadata={
            "help": "Channels per kernel: one number, or one per stage. With --model_name_or_path the trained network "
            "is converted, and fine-tuned with shared kernels."
        },
    )
    pointwise_sharing_factor: list[int] = field(
        default_factory=lambda: [1], metadata={"help": "The same for 1x1 convolutions; the thesis shares none."}
    )
    channel_divisor: list[int] = field(
        default_factory=lambda: [1], metadata={"help": "Remove channels instead: divide the stages' widths."}
    )
    grad_reduction: str = field(default="mean", metadata={"help": "mean or sum of the gradients that share a weight."})
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Fine-tune this folder or Hub model instead of starting from scratch."}
    )
    seeds: int = field(default=1, metadata={"help": "Trainings, with --seed, --seed + 1, ..."})


def build_config(arguments: ModelArguments, task: ImageTask):
    """Build the configuration that the flags ask for."""
    if arguments.family not in FAMILIES:
        raise ValueError(f"--family must be one of {sorted(FAMILIES)}, got {arguments.family!r}.")
    config_class, preset = FAMILIES[arguments.family]
    try:
        overrides = json.loads(arguments.config_overrides or "{}")
    except json.JSONDecodeError as error:
        raise ValueError(f"--config_overrides must be JSON in quotes, got {arguments.config_overrides!r}.") from error
    for name in ("sharing_factor", "pointwise_sharing_factor", "channel_divisor"):
        values = getattr(arguments, name)
        overrides[name] = values[0] if len(values) == 1 else values
    known = set(config_class.from_preset(preset).to_dict())
    unknown = sorted(set(overrides) - known)
    if unknown:
        raise ValueError(f"--config_overrides has unknown settings {unknown}; {config_class.__name__} documents them.")
    return config_class.from_preset(
        arguments.preset or preset, **overrides, grad_reduction=arguments.grad_reduction, **task.head_config
    )


def load_model(arguments: ModelArguments, task: ImageTask, task_arguments: ImageTaskArguments):
    """Load the model to fine-tune with a head for the task; with a sharing factor, convert it first."""
    try:
        config = AutoConfig.from_pretrained(str(arguments.model_name_or_path), **task.head_config)
    except OSError as error:
        raise ValueError(
            f"--model_name_or_path {arguments.model_name_or_path!r} is neither a folder with a config.json nor a "
            "model on a Hub that can be reached."
        ) from error
    new = ModelArguments()
    ours = ("family", "preset", "config_overrides", "pointwise_sharing_factor", "channel_divisor", "grad_reduction")
    changed = [f"--{name}" for name in ours if getattr(arguments, name) != getattr(new, name)]
    if changed:
        raise ValueError(
            f"{', '.join(changed)} can only be of a new model; --model_name_or_path has its own architecture."
        )
    check_weights(Path(str(arguments.model_name_or_path)))
    model = AutoModelForImageClassification.from_pretrained(
        str(arguments.model_name_or_path), config=config, ignore_mismatched_sizes=True
    )
    factors = arguments.sharing_factor
    if factors != [1]:
        model = share_weights(model, factors[0] if len(factors) == 1 else factors)
        processor = build_image_processor(task_arguments, task_arguments.image_size or model.config.image_size)
        estimate_statistics(model, task, processor)
    return model


def build_model(arguments: ModelArguments, task: ImageTask, task_arguments: ImageTaskArguments):
    """Build a new model, or load the one to fine-tune."""
    if arguments.model_name_or_path is None:
        model: Any = build_classifier(build_config(arguments, task), task)
    else:
        model = load_model(arguments, task, task_arguments)
    model.config.image_size = task_arguments.image_size or model.config.image_size
    return model


def name_of(checkpoint: str | None) -> str | None:
    """Give a checkpoint's name on the Hub; of a local folder none, for a card must not tell where it lay."""
    return None if checkpoint is None or Path(checkpoint).exists() else checkpoint


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


def train_seeds(model_arguments: ModelArguments, task_arguments: ImageTaskArguments, training: ImageTrainingArguments):
    """Train all seeds, each into a folder of its own, and print what they reach.

    Raises:
        ValueError: The data or the model cannot be read, arguments do not fit, or a folder holds another training.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    whole = load_task(task_arguments)
    task, describe = whole.without_test(), cache(lambda: describe_images(whole, task_arguments))
    settings = {
        "model": {k: v for k, v in asdict(model_arguments).items() if k != "seeds"},
        "dataset": task.fingerprint,
        "images": {k: v for k, v in asdict(task_arguments).items() if not k.startswith(("dataset", "max_test"))},
        FLAGS: describe_flags(**asdict(task_arguments)),
    }

    def train_seed(own: ImageTrainingArguments, folder: Path, plan: Plan) -> dict[str, Any]:
        model = build_model(model_arguments, task, task_arguments)
        processor = build_image_processor(task_arguments, model.config.image_size)
        trained = train(build_trainer(model, task, processor, task_arguments, own, plan=plan))
        if own.process_index == 0:
            save_folder(model, folder, processor)
            record = describe().after(model_arguments.model_name_or_path, folder.parent)
            record.write(folder)
            # where all seeds write down that they were tested
            record.write(folder.parent)
            write_card(
                folder,
                model,
                trained,
                task,
                num_epochs=own.num_train_epochs,
                seed=own.seed,
                base_model=name_of(model_arguments.model_name_or_path),
                dataset_fields=name_dataset(task.name, vars(task_arguments)),
            )
        return {"seed": own.seed, **asdict(trained), "parameters": model.num_parameters()}

    rows = run_seeds(train_seed, training, model_arguments.seeds, settings)
    if training.process_index == 0:
        for row in rows:
            print(f"seed {row['seed']}: validation accuracy {row['accuracy']:.4f}, {row['parameters']:,} parameters")
        print(describe_mean([row["accuracy"] for row in rows], training))


def main():
    train_seeds(*parse_arguments((ModelArguments, ImageTaskArguments, ImageTrainingArguments), __doc__))
