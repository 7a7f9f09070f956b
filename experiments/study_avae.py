r"""Train affine and plain autoencoders of equal latent size and measure what pose search is worth (thesis, chapter 4).

    python experiments/study_avae.py --study pose --dataset_name ylecun/mnist --max_train_samples 10000 \
        --results_file results/avae_mnist.json --figures_dir docs/images

Studies: "pose" has both models on inputs that are turned, and turned and shifted (tables 4.1 and 4.2), and a plain one
trained upright; "latent" has plain ones of several latent sizes on upright and on turned inputs (figures 4.7 and 4.8);
"control" has an affine one that is trained with the direct search beside its twin with the fast one. The test split is
read once per model. Finished rows are in RESULTS_FILE; the same command goes on where it stopped.
"""

import copy
import json
import math
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import set_seed
from transformers.utils import logging as transformers_logging

from avae_hf import AVAEConfig, AVAEModel, analysis
from avae_hf.data import ShapeTask, ShapeTaskArguments, build_processor, load_task
from avae_hf.training import AVAETrainingArguments, build_trainer, evaluate_model, summarise_terms, train
from redundancy_hf.command import describe_command, format_record, parse_arguments, run_command
from redundancy_hf.folders import save_folder
from redundancy_hf.timing import hardware_fingerprint
from redundancy_hf.training import find_checkpoint

BOTH = ["rotation", "translation"]
POSE_SETTINGS = ("max_translation", "max_log_scale", "max_shear", "split_seed")
RIGHT_ANGLES = [0, math.pi / 4, math.pi / 2, math.pi]


@dataclass
class StudyArguments:
    study: str = field(metadata={"help": "What to compare.", "choices": ["pose", "latent", "control"]})
    results_file: str = field(metadata={"help": "JSON file for what was measured."})
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "Seeds, one training each."})
    variants: list[str] | None = field(default=None, metadata={"help": "Only these; by default all."})
    latent_dims: list[int] = field(
        default_factory=lambda: [4, 8, 16, 32, 64], metadata={"help": "Latent sizes of the study of that name."}
    )
    spatial_dims: int = field(default=2, metadata={"help": "2 for images, 3 for voxels."})
    image_size: int = field(default=40, metadata={"help": "Side that inputs are padded to."})
    config_overrides: str = field(default="{}", metadata={"help": "More settings of every configuration, as JSON."})
    num_curve: int = field(default=200, metadata={"help": "Test inputs behind curves over angles."})
    num_likelihood: int = field(default=50, metadata={"help": "Test inputs behind the likelihood."})
    figures_dir: str | None = field(default=None, metadata={"help": "Folder for pictures of reconstructions."})


@dataclass(frozen=True)
class Variant:
    """One model of a study: what is random about its data, what it searches, and its latent size."""

    augment: list[str]
    transforms: list[str]
    latent_dim: int
    search: str = "fast"


def variants_of(study: StudyArguments) -> dict[str, Variant]:
    """Give the models of a study by name."""
    shape, turned, shifted = (6, 7, 9) if study.spatial_dims == 2 else (16, 19, 22)
    if study.study == "latent":
        kinds = {"upright": ["none"], "turned": ["rotation"]}
        return {f"{k}, {size}": Variant(v, [], size) for k, v in kinds.items() for size in study.latent_dims}
    if study.study == "control":
        return {s: Variant(["rotation"], ["rotation"], shape, s) for s in ("fast", "direct")}
    return {
        "turned, VAE": Variant(["rotation"], [], turned),
        "turned, AVAE": Variant(["rotation"], ["rotation"], shape),
        "upright, VAE": Variant(["none"], [], shape),
        "turned and shifted, VAE": Variant(BOTH, [], shifted),
        "turned and shifted, AVAE": Variant(BOTH, BOTH, shape),
    }


def folder_of(training: AVAETrainingArguments, name: str, seed: int) -> Path:
    return Path(str(training.output_dir)) / f"{name.replace(', ', '_').replace(' ', '_')}_seed{seed}"


