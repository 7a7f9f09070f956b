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

FAILED_REWARD = 0.0
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
        reference: Trial 0, the unreduced model.
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
        trials: Trials of one study; the first one is the unreduced model.
        required_performance: Share of the full model's score, between 0 and 1.
        latency_name: Entry of the measurements that is delta in equation 5.4.
        interrupted: Noted in the result.

    Raises:
        JournalError: The unreduced model is missing or failed, so that there is nothing to compare with.
    """
    if not trials or not trials[0].is_ok:
        why = f" ({trials[0].error})" if trials else ""
        raise JournalError(f"the unreduced model was not evaluated{why}, so that no trial can be judged.")
    reference = trials[0]
    rewards = [
        reward(trial.score / reference.score, required_performance, trial.measurement[latency_name])
        if trial.is_ok
        else FAILED_REWARD
        for trial in trials
    ]
    best = max(range(len(trials)), key=lambda index: rewards[index])
    return SearchResult(required_performance, reference, trials[best], trials, rewards, interrupted)


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
    time_budget_seconds: float | None = None,
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
        time_budget_seconds: Start no further trial after this time.
        latency_name: Entry of the measurement that is delta in equation 5.4.
        check_reference: Called with the trial of the unreduced model before anything else is tried; raises to stop.
        on_trial: Called after every new trial with the result so far.

    Returns:
        The best trial and all others. Ctrl-C ends the search and returns what there is.

    Raises:
        JournalError: The unreduced model failed, or the journal cannot be written.
        ValueError: The requirement is not above 0 and at most 1, or fewer than one trial is allowed.
    """
    if not 0 < required_performance <= 1:
        raise ValueError(
            f"`required_performance` is a share of the full model's score, above 0 and at most 1, got "
            f"{required_performance}; 0.99 asks for 99 %."
        )
    if max_trials < 1:
        raise ValueError(f"`max_trials` must be at least 1, got {max_trials}.")
    started = time.monotonic()
    is_checked = False
    try:
        while len(journal.trials) < max_trials:
            observations = []
            if journal.trials:
                result = summarise(journal.trials, required_performance, latency_name)
                if check_reference is not None and not is_checked:
                    check_reference(result.reference)
                    is_checked = True
                observations = [
                    (trial.schedule, value) for trial, value in zip(result.trials, result.rewards, strict=True)
                ]
            if time_budget_seconds is not None and journal.trials and time.monotonic() - started > time_budget_seconds:
                logger.info("time budget used up after %d trials.", len(journal.trials))
                break
            proposal = (space.full, "reference") if not journal.trials else sampler.ask(observations)
            if proposal is None:
                logger.info("nothing left to try after %d trials.", len(journal.trials))
                break
            journal.append(evaluate(objective, *proposal, number=len(journal.trials)))
            if on_trial is not None:
                on_trial(summarise(journal.trials, required_performance, latency_name))
    except KeyboardInterrupt:
        logger.warning("stopped by hand after %d trials; the same command goes on.", len(journal.trials))
        return summarise(journal.trials, required_performance, latency_name, interrupted=True)
    result = summarise(journal.trials, required_performance, latency_name)
    if check_reference is not None and not is_checked:
        check_reference(result.reference)
    return result


def evaluate(objective: Objective, schedule: Schedule, origin: str, number: int) -> Trial:
    """Run the objective once; a failure is a trial too."""
    started = time.monotonic()
    measurement, error = {}, None
    try:
        measurement = objective(schedule)
    except Exception as exception:  # any failure of a trial is data: NaN loss, out of memory, ...
        logger.exception("trial %d (%s) failed", number, schedule.key)
        error = f"{type(exception).__name__}: {exception}"
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
