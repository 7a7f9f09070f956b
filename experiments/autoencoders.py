r"""What is a pose search worth to an autoencoder, beside a plain one of equal latent size (thesis, chapter 4)?

    python experiments/autoencoders.py --question pose --dataset_name ylecun/mnist --max_train_samples 10000 \
        --results_file results/avae_mnist.json --figures_dir docs/images

Questions: "pose" has both models on inputs that are turned, and turned and shifted (tables 4.1 and 4.2), and a plain
one trained upright; "latent" has plain ones of several latent sizes on upright and on turned inputs (figures 4.7 and
4.8); "control" has an affine one that is trained with the direct search beside its twin with the fast one. The test
split is read once per model. Finished rows are in RESULTS_FILE; the same command goes on where it stopped. Curves and
orientations of records are drawn by

    python experiments/autoencoders.py --draw results/avae_mnist.json --figures_dir docs/images
"""

import copy
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from frame import command_of, format_table, name_command, percent, read_results
from record import Record, choose, describe_scale, describe_settings, group_rows, mean_and_each

from avae_hf import AVAEConfig, AVAEModel, analysis
from avae_hf.data import ShapeTask, ShapeTaskArguments, build_processor, load_task
from avae_hf.training import AVAETrainingArguments, build_trainer, evaluate_model, summarise_terms, train
from redundancy_hf.folders import save_folder
from redundancy_hf.training import find_checkpoint, list_seeds, run_seed

BOTH = ["rotation", "translation"]
POSE_SETTINGS = ("max_translation", "max_log_scale", "max_shear", "split_seed")
RIGHT_ANGLES = [0, math.pi / 4, math.pi / 2, math.pi]
ANGLES = [math.radians(degrees) for degrees in range(0, 181, 15)]
SHEARS = [math.tan(math.radians(degrees)) for degrees in range(0, 51, 10)]
# digits, and how the concentration of their orientations is measured: 1 looks alike at half a turn
ORDERS = {"1": "doubled_concentration", "6": "concentration", "9": "concentration"}

# title of a panel, name of a curve, x and y
Point = tuple[str, str, float, float]


@dataclass(frozen=True)
class Variant:
    """One model of a comparison: what is random about its data, what it searches, and its latent size."""

    augment: list[str]
    transforms: list[str]
    latent_dim: int
    search: str = "fast"


def list_variants(question: str, spatial_dims: int, latent_dims: Iterable[int]) -> dict[str, Variant]:
    """Give the models of a question by name."""
    shape, turned, shifted = (6, 7, 9) if spatial_dims == 2 else (16, 19, 22)
    if question == "latent":
        kinds = {"upright": ["none"], "turned": ["rotation"]}
        return {f"{kind}, {size}": Variant(of, [], size) for kind, of in kinds.items() for size in latent_dims}
    if question == "control":
        return {search: Variant(["rotation"], ["rotation"], shape, search) for search in ("fast", "direct")}
    return {
        "turned, VAE": Variant(["rotation"], [], turned),
        "turned, AVAE": Variant(["rotation"], ["rotation"], shape),
        "upright, VAE": Variant(["none"], [], shape),
        "turned and shifted, VAE": Variant(BOTH, [], shifted),
        "turned and shifted, AVAE": Variant(BOTH, BOTH, shape),
    }


def to_slug(name: str) -> str:
    return name.replace(", ", "_").replace(" ", "_")


