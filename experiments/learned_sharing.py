r"""Can a network learn which weights to share, and what do they cost once on their bases (thesis figures 3.8, 3.9)?

    python experiments/learned_sharing.py --config_name runs/plain/seed-0 --dataset_name uoft-cs/cifar10 \
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
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from frame import command_of, format_table, name_command, percent
from record import Record, choose, describe_scale, describe_settings, group_rows, mean_and_each
from transformers import AutoConfig, AutoModelForImageClassification, set_seed

import vision_hf  # noqa: F401  registers the families
from redundancy_hf.images import ImageTask, load_task
from redundancy_hf.training import list_seeds, run_seed
from vision_hf.data import ImageTaskArguments, build_image_processor, transform_splits
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

STATES = ("before", "after", "reestimated")


@dataclass
class Trainings:
    """The trainings of one experiment, whose arguments [`run`] explains."""

    config_name: str
    data: ImageTask
    task: ImageTaskArguments
    training: ImageTrainingArguments
    # what is another for the epochs with a loss; `None` to train with it from random weights on
    loss_recipe: dict[str, float] | None
    # what the methods add to the loss
    losses: dict[str, Callable[..., Regulariser]]

    def folder_of(self, name: str, tau: float | None, seed: int) -> Path:
        weight = "" if tau is None else f"_tau{tau:g}"
        return Path(str(self.training.output_dir)) / f"{name.replace(', ', '_')}{weight}_seed{seed}"

    def build_trainer(self, model: Any, arguments: ImageTrainingArguments, loss: Regulariser | None) -> ImageTrainer:
        processor = build_image_processor(self.task, model.config.image_size)
        trainer = build_trainer(model, self.data.without_test(), processor, self.task, arguments, loss)
        if isinstance(loss, NearestBasisLoss):
            trainer.add_callback(ReseedBases(loss))
        return trainer

    def build_model(self) -> Any:
        return build_classifier(AutoConfig.from_pretrained(self.config_name), self.data)

    def load_start(self, seed: int) -> Any:
        """Give the network as it was trained without a loss of the weights, which is done once per seed."""
        folder = self.folder_of("start", None, seed)

        def train_start(arguments: ImageTrainingArguments, folder: Path) -> dict[str, Any]:
            model = self.build_model()
            trained = train(self.build_trainer(model, arguments, None))
            model.save_pretrained(folder)
            return asdict(trained)

        run_seed(train_start, self.training, folder, seed)
        return AutoModelForImageClassification.from_pretrained(folder)

    def run(self, method: str, tau: float | None, seed: int) -> list[dict[str, Any]]:
        """Train with one method, quantise, and read validation and test before and after."""
        arguments = copy.copy(self.training)
        arguments.seed = seed
        for name, value in (self.loss_recipe or {}).items():
            setattr(arguments, name, value)
        start = None if self.loss_recipe is None else self.load_start(seed)
        set_seed(seed)
        model = self.build_model() if start is None else start
        loss = None if tau is None else self.losses[method](model, tau=tau)
        trainer = self.build_trainer(model, arguments, loss)
        trained, processor = train(trainer), trainer.processing_class
        splits = transform_splits(self.data, processor, self.task)
        before, rows = evaluate(trainer, model, splits), []
        # by its own bases, or by k-means where it has none
        quantisers = (
            {method: loss}
            if loss is not None
            else {f"none, {unit}": self.losses[unit](model) for unit in ("weights", "kernels")}
        )
        for name, bases in quantisers.items():
            small = quantise(model, bases)
            row = {"method": name, "tau": tau, "seed": seed, "seconds": round(trained.seconds, 1), "before": before}
            row |= {**describe_assignment(bases), "after": evaluate(trainer, small, splits)}
            estimate_statistics(small, self.data, processor)
            row["reestimated"] = evaluate(trainer, small, splits)
            for what, saved in (("before", model), ("after", small)):
                folder = self.folder_of(name, tau, seed) / what
                saved.save_pretrained(folder)
                row[f"bytes_{what}"] = (folder / "model.safetensors").stat().st_size
            rows.append(row)
        return rows


def evaluate(trainer: ImageTrainer, model: Any, splits: Any) -> dict[str, float]:
    trainer.model = trainer.model_wrapped = model
    return {
        f"{name}_accuracy": trainer.evaluate(splits[name], metric_key_prefix=name)[f"{name}_accuracy"]
        for name in ("validation", "test")
    }


def describe_assignment(regulariser: Regulariser) -> dict[str, float]:
    """Measure how far the weights are from their bases, and how many are exactly on one at 0."""
    groups = range(len(regulariser.groups))
    rows = torch.cat([regulariser.rows(group).detach().flatten() for group in groups])
    bases = torch.cat([regulariser.bases(group).detach()[regulariser.assign(group)].flatten() for group in groups])
    error = (rows - bases).square().sum() / rows.square().sum()
    return {"relative_error": error.sqrt().item(), "zero_ratio": (bases == 0).float().mean().item()}


def find_rows(rows: list[dict], method: str, seed: int) -> list[dict]:
    return [row for row in rows if row["method"].partition(",")[0] == method and row["seed"] == seed]


def choose_tau(rows: list[dict]) -> float | None:
    """Choose the weight of the loss with which validation accuracy is best once quantised, then re-estimated."""
    best = max(rows, key=lambda row: [row[state]["validation_accuracy"] for state in STATES[1:]])
    return best["tau"]


def run(
    config_name: str,
    results_file: str,
    task: ImageTaskArguments,
    training: ImageTrainingArguments,
    seeds: int = 2,
    methods: Sequence[str] | None = None,
    from_scratch: bool = False,
    loss_epochs: float = 3.0,
    loss_learning_rate: float = 0.02,
    num_bases: int = 16,
    num_kernels: int = 16,
    tau_weights: Sequence[float] = (0.01, 0.1),
    tau_kernels: Sequence[float] = (0.01, 0.1),
    tau_prior: Sequence[float] = (1e-5, 1e-4),
    figure: str | None = None,
) -> dict:
    """Train with every method and weight of its loss, quantise and measure; gives the record.

    Args:
        config_name: Folder or Hub name of the architecture; it must share nothing.
        results_file: JSON file for what was measured.
        task: The images.
        training: The recipe.
        seeds: Number of trainings of a method, with seeds counted from --seed.
        methods: Only these; by default all.
        from_scratch: Train with the losses from random weights on.
        loss_epochs: Epochs with the losses, after those without.
        loss_learning_rate: Learning rate of these epochs; it falls linearly to 0.
        num_bases: Basis weights, or mixture components, per layer.
        num_kernels: Basis kernels per layer.
        tau_weights: Weights to try of the loss of equation 3.5.
        tau_kernels: Weights to try of the loss of equation 3.6.
        tau_prior: Weights to try of the mixture priors' negative logarithm.
        figure: PNG for the histograms of figure 3.8.
    """
    training.eval_strategy = training.save_strategy = "no"
    taus = {"none": [None], "weights": tau_weights, "kernels": tau_kernels}
    taus |= dict.fromkeys(("gaussian", "laplace", "sparse"), tau_prior)
    prior = partial(MixturePrior, num_components=num_bases)
    losses = {
        "weights": partial(NearestBasisLoss, num_bases=num_bases),
        "kernels": partial(NearestBasisLoss, num_bases=num_kernels, unit="kernel"),
        "gaussian": prior,
        "laplace": partial(prior, kind="laplace"),
        "sparse": partial(prior, zero_weight=0.9),
    }
    chosen, data = choose("methods", methods, taus), load_task(task)
    start = "scratch" if from_scratch else [loss_epochs, loss_learning_rate]
    about = {"start": start, "options": {"num_bases": num_bases, "num_kernels": num_kernels}}
    record = Record(
        results_file, describe_settings(training, data, data.splits, augmentation=task.augmentation, **about)
    )
    loss_recipe = {"learning_rate": loss_learning_rate, "num_train_epochs": loss_epochs, "lr_decay_epochs": 0.0}
    trainings = Trainings(config_name, data, task, training, None if from_scratch else loss_recipe, losses)
    for seed, method in product(list_seeds(training.seed, seeds), chosen):
        of_first = find_rows(record.rows, method, training.seed)
        tried = {row["tau"] for row in find_rows(record.rows, method, seed)}
        wanted = taus[method] if seed == training.seed else [choose_tau(of_first)]
        for tau in (one for one in wanted if one not in tried):
            record.add(*trainings.run(method, tau, seed))
            for row in find_rows(record.rows, method, seed):
                if row["tau"] == tau:
                    accuracies = " -> ".join(f"{row[state]['test_accuracy']:.4f}" for state in STATES)
                    print(f"{row['method']}, tau {tau}, seed {seed}: test accuracy {accuracies}", flush=True)
    if figure is not None:
        draw_histograms(trainings, [row for row in record.rows if row["seed"] == seed], figure)
    return record.content


def draw_histograms(trainings: Trainings, rows: list[dict], figure: str):
    """Draw the weights of one seed's saved models."""
    taus, load = {row["method"]: row["tau"] for row in rows}, AutoModelForImageClassification.from_pretrained
    names = {"without the loss": "none, weights", "with the loss": "weights"}
    if not set(names.values()) <= set(taus):
        return
    folders = {title: trainings.folder_of(name, taus[name], rows[0]["seed"]) for title, name in names.items()}
    pairs = {title: (load(folder / "before"), load(folder / "after")) for title, folder in folders.items()}
    draw_weight_histograms(pairs, figure)
    print(f"wrote {figure}")


