"""One fine-tuning for all schedules: weights that every schedule of a space can use.

Each step trains the full model, the smallest schedule and a few random ones (the sandwich rule of Yu & Huang 2019,
"Universally Slimmable Networks"), the shortened ones also towards the full model's outputs, as in Kim & Cho 2021,
"Length-Adaptive Transformer". It is not in the thesis, which fine-tunes every candidate by itself.
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

from redundancy_hf.evaluation import batches_by_length
from redundancy_hf.labels import MULTI_LABEL, REGRESSION
from redundancy_hf.plan import Plan
from redundancy_hf.task import Task
from redundancy_hf.training import find_checkpoint

from ..configuration_classformer import ClassformerConfig
from ..flops import sum_flops
from ..training import ClassformerTrainingArguments, build_trainer
from .space import Schedule, layer_lengths

# of a search, as the screen calls it
STAGE = "train the supernet"
TEMPERATURE = 2.0
NUM_BINS = 24
NUM_RANDOM = 2
SMALLEST_MEAN_LENGTH = 2


def mean_flops(config: ClassformerConfig, schedules: Sequence[Schedule], lengths: Sequence[int]) -> np.ndarray:
    """Count the forward operations of every schedule, averaged over input lengths.

    Args:
        config: Gives the shape of the model; its own schedule is ignored.
        schedules: S schedules.
        lengths: Token lengths that stand for the dataset, such as `sample_inputs` chooses.

    Returns:
        Operations per text, (S,).
    """
    values, counts = np.unique(lengths, return_counts=True)
    flops = sum_flops(config, values, layer_lengths(schedules, values, config.last_layer_cls_only))
    return np.average(flops, axis=1, weights=counts)


class FlopsUniformSampler:
    """Draws schedules so that their operations are spread evenly between the smallest and the full model.

    Drawn uniformly, nearly all schedules would be short ones: there are far more of them.

    Args:
        schedules: What may be drawn.
        flops: Their operations, (S,).
        log2_lengths: Mean log2 length of every layer over the dataset, (S, L). The smallest schedule, which every step
            trains, keeps two positions in the geometric mean, where one does: on position 0 alone, early on, a model
            hardly learns, and its gradients spoil the others that end there.
    """

    def __init__(self, schedules: Sequence[Schedule], flops: np.ndarray, log2_lengths: np.ndarray):
        self.schedules = list(schedules)
        edges = np.linspace(flops.min(), flops.max(), NUM_BINS + 1)
        bins = np.clip(np.searchsorted(edges, flops, side="right") - 1, 0, NUM_BINS - 1)
        self.bins = [np.flatnonzero(bins == index) for index in range(NUM_BINS) if (bins == index).any()]
        learns = log2_lengths.min(axis=1) >= min(np.log2(SMALLEST_MEAN_LENGTH), log2_lengths.min(axis=1).max())
        smallest = int(np.argmin(np.where(learns, flops, np.inf)))
        self.smallest = self.schedules[smallest]
        drawn = float(np.mean([flops[members].mean() for members in self.bins]))
        # a step trains the full model, the smallest schedule and two random ones
        self.flops_per_step, self.flops_drawn = float(flops.max() + flops[smallest] + NUM_RANDOM * drawn), drawn

    def share_of_fine_tunings(self, num_trials: int = 50) -> float:
        """Give the operations of a supernet's training as a share of so many fine-tunings of drawn schedules."""
        return self.flops_per_step / (num_trials * self.flops_drawn)

    def sample(self, generator: np.random.Generator) -> Schedule:
        """Draw a bin of operations, then a schedule in it."""
        return self.schedules[int(generator.choice(self.bins[generator.integers(len(self.bins))]))]


def distillation_loss(student: torch.Tensor, teacher: torch.Tensor, problem_type: str) -> torch.Tensor:
    """Measure how far a schedule's outputs are from the full model's.

    Args:
        student: Logits or values of the schedule, (B, K).
        teacher: Those of the full model, (B, K); no gradient flows into them.
        problem_type: Of the task.

    Returns:
        KL(teacher || student) at temperature 2, scaled back by its square (Hinton et al. 2015); for several labels the
        binary cross-entropy to the teacher's probabilities, for a regression the squared difference.
    """
    teacher = teacher.detach()
    if problem_type == REGRESSION:
        return functional.mse_loss(student, teacher)
    if problem_type == MULTI_LABEL:
        return functional.binary_cross_entropy_with_logits(student, teacher.sigmoid())
    divergence = functional.kl_div(
        functional.log_softmax(student / TEMPERATURE, dim=-1),
        functional.log_softmax(teacher / TEMPERATURE, dim=-1),
        reduction="batchmean",
        log_target=True,
    )
    return TEMPERATURE**2 * divergence