def train_variant(study, variant: Variant, task: ShapeTask, task_arguments, training, seed: int, folder: Path) -> dict:
    """Train one model and save it with its processor; a finished training is not repeated."""
    facts = folder / "training.json"
    if facts.exists():
        return json.loads(facts.read_text())
    set_seed(seed)
    config = AVAEConfig(
        **task.config_settings,
        latent_dim=variant.latent_dim,
        transforms=variant.transforms,
        search=variant.search,
        **json.loads(study.config_overrides),
    )
    model, run, poses = AVAEModel(config), copy.copy(training), copy.copy(task_arguments)
    run.output_dir, run.seed, poses.augment = str(folder / "checkpoints"), seed, variant.augment
    splits = (task.in_poses(name, poses) for name in ("train", "validation"))
    trainer = build_trainer(model, *splits, run, folder / "poses")
    started = time.process_time()
    trained = train(trainer, find_checkpoint(Path(run.output_dir)))
    save_folder(model, folder, task.processor)
    row = {"history": trained.history, "cpu_seconds": round(time.process_time() - started, 1)}
    facts.write_text(json.dumps(row) + "\n")
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return row


def measure_variant(study, variant: Variant, task: ShapeTask, task_arguments, folder: Path) -> dict:
    """Read the test split once, and measure what the model has learned about pose."""
    model, poses = AVAEModel.from_pretrained(folder).eval(), copy.copy(task_arguments)
    poses.augment = variant.augment
    progress = lambda batches: tqdm(batches, desc="test", unit="batch", leave=False)  # noqa: E731
    found = evaluate_model(model, task.in_poses("test", poses), progress=progress)
    row: dict[str, Any] = {"test": summarise_terms(found["terms"]), "parameters": model.num_parameters()}
    if study.study == "latent" or study.spatial_dims == 3:
        return row
    if variant.augment != ["none"]:
        row["disentanglement"] = analysis.measure_disentanglement(found, "rotation" in variant.transforms)
    if variant.transforms:
        row["orientations"] = read_orientations(folder, task)
        row["consistency"] = analysis.measure_consistency(
            model, task.images["test"][: study.num_curve], [0.5, 1.5, 2.5, -2.0]
        )
    if study.study == "pose":
        row |= measure_curves(study, variant, model, task, poses, folder)
    return row


