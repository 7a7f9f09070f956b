r"""Let a network learn which weights to share, put them on their bases, and see the cost (thesis figures 3.8, 3.9).

    python experiments/study_learned_sharing.py --config_name runs/plain/seed-0 --dataset_name uoft-cs/cifar10 \
        --augmentation crop_flip --learning_rate 0.1 --num_train_epochs 12 --results_file results/learned_sharing.json

The architecture of CONFIG_NAME is trained once per seed, without a loss of the weights. Every method goes on from there
for LOSS_EPOCHS: "none" (weights or kernels are quantised afterwards by k-means), "weights" (equation 3.5, 16 bases per
layer, l2), "kernels" (equation 3.6), and the mixture priors "gaussian", "laplace" and "sparse" (one component fixed at
0). With --from_scratch there is no such start: the losses bind weights to where they are drawn. The first seed trains
every weight of the loss (TAU_WEIGHTS, TAU_KERNELS, TAU_PRIOR); the one with the best validation accuracy once quantised
is the one of the other seeds. Finished trainings are in RESULTS_FILE; the same command goes on where it was stopped.
The histograms of the last seed are drawn into FIGURE.
"""

import copy
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForImageClassification, set_seed
from transformers.utils import logging as transformers_logging

import vision_hf  # noqa: F401  registers the families
from redundancy_hf.command import describe_command, format_record, parse_arguments, run_command
from redundancy_hf.timing import hardware_fingerprint
from vision_hf.data import ImageTask, ImageTaskArguments, build_image_processor, load_task, transform_splits
from vision_hf.explain import draw_weight_histograms
from vision_hf.priors import MixturePrior, NearestBasisLoss, Regulariser, ReseedBases, quantise
from vision_hf.training import (
    ImageTrainer,
    ImageTrainingArguments,
    build_classifier,
    build_trainer,
    estimate_statistics,
    train,
)


@dataclass
class StudyArguments:
    config_name: str = field(metadata={"help": "Folder or Hub name of the architecture; it must share nothing."})
    results_file: str = field(metadata={"help": "JSON file for what was measured."})
    seeds: list[int] = field(default_factory=lambda: [0, 1], metadata={"help": "Seeds, one training each."})
    methods: list[str] | None = field(default=None, metadata={"help": "Only these; by default all."})
    from_scratch: bool = field(default=False, metadata={"help": "Train with the losses from random weights on."})
    loss_epochs: float = field(default=3.0, metadata={"help": "Epochs with the losses, after those without."})
    loss_learning_rate: float = field(
        default=0.02, metadata={"help": "Learning rate of these epochs; it falls linearly to 0."}
    )
    num_bases: int = field(default=16, metadata={"help": "Basis weights, or mixture components, per layer."})
    num_kernels: int = field(default=16, metadata={"help": "Basis kernels per layer."})
    tau_weights: list[float] = field(
        default_factory=lambda: [0.01, 0.1], metadata={"help": "Weights to try of the loss of equation 3.5."}
    )
    tau_kernels: list[float] = field(
        default_factory=lambda: [0.01, 0.1], metadata={"help": "Weights to try of the loss of equation 3.6."}
    )
    tau_prior: list[float] = field(
        default_factory=lambda: [1e-5, 1e-4],
        metadata={"help": "Weights to try of the mixture priors' negative logarithm."},
    )
    figure: str | None = field(default=None, metadata={"help": "PNG for the histograms of figure 3.8."})


def list_taus(study: StudyArguments) -> dict[str, list[float | None]]:
    """Give every method's weights of its loss."""
    prior = study.tau_prior
    return {
        "none": [None],
        "weights": study.tau_weights,
        "kernels": study.tau_kernels,
        "gaussian": prior,
        "laplace": prior,
        "sparse": prior,
    }


