"""The search loop: ask a sampler, evaluate, write the journal; it knows no model (thesis section 5.1.2).

What a trial measured does not depend on the requirement. Rewards are computed from the journal, so another requirement
reuses every trial.
"""

import datetime
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from .journal import Journal, JournalError, Trial
from .samplers import Sampler
from .space import Schedule, SearchSpace

logger = logging.getLogger(__name__)

Objective = Callable[[Schedule], dict[str, Any]]


def reward(performance: float, required: float, latency: float) -> float:
    """Compute equation 5.4 of the thesis: the performance until it is enough, then also the speed.

    Args:
        performance: Share of the full model's score.
        required: The share that is asked.
        latency: Time of the model: relative to the full model (our reading of delta), or in milliseconds.

    Returns:
        `performance` below the requirement, else `required + 1 / latency`.
    """
    return performance if performance < required else required + 1 / latency


@dataclass(frozen=True)
class SearchResult:
    """What a search found so far.

    Attributes:
        required_performance: The share of the full model's score that was asked.
        reference: The unreduced model.
        best: The trial with the highest reward; the reference where nothing faster is good enough.
        trials: All trials, failed ones too.
        rewards: One per trial.
        interrupted: Whether the search was stopped by hand.
    """

    required_performance: float
    reference: Trial
    best: Trial
    trials: list[Trial]
    rewards: list[float]
    interrupted: bool = False

    def performance(self, trial: Trial) -> float:
        """Share of the full model's score."""
        return trial.score / self.reference.score

    def is_feasible(self, trial: Trial) -> bool:
        return trial.is_ok and self.performance(trial) >= self.required_performance


def summarise(
    trials: list[Trial], required_performance: float, latency_name: str = "latency_ratio", interrupted: bool = False
) -> SearchResult:
    """Judge finished trials by a requirement.

    Args:
        trials: Trials of one study.
        required_performance: Share of the full model's score, between 0 and 1.
        latency_name: Entry of the measurements that is delta in equation 5.4.
        interrupted: Noted in the result.

    Raises:
        JournalError: The unreduced model is missing, failed or has no positive score: there is nothing to compare with.
    """
    reference = find_reference(trials)
    if reference is None:
        why = f" ({trials[-1].error})" if trials else ""
        raise JournalError(f"the unreduced model was not evaluated{why}, so that no trial can be judged.")
    if reference.score <= 0:
        raise JournalError(
            f"the unreduced model scores {reference.score:.3f}, and no share of that can be kept; train longer, with "
            "another learning rate, or take another checkpoint."
        )
    rewards = {
        trial.number: reward(trial.score / reference.score, required_performance, trial.measurement[latency_name])
        for trial in trials
        if trial.is_ok
    }
    # a failed trial is as bad as the worst one
    worst = min(rewards.values())
    best = max(rewards, key=lambda number: rewards[number])
    return SearchResult(
        required_performance,
        reference,
        next(trial for trial in trials if trial.number == best),
        trials,
        [rewards.get(trial.number, worst) for trial in trials],
        interrupted,
    )


def find_reference(trials: list[Trial]) -> Trial | None:
    """Find the trial of the unreduced model, if it has succeeded."""
    return next((trial for trial in trials if trial.origin == "reference" and trial.is_ok), None)


def pareto_front(trials: Iterable[Trial]) -> list[Trial]:
    """List the trials that no other one beats in score and latency at once, fastest first."""
    front: list[Trial] = []
    for trial in sorted((t for t in trials if t.is_ok), key=lambda t: (t.latency_ratio, -t.score)):
        if not front or trial.score > front[-1].score:
            front.append(trial)
    return front