def table(record: dict) -> str:
    """Accuracy before and after every weight or kernel is put on its basis."""
    rows = []
    for (method, tau), same in group_rows(record["rows"], "method", "tau").items():
        cells = [mean_and_each([row[state]["test_accuracy"] for row in same]) for state in STATES]
        error, zeros = (sum(row[name] for row in same) / len(same) for name in ("relative_error", "zero_ratio"))
        loss = method if tau is None else f"{method}, {tau:g}"
        loss = f"**{loss}**" if len(same) > 1 and tau is not None else loss
        size = same[0]["bytes_after"] / same[0]["bytes_before"]
        validation = percent(same[0]["after"]["validation_accuracy"])
        rows.append([loss, validation, *cells, f"{error:.3f}", percent(zeros), f"{size:.2f}"])
    header = ["loss, tau", "validation, quantised, %", "test: before, %", "quantised, %", "statistics anew, %"]
    header += ["weight error", "zeros, %", "file size"]
    options, start = record["settings"]["options"], record["settings"]["start"]
    stages = "with the loss" if start == "scratch" else f"without the loss, and {start[0]:g} more with it"
    note = (
        f"{options['num_bases']} basis weights or components, or {options['num_kernels']} basis kernels, per layer. "
        f"{describe_scale(record, 'images')}These epochs are {stages}. The first seed's validation accuracy chose tau "
        f"for the second seed (bold). Mean and each seed; file size relative to the plain file. {name_command(record)}"
    )
    return format_table(header, rows, note)


main = command_of(run, __doc__)