@dataclass
class Models:
    """The models of one question, whose arguments [`run`] explains: how they are trained, and what is measured."""

    question: str
    data: ShapeTask
    task: ShapeTaskArguments
    training: AVAETrainingArguments
    settings: dict[str, Any]
    num_curve: int
    num_likelihood: int

    def folder_of(self, variant: str, seed: int) -> Path:
        return Path(str(self.training.output_dir)) / f"{to_slug(variant)}_seed{seed}"

    def pose(self, split: str, variant: Variant) -> Any:
        """Give a split in the poses that a variant's data has."""
        task = copy.copy(self.task)
        task.augment = variant.augment
        return self.data.in_poses(split, task)

    def train(self, variant: Variant, arguments: AVAETrainingArguments, folder: Path) -> dict[str, Any]:
        """Train one model and save it with its processor."""
        own = {"latent_dim": variant.latent_dim, "transforms": variant.transforms, "search": variant.search}
        model = AVAEModel(AVAEConfig(**self.data.config_settings, **own, **self.settings))
        splits = (self.pose(name, variant) for name in ("train", "validation"))
        trainer = build_trainer(model, *splits, arguments, folder / "poses")
        started = time.process_time()
        trained = train(trainer, find_checkpoint(Path(str(arguments.output_dir))))
        save_folder(model, folder, self.data.processor)
        return {"history": trained.history, "cpu_seconds": round(time.process_time() - started, 1)}

    def measure(self, variant: Variant, folder: Path) -> dict:
        """Read the test split once, and measure what the model has learned about pose."""
        model = AVAEModel.from_pretrained(folder).eval()
        found = evaluate_model(model, self.pose("test", variant))
        row: dict[str, Any] = {"test": summarise_terms(found["terms"]), "parameters": model.num_parameters()}
        if self.question == "latent" or model.config.spatial_dims == 3:
            return row
        images = self.data.images["test"][: self.num_curve]
        if variant.augment != ["none"]:
            row["disentanglement"] = analysis.measure_disentanglement(found, "rotation" in variant.transforms)
        if variant.transforms:
            row["orientations"] = read_orientations(folder, self.data)
            row["consistency"] = analysis.measure_consistency(model, images, [0.5, 1.5, 2.5, -2.0])
        if self.question == "pose" and "translation" not in variant.transforms:
            row["log_likelihood"] = self.estimate_likelihood(model, variant)
            row["curves"] = measure_curves(model, images)
        if self.question == "pose" and variant.augment == ["none"]:
            row |= self.measure_searching(folder, images)
        return row

    def estimate_likelihood(self, model: Any, variant: Variant) -> dict[str, float]:
        posed = self.pose("test", variant)
        batch = posed.collate([posed[index] for index in range(self.num_likelihood)])["pixel_values"]
        values = analysis.estimate_log_likelihood(model, batch, 32, 36, torch.Generator().manual_seed(0))
        return {"mean": float(values.mean()), "standard_error": float(values.std() / len(values) ** 0.5)}

    def measure_searching(self, folder: Path, images: torch.Tensor) -> dict:
        """Let the upright model search: curves over angles, and what that does before a classifier."""
        searching = AVAEModel.from_pretrained(folder, transforms=["rotation"]).eval()
        sheared = AVAEModel.from_pretrained(folder, transforms=["rotation", "shear"]).eval()
        curves = measure_curves(searching, images)
        curves["shear, both searched"] = analysis.measure_curve(sheared, images, "shear", SHEARS)
        train, labels = self.data.images["train"][:4000], self.data.labels["train"][:4000]
        classifier, expected = analysis.fit_upright_classifier(train, labels), self.data.labels["test"]
        robustness = analysis.measure_robustness(searching, classifier, images, expected[: self.num_curve], ANGLES)
        return {"curves_searched": curves, "robustness": robustness}

    def draw_reconstructions(self, stem: str):
        """Draw reconstructions of turned inputs by the first seed's models: plain, affine, and upright."""
        for title, names in (("turned", ("turned, VAE", "turned, AVAE")), ("upright", ("upright, VAE",))):
            folders = {name: self.folder_of(name, self.training.seed) for name in names}
            path = Path(f"{stem}_{title}.png")
            if path.exists() or not all((folder / "config.json").exists() for folder in folders.values()):
                continue
            models = {name: AVAEModel.from_pretrained(folder).eval() for name, folder in folders.items()}
            if title == "upright":
                searching = AVAEModel.from_pretrained(folders[names[0]], transforms=["rotation"])
                models["the same, searched"] = searching.eval()
            path.parent.mkdir(parents=True, exist_ok=True)
            analysis.draw_reconstructions(models, self.data.images["test"][:6], RIGHT_ANGLES, path)
            print(f"wrote {path}")


