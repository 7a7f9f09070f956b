"""Train an affine variational autoencoder, or a plain one, on images or voxels in random poses.

    redundancy-hf train-avae --dataset_name ylecun/mnist --augment rotation --transforms rotation --latent_dim 6
    redundancy-hf train-avae --dataset_name digits --image_size 16 --latent_dim 4 --seeds 3 --output_dir runs/avae

`--augment` says what is random about the data, `--transforms` what the model searches; `--transforms none` trains a
plain autoencoder. Every seed's model folder, OUTPUT_DIR/seed-N, opens with `AutoModel`; beside it lie the losses by
epoch, `train_results.json`, and the validation poses, `poses/epoch-N.npz`. The same command goes on where it stopped.
"""

import copy
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from redundancy_hf.cards import name_dataset
from redundancy_hf.command import FLAGS, describe_flags, parse_call
from redundancy_hf.folders import save_folder
from redundancy_hf.plan import Plan
from redundancy_hf.record import TaskRecord, describe_task, hash_arrays
from redundancy_hf.training import describe_mean, find_checkpoint, parse_overrides, run_seeds

from .. import AVAEConfig, AVAEModel
from ..data import ShapeTask, ShapeTaskArguments, build_processor, load_task
from ..training import AVAETrainingArguments, build_trainer, train, write_card


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


def train_avae(
    task: ShapeTaskArguments,
    training: AVAETrainingArguments,
    transforms: Sequence[str] = ("rotation",),
    latent_dim: int = 6,
    spatial_dims: int = 2,
    image_size: int = 40,
    in_channels: int = 1,
    likelihood: str = "gaussian",
    search: str = "fast",
    config_overrides: str | None = None,
    seeds: int = 1,
) -> list[dict[str, Any]]:
    """Train an autoencoder with several seeds, each into a folder of its own, and print what they reach.

    Args:
        task: The images or voxels, and their random poses.
        training: The recipe, and the folder for everything.
        transforms: What the model searches: rotation, translation, scale, shear, or none for a plain VAE.
        latent_dim: Numbers for the shape; those of the pose come on top.
        spatial_dims: 2 for images, 3 for voxels.
        image_size: Side that inputs are padded to; leave room to turn them.
        in_channels: 1 for brightness or voxels, 3 for colour.
        likelihood: gaussian or bernoulli.
        search: fast, or direct for the thesis' method.
        config_overrides: Other settings of the configuration as JSON, e.g. '{"encoder_channels": [16, 16, 32, 16]}'.
        seeds: Number of trainings, with seeds counted from --seed.

    Returns:
        What validation gave, by seed.

    Raises:
        ValueError: The data cannot be read, arguments do not fit, or a folder holds another training.
    """
    searched = [] if list(transforms) == ["none"] else list(transforms)
    own = {"latent_dim": latent_dim, "likelihood": likelihood, "search": search}
    sizes = {"spatial_dims": spatial_dims, "image_size": image_size, "in_channels": in_channels}
    overrides = parse_overrides(config_overrides, AVAEConfig(), {"transforms", *own, *sizes})
    shapes = load_task(task, build_processor(task, **sizes))
    config = AVAEConfig(**{**shapes.config_settings, **own, **overrides}, transforms=searched)
    settings = {
        "model": {"transforms": list(transforms), **own, **sizes, "config_overrides": config_overrides},
        "dataset": shapes.fingerprint,
        "poses": {k: v for k, v in asdict(task).items() if k == "augment" or k.startswith("max_")},
        FLAGS: describe_flags(**asdict(task)),
    }

    def train_seed(run: AVAETrainingArguments, folder: Path, plan: Plan) -> dict[str, Any]:
        network = AVAEModel(copy.deepcopy(config))
        train_split, validation = (shapes.in_poses(name, task) for name in ("train", "validation"))
        trainer = build_trainer(network, train_split, validation, run, folder / "poses", plan)
        trained = train(trainer, find_checkpoint(Path(str(run.output_dir))))
        if run.process_index == 0:
            save_folder(network, folder, shapes.processor)
            record = describe_shapes(shapes, task).after(None, folder.parent)
            # the seeds share one folder, which knows of every reading of the test split
            for place in (folder, folder.parent):
                record.write(place)
            facts = {"augment": task.augment, "num_epochs": run.num_train_epochs, "seed": run.seed}
            write_card(folder, network, trained, shapes, name_dataset(shapes.name, vars(task)), facts)
        return {"seed": run.seed, **asdict(trained), "parameters": network.num_parameters()}

    rows = run_seeds(train_seed, training, seeds, settings)
    if training.process_index == 0:
        for row in rows:
            print(f"seed {row['seed']}: validation squared error {row['squared_error']:.3f}, loss {row['loss']:.3f}")
        print(describe_mean([row["squared_error"] for row in rows], training, decimals=3))
    return rows


def main():
    train_avae(**parse_call(train_avae, __doc__))