class SupernetTrainer(Trainer):
    """A Trainer whose every step trains the full model, the smallest schedule and random ones."""

    schedules: FlopsUniformSampler
    problem_type: str

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)
        # of the step, so that a resumed training draws what the uninterrupted one would have
        generator = np.random.default_rng([self.args.seed, self.state.global_step])
        drawn = [self.schedules.sample(generator) for _ in range(NUM_RANDOM)]
        # the Trainer's own loss, which takes the labels out of what it is given, knows all of its settings
        loss, outputs = super().compute_loss(model, dict(inputs), return_outputs=True, **kwargs)
        losses = [loss]
        for schedule in [self.schedules.smallest, *drawn]:
            shorter = {**inputs, "schedule": (schedule.gamma, schedule.eta)}
            loss, shortened = super().compute_loss(model, shorter, return_outputs=True, **kwargs)
            losses.append(loss + distillation_loss(shortened.logits, outputs.logits, self.problem_type))
        loss = torch.stack(losses).mean()
        return (loss, outputs) if return_outputs else loss


def train_supernet(
    model: PreTrainedModel,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    arguments: ClassformerTrainingArguments,
    schedules: FlopsUniformSampler,
    plan: Plan | None = None,
) -> float:
    """Train the weights of a full classifier for all schedules, in place; goes on from a checkpoint if there is one.

    Args:
        model: A classifier with the full schedule.
        task: Tokenised task; "train" is used.
        tokenizer: Pads the batches.
        arguments: The recipe. All epochs are trained: no single schedule's score says when to stop.
        schedules: What is drawn in a step.
        plan: Shows how far the training has come.

    Returns:
        Seconds of training in this call.

    Raises:
        FloatingPointError: The training loss became NaN or infinite.
    """

    arguments = copy.copy(arguments)
    arguments.load_best_model_at_end, arguments.eval_strategy = False, "no"
    arguments.save_only_model = False
    trainer = build_trainer(model, task, tokenizer, arguments, SupernetTrainer, plan)
    trainer.schedules, trainer.problem_type = schedules, task.problem_type
    started = time.monotonic()
    trainer.train(resume_from_checkpoint=find_checkpoint(Path(str(arguments.output_dir))))
    return time.monotonic() - started


@torch.inference_mode()
def predict_schedules(
    model: Any,
    schedules: Sequence[Schedule],
    split: Any,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int = 64,
    on_batch: Callable[[int], Any] | None = None,
) -> np.ndarray:
    """Compute the outputs of many schedules with the same weights.

    Schedules that begin alike share the layers in which they agree, so hundreds cost little more than a dozen.

    Args:
        model: A Classformer classifier; its own schedule is ignored.
        schedules: S schedules.
        split: N tokenised examples.
        tokenizer: Pads the batches.
        batch_size: Examples of similar length per batch.
        on_batch: Called after every batch with the number of its examples.

    Returns:
        Logits or values, (S, N, K), in the order of `schedules` and `split`.
    """
    was_training = model.training
    model.eval()
    outputs = np.zeros((len(schedules), len(split), model.config.num_labels), np.float32)
    try:
        for rows, batch in batches_by_length(split, tokenizer, batch_size):
            for index, logits in _descend(model, schedules, batch.to(model.device)):
                outputs[index, rows] = logits.float().cpu().numpy()
            if on_batch is not None:
                on_batch(len(rows))
    finally:
        model.train(was_training)
    return outputs


def _descend(model: Any, schedules: Sequence[Schedule], batch: Any) -> Iterator[tuple[int, torch.Tensor]]:
    """Walk the tree of schedules depth first; yields the index of a schedule and its logits, (B, K)."""
    encoder, cls_only = model.roberta.encoder, model.config.last_layer_cls_only
    mask = batch.pop("attention_mask")
    last = len(encoder.layer) - 1

    def visit(depth: int, state: Any, indices: list[int]) -> Iterator[tuple[int, torch.Tensor]]:
        if depth > last:
            logits = model.classifier(state.hidden_states)
            yield from ((index, logits) for index in indices)
            return
        branches: dict[tuple[int, int], list[int]] = {}
        for index in indices:
            factor = schedules[index].gamma[depth]
            is_cls = cls_only and depth == last
            # eta matters where something is dropped
            key = (1, 0) if is_cls or factor == 1 else (factor, schedules[index].eta)
            branches.setdefault(key, []).append(index)
        for (factor, eta), members in branches.items():
            shorter = encoder.step(encoder.layer[depth], state, factor, eta, cls_only and depth == last)
            yield from visit(depth + 1, shorter, members)

    yield from visit(0, encoder.start(model.roberta.embeddings(**batch), mask), list(range(len(schedules))))
