"""The search loop: ask a sampler, evaluate, write the journal; it knows no model (thesis section 5.1.2).

What a trial measured does not depend on the requirement. Rewards are computed from the journal, so another requirement
reuses every trial.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from .journal import Journal, JournalError, Trial
from .runner import Objective, TrialRunner
from .samplers import Observation, Sampler
from .space import SearchSpace

logger = logging.getLogger(__name__)


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


def observe(trial: Trial, reference: Trial, required_performance: float, latency_name: str) -> Observation:
    """Say what came of a trial, as a sampler wants to hear it."""
    if not trial.is_ok:
        return Observation(trial.schedule)
    performance, latency = trial.score / reference.score, trial.measurement[latency_name]
    return Observation(
        trial.schedule,
        performance,
        latency,
        reward(performance, required_performance, latency),
        trial.measurement.get("paired_standard_error"),
    )


def pareto_front(trials: Iterable[Trial]) -> list[Trial]:
    """List the trials that no other one beats in score and latency at once, fastest first."""
    front: list[Trial] = []
    for trial in sorted((t for t in trials if t.is_ok), key=lambda t: (t.latency_ratio, -t.score)):
        if not front or trial.score > front[-1].score:
            front.append(trial)
    return front


@dataclass(frozen=True)
class Hooks:
    """What a search calls on its way.

    Attributes:
        begin: Told the name of a stage, its largest number of trials and that of the finished ones; gives what hears
            of every new trial, with the result so far.
        check_reference: Told the name of a stage and the trial of its unreduced model before anything else is tried;
            raises to stop.
        is_time_up: Asked before every trial but the unreduced model's; no further one starts when true.
    """

    begin: Callable[[str, int, int], Callable[[SearchResult], Any]] = lambda *_: lambda _: None
    check_reference: Callable[[str, Trial], Any] = lambda *_: None
    is_time_up: Callable[[], bool] = lambda: False


def run_search(
    space: SearchSpace,
    objective: Objective | TrialRunner,
    sampler: Sampler,
    journal: Journal,
    required_performance: float = 0.99,
    max_trials: int = 50,
    hooks: Hooks = Hooks(),
    stage: str = "search",
    latency_name: str = "latency_ratio",
) -> SearchResult:
    """Search until the budget is used up; finished trials of the journal count.

    This process alone owns the sampler and the journal. It may die and be resumed with another number of workers.

    Args:
        space: The schedules to choose from.
        objective: Evaluates a schedule; returns at least `score` and `latency_ratio`. What it raises is recorded and
            the search goes on. A `TrialRunner` says where it runs, and what times a trial.
        sampler: Proposes schedules; a fresh one, which is told the journal's trials first.
        journal: Where every finished trial is written; trials that it holds are not repeated.
        required_performance: Share of the full model's score that the result must keep.
        max_trials: Number of trials, those in the journal included.
        hooks: What is called on the way.
        stage: Name of these trials, for the hooks.
        latency_name: Entry of the measurement that is delta in equation 5.4.

    Returns:
        The best trial and all others. Ctrl-C ends the search and returns what there is.

    Raises:
        JournalError: The unreduced model failed, the journal cannot be written, or another process drives this search.
        ExecutorError: The executor takes no more work.
        ValueError: The requirement is not above 0 and at most 1, fewer than one trial is allowed, or the sampler
            repeats itself.
    """
    check_limits(required_performance, max_trials)
    runner = objective if isinstance(objective, TrialRunner) else TrialRunner(objective)

    def judge(interrupted: bool = False) -> SearchResult:
        return summarise(journal.trials, required_performance, latency_name, interrupted)

    def tell(trial: Trial, reference: Trial):
        sampler.tell(observe(trial, reference, required_performance, latency_name))

    with journal.lock():
        try:
            reference = find_reference(journal.trials)
            is_new, on_trial = reference is None, hooks.begin(stage, max_trials, len(journal.trials))
            if reference is None:
                reference = _evaluate_reference(space, runner, journal)
            hooks.check_reference(stage, reference)
            result = judge()
            if is_new:
                on_trial(result)
            for trial in journal.trials:
                # an earlier search may have told schedules apart that are the same one
                same = trial.schedule if trial.schedule.buckets else space.canonical(trial.schedule)
                tell(replace(trial, schedule=same), reference)
            for trial in _try_proposals(runner, sampler, journal, max_trials, hooks.is_time_up):
                tell(trial, reference)
                on_trial(judge())
        except KeyboardInterrupt:
            if journal.is_writer:
                # it may have come while a line was written
                journal.read()
            for run in runner.abandon():
                journal.append(run.to_trial(journal.next_number))
            if find_reference(journal.trials) is None:
                raise
            return judge(interrupted=True)
        finally:
            runner.abandon()
        return judge()


def _try_proposals(
    runner: TrialRunner, sampler: Sampler, journal: Journal, max_trials: int, is_time_up: Callable[[], bool]
) -> Iterator[Trial]:
    """Keep the workers busy with what the sampler proposes; write and give the trials as they finish.

    Raises:
        ValueError: The sampler proposes what was tried or is running.
    """
    is_over = False
    while True:
        while not is_over and runner.has_room and len(journal.trials) + len(runner.schedules) < max_trials:
            if is_over := is_time_up():
                logger.info("no time left for more than %d trials.", len(journal.trials))
                break
            proposal = sampler.ask()
            if proposal is None:
                # it may have more to say when it knows what comes of those that run
                break
            if proposal[0] in [*runner.schedules, *(trial.schedule for trial in journal.trials)]:
                raise ValueError(
                    f"{type(sampler).__name__} proposes {proposal[0].key} again; it must not repeat itself."
                )
            runner.start(*proposal)
        if not runner.schedules:
            if not is_over and len(journal.trials) < max_trials:
                logger.info(
                    "nothing left to try after %d trials: what was not tried, if anything, is slower than the best or "
                    "most likely not good enough.",
                    len(journal.trials),
                )
            return
        journal.append(runner.wait().to_trial(journal.next_number))
        yield journal.trials[-1]


def _evaluate_reference(space: SearchSpace, runner: TrialRunner, journal: Journal) -> Trial:
    """Evaluate the unreduced model, alone; one that failed in an earlier run is tried again.

    Raises:
        JournalError: It failed.
    """
    runner.start(space.full, "reference")
    trial = runner.wait().to_trial(journal.next_number)
    journal.append(trial)
    if not trial.is_ok:
        raise JournalError(f"the unreduced model was not evaluated ({trial.error}), so that no trial can be judged.")
    return trial


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