def run_search(
    space: SearchSpace,
    objective: Objective,
    sampler: Sampler,
    journal: Journal,
    required_performance: float = 0.99,
    max_trials: int = 50,
    is_time_up: Callable[[], bool] | None = None,
    latency_name: str = "latency_ratio",
    check_reference: Callable[[Trial], None] | None = None,
    on_trial: Callable[[SearchResult], None] | None = None,
) -> SearchResult:
    """Search until the budget is used up; finished trials of the journal count.

    Args:
        space: The schedules to choose from.
        objective: Evaluates a schedule; returns at least `score` and `latency_ratio`. What it raises is recorded and
            the search goes on.
        sampler: Proposes schedules; asked with the rewards under this requirement.
        journal: Where every finished trial is written; trials that it holds are not repeated.
        required_performance: Share of the full model's score that the result must keep.
        max_trials: Number of trials, those in the journal included.
        is_time_up: Asked before every trial but the unreduced model's; ends the search when true.
        latency_name: Entry of the measurement that is delta in equation 5.4.
        check_reference: Called with the trial of the unreduced model before anything else is tried; raises to stop.
        on_trial: Called after every new trial with the result so far.

    Returns:
        The best trial and all others. Ctrl-C ends the search and returns what there is.

    Raises:
        JournalError: The unreduced model failed, or the journal cannot be written.
        ValueError: The requirement is not above 0 and at most 1, or fewer than one trial is allowed.
    """
    check_limits(required_performance, max_trials)
    try:
        reference = find_reference(journal.trials)
        is_new = reference is None
        if reference is None:
            reference = _evaluate_reference(space, objective, journal)
        if check_reference is not None:
            check_reference(reference)
        if is_new and on_trial is not None:
            on_trial(summarise(journal.trials, required_performance, latency_name))
        while len(journal.trials) < max_trials:
            if is_time_up is not None and is_time_up():
                logger.info("time budget used up after %d trials.", len(journal.trials))
                break
            result = summarise(journal.trials, required_performance, latency_name)
            schedules = [trial.schedule for trial in result.trials]
            proposal = sampler.ask(list(zip(schedules, result.rewards, strict=True)))
            if proposal is None:
                logger.info("nothing left to try after %d trials.", len(journal.trials))
                break
            journal.append(evaluate(objective, *proposal, number=len(journal.trials)))
            if on_trial is not None:
                on_trial(summarise(journal.trials, required_performance, latency_name))
    except KeyboardInterrupt:
        if find_reference(journal.trials) is None:
            raise
        logger.warning("stopped by hand after %d trials; the same command goes on.", len(journal.trials))
        return summarise(journal.trials, required_performance, latency_name, interrupted=True)
    return summarise(journal.trials, required_performance, latency_name)


def check_limits(required_performance: float, max_trials: int):
    """Refuse a requirement or a budget that no search can have.

    Raises:
        ValueError: The requirement is not above 0 and at most 1, or fewer than one trial is allowed.
    """
    if not 0 < required_performance <= 1:
        raise ValueError(
            f"`required_performance` is a share of the full model's score, above 0 and at most 1, got "
            f"{required_performance}; 0.99 asks for 99 %."
        )
    if max_trials < 1:
        raise ValueError(f"`max_trials` must be at least 1, got {max_trials}.")


def _evaluate_reference(space: SearchSpace, objective: Objective, journal: Journal) -> Trial:
    """Evaluate the unreduced model; one that failed in an earlier run is tried again.

    Raises:
        JournalError: It failed.
    """
    trial = evaluate(objective, space.full, "reference", number=len(journal.trials))
    journal.append(trial)
    if not trial.is_ok:
        raise JournalError(f"the unreduced model was not evaluated ({trial.error}), so that no trial can be judged.")
    return trial


def evaluate(objective: Objective, schedule: Schedule, origin: str, number: int) -> Trial:
    """Run the objective once; a failure is a trial too."""
    started = time.monotonic()
    measurement, error = {}, None
    try:
        measurement = objective(schedule)
    except Exception as exception:  # any failure of a trial is data: NaN loss, out of memory, ...
        error = f"{type(exception).__name__}: {exception}"
        logger.warning("trial %d (%s) failed: %s", number, schedule.key, error)
        logger.debug("where it failed", exc_info=True)
    return Trial(
        number=number,
        schedule=schedule,
        origin=origin,
        status="failed" if error else "ok",
        measurement=measurement,
        error=error,
        seconds=round(time.monotonic() - started, 3),
        time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
