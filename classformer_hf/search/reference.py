"""The full model that every schedule is a share of: which one it is, and whether there is something to keep."""

import copy
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from redundancy_hf.certificate import GIVEN, REFERENCES, TUNED, UNTUNED
from redundancy_hf.metrics import majority_score

from ..training import FineTuned, fine_tune
from .journal import Trial
from .models import describe_validation

if TYPE_CHECKING:
    from .objective import FineTuneObjective

logger = logging.getLogger(__name__)


def describe_reference(measurement: dict[str, Any]) -> str:
    """Say which full model a measurement is of; before this was recorded, it was always the fine-tuned one."""
    return REFERENCES[measurement.get("reference", TUNED)]


def choose_reference(objective: "FineTuneObjective", original: "FineTuneObjective") -> dict[str, Any]:
    """Choose the full model and keep it among the trained models.

    A checkpoint that is a classifier of this task already is what its owner wants to keep a share of. Otherwise it is
    the better one of two: as it is, where its head was trained, and after the fine-tuning that schedules get.

    Args:
        objective: Fine-tunes schedules.
        original: Has the checkpoint that was given; the same one, or another where a supernet lies in between.

    Returns:
        Its measurement, as a trial has it, with the entry `reference`; where a supernet lies in between and is not the
        reference, `supernet_score` is that of its full model.
    """
    full = objective.full
    if original.has_head:
        measured = objective.models.keep(full, *_validate(original))
        if is_above_floor(measured["score"], measured["standard_error"], majority_score(objective.task)):
            between = {} if original is objective else {"supernet_score": _validate(objective)[1].score}
            return {**measured, **between, "reference": GIVEN}
    untuned = _validate(objective) if objective.has_head else None
    score_as_is = objective.models.keep(full, *untuned)["score"] if untuned is not None else None
    tuned = objective.fine_tune(full)
    if untuned is None or score_as_is <= tuned["score"]:
        return {**tuned, "reference": TUNED}
    kept = objective.models.keep(full, *untuned)
    return {**kept, "train_seconds": tuned["train_seconds"], "reference": UNTUNED}


def check_given(objective: "FineTuneObjective", check: Callable[[Trial], Any]):
    """Check the classifier that was given, if it is the reference, before anything is trained."""
    if not objective.has_head:
        return
    measured = describe_validation(objective.task, _validate(objective)[1].predictions)
    if is_above_floor(measured["score"], measured["standard_error"], majority_score(objective.task)):
        check(Trial(0, objective.full, "reference", "ok", measured))


def _validate(objective: "FineTuneObjective") -> tuple[PreTrainedModel, FineTuned]:
    """Validate an objective's full model as it is."""
    arguments = copy.copy(objective.arguments)
    arguments.num_train_epochs = 0
    model = objective.load(objective.full)
    result = fine_tune(model, objective.task, objective.tokenizer, arguments)
    return model, FineTuned(result.score, result.score, result.predictions, result.seconds, 0.0)


def is_above_floor(score: float, standard_error: float, floor: float) -> bool:
    """Whether a score is above that of a model that learned nothing by two standard errors."""
    return score >= floor + 2 * standard_error


def check_learned(trial: Trial, floor: float, is_forced: bool, is_supernet: bool = False):
    """Refuse to trade away accuracy that is not there.

    Raises:
        ValueError: The full model is no better than the majority class.
    """
    error, name = trial.measurement["standard_error"], trial.measurement["metric_name"]
    if is_above_floor(trial.score, error, floor):
        return
    advice = "train longer or at another --learning_rate (in another --output_dir)"
    if is_supernet:
        who, so = "supernet", "what it says of schedules means nothing"
        advice += ", fine-tune every trial by itself (--evaluation finetune)"
    else:
        who, so = "full model", "there is nothing to keep"
        advice += ", take another checkpoint or more data"
    _refuse(
        f"the {who}'s {name} of {trial.score:.3f} is not above the majority score {floor:.3f} by 2 standard errors "
        f"({2 * error:.3f}), so {so}; {advice}, or search anyway with --force.",
        is_forced,
    )


def check_requirement(trial: Trial, floor: float, required: float, is_forced: bool):
    """Refuse what a model that learned nothing may meet, and warn where the examples are too few to tell.

    Raises:
        ValueError: The score that is asked is not above that of the majority class.
    """
    check_learned(trial, floor, is_forced)
    score, error = trial.score, trial.measurement["standard_error"]
    is_learned = is_above_floor(score, error, floor)
    if is_learned and not is_above_floor(required * score, error, floor):
        _refuse(
            f"{100 * required:g} % of the full model's {trial.measurement['metric_name']} {score:.3f} is "
            f"{required * score:.3f}, which is not above the majority score {floor:.3f} by 2 standard errors "
            f"({2 * error:.3f}), so that a model that learned nothing may meet it; ask for at least "
            f"--required_performance {(floor + 2 * error) / score:.3f}, or search anyway with --force.",
            is_forced,
        )
    if is_learned and (1 - required) * score < error:
        logger.warning(
            "warning: the loss that is allowed, %.3f, is smaller than the standard error of %.3f on %d validation "
            "examples, so the search cannot tell who meets the requirement; give it more examples, or ask for less.",
            (1 - required) * score,
            error,
            trial.measurement["num_examples"],
        )


def _refuse(message: str, is_forced: bool):
    if not is_forced:
        raise ValueError(message)
    logger.warning("warning: %s", message)