def build_regulariser(study: StudyArguments, method: str, tau: float | None, model: Any) -> Regulariser | None:
    """Build what a method adds to the loss."""
    if tau is None:
        return None
    if method == "weights":
        return NearestBasisLoss(model, study.num_bases, tau=tau)
    if method == "kernels":
        return NearestBasisLoss(model, study.num_kernels, unit="kernel", tau=tau)
    kind, zero_weight = ("gaussian", 0.9) if method == "sparse" else (method, 0.0)
    return MixturePrior(model, study.num_bases, kind=kind, tau=tau, zero_weight=zero_weight)


def evaluate(trainer: ImageTrainer, model: Any, splits: Any) -> dict[str, float]:
    """Measure accuracy on validation and test."""
    trainer.model = trainer.model_wrapped = model
    return {
        f"{name}_accuracy": trainer.evaluate(splits[name], metric_key_prefix=name)[f"{name}_accuracy"]
        for name in ("validation", "test")
    }


def describe_assignment(model: Any, regulariser: Regulariser) -> dict[str, float]:
    """Measure how far the weights are from their bases, and how many are exactly on one at 0."""
    squares = residual = zeros = total = 0.0
    for group in range(len(regulariser.groups)):
        rows, assigned = regulariser.rows(group).detach(), regulariser.bases(group).detach()[regulariser.assign(group)]
        squares += rows.square().sum().item()
        residual += (rows - assigned).square().sum().item()
        zeros += (assigned == 0).sum().item()
        total += rows.numel()
    return {"relative_error": (residual / squares) ** 0.5, "zero_ratio": zeros / total}


def quantised_rows(
    study: StudyArguments, method: str, model: Any, regulariser: Regulariser | None
) -> Iterator[tuple[str, Regulariser]]:
    """Give the ways to quantise a trained model: by its own bases, or by k-means where it has none."""
    if regulariser is not None:
        yield method, regulariser
        return
    yield "none, weights", NearestBasisLoss(model, study.num_bases)
    yield "none, kernels", NearestBasisLoss(model, study.num_kernels, unit="kernel")


def folder_of(training: ImageTrainingArguments, name: str, tau: float | None, seed: int) -> Path:
    weight = "" if tau is None else f"_tau{tau:g}"
    return Path(str(training.output_dir)) / f"{name.replace(', ', '_')}{weight}_seed{seed}"


def prepare_start(study, task: ImageTask, task_arguments, training, seed: int) -> Path:
    """Train the network without a loss of the weights, once per seed, and give its folder."""
    folder = folder_of(training, "start", None, seed)
    if not (folder / "config.json").exists():
        set_seed(seed)
        model: Any = build_classifier(AutoConfig.from_pretrained(study.config_name), task)
        processor = build_image_processor(task_arguments, model.config.image_size)
        run = copy.copy(training)
        run.seed, run.output_dir = seed, str(folder / "checkpoints")
        train(build_trainer(model, task.without_test(), processor, task_arguments, run))
        model.save_pretrained(folder)
    return folder


def run_method(study, method: str, tau: float | None, task: ImageTask, task_arguments, training, seed: int) -> list:
    """Train with one method, quantise, and read validation and test before and after."""
    run = copy.copy(training)
    run.seed = seed
    if study.from_scratch:
        set_seed(seed)
        model: Any = build_classifier(AutoConfig.from_pretrained(study.config_name), task)
    else:
        start = prepare_start(study, task, task_arguments, training, seed)
        set_seed(seed)
        model = AutoModelForImageClassification.from_pretrained(start)
        run.learning_rate, run.num_train_epochs, run.lr_decay_epochs = study.loss_learning_rate, study.loss_epochs, 0.0
    processor = build_image_processor(task_arguments, model.config.image_size)
    regulariser = build_regulariser(study, method, tau, model)
    trainer = build_trainer(model, task.without_test(), processor, task_arguments, run, regulariser)
    if isinstance(regulariser, NearestBasisLoss):
        trainer.add_callback(ReseedBases(regulariser))
    trained = train(trainer)
    splits = transform_splits(task, processor, task_arguments)
    common = {
        "tau": tau,
        "seed": seed,
        "seconds": round(trained.seconds, 1),
        "before": evaluate(trainer, model, splits),
    }
    rows = []
    for name, bases in quantised_rows(study, method, model, regulariser):
        small = quantise(model, bases)
        row = {"method": name, **common, **describe_assignment(model, bases), "after": evaluate(trainer, small, splits)}
        estimate_statistics(small, task, processor)
        row["reestimated"] = evaluate(trainer, small, splits)
        for what, saved in (("before", model), ("after", small)):
            folder = folder_of(training, name, tau, seed) / what
            saved.save_pretrained(folder)
            row[f"bytes_{what}"] = (folder / "model.safetensors").stat().st_size
        rows.append(row)
    return rows


