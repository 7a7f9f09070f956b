r"""Evaluate saved autoencoders on the test split in random poses: error, loss, orientations, and pictures.

    redundancy-hf evaluate-avae --models runs/vae/seed-42 runs/avae/seed-42 --figures_dir runs/pictures
    redundancy-hf evaluate-avae --models runs/avae/seed-42 --dataset_name ylecun/mnist --augment rotation

The data are read, and turned, as the first model's `task.json` says, or as the flags do where there is none. Works on
any saved folder of an autoencoder, through the Auto classes. All models see the same inputs in the same poses. Errors
are squared, summed over the pixels of an input, and averaged; smaller is better.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoModel
from transformers.utils import logging as transformers_logging

from redundancy_hf.command import parse_arguments, write_record
from redundancy_hf.readings import choose_arguments, open_model, record_reading
from redundancy_hf.record import hash_arrays, make_flags
from redundancy_hf.timing import hardware_fingerprint

from .. import analysis
from ..data import ShapeTask, ShapeTaskArguments, load_processor, load_task
from ..training import evaluate_model, summarise_terms

# flags that choose poses and no rows
POSES = ("augment", "max_translation", "max_log_scale", "max_shear")


@dataclass
class EvaluationArguments:
    models: list[str] = field(metadata={"help": "Saved folders; the first one is what the others are compared with."})
    trust_remote_code: bool = field(default=True, metadata={"help": "Run the code that lies in the folders."})
    batch_size: int = field(default=128, metadata={"help": "Inputs at a time."})
    figures_dir: str | None = field(default=None, metadata={"help": "Folder for reconstructions and orientations."})
    examples_dir: str | None = field(default=None, metadata={"help": "Write some turned images there as PNG."})
    results_file: str | None = field(default=None, metadata={"help": "JSON file for all numbers."})


def load_folder(folder: str, trust_remote_code: bool) -> Any:
    """Load a model.

    Raises:
        ValueError: There is no such folder, or it is no autoencoder.
    """
    if not (Path(folder) / "config.json").is_file():
        raise ValueError(f"{folder} is no saved model: it has no config.json; train one first.")
    model = AutoModel.from_pretrained(folder, trust_remote_code=trust_remote_code)
    if model.config.model_type != "avae":
        raise ValueError(f"{folder} is of the type {model.config.model_type!r}, not an autoencoder.")
    return model.eval()


def evaluate_folder(name: str, model: Any, task: ShapeTask, arguments, task_arguments) -> dict:
    """Measure one model on the test split."""
    dataset = task.in_poses("test", task_arguments)
    found = evaluate_model(
        model, dataset, arguments.batch_size, lambda starts: tqdm(starts, desc=name, unit="batch", leave=False)
    )
    row = {"model": name, "latent_dim": model.config.latent_dim, "pose_dim": model.config.pose_dim}
    row |= summarise_terms(found["terms"])
    row["standard_error"] = float(found["terms"][:, 0].std() / len(dataset) ** 0.5)
    is_turned = model.config.spatial_dims == 2 and "rotation" in task_arguments.augment
    if is_turned and "rotation" in model.config.transforms and task.label_names:
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


def draw(arguments: EvaluationArguments, models: dict[str, Any], rows: list[dict], task: ShapeTask) -> list[Path]:
    """Draw reconstructions of all models, and the orientations of those that search; give the files."""
    folder = Path(arguments.figures_dir or ".")
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


def main():
    arguments, flags = parse_arguments((EvaluationArguments, make_flags(ShapeTaskArguments)), __doc__)
    transformers_logging.disable_progress_bar()
    models = {folder: load_folder(folder, arguments.trust_remote_code) for folder in arguments.models}
    read = [open_model(folder, Path(folder)) for folder in models]
    task_arguments = choose_arguments(ShapeTaskArguments, read, vars(flags), POSES)
    processors = [load_processor(task_arguments, folder, arguments.trust_remote_code) for folder in models]
    if any(one.to_dict() != processors[0].to_dict() for one in processors):
        raise ValueError("the models have different image processors, so that their errors cannot be compared.")
    if arguments.results_file is not None:
        Path(arguments.results_file).parent.mkdir(parents=True, exist_ok=True)
    task = load_task(task_arguments, processors[0])
    rows = [evaluate_folder(name, model, task, arguments, task_arguments) for name, model in models.items()]
    record_reading(read, hash_arrays(task.images["test"].numpy()), dataset=task.name, split="test")
    print_table(rows)
    what = " and ".join(task_arguments.augment)
    print(f"{task.name}, test split, n = {len(task.images['test'])}, random poses: {what}")
    write_record(arguments.results_file, hardware=hardware_fingerprint(), rows=rows)
    if arguments.figures_dir is not None:
        for path in draw(arguments, models, rows, task):
            print(f"wrote {path}")
    if arguments.examples_dir is not None:
        posed = task.in_poses("test", task_arguments)
        number = min(4, len(posed))
        write_examples(
            posed.collate([posed[row] for row in range(number)])["pixel_values"], Path(arguments.examples_dir)
        )


def write_examples(images: torch.Tensor, folder: Path):
    """Write images as PNG."""
    import PIL.Image

    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate((images[:, 0] * 255).round().byte().numpy()):
        PIL.Image.fromarray(image).save(folder / f"{number}.png")
