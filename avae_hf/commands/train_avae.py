"""Train an affine variational autoencoder, or a plain one, on images or voxels in random poses.

    redundancy-hf train-avae --dataset_name ylecun/mnist --augment rotation --transforms rotation --latent_dim 6
    redundancy-hf train-avae --dataset_name digits --image_size 16 --latent_dim 4 --seeds 3 --output_dir runs/avae

`--augment` says what is random about the data, `--transforms` what the model searches; `--transforms none` trains a
plain autoencoder. Every seed's model folder, OUTPUT_DIR/seed-N, opens with `AutoModel`; beside it lie the losses by
epoch, `train_results.json`, and the validation poses, `poses/epoch-N.npz`. The same command goes on where it stopped.
"""

import copy
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from redundancy_hf.cards import name_dataset
from redundancy_hf.command import FLAGS, describe_flags, parse_arguments
from redundancy_hf.folders import save_folder
from redundancy_hf.plan import Plan
from redundancy_hf.record import TaskRecord, describe_task, hash_arrays
from redundancy_hf.training import describe_mean, find_checkpoint, run_seeds

from .. import AVAEConfig, AVAEModel
from ..data import ShapeTask, ShapeTaskArguments, build_processor, load_task
from ..training import AVAETrainingArguments, build_trainer, train, write_card


@dataclass
class ModelArguments:
    transforms: list[str] = field(
        default_factory=lambda: ["rotation"],
        metadata={"help": "What the model searches: rotation, translation, scale, shear, or none for a plain VAE."},
    )
    latent_dim: int = field(default=6, metadata={"help": "Numbers for the shape; those of the pose come on top."})
    spatial_dims: int = field(default=2, metadata={"help": "2 for images, 3 for voxels."})
    image_size: int = field(default=40, metadata={"help": "Side that inputs are padded to; leave room to turn them."})
    in_channels: int = field(default=1, metadata={"help": "1 for brightness or voxels, 3 for colour."})
    likelihood: str = field(default="gaussian", metadata={"help": "gaussian or bernoulli."})
    search: str = field(default="fast", metadata={"help": "fast, or direct for the thesis' method."})
    config_overrides: str | None = field(
        default=None,
        metadata={
            "help": "Other settings of the configuration as JSON, e.g. '{\"encoder_channels\": [16, 16, 32, 16]}'."
        },
    )
    seeds: int = field(default=1, metadata={"help": "Trainings, with --seed, --seed + 1, ..."})


def build_config(arguments: ModelArguments, task: ShapeTask) -> AVAEConfig:
    """Build the configuration that the flags ask for."""
    try:
        overrides = json.loads(arguments.config_overrides or "{}")
    except json.JSONDecodeError as error:
        raise ValueError(f"--config_overrides must be JSON in quotes, got {arguments.config_overrides!r}.") from error
    unknown = sorted(set(overrides) - set(AVAEConfig().to_dict()))
    if unknown:
        raise ValueError(f"--config_overrides has unknown settings {unknown}; AVAEConfig documents them.")
    flags = {name: getattr(arguments, name) for name in ("latent_dim", "likelihood", "search")}
    transforms = [] if arguments.transforms == ["none"] else arguments.transforms
    return AVAEConfig(**{**task.config_settings, **flags, **overrides}, transforms=transforms)


def describe_shapes(task: ShapeTask, arguments: ShapeTaskArguments) -> TaskRecord:
    """Write down how the data were read; the folder's image processor says how they were resized and normalised."""
    return describe_task(
        "autoencoder",
        task.name,
        {key: value for key, value in asdict(arguments).items() if key not in ("object_size", "normalize")},
        task.label_names,
        {split: hash_arrays(images.numpy()) for split, images in task.images.items()},
        {split: labels.tolist() for split, labels in task.labels.items()},
        is_local=arguments.is_local,
    )


def main():
    arguments, task_arguments, training = parse_arguments(
        (ModelArguments, ShapeTaskArguments, AVAETrainingArguments), __doc__
    )
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    sizes = (arguments.image_size, arguments.spatial_dims, arguments.in_channels)
    task = load_task(task_arguments, build_processor(task_arguments, *sizes))
    config = build_config(arguments, task)
    settings = {
        "model": {k: v for k, v in asdict(arguments).items() if k != "seeds"},
        "dataset": task.fingerprint,
        "poses": {k: v for k, v in asdict(task_arguments).items() if k == "augment" or k.startswith("max_")},
        FLAGS: describe_flags(**asdict(task_arguments)),
    }

    def train_seed(own: AVAETrainingArguments, folder: Path, plan: Plan) -> dict[str, Any]:
        model = AVAEModel(copy.deepcopy(config))
        train_split, validation = (task.in_poses(name, task_arguments) for name in ("train", "validation"))
        trainer = build_trainer(model, train_split, validation, own, folder / "poses", plan)
        trained = train(trainer, find_checkpoint(Path(str(own.output_dir))))
        if own.process_index == 0:
            save_folder(model, folder, task.processor)
            record = describe_shapes(task, task_arguments).after(None, folder.parent)
            record.write(folder)
            # where all seeds write down that they were tested
            record.write(folder.parent)
            facts: dict[str, Any] = {f"num_{name}": len(task.images[name]) for name in ("train", "validation")}
            facts |= {"dataset": task.name, "augment": task_arguments.augment, "num_epochs": own.num_train_epochs}
            facts["dataset_fields"] = name_dataset(task.name, vars(task_arguments))
            write_card(folder, model, trained, task.images["validation"][:4], seed=own.seed, **facts)
        return {"seed": own.seed, **asdict(trained), "parameters": model.num_parameters()}

    rows = run_seeds(train_seed, training, arguments.seeds, settings)
    if training.process_index == 0:
        for row in rows:
            print(f"seed {row['seed']}: validation squared error {row['squared_error']:.3f}, loss {row['loss']:.3f}")
        print(describe_mean([row["squared_error"] for row in rows], training, decimals=3))
