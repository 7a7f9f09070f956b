"""The fine-tuning recipe of the thesis (section 5.1.3) on transformers' Trainer.

Debiased AdamW with early stopping, 10 % warm-up, linear decay to 0, fixed seeds. The thesis trains for 10 epochs, which
its strategies do here too; others train for 3 unless told. It gives neither learning rate nor batch size; the defaults
here are RoBERTa's usual ones.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import (
    BatchEncoding,
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from redundancy_hf.evaluation import predict
from redundancy_hf.labels import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from redundancy_hf.limits import check_first_token, check_inputs
from redundancy_hf.metrics import build_compute_metrics, compute_score, predictions_from_logits
from redundancy_hf.plan import Plan
from redundancy_hf.task import Task
from redundancy_hf.timing import time_in_turns
from redundancy_hf.training import RecipeArguments, StopOnInvalidLoss, find_checkpoint, show_progress

EPOCHS, THESIS_EPOCHS = 3.0, 10.0
# after which no further step is measured for an estimate
PROBE_SECONDS = 5.0


@dataclass
class ClassformerTrainingArguments(RecipeArguments):
    """[`TrainingArguments`] with the defaults of the recipe; every flag stays usable."""

    recipe: ClassVar[tuple[str, ...]] = (
        *RecipeArguments.recipe,
        *("optim", "adam_beta1", "adam_beta2", "adam_epsilon", "label_smoothing_factor", "train_sampling_strategy"),
        *("eval_strategy", "load_best_model_at_end", "is_best_by_score", "early_stopping_patience"),
    )

    output_dir: str | None = field(
        default="runs/classformer", metadata={"help": "Folder for everything that the run writes."}
    )
    num_train_epochs: float = field(  # type: ignore[assignment]
        default=None,
        metadata={
            "help": f"Epochs over which the learning rate decays to 0. Default: {EPOCHS:g}, and {THESIS_EPOCHS:g} with "
            "--strategy thesis or binary."
        },
    )
    learning_rate: float = field(default=3e-5, metadata={"help": "Peak learning rate of AdamW."})
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Training examples per device and step."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Evaluation examples per device and step."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Warm-up: steps, or below 1 a share of all steps."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "Keep the epoch with the best validation."})
    train_sampling_strategy: str = field(
        default="group_by_length", metadata={"help": "random, sequential or group_by_length (less padding)."}
    )
    early_stopping_patience: int = field(
        default=2, metadata={"help": "Epochs without a better validation score before training stops; 0: never stop."}
    )

    def __post_init__(self):
        # TrainingArguments would take the loss; the best epoch is the one with the best score of the task
        self.is_best_by_score = self.metric_for_best_model is None
        self.has_own_epochs = self.num_train_epochs is not None
        if not self.has_own_epochs:
            self.num_train_epochs = EPOCHS
        # the Trainer warns where there is nothing to pin for
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.accelerator.is_available()
        super().__post_init__()

    def follow_thesis(self):
        """Train for as long as the thesis does, unless told."""
        if not self.has_own_epochs:
            self.num_train_epochs = THESIS_EPOCHS

    def require_training(self):
        """Refuse a recipe that trains nothing.

        Raises:
            ValueError: There is no step to make.
        """
        if self.max_steps == 0 or self.num_train_epochs <= 0:
            raise ValueError("there is nothing to train: --max_steps and --num_train_epochs must be more than 0.")

    def check_best_metric(self, metric_name: str):
        """Refuse to choose the best epoch by what is not measured.

        Raises:
            ValueError: It is neither that nor the loss.
        """
        given = self.metric_for_best_model
        if not self.is_best_by_score and str(given).removeprefix("eval_") not in ("loss", metric_name):
            raise ValueError(f"--metric_for_best_model must be loss or {metric_name}, got {given}.")


@dataclass
class LongTrainingArguments(ClassformerTrainingArguments):
    """The recipe of a training before fine-tuning: no validation chooses an epoch, and checkpoints go by steps."""

    eval_strategy: str = field(default="no", metadata={"help": "When to evaluate; what counts comes afterwards."})
    save_strategy: str = field(default="steps", metadata={"help": "When to save what a resumed run starts from."})
    save_steps: float = field(default=0.1, metadata={"help": "Steps between checkpoints, or a share of all steps."})
    logging_strategy: str = field(default="steps", metadata={"help": "When to log: no, steps or epoch."})
    logging_steps: float = field(default=0.05, metadata={"help": "Steps between logs, or a share of all steps."})
    load_best_model_at_end: bool = field(default=False, metadata={"help": "Keep the best checkpoint."})
    # of several tasks, groups of one length would be groups of one task
    train_sampling_strategy: str = field(default="random", metadata={"help": "random or sequential."})


@dataclass(frozen=True)
class FineTuned:
    """What one fine-tuning gave.

    Attributes:
        score: The task's metric on the validation split, of the best epoch.
        score_as_is: The same before any training; `None` where the head is new.
        predictions: Class ids, values or 0/1 rows for the validation split, after training.
        seconds: Wall time of training and validation.
        num_epochs: Epochs that were trained before early stopping.
    """

    score: float
    score_as_is: float | None
    predictions: np.ndarray
    seconds: float
    num_epochs: float


def refuse_label_smoothing(arguments: TrainingArguments, task: str):
    """Refuse a setting that would have no effect, or another one than is meant.

    Raises:
        ValueError: Labels are to be smoothed.
    """
    if arguments.label_smoothing_factor != 0:
        raise ValueError(
            f"--label_smoothing_factor must be 0 for {task}, whose loss smooths no labels, got "
            f"{arguments.label_smoothing_factor:g}."
        )


def build_trainer(
    model: PreTrainedModel,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    arguments: ClassformerTrainingArguments,
    trainer_class: type[Trainer] = Trainer,
    plan: Plan | None = None,
) -> Any:
    """Put together the Trainer that every fine-tuning of this project uses.

    Args:
        model: A classifier with `task.num_labels` outputs.
        task: Tokenised task; "train" and "validation" are used.
        tokenizer: Pads the batches, on the right.
        arguments: The recipe.
        trainer_class: [`Trainer`] or a subclass of it.
        plan: Shows how far the training has come; by default one of its own.

    Returns:
        A Trainer that stops early, keeps the best epoch and refuses to go on after a NaN loss.

    Raises:
        ValueError: The tokenizer pads on the left or begins with a word, the model has another number of labels than
            the task or no table for an input, the best epoch is to be chosen by what is not measured, or labels are to
            be smoothed that are not one class per example.
    """
    if tokenizer.padding_side != "right":
        raise ValueError('Classformer reads position 0, so pad on the right: set tokenizer.padding_side = "right".')
    check_first_token(tokenizer)
    if model.config.num_labels != task.num_labels:
        raise ValueError(
            f"the model has {model.config.num_labels} labels and the task {task.num_labels} ({task.label_names}); "
            f"load it with num_labels={task.num_labels}."
        )
    for name in ("train", "validation"):
        check_inputs(model, task.splits[name])
    arguments.check_best_metric(task.metric_name)
    if task.problem_type != SINGLE_LABEL:
        kinds = {REGRESSION: "a regression", MULTI_LABEL: "a task with several labels per example"}
        refuse_label_smoothing(arguments, kinds[task.problem_type])
    if arguments.is_best_by_score:
        arguments.metric_for_best_model = f"eval_{task.metric_name}"
        arguments.greater_is_better = True
    callbacks: list[TrainerCallback] = [StopOnInvalidLoss()]
    if arguments.early_stopping_patience and arguments.load_best_model_at_end:
        callbacks.append(EarlyStoppingCallback(arguments.early_stopping_patience))
    trainer = trainer_class(
        model=model,
        args=arguments,
        train_dataset=task.splits["train"],
        eval_dataset=task.splits["validation"],
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8 if arguments.fp16 else None),
        compute_metrics=build_compute_metrics(task),
        callbacks=callbacks,
    )
    show_progress(trainer, plan)
    return trainer


def time_step(
    model: PreTrainedModel, task: Task, tokenizer: PreTrainedTokenizerBase, arguments: ClassformerTrainingArguments
) -> float:
    """Measure the seconds of a training step on one batch; the model moves to its device, the weights do not change.

    Raises:
        ValueError: "train" or "validation" holds a token or a token type that the model has no row for.
    """
    for name in ("train", "validation"):
        check_inputs(model, task.splits[name])
    split = task.splits["train"]
    rows = split.shuffle(seed=0).select(range(min(arguments.per_device_train_batch_size, len(split))))
    model.to(arguments.device)  # type: ignore[arg-type]
    batch = BatchEncoding(DataCollatorWithPadding(tokenizer)(list(rows))).to(arguments.device)
    was_training, device = model.training, arguments.device
    half = torch.bfloat16 if arguments.bf16 else torch.float16

    def step():
        with torch.autocast(device.type, half, enabled=arguments.bf16 or arguments.fp16):
            loss = model(**batch).loss
        loss.backward()

    model.train()
    # dropout must draw what it would have drawn
    with torch.random.fork_rng(device_type=device.type if device.type != "cpu" else "cuda"):
        deadline = time.monotonic() + PROBE_SECONDS
        times = time_in_turns([{"step": step}], 3, 0, "wall", device, deadline=deadline)
    model.zero_grad()
    model.train(was_training)
    return float(np.median(times.wall["step"])) / 1000


def count_training_steps(task: Task, arguments: ClassformerTrainingArguments) -> float:
    """Count the steps of a training that does not stop early; a validated batch counts as a third of one."""
    batch_size = arguments.per_device_train_batch_size * arguments.world_size
    steps_per_epoch = max(len(task.splits["train"]) / batch_size, 1)
    epochs = arguments.num_train_epochs
    if arguments.max_steps > 0:
        epochs = arguments.max_steps * arguments.gradient_accumulation_steps / steps_per_epoch
    return steps_per_epoch * epochs + len(task.splits["validation"]) / batch_size / 3 * max(epochs, 1)


def fine_tune(
    model: PreTrainedModel,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    arguments: ClassformerTrainingArguments,
    evaluate_as_is: bool = False,
    resume: bool = False,
    plan: Plan | None = None,
) -> FineTuned:
    """Fine-tune a model in place and validate it; arguments that are not named are those of [`build_trainer`].

    Args:
        model: Holds the best epoch's weights afterwards.
        arguments: The recipe; `num_train_epochs=0` only validates.
        evaluate_as_is: Whether to validate before training too, which makes sense for a trained head only.
        resume: Whether to go on from the last checkpoint in `arguments.output_dir`, if there is one.

    Raises:
        FloatingPointError: The training loss became NaN or infinite.
        ValueError: See [`build_trainer`].
    """
    trainer = build_trainer(model, task, tokenizer, arguments, plan=plan)
    name = f"eval_{task.metric_name}"
    started = time.perf_counter()
    score_as_is = trainer.evaluate()[name] if evaluate_as_is else None
    num_epochs = 0.0
    if arguments.num_train_epochs > 0:
        trainer.train(resume_from_checkpoint=find_checkpoint(Path(str(arguments.output_dir))) if resume else None)
        num_epochs = trainer.state.epoch or 0.0
    # the Trainer's own predictions come in the order of its batches, which go by length
    predictions = predictions_from_logits(task.problem_type, predict(model, task.splits["validation"], tokenizer))
    return FineTuned(
        score=compute_score(task.metric_name, predictions, np.asarray(task.splits["validation"]["labels"])),
        score_as_is=score_as_is,
        predictions=predictions,
        seconds=time.perf_counter() - started,
        num_epochs=num_epochs,
    )
