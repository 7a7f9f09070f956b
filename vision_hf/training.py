"""Training of image classifiers on transformers' Trainer, with the optimisers and schedules of the thesis (3.6).

Xception on CIFAR: SGD with momentum and a learning rate that falls by steps. EfficientNet: RMSprop as TensorFlow
computes it, warm-up, and an average of the weights.
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from huggingface_hub import EvalResult
from sklearn.metrics import top_k_accuracy_score
from torch import nn
from torch.optim.swa_utils import AveragedModel
from transformers import (
    AutoModelForImageClassification,
    BaseImageProcessor,
    EvalPrediction,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

from redundancy_hf import cards
from redundancy_hf.images import ImageTask
from redundancy_hf.plan import Plan
from redundancy_hf.training import RecipeArguments, StopOnInvalidLoss, find_checkpoint, show_progress

from .conversion import reestimate_batch_norm
from .cost import count_expanded_parameters
from .data import EvaluationTransform, ImageTaskArguments, collate, transform_splits

CARD_TEMPLATE = Path(__file__).with_name("model_card.md")
OPTIMIZERS = ("sgd", "rmsprop_tf", "adamw")
ADAM = ("adam_beta1", "adam_beta2", "adam_epsilon")


@dataclass
class ImageTrainingArguments(RecipeArguments):
    """[`TrainingArguments`] with what the recipes of the thesis need; every flag stays usable."""

    recipe = (
        *RecipeArguments.recipe,
        *("optimizer", "momentum", "rmsprop_alpha", "rmsprop_epsilon", "label_smoothing_factor"),
        *("lr_decay_epochs", "lr_decay_factor", "ema_decay"),
    )

    output_dir: str | None = field(default="runs/vision", metadata={"help": "Folder for everything the run writes."})
    learning_rate: float = field(default=0.1, metadata={"help": "Peak learning rate."})
    num_train_epochs: float = field(default=10.0, metadata={"help": "Passes over the training images."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Training images per device and step."})
    per_device_eval_batch_size: int = field(default=128, metadata={"help": "Evaluated images per device and step."})
    optimizer: str = field(default="sgd", metadata={"help": "sgd, rmsprop_tf or adamw."})
    momentum: float = field(default=0.9, metadata={"help": "Of sgd and rmsprop_tf."})
    rmsprop_alpha: float = field(default=0.9, metadata={"help": "Weight of the past in rmsprop_tf's squares."})
    rmsprop_epsilon: float = field(default=1e-3, metadata={"help": "Added inside rmsprop_tf's square root."})
    weight_decay: float = field(default=1e-4, metadata={"help": "Of all weights but biases and batch norm."})
    lr_decay_epochs: float = field(
        default=0.0, metadata={"help": "Epochs between steps of the learning rate; 0: follow --lr_scheduler_type."}
    )
    lr_decay_factor: float = field(default=0.2, metadata={"help": "What a step multiplies the learning rate by."})
    ema_decay: float = field(
        default=0.0, metadata={"help": "Keep, evaluate and save an exponential average of the weights; 0: do not."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Images are decoded on the fly."})

    def __post_init__(self):
        changed = _list_changed(self)
        super().__post_init__()
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"`optimizer` must be one of {OPTIMIZERS}, got {self.optimizer!r}.")
        # what the optimisers and the schedule of here do not read
        unread = {name: "choose by `optimizer`" for name in ("optim", "optim_args", "optim_target_modules")}
        if self.optimizer != "adamw":
            unread |= dict.fromkeys(ADAM, "it is for `optimizer` adamw")
        if self.lr_decay_epochs > 0:
            unread |= dict.fromkeys(("lr_scheduler_type", "lr_scheduler_kwargs"), "`lr_decay_epochs` sets the schedule")
        for name in changed:
            if name in unread:
                raise ValueError(f"`{name}` would have no effect: {unread[name]}.")
        if self.lr_decay_epochs < 0 or self.lr_decay_factor <= 0:
            raise ValueError("`lr_decay_epochs` must not be negative and `lr_decay_factor` must be above 0.")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"`ema_decay` must be at least 0 and below 1, got {self.ema_decay}.")

    def describe_recipe(self) -> dict[str, str]:
        # recipes of before had none of adamw's own settings
        own = {name: str(getattr(self, name)) for name in ADAM if name in _list_changed(self)}
        return super().describe_recipe() | own


def _list_changed(arguments: TrainingArguments) -> list[str]:
    """Name the settings of [`TrainingArguments`] that have another value than its default."""
    defaults = {one.name: one.default for one in fields(TrainingArguments)}
    return [name for name, default in defaults.items() if getattr(arguments, name) not in (default, None, {})]


class RMSpropTF(torch.optim.Optimizer):
    """RMSprop as TensorFlow computes it, which EfficientNet's recipe relies on; arguments are those of torch's.

    Unlike torch's, epsilon is inside the square root, the mean of squares starts at 1, and the learning rate is inside
    the momentum.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        alpha: float = 0.9,
        eps: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ):
        defaults = {"lr": lr, "alpha": alpha, "eps": eps, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                gradient, state = weight.grad, self.state[weight]
                if not state:
                    state["squares"], state["update"] = torch.ones_like(weight), torch.zeros_like(weight)
                if group["weight_decay"]:
                    gradient = gradient.add(weight, alpha=group["weight_decay"])
                squares, update = state["squares"], state["update"]
                squares.lerp_(gradient.square(), 1 - group["alpha"])
                scaled = gradient / (squares + group["eps"]).sqrt()
                update.mul_(group["momentum"]).add_(scaled, alpha=group["lr"])
                weight.sub_(update)
        return loss


def average_weights(decay: float) -> Callable:
    """Give the update of an exponential average, whose decay grows to `decay` over the first steps."""

    def update(average: torch.Tensor, value: torch.Tensor, num_averaged: Any) -> torch.Tensor:
        weight = 1 - min(decay, (1 + float(num_averaged)) / (10 + float(num_averaged)))
        return average.lerp(value, weight) if average.is_floating_point() else value

    return update


class ImageTrainer(Trainer):
    """[`Trainer`] with the optimisers, the schedule and the average of [`ImageTrainingArguments`].

    Args:
        regulariser: A module without arguments that gives a loss of the weights, e.g. of `vision_hf.priors`; its own
            parameters are trained along, at its `relative_learning_rate`.
    """

    args: ImageTrainingArguments
    model: Any

    def __init__(self, *args, regulariser: Any = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.regulariser = regulariser
        if regulariser is not None:
            regulariser.to(self.args.device)
        self.average: AveragedModel | None = None
        if self.args.ema_decay > 0:
            self.average = AveragedModel(self.model, avg_fn=average_weights(self.args.ema_decay), use_buffers=True)

    @staticmethod
    def get_optimizer_cls_and_kwargs(args, model=None):
        common = {"lr": args.learning_rate}
        if args.optimizer == "sgd":
            return torch.optim.SGD, {**common, "momentum": args.momentum}
        if args.optimizer == "rmsprop_tf":
            own = {"alpha": args.rmsprop_alpha, "eps": args.rmsprop_epsilon, "momentum": args.momentum}
            return RMSpropTF, {**common, **own}
        return torch.optim.AdamW, {**common, "betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}

    def create_optimizer(self, model=None):
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        average = self.average
        if is_new and average is not None:
            optimizer.register_step_post_hook(lambda *_: average.update_parameters(self.model))
        if is_new and self.regulariser is not None:
            rate = self.regulariser.relative_learning_rate * self.args.learning_rate
            own = [parameter for parameter in self.regulariser.parameters() if parameter.requires_grad]
            optimizer.add_param_group({"params": own, "lr": rate, "weight_decay": 0.0})
            # the Trainer clears the gradients of the model only
            optimizer.register_step_post_hook(lambda *_: self.regulariser.zero_grad())
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        if self.lr_scheduler is None and self.args.lr_decay_epochs > 0:
            num_warmup_steps = self.args.get_warmup_steps(num_training_steps)
            steps_per_epoch = math.ceil(len(self.get_train_dataloader()) / self.args.gradient_accumulation_steps)
            period, factor = self.args.lr_decay_epochs * steps_per_epoch, self.args.lr_decay_factor

            def rate(step: int) -> float:
                # a boundary at a fraction of a step must not slip by rounding
                steps_down = math.floor(step / period + 1e-9)
                return min(1.0, (step + 1) / (num_warmup_steps + 1)) * factor**steps_down

            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, rate)  # type: ignore
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        result = super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)
        if self.regulariser is None or not model.training:
            return result
        loss, outputs = result if return_outputs else (result, None)
        loss = loss + self.regulariser()
        return (loss, outputs) if return_outputs else loss

    def evaluation_loop(self, *args, **kwargs):
        if self.average is None or self.average.n_averaged == 0:
            return super().evaluation_loop(*args, **kwargs)
        trained = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.use_average()
        try:
            return super().evaluation_loop(*args, **kwargs)
        finally:
            self.model.load_state_dict(trained)

    def use_average(self):
        """Put the averaged weights, if there are any, into the model."""
        if self.average is not None and self.average.n_averaged > 0:
            self.model.load_state_dict(self.average.module.state_dict())

    def _load_best_model(self):
        super()._load_best_model()
        if self.average is not None and self.state.best_model_checkpoint is not None:
            path = Path(self.state.best_model_checkpoint) / "average.pt"
            self.average.load_state_dict(torch.load(path, weights_only=True, map_location=self.args.device))

    def _save_optimizer_and_scheduler(self, output_dir):
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            for name, module in self._companions().items():
                torch.save(module.state_dict(), Path(output_dir) / f"{name}.pt")

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            for name, module in self._companions().items():
                path = Path(checkpoint) / f"{name}.pt"
                module.load_state_dict(torch.load(path, weights_only=True, map_location=self.args.device))

    def _companions(self) -> dict[str, nn.Module]:
        """What a checkpoint must hold beside the model."""
        return {k: v for k, v in (("average", self.average), ("regulariser", self.regulariser)) if v is not None}


@dataclass(frozen=True)
class Trained:
    """What one training gave.

    Attributes:
        accuracy: Of the validation split, 0 to 1.
        top5_accuracy: The same, right if among five; `None` below six classes.
        loss: Mean training loss of the last logged period.
        seconds: Wall time of training and validation.
    """

    accuracy: float
    top5_accuracy: float | None
    loss: float
    seconds: float


def compute_accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Compute top-1 and, with more than five classes, top-5 accuracy."""
    logits, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    if not np.isfinite(logits).all():
        raise FloatingPointError("the model's outputs are not finite; lower --learning_rate or warm up longer.")
    scores = {"accuracy": float((logits.argmax(-1) == labels).mean())}
    if logits.shape[1] > 5:
        scores["top5_accuracy"] = float(top_k_accuracy_score(labels, logits, k=5, labels=range(logits.shape[1])))
    return scores


def build_classifier(config: Any, task: ImageTask) -> PreTrainedModel:
    """Build a new classifier with a head for the task; the configuration is changed."""
    config.update(task.head_config)
    return AutoModelForImageClassification.from_config(config)


def estimate_statistics(model: Any, task: ImageTask, processor: BaseImageProcessor, number: int = 1200):
    """Estimate batch norm's statistics anew on training images, without augmentation."""
    split = task.splits["train"].with_transform(EvaluationTransform(processor))
    images = torch.stack(split[: min(number, len(split))]["pixel_values"])
    reestimate_batch_norm(model, images.split(100))


def match_labels(config: Any, label_names: list[str]) -> list[int]:
    """Give the model's numbers of a data set's labels; a model without names has the data's.

    Raises:
        ValueError: The model does not know a label.
    """
    known = {name: int(number) for number, name in config.id2label.items()}
    if all(name == f"LABEL_{number}" for name, number in known.items()):
        known = {name: number for number, name in enumerate(label_names) if number < len(known)}
    unknown = [name for name in label_names if name not in known]
    if unknown:
        raise ValueError(
            f"the data have the labels {unknown[:5]}, which the model does not know; it has {list(known)[:9]}."
        )
    return [known[name] for name in label_names]


@torch.no_grad()
def measure_accuracy(
    model: Any, images: Dataset, batch_size: int = 128, label_names: list[str] | None = None
) -> dict[str, float]:
    """Measure accuracy, top-5 accuracy and the standard error of the former.

    Args:
        model: An image classifier; evaluation mode is the caller's.
        images: Rows with "pixel_values" and "labels".
        batch_size: Images at a time.
        label_names: Of the data; a model that names its labels is compared by name, not by number.

    Raises:
        ValueError: The data has labels that the model does not have.
    """
    ids = match_labels(model.config, label_names) if label_names is not None else None
    labels: list[int] = []
    logits = []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        logits.append(model(pixel_values=torch.stack(batch["pixel_values"]).to(model.device)).logits.float().cpu())
        labels += batch["labels"] if ids is None else [ids[label] for label in batch["labels"]]
    if max(labels) >= model.config.num_labels:
        raise ValueError(f"the model has {model.config.num_labels} labels, and the data the label {max(labels)}.")
    scores = compute_accuracy(EvalPrediction(torch.cat(logits).numpy(), np.array(labels)))
    return {**scores, "standard_error": math.sqrt(scores["accuracy"] * (1 - scores["accuracy"]) / len(labels))}


def build_trainer(
    model: PreTrainedModel,
    task: ImageTask,
    processor: BaseImageProcessor,
    task_arguments: ImageTaskArguments,
    arguments: ImageTrainingArguments,
    regulariser: Any = None,
    plan: Plan | None = None,
) -> ImageTrainer:
    """Put together the Trainer that every training of images uses, on the task's train and validation splits.

    The processor is for evaluation, and saved beside the model; a plan is told how far the training has come.

    Raises:
        ValueError: The model has another number of labels.
    """
    if model.config.num_labels != len(task.label_names):
        raise ValueError(
            f"the model has {model.config.num_labels} labels and the task {len(task.label_names)}; load it with "
            f"num_labels={len(task.label_names)}, ignore_mismatched_sizes=True."
        )
    splits = transform_splits(task, processor, task_arguments)
    trainer = ImageTrainer(
        model=model,
        args=arguments,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        processing_class=processor,
        data_collator=collate,
        compute_metrics=compute_accuracy,
        callbacks=[StopOnInvalidLoss()],
        regulariser=regulariser,
    )
    show_progress(trainer, plan)
    return trainer


def train(trainer: ImageTrainer) -> Trained:
    """Train, or go on from the last checkpoint in the Trainer's folder, and validate; the model is changed in place.

    Raises:
        FloatingPointError: The loss or the outputs are no numbers any more.
    """
    started = time.perf_counter()
    output = trainer.train(resume_from_checkpoint=find_checkpoint(Path(str(trainer.args.output_dir))))
    trainer.use_average()
    trainer.average = None
    scores: dict[str, float] = trainer.evaluate()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return Trained(
        accuracy=scores["eval_accuracy"],
        top5_accuracy=scores.get("eval_top5_accuracy"),
        loss=losses[-1] if losses else output.training_loss,
        seconds=time.perf_counter() - started,
    )


def write_card(
    folder: Path,
    model: PreTrainedModel,
    trained: Trained,
    task: ImageTask,
    about_dataset: dict[str, Any],
    facts: dict[str, Any],
):
    """Write a saved folder's model card with stored and applied parameters.

    Args:
        folder: Of the model.
        model: Whose configuration the card tells.
        trained: What validation gave.
        task: The data, with its train and validation splits.
        about_dataset: What an `EvalResult` says of the data set.
        facts: "num_epochs", "seed", and the "base_model", which only counts by its name on the Hub.
    """
    base_model = None if Path(facts["base_model"] or ".").exists() else facts["base_model"]
    result = EvalResult(
        task_type="image-classification",
        **about_dataset,
        dataset_split="validation",
        metric_type="accuracy",
        metric_value=round(trained.accuracy, 4),
    )
    values = {**model.config.to_dict(), **facts, "base_model": base_model, "dataset": task.name}
    values |= {"architecture": type(model).__name__, "num_labels": len(task.label_names), "accuracy": trained.accuracy}
    values |= {f"num_{name}": len(task.splits[name]) for name in ("train", "validation")}
    values |= {"stored_parameters": model.num_parameters(), "expanded_parameters": count_expanded_parameters(model)}
    tags = [str(model.config.model_type), "weight-sharing", "image-classification"]
    cards.write_card(folder, CARD_TEMPLATE, result, values, pipeline_tag=tags[-1], tags=tags, base_model=base_model)