def read_orientations(folder: Path, task: ShapeTask) -> dict[str, dict]:
    """Read the validation poses of the first, a middle and the last epoch."""
    epochs = sorted(int(path.stem.split("-")[1]) for path in (folder / "poses").glob("epoch-*.npz"))
    chosen = sorted({epochs[0], epochs[len(epochs) // 2], epochs[-1]})
    classes = [task.label_names.index(name) for name in ("1", "6", "9") if name in task.label_names]
    found = {}
    for epoch in chosen:
        saved = np.load(folder / "poses" / f"epoch-{epoch}.npz")
        found[str(epoch)] = analysis.measure_orientations(saved["alpha"], saved["pose"], saved["labels"], classes)
    return found


def measure_curves(study, variant: Variant, model: Any, task: ShapeTask, poses, folder: Path) -> dict:
    """Measure loss over angles and likelihood; of the upright model also when it searches, and before a classifier."""
    images, labels = task.images["test"][: study.num_curve], task.labels["test"][: study.num_curve]
    angles = [math.radians(degrees) for degrees in range(0, 181, 15)]
    shears = [math.tan(math.radians(degrees)) for degrees in range(0, 51, 10)]

    def curves(model: Any) -> dict:
        return {
            "rotation": analysis.measure_curve(model, images, "rotation", angles),
            "shear": analysis.measure_curve(model, images, "shear", shears),
        }

    row: dict[str, Any] = {}
    if "translation" not in variant.transforms:
        turned = task.in_poses("test", poses)
        batch = turned.collate([turned[index] for index in range(study.num_likelihood)])["pixel_values"]
        values = analysis.estimate_log_likelihood(model, batch, 32, 36, torch.Generator().manual_seed(0))
        row["log_likelihood"] = {
            "mean": float(values.mean()),
            "standard_error": float(values.std() / len(values) ** 0.5),
        }
        row["curves"] = curves(model)
    if variant.augment == ["none"]:
        searching = AVAEModel.from_pretrained(folder, transforms=["rotation"]).eval()
        sheared = AVAEModel.from_pretrained(folder, transforms=["rotation", "shear"]).eval()
        row["curves_searched"] = curves(searching)
        row["curves_searched"]["shear, both searched"] = analysis.measure_curve(sheared, images, "shear", shears)
        classifier = analysis.fit_upright_classifier(task.images["train"][:4000], task.labels["train"][:4000])
        row["robustness"] = analysis.measure_robustness(searching, classifier, images, labels, angles)
    return row


def draw_reconstructions(study: StudyArguments, training: AVAETrainingArguments, task: ShapeTask):
    """Draw reconstructions of the first seed's saved models, plain and affine, of turned inputs."""
    if study.figures_dir is None or study.study != "pose":
        return
    folders = {name: folder_of(training, name, study.seeds[0]) for name in variants_of(study)}
    groups = {"turned": ("turned, VAE", "turned, AVAE"), "upright": ("upright, VAE",)}
    images = task.images["test"][:6]
    for title, names in groups.items():
        path = Path(study.figures_dir) / f"{Path(study.results_file).stem}_{title}.png"
        if path.exists() or not all((folders[name] / "config.json").exists() for name in names):
            continue
        models = {name: AVAEModel.from_pretrained(folders[name]).eval() for name in names}
        if title == "upright":
            models["the same, searched"] = AVAEModel.from_pretrained(folders[names[0]], transforms=["rotation"]).eval()
        analysis.draw_reconstructions(models, images, RIGHT_ANGLES, path)
        print(f"wrote {path}")


def main():
    study, task_arguments, training = parse_arguments(
        (StudyArguments, ShapeTaskArguments, AVAETrainingArguments), __doc__
    )
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    variants = variants_of(study)
    unknown = sorted(set(study.variants or []) - set(variants))
    if unknown:
        raise ValueError(f"--variants has unknown {unknown}; there are {list(variants)}.")
    task = load_task(task_arguments, build_processor(task_arguments, study.image_size, study.spatial_dims, 1))
    path = Path(study.results_file)
    for folder in (path.parent, Path(study.figures_dir or path.parent)):
        folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "study": study.study,
        "task": task.fingerprint,
        "classes": task_arguments.classes,
        "sizes": {name: len(images) for name, images in task.images.items()},
        "image_size": study.image_size,
        "object_size": task_arguments.object_size,
        "normalize": task_arguments.normalize,
        "poses": {name: getattr(task_arguments, name) for name in POSE_SETTINGS},
        "measured": [study.num_curve, study.num_likelihood],
        "config_overrides": json.loads(study.config_overrides),
        "recipe": {name: value for name, value in training.describe_recipe().items() if name != "seed"},
    }
    record = json.loads(path.read_text()) if path.exists() else {"settings": settings, "rows": []}
    if record["settings"] != settings:
        raise ValueError(f"{path} holds a study with other settings; use another --results_file, or the old ones.")
    record |= {"command": describe_command(), "hardware": hardware_fingerprint()}
    for seed in study.seeds:
        for name in study.variants or variants:
            if any((row["variant"], row["seed"]) == (name, seed) for row in record["rows"]):
                continue
            variant, folder = variants[name], folder_of(training, name, seed)
            row = {"variant": name, "seed": seed, "latent_dim": variant.latent_dim}
            row |= train_variant(study, variant, task, task_arguments, training, seed, folder)
            row |= measure_variant(study, variant, task, task_arguments, folder)
            record["rows"].append({**row, "cpu": record["hardware"]["cpu"]})
            path.write_text(format_record(record) + "\n")
            print(f"{name}, seed {seed}: test squared error {row['test']['squared_error']:.3f}", flush=True)
            draw_reconstructions(study, training, task)


if __name__ == "__main__":
    run_command(main)
