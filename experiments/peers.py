r"""Compare Classformer with other ways to make the same classifier cheaper, on the same weights and training budget.

    python experiments/peers.py --model_name_or_path runs/sst2-full/seed-42 --dataset_name sst2 \
        --schedules 1-1-2-1-4-1_eta2 1-2-2-4-1-1_eta0 --num_train_epochs 1 --output_dir runs/peers-sst2 \
        --results_file results/peers_sst2.json
    python experiments/peers.py --draw results/peers_sst2.json results/peers_mrpc.json --figure docs/images/peers.png

Every method starts from the same trained classifier without reductions and is trained for the same number of epochs,
with two operating points; so is that classifier itself, the reference. Then all are timed together, one text at a time,
and scored on validation and test split. Nothing is chosen by the test split: the operating points are fixed beforehand.
The same command resumes.
"""

import copy
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from frame import (
    add_legend,
    command_of,
    describe_hardware,
    format_table,
    name_command,
    open_panels,
    ratio,
    read_results,
    save_figure,
)
from methods import check_plain, operating_points
from tqdm import tqdm
from transformers import set_seed
from tuning import describe_task, score, take_turns

from classformer_hf import ClassformerConfig, ClassformerForSequenceClassification
from classformer_hf.checkpoints import checkpoint_fingerprint, is_classifier, load_from_encoder, reconfigure
from classformer_hf.search import Schedule
from classformer_hf.training import ClassformerTrainingArguments, fine_tune
from redundancy_hf.command import check_settings, write_record
from redundancy_hf.data import load_task, tokenize
from redundancy_hf.folders import save_folder
from redundancy_hf.limits import load_tokenizer
from redundancy_hf.readings import open_model, record_reading
from redundancy_hf.task import Task, TaskArguments
from redundancy_hf.timing import hardware_fingerprint, sample_inputs
from redundancy_hf.training import list_seeds, run_seed

logger = logging.getLogger(__name__)

# trained once for all their thresholds
EARLY_EXITS = ("entropy", "patience")
MARKERS = "osv^<>DPXd*h"

Builder = Callable[[ClassformerForSequenceClassification], torch.nn.Module]
Points = dict[tuple[str, str], Builder]


def list_points(schedules: Sequence[str], methods: Sequence[str], num_layers: int) -> Points:
    """Name every method and operating point, with what builds it from the full model."""
    points: Points = {("full", ""): lambda model: model}
    for key in schedules:
        settings = Schedule.from_key(key).config
        settings["num_hidden_layers"] = len(settings["gamma"])
        ClassformerConfig(**settings)
        if len(settings["gamma"]) > num_layers:
            raise ValueError(f"the model has {num_layers} layers, got --schedules {key}.")
        points["classformer", key] = lambda model, settings=settings: reconfigure(model, **settings)
    known = operating_points(num_layers)
    if unknown := sorted(set(methods) - set(known)):
        raise ValueError(f"--methods knows {', '.join(known)}, got {', '.join(unknown)}.")
    for name in methods or known:
        points |= {(name, setting): build for setting, build in known[name].items()}
    return points