def read_orientations(folder: Path, data: ShapeTask) -> dict[str, dict]:
    """Read the validation poses of the first, a middle and the last epoch."""
    epochs = sorted(int(path.stem.split("-")[1]) for path in (folder / "poses").glob("epoch-*.npz"))
    classes = [data.label_names.index(name) for name in ORDERS if name in data.label_names]
    found = {}
    for epoch in sorted({epochs[0], epochs[len(epochs) // 2], epochs[-1]}):
        saved = np.load(folder / "poses" / f"epoch-{epoch}.npz")
        found[str(epoch)] = analysis.measure_orientations(saved["alpha"], saved["pose"], saved["labels"], classes)
    return found


def measure_curves(model: Any, images: torch.Tensor) -> dict:
    ranges = {"rotation": ANGLES, "shear": SHEARS}
    return {name: analysis.measure_curve(model, images, name, values) for name, values in ranges.items()}


def run(
    question: Literal["pose", "latent", "control"],
    results_file: str,
    task: ShapeTaskArguments,
    training: AVAETrainingArguments,
    seeds: int = 1,
    variants: Sequence[str] | None = None,
    latent_dims: Sequence[int] = (4, 8, 16, 32, 64),
    spatial_dims: int = 2,
    image_size: int = 40,
    config_overrides: str = "{}",
    num_curve: int = 200,
    num_likelihood: int = 50,
    figures_dir: str | None = None,
) -> dict:
    """Train and measure every model with every seed; gives the record.

    Args:
        question: What to compare.
        results_file: JSON file for what was measured.
        task: The inputs.
        training: The recipe.
        seeds: Number of trainings of a model, with seeds counted from --seed.
        variants: Only these; by default all.
        latent_dims: Latent sizes of the question of that name.
        spatial_dims: 2 for images, 3 for voxels.
        image_size: Side that inputs are padded to.
        config_overrides: More settings of every configuration, as JSON.
        num_curve: Test inputs behind curves over angles.
        num_likelihood: Test inputs behind the likelihood.
        figures_dir: Folder for pictures of reconstructions.
    """
    known = list_variants(question, spatial_dims, latent_dims)
    chosen = choose("variants", variants, known)
    data, overrides = load_task(task, build_processor(task, image_size, spatial_dims, 1)), json.loads(config_overrides)
    settings = {
        **describe_settings(
            training, data, data.images, question=question, image_size=image_size, config_overrides=overrides
        ),
        **{name: getattr(task, name) for name in ("classes", "object_size", "normalize")},
        "poses": {name: getattr(task, name) for name in POSE_SETTINGS},
        "measured": [num_curve, num_likelihood],
    }
    record = Record(results_file, settings)
    models = Models(question, data, task, training, overrides, num_curve, num_likelihood)
    for key in record.list_missing(seed=list_seeds(training.seed, seeds), variant=chosen):
        variant, folder = known[key["variant"]], models.folder_of(**key)
        row = run_seed(partial(models.train, variant), training, folder, key["seed"], "training.json")
        row |= models.measure(variant, folder)
        record.add({**key, "latent_dim": variant.latent_dim, **row})
        print(
            f"{key['variant']}, seed {key['seed']}: test squared error {row['test']['squared_error']:.3f}", flush=True
        )
    if figures_dir is not None and question == "pose":
        models.draw_reconstructions(f"{figures_dir}/{Path(results_file).stem}")
    return record.content


def list_errors(rows: list[dict]) -> list[float]:
    return [row["test"]["squared_error"] for row in rows]


def describe(record: dict) -> str:
    """Scale of a comparison of autoencoders."""
    classes = record["settings"]["classes"]
    kind = f", {' and '.join(classes)} only" if classes else ""
    inputs = f"inputs of side {record['settings']['image_size']}{kind}"
    return describe_scale(record, inputs) + name_command(record)


def pose_table(record: dict) -> str:
    """Error of plain and affine autoencoders of equal total latent size (thesis tables 4.1 and 4.2)."""
    rows, groups = [], group_rows(record["rows"], "variant")
    for poses in ("turned", "turned and shifted"):
        pair = [groups.get((f"{poses}, {kind}",)) for kind in ("VAE", "AVAE")]
        if None in pair:
            continue
        size, shape = (of[0]["latent_dim"] for of in pair)
        errors = [list_errors(of) for of in pair]
        gain = 1 - np.mean(errors[1]) / np.mean(errors[0])
        cells = [size, f"{shape} + {size - shape}", *(mean_and_each(error, "{:.2f}".format) for error in errors)]
        rows.append([poses, *cells, percent(gain)])
    header = ["inputs", "VAE latent", "AVAE shape + pose", "VAE squared error", "AVAE squared error", "improvement, %"]
    return format_table(header, rows, describe(record))


def list_concentrations(rows: list[dict]) -> dict[str, list[float]]:
    """Give how concentrated the orientations of each digit are at the end, with every seed."""
    last = [list(row["orientations"].values())[-1] for row in rows if "orientations" in row]
    return {digit: [found[digit][order] for found in last] for digit, order in ORDERS.items() if last}


def control_table(record: dict) -> str:
    """An affine autoencoder trained with the direct search beside its twin with the fast one."""
    rows, digits = [], {}
    for (name,), same in group_rows(record["rows"], "variant").items():
        digits = list_concentrations(same)
        seconds = np.mean([row["cpu_seconds"] for row in same])
        cells = (mean_and_each(values, "{:.2f}".format) for values in (list_errors(same), *digits.values()))
        rows.append([name, *cells, f"{seconds:,.0f}"])
    titles = [f'"{digit}"{", doubled angle" if "doubled" in ORDERS[digit] else ""}' for digit in digits]
    header = ["search in training", "squared error", *titles, "processor seconds"]
    return format_table(header, rows, describe(record))


def disentanglement_table(record: dict) -> str:
    """Where the angle of turned inputs went, how alike aligned inputs are, and the likelihood."""
    rows, posed = [], (row for row in record["rows"] if "disentanglement" in row)
    for (name,), same in group_rows(posed, "variant").items():
        cells = [name]
        for kind in ("latent_probe", "latent_information", "alpha_probe", "alpha_information"):
            values = [row["disentanglement"].get(kind) for row in same]
            cells.append(mean_and_each(values, "{:.2f}".format))
        cells.append(" / ".join(f"{np.mean(values):.2f}" for values in list_concentrations(same).values()))
        cells.append(mean_and_each([row.get("consistency") for row in same], "{:.3f}".format))
        likelihoods = [row["log_likelihood"] for row in same if "log_likelihood" in row]
        mean = mean_and_each([one["mean"] for one in likelihoods], "{:.1f}".format) if likelihoods else ""
        rows.append([*cells, f"{mean} +- {likelihoods[0]['standard_error']:.1f}" if likelihoods else ""])
    header = ["model", "angle from latent, R^2", "information, nats", "angle from alpha, R^2", "information, nats"]
    header += ["concentration of 1 (doubled) / 6 / 9", "align(turned) against align", "log p(x), nats"]
    return format_table(header, rows, describe(record))


def robustness_table(record: dict) -> str:
    """Accuracy of a classifier trained upright on turned images, with and without `align` in front."""
    points = next(row["robustness"] for row in record["rows"] if "robustness" in row)
    rows = [
        [f"{math.degrees(point['value']):.0f}", percent(point["turned"]), percent(point["aligned"])] for point in points
    ]
    means = (percent(np.mean([point[name] for point in points])) for name in ("turned", "aligned"))
    return format_table(["degrees", "as they are, %", "aligned first, %"], [*rows, ["mean", *means]])


def list_angles(row: dict) -> Iterator[Point]:
    """Give loss over degrees, by model; of the upright one also as it searches."""
    to_degrees: dict[str, Callable] = {"rotation": math.degrees, "shear": lambda value: math.degrees(math.atan(value))}
    for key, suffix in (("curves", ""), ("curves_searched", ", searched")):
        for name, points in row.get(key, {}).items():
            transform, _, other = name.partition(",")
            label = f"{row['variant']}{suffix}{' with shear' if other else ''}"
            for point in points:
                yield transform, label, to_degrees[transform](point["value"]), point["loss"]


def list_sizes(row: dict) -> Iterator[Point]:
    """Give squared error over latent size, by kind of inputs."""
    kind, _, size = row["variant"].partition(", ")
    if size.isdigit():
        yield "test inputs", kind, int(size), row["test"]["squared_error"]


def list_epochs(row: dict) -> Iterator[Point]:
    poses, _, model = row["variant"].rpartition(", ")
    if model.endswith("VAE"):
        yield from ((poses, model, entry["epoch"], entry["loss"]) for entry in row["history"] if "loss" in entry)


PICTURES = {
    "angles": (list_angles, ("degrees", "loss"), "o"),
    "sizes": (list_sizes, ("latent size", "squared error"), "o"),
    "epochs": (list_epochs, ("epoch", "training loss"), ""),
}


def draw_curves(points: list[Point], path: str, **style: Any):
    """Draw the mean over seeds, a panel per title; a panel of one curve only where it is alone."""
    means = pd.DataFrame(points).groupby([0, 1, 2], sort=False)[3].mean()
    panels: dict[str, dict[str, list]] = {}
    for (title, name, x), y in means.items():
        panels.setdefault(title, {}).setdefault(name, []).append((x, y))
    compared = {title: curves for title, curves in panels.items() if len(curves) > 1}
    analysis.draw_curves(compared or panels, path=path, **style)


def draw(records: list[str], figures_dir: str = "docs/images"):
    """Draw what records have numbers for (figures 4.4, 4.6 to 4.8, 4.10 to 4.13); of several seeds curves are the mean.

    Args:
        records: JSON files of this experiment.
        figures_dir: Folder for the PNG files, which are named after the records.
    """
    Path(figures_dir).mkdir(parents=True, exist_ok=True)
    for record in records:
        rows, stem = read_results(record, "experiments/autoencoders.py")["rows"], f"{figures_dir}/{Path(record).stem}"
        for name, (list_points, labels, marker) in PICTURES.items():
            if points := [point for row in rows for point in list_points(row)]:
                draw_curves(points, f"{stem}_{name}.png", labels=labels, marker=marker)
        for row in rows:
            if "orientations" in row and row["seed"] == rows[0]["seed"]:
                epochs = {f"epoch {epoch}": found for epoch, found in row["orientations"].items()}
                analysis.draw_orientations(epochs, f"{stem}_orientations_{to_slug(row['variant'])}.png")
        print(f"drew {record} in {figures_dir}")


main = command_of(run, __doc__, draw)