def find_rows(rows: list[dict], method: str, seed: int) -> list[dict]:
    return [row for row in rows if row["method"].partition(",")[0] == method and row["seed"] == seed]


def choose_tau(rows: list[dict], method: str, seed: int) -> float | None:
    """Choose the weight of the loss with which validation accuracy is best once quantised, then re-estimated."""
    states = ("after", "reestimated")
    best = max(find_rows(rows, method, seed), key=lambda row: [row[state]["validation_accuracy"] for state in states])
    return best["tau"]


def draw_figure(study: StudyArguments, training: ImageTrainingArguments, rows: list[dict]):
    """Draw the weights of the last seed's saved models."""
    seed = study.seeds[-1]
    taus = {row["method"]: row["tau"] for row in rows if row["seed"] == seed}
    names = {"without the loss": "none, weights", "with the loss": "weights"}
    if study.figure is None or not set(names.values()) <= set(taus):
        return
    load = AutoModelForImageClassification.from_pretrained
    folders = {title: folder_of(training, name, taus[name], seed) for title, name in names.items()}
    pairs = {title: (load(folder / "before"), load(folder / "after")) for title, folder in folders.items()}
    draw_weight_histograms(pairs, study.figure)
    print(f"wrote {study.figure}")


def main():
    study, task_arguments, training = parse_arguments(
        (StudyArguments, ImageTaskArguments, ImageTrainingArguments), __doc__
    )
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    training.eval_strategy = training.save_strategy = "no"
    known = list_taus(study)
    unknown = sorted(set(study.methods or []) - set(known))
    if unknown:
        raise ValueError(f"--methods has unknown {unknown}; there are {list(known)}.")
    task = load_task(task_arguments)
    path = Path(study.results_file)
    settings = {
        "task": task.fingerprint,
        "sizes": {name: len(split) for name, split in task.splits.items()},
        "augmentation": task_arguments.augmentation,
        "recipe": {name: value for name, value in training.describe_recipe().items() if name != "seed"},
        "start": "scratch" if study.from_scratch else [study.loss_epochs, study.loss_learning_rate],
        "options": {name: value for name, value in asdict(study).items() if name.startswith("num_")},
    }
    record = json.loads(path.read_text()) if path.exists() else {"settings": settings, "rows": []}
    if record["settings"] != settings:
        raise ValueError(f"{path} holds a study with other settings; use another --results_file, or the old ones.")
    record |= {"command": describe_command(), "hardware": hardware_fingerprint()}
    for seed in study.seeds:
        for method in study.methods or known:
            taus = known[method] if seed == study.seeds[0] else [choose_tau(record["rows"], method, study.seeds[0])]
            for tau in taus:
                if any(row["tau"] == tau for row in find_rows(record["rows"], method, seed)):
                    continue
                rows = run_method(study, method, tau, task, task_arguments, training, seed)
                record["rows"] += [{**row, "cpu": record["hardware"]["cpu"]} for row in rows]
                path.write_text(format_record(record) + "\n")
                for row in rows:
                    accuracies = [f"{row[state]['test_accuracy']:.4f}" for state in ("before", "after", "reestimated")]
                    print(
                        f"{row['method']}, tau {tau}, seed {seed}: test accuracy {' -> '.join(accuracies)}", flush=True
                    )
    draw_figure(study, training, record["rows"])


if __name__ == "__main__":
    run_command(main)