class Comparison:
    """A full model, the points that are built from it, and the folder of their trainings."""

    def __init__(self, full: Any, points: Points, task: Task, tokenizer: Any, training: ClassformerTrainingArguments):
        self.full, self.points, self.task, self.tokenizer, self.training = full, points, task, tokenizer, training
        self.output = Path(str(training.output_dir))

    def build(self, point: tuple[str, str]) -> Any:
        return self.points[point](copy.deepcopy(self.full))

    def folder_of(self, point: tuple[str, str], seed: int) -> Path:
        name = point[0] if point[0] in EARLY_EXITS else "_".join(point)
        return self.output / name.replace(" ", "-").replace("/", "-").strip("_") / f"seed-{seed}"

    def train(self, point: tuple[str, str], seed: int) -> dict[str, Any]:
        """Train a point, keep its weights, those of a Classformer as a model folder too, and score it."""

        def tune(own: ClassformerTrainingArguments, folder: Path) -> dict[str, Any]:
            model, weights = self.build(point), folder / "weights.pt"
            row: dict[str, Any] = {"method": point[0], "setting": point[1], "seed": seed}
            if weights.exists():
                model.load_state_dict(torch.load(weights, weights_only=True))
            else:
                tuned = fine_tune(model, self.task, self.tokenizer, own, resume=True)
                row["seconds"] = round(tuned.seconds, 1)
                folder.mkdir(parents=True, exist_ok=True)
                # a kill must not leave half of it
                torch.save(model.state_dict(), weights.with_suffix(".tmp"))
                weights.with_suffix(".tmp").replace(weights)
                if isinstance(model, ClassformerForSequenceClassification):
                    save_folder(model, folder / "model", self.tokenizer, self.task.record)
                    self.task.record.write(self.output)
            for split in ("validation", "test"):
                _, scored = score(model, self.task, split, self.tokenizer)
                row |= {f"{split}_{name}": value for name, value in scored.items()}
            return row

        file = f"row_{point[1].replace(' ', '-').replace('/', '-')}.json"
        return run_seed(tune, self.training, self.folder_of(point, seed), seed, file)

    def time(self, seed: int, num_inputs: int, rounds: int) -> dict[tuple[str, str], dict[str, Any]]:
        """Time all points together, each with its trained weights, because some choose by them.

        On texts of the test split, like the scores: validation texts may have other lengths.
        """
        models = {}
        for point in self.points:
            model = self.build(point)
            model.load_state_dict(torch.load(self.folder_of(point, seed) / "weights.pt", weights_only=True))
            models[point] = model.eval()
        return take_turns(models, sample_inputs(self.task.splits["test"], num_inputs), ("full", ""), rounds)


def prepare(
    model_name_or_path: str,
    task_arguments: TaskArguments,
    training: ClassformerTrainingArguments,
    schedules: Sequence[str],
    methods: Sequence[str],
) -> Comparison:
    """Load data and the full model, and refuse a folder of another comparison."""
    tokenizer = load_tokenizer(model_name_or_path)
    task, output = load_task(task_arguments), Path(str(training.output_dir))
    is_trained = is_classifier(model_name_or_path, task.num_labels)
    record = task.record.after(model_name_or_path, output, is_trained=is_trained)
    task = tokenize(replace(task, record=record), tokenizer, task_arguments.max_length)
    set_seed(training.seed)  # of a head that is fresh
    full: Any = load_from_encoder(model_name_or_path, output_names=task.output_names, **task.head_config)
    check_plain(full)
    points = list_points(schedules, methods, full.config.num_hidden_layers)
    settings = {"model": checkpoint_fingerprint(model_name_or_path), "dataset": task.fingerprint}
    settings["recipe"] = training.describe_recipe()
    check_settings(output / "settings.json", settings, is_writer=True)
    return Comparison(full, points, task, tokenizer, training)


