r"""Evaluate saved autoencoders on the test split in random poses: error, loss, orientations, and pictures.

    redundancy-hf evaluate-avae --models runs/vae/seed-42 runs/avae/seed-42 --figures_dir runs/pictures
    redundancy-hf evaluate-avae --models runs/avae/seed-42 --dataset_name ylecun/mnist --augment rotation

The data are read, and turned, as the first model's `task.json` says, or, without that file, as the flags say. Works on
any saved folder of an autoencoder, through the Auto classes. All models see the same inputs in the same poses. Errors
are squared, summed over the pixels of an input, and averaged; smaller is better.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from tqdm import tqdm
from transformers import AutoModel

from redundancy_hf.command import parse_call, write_record
from redundancy_hf.readings import choose_arguments, open_model, record_reading
from redundancy_hf.record import hash_arrays
from redundancy_hf.timing import hardware_fingerprint
from redundancy_hf.training import load_folder

from .. import analysis
from ..data import (
    POSES,
    PoseDataset,
    ShapeTask,
    ShapeTaskArguments,
    ShapeTaskFlags,
    load_processor,
    load_task,
)
from ..training import evaluate_model, summarise_terms


def measure_folder(name: str, model: Any, inputs: PoseDataset, label_names: list[str], batch_size: int) -> dict:
    """Measure one model on inputs in their poses."""
    found = evaluate_model(model, inputs, batch_size, lambda starts: tqdm(starts, desc=name, unit="batch", leave=False))
    row = {"model": name, "latent_dim": model.config.latent_dim, "pose_dim": model.config.pose_dim}
    row |= summarise_terms(found["terms"])
    row["standard_error"] = float(found["terms"][:, 0].std() / len(inputs) ** 0.5)
    is_turned = model.config.spatial_dims == 2 and "rotation" in inputs.config.transforms
    if is_turned and "rotation" in model.config.transforms and label_names:
        classes = sorted(set(found["labels"].tolist()))[:10]
        row["orientations"] = analysis.measure_orientations(found["alpha"], found["pose"], found["labels"], classes)
    return row


def print_table(rows: list[dict]):
    """Print a line per model."""
    width = max(len(row["model"]) for row in rows)
    print(f"{'':{width}}  latent + pose   squared error             of the first   loss")
    for row in rows:
        ratio = row["squared_error"] / rows[0]["squared_error"]
        loss = row["reconstruction_loss"] + row["divergence"]
        print(
            f"{row['model']:{width}}  {row['latent_dim']:>6} + {row['pose_dim']:<4}"
            f"{row['squared_error']:>12.3f} +- {row['standard_error']:<8.3f}{ratio:>14.2f}{loss:>12.2f}"
        )


def draw(folder: Path, models: dict[str, Any], rows: list[dict], task: ShapeTask) -> list[Path]:
    """Draw reconstructions of all models, and the orientations of those that search; give the files."""
    folder.mkdir(parents=True, exist_ok=True)
    angles = [0, math.pi / 4, math.pi / 2, math.pi]
    titles = {"_".join(Path(name).parts[-2:]): model for name, model in models.items()}
    analysis.draw_reconstructions(titles, task.images["test"][:4], angles, folder / "reconstructions.png")
    drawn = [folder / "reconstructions.png"]
    for (title, _), row in zip(titles.items(), rows, strict=True):
        if "orientations" in row:
            chosen = [str(task.label_names.index(name)) for name in ("1", "6", "9") if name in task.label_names]
            # a small test split need not hold them
            names = [name for name in chosen if name in row["orientations"]] or list(row["orientations"])[:3]
            found = {task.label_names[int(name)]: row["orientations"][name] for name in names}
            drawn.append(folder / f"orientations_{title}.png")
            analysis.draw_orientations({"test": found}, drawn[-1])
    return drawn


def write_examples(images: torch.Tensor, folder: Path):
    """Write images as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate((images[:, 0] * 255).round().byte().numpy()):
        PIL.Image.fromarray(image).save(folder / f"{number}.png")


def evaluate_avae(
    models: Sequence[str],
    task: ShapeTaskFlags = ShapeTaskFlags(),
    trust_remote_code: bool = True,
    batch_size: int = 128,
    figures_dir: str | None = None,
    examples_dir: str | None = None,
    results_file: str | None = None,
) -> dict[str, Any]:
    """Evaluate saved autoencoders on a test split in random poses, and print a line for each.

    Args:
        models: Saved folders; the first one is what the others are compared with.
        task: The data and their poses; what is not given is as the first model's `task.json` says.
        trust_remote_code: Run the code that lies in the folders.
        batch_size: Inputs at a time.
        figures_dir: Folder for reconstructions and orientations.
        examples_dir: Write some turned images there as PNG.
        results_file: JSON file for all numbers.

    Returns:
        The record: "rows", one per model, and "hardware".

    Raises:
        ValueError: A folder or the data cannot be read, or is no autoencoder, or the errors cannot be compared.
    """
    models = [models] if isinstance(models, str) else models
    networks = {name: load_folder(name, AutoModel, trust_remote_code) for name in models}
    for name, network in networks.items():
        if network.config.model_type != "avae":
            raise ValueError(f"{name} is of the type {network.config.model_type!r}, not an autoencoder.")
    read = [open_model(name, Path(name)) for name in models]
    arguments = choose_arguments(ShapeTaskArguments, read, vars(task), POSES)
    processors = [load_processor(arguments, name, trust_remote_code) for name in models]
    if any(one.to_dict() != processors[0].to_dict() for one in processors):
        raise ValueError("the models have different image processors, so that their errors cannot be compared.")
    shapes = load_task(arguments, processors[0])
    posed = shapes.in_poses("test", arguments)
    rows = [measure_folder(name, model, posed, shapes.label_names, batch_size) for name, model in networks.items()]
    record_reading(read, hash_arrays(shapes.images["test"].numpy()), dataset=shapes.name, split="test")
    print_table(rows)
    print(f"{shapes.name}, test split, n = {len(posed)}, random poses: {' and '.join(arguments.augment)}")
    record = {"hardware": hardware_fingerprint(), "rows": rows}
    write_record(results_file, **record)
    if figures_dir is not None:
        for path in draw(Path(figures_dir), networks, rows, shapes):
            print(f"wrote {path}")
    if examples_dir is not None:
        examples = [posed[row] for row in range(min(4, len(posed)))]
        write_examples(posed.collate(examples)["pixel_values"], Path(examples_dir))
    return record


def main():
    evaluate_avae(**parse_call(evaluate_avae, __doc__))