def run(
    model_name_or_path: str,
    task: TaskArguments,
    training: ClassformerTrainingArguments,
    schedules: Sequence[str] = (),
    methods: Sequence[str] = (),
    seeds: int = 1,
    num_inputs: int = 48,
    rounds: int = 20,
    results_file: str | None = None,
) -> dict[str, Any]:
    """Train, score and time all points.

    Args:
        model_name_or_path: Folder of a trained Classformer without reductions.
        task: The data.
        training: The recipe.
        schedules: Classformer's own points, as a search names them: 1-2-1_eta0. Fewer factors than layers: only the
            first layers run.
        methods: What to compare with; all by default. Names as in the table.
        seeds: Trainings per point, with --seed, --seed + 1, ...
        num_inputs: Texts that are timed, at quantiles of the length.
        rounds: Rounds of interleaved timing.
        results_file: JSON file for all points.
    """
    torch.set_num_threads(1)
    numbers = list_seeds(training.seed, seeds)
    comparison = prepare(model_name_or_path, task, training, schedules, methods)
    data, rows = comparison.task, []
    jobs = [(point, seed) for seed in numbers for point in comparison.points]
    for point, seed in tqdm(jobs, desc="training", unit="point", disable=training.disable_tqdm):
        rows.append(comparison.train(point, seed))
        scores = [f"{rows[-1][f'{split}_score']:.4f} ({split})" for split in ("validation", "test")]
        logger.info(
            f"{len(rows)} of {len(jobs)}: {' '.join(point)} seed {seed}: {data.metric_name} {', '.join(scores)}"
        )
    models = [open_model(str(folder), folder) for folder in sorted(comparison.output.glob("*/seed-*/model"))]
    record_reading(models, data.record.rows["test"], dataset=data.name, split="test")
    latencies = comparison.time(training.seed, num_inputs, rounds)
    points = [
        summarise([row for row in rows if (row["method"], row["setting"]) == point]) | latencies[point]
        for point in comparison.points
    ]
    about = describe_task(data)
    mark_front(points, about["majority_score"])
    return write_record(
        results_file,
        dataset=data.name,
        **about,
        seeds=list(numbers),
        hardware=hardware_fingerprint(),
        points=points,
    )


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    scores, errors = ([row[f"test_{name}"] for row in rows] for name in ("score", "standard_error"))
    return {
        "method": rows[0]["method"],
        "setting": rows[0]["setting"],
        "test_score": float(np.mean(scores)),
        "validation_score": float(np.mean([row["validation_score"] for row in rows])),
        "test_scores": scores,
        "test_standard_error": math.sqrt(float(np.mean(np.square(errors)))),
    }


def mark_front(points: list[dict[str, Any]], majority: float):
    """Say of each point whether none is faster and at least as good, and how far the front is above it.

    What is no better than the majority class is on no front, however fast.
    """
    for point in points:
        faster = [other["test_score"] for other in points if other["ratio"] <= point["ratio"]]
        point["below_front"] = max(faster) - point["test_score"]
        point["is_on_front"] = point["below_front"] <= 0 and point["test_score"] > majority


def name_points(record: dict) -> list[tuple[str, dict]]:
    """Give all points with their methods' names, which say where a schedule is of fewer layers than the others."""
    own = [point["setting"].count("-") for point in record["points"] if point["method"] == "classformer"]
    return [
        ("classformer, fewer layers" if is_short else point["method"], point)
        for point in record["points"]
        for is_short in [point["method"] == "classformer" and point["setting"].count("-") < max(own)]
    ]


def table(record: dict) -> str:
    """All methods on one dataset, fastest first."""
    rows = []
    for name, point in sorted(name_points(record), key=lambda named: named[1]["ratio"]):
        front = "on it" if point["is_on_front"] else f"{100 * point['below_front']:.1f} below"
        if point["test_score"] <= record["majority_score"]:
            front = "no better than the majority"
        method = f"**{name}**" if name.startswith("classformer") else name
        setting = f"`{point['setting']}`" if point["setting"] else ""
        tested = f"{point['test_score']:.3f} +- {point['test_standard_error']:.3f}"
        rows.append([method, setting, ratio(point), tested, front])
    numbers, seeds = record["num_examples"], record["seeds"]
    dataset, seed_word = record["dataset"].upper(), "seeds" if len(seeds) > 1 else "seed"
    note = (
        f"{dataset}: {record['metric_name']} on the test split (n = {numbers['test']}, majority class "
        f"{record['majority_score']:.3f}), mean of {len(seeds)} {seed_word}, with its standard error over examples (of "
        f"several seeds the root mean square); trained on {numbers['train']} examples. Time relative to the full model "
        f"in the same rounds, median and quartiles, batch 1, {describe_hardware(record)}. {name_command(record)}"
    )
    return format_table(["method", "setting", "time", "score", "front"], rows, note)


def summary_table(records: dict) -> str:
    """Distance to the front by method and dataset, and how often Classformer dominates."""
    nearest: dict[str, dict[str, float]] = {}
    dominated: dict[str, list[bool]] = {}
    for name, record in records.items():
        own = [point for point in record["points"] if point["method"] == "classformer"]
        for method, point in name_points(record):
            is_useless = point["test_score"] <= record["majority_score"]
            distances = nearest.setdefault(method, {})
            distances[name] = min(distances.get(name, math.inf), math.inf if is_useless else point["below_front"])
            beaten = any(one["ratio"] <= point["ratio"] and one["test_score"] >= point["test_score"] for one in own)
            dominated.setdefault(method, []).append(beaten)
    rows = []
    for method, distances in sorted(nearest.items(), key=lambda item: (-len(item[1]), sum(item[1].values()))):
        marks = ["not run" if name not in distances else mark_distance(distances[name]) for name in records]
        is_own = method.startswith("classformer")
        beaten = "" if is_own or method == "full" else f"{sum(dominated[method])} of {len(dominated[method])}"
        rows.append([f"**{method}**" if is_own else method, *marks, beaten])
    note = (
        "Points of the score by which the best of a method's settings lies below the front of all (0: on it); last: "
        "how many of its points a Classformer dominates, being no slower and no worse on the test split. Both compare "
        "scores as they were measured; differences within one or two of the standard errors below decide nothing.\n"
    )
    return format_table(["method", *(r["dataset"].upper() for r in records.values()), "points dominated"], rows, note)


def mark_distance(distance: float) -> str:
    if math.isinf(distance):
        return "no better than the majority"
    return "**0**" if distance <= 0 else f"{100 * distance:.1f}"


def draw(records: list[str], figure: str):
    """Draw score against time of every method, one panel per dataset.

    Grey: the front, on which no other point is both faster and better. Bars: a standard error of the score. Hollow:
    schedules on fewer layers than the model has.

    Args:
        records: JSON files of this experiment, a panel each.
        figure: PNG file.
    """
    read = [read_results(path, "experiments/peers.py") for path in records]
    methods = list(dict.fromkeys(name for record in read for name, _ in name_points(record)))
    picture, panels = open_panels(len(read), 3, (5.2, 4.7))
    for panel, record in zip(panels, read, strict=True):
        draw_panel(panel, record, methods)
    add_legend(picture, panels, columns=3 * min(len(read), 3), font_size=8)
    save_figure(picture, figure)


def draw_panel(panel: Any, record: dict, methods: list[str]):
    """Draw one dataset."""
    front = sorted((point["ratio"], point["test_score"]) for point in record["points"] if point["is_on_front"])
    panel.step(*np.reshape(front, (-1, 2)).T, where="post", color="0.75", linewidth=5, zorder=0)
    for index, method in enumerate(methods):
        points = [point for name, point in name_points(record) if name == method]
        is_ours = method.startswith("classformer")
        panel.errorbar(
            [point["ratio"] for point in points],
            [point["test_score"] for point in points],
            yerr=[point["test_standard_error"] for point in points],
            linestyle="none",
            marker=MARKERS[index % len(MARKERS)],
            markersize=11 if is_ours else 6,
            color="black" if method == "full" else "C3" if is_ours else f"C{(index % 9) + (index % 9 >= 3)}",
            markerfacecolor="white" if method.endswith("fewer layers") else None,
            elinewidth=0.6,
            label=method,
            zorder=3 if is_ours else 2,
        )
    panel.axhline(record["majority_score"], color="0.6", linestyle=":", linewidth=1)
    scores = [point["test_score"] for point in record["points"]]
    panel.set_ylim(max(record["majority_score"], min(scores)) - 0.03, max(scores) + 0.03)
    panel.set(
        title=f"{record['dataset'].upper()} (n = {record['num_examples']['test']})",
        xlabel="time of a text, relative to the full model",
        ylabel=f"test {record['metric_name']}",
    )
    panel.grid(alpha=0.3)


main = command_of(run, __doc__, draw, table)
