"""The last stage of a search with a supernet: the fastest candidates get a fine-tuning of their own and are judged."""

import copy
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import PartialState

from ..latency import LatencyTable
from .journal import Journal, Trial
from .objective import FineTuneObjective
from .policy import predict_policy
from .samplers import Sampler
from .space import Schedule, SearchSpace
from .study import SearchResult, find_reference, run_search

logger = logging.getLogger(__name__)

DRIFT = 0.05  # between two measurements of one latency ratio that is worth a word

# told the name of a stage, its largest number of trials and that of the finished ones; gives what hears of every trial
StartProgress = Callable[[str, int, int], Callable[[SearchResult], Any]]


def choose_candidates(result: SearchResult, number: int) -> list[Trial]:
    """List the fastest trials that meet the requirement with the supernet's weights, fastest first."""
    feasible = [trial for trial in result.trials if result.is_feasible(trial) and trial is not result.reference]
    return sorted(feasible, key=lambda trial: trial.latency_ratio)[:number]


def prepare_winners(objective: FineTuneObjective, supernet: Path, num_epochs: float) -> FineTuneObjective:
    """Give what fine-tunes candidates shortly from a supernet, in a folder of its own."""
    arguments = copy.copy(objective.arguments)
    arguments.output_dir = str(objective.output / "winners")
    arguments.num_train_epochs = num_epochs
    return objective.for_checkpoint(str(supernet), arguments)


def adopt_reference(winners: FineTuneObjective, study: Path):
    """Take the full model's fine-tuning over from an earlier study, if it was the same one; its time is not taken.

    Args:
        winners: Of this study; will not train the full model.
        study: Folder of the earlier study.
    """
    path, wanted = study / "winners" / "trials.jsonl", winners.identity()
    if not path.exists():
        return
    journal = Journal(path, {}, is_writer=False)
    found = {**journal.found_identity, "latency": journal.found_identity["latency"]["dtype"]}
    model, reference = study / "winners" / "models" / winners.full.key, find_reference(journal.trials)
    if found != {**wanted, "latency": wanted["latency"]["dtype"]} or reference is None or not model.exists():
        return
    winners.adopt(winners.full, reference.measurement, model)


def warn_of_drift(winner: Trial, record: Path):
    """Say if a winner's latency differs from that of its candidate, so that one of the two was disturbed."""
    if not winner.is_ok or not record.exists():
        return
    earlier = json.loads(record.read_text())["latency"].get(winner.schedule.key)
    if earlier is not None and abs(winner.latency_ratio / earlier["ratio"] - 1) > DRIFT:
        logger.warning(
            "warning: %s took %.3f of the full model's time as a candidate and %.3f now; the machine may have been "
            "busy in between, so time the result again by scripts/benchmark_latency.py.",
            winner.schedule.key,
            earlier["ratio"],
            winner.latency_ratio,
        )


class Verdict(NamedTuple):
    """A winner of an earlier round: its performance with the supernet's weights, and after its own fine-tuning."""

    promised: float
    kept: float
    standard_error: float


def list_verdicts(study: Path) -> list[Verdict]:
    """List what the last stage of a study has judged so far."""
    path = study / "winners" / "trials.jsonl"
    trials = Journal(path, {}, is_writer=False).trials if path.exists() else []
    reference = find_reference(trials)
    if reference is None:
        return []
    full, full_as_is = reference.score, reference.measurement["score_as_is"]
    return [
        Verdict(
            trial.measurement["score_as_is"] / full_as_is,
            trial.score / full,
            trial.measurement.get("paired_standard_error") or 0.0,
        )
        for trial in trials
        if trial.is_ok and trial is not reference
    ]


def raise_requirement(verdicts: Sequence[Verdict], required: float) -> float:
    """Say what a candidate must promise with the supernet's weights, so that its fine-tuning keeps the requirement.

    The full model gains by its fine-tuning, mostly more than a shorter one, so the loss against it grows by a factor;
    candidates may promise to lose as much less, by the largest factor seen among those that fell short. They were
    chosen for looking good, so that they are aimed a standard error above the requirement, though at most halfway to no
    loss; and no higher than what a winner promised that did keep it.

    Args:
        verdicts: Winners so far.
        required: The share of the full model's performance that is asked.
    """
    asked, loss = required, 1 - required
    for promised, kept, error in verdicts:
        if kept < required:
            asked = max(asked, 1 - max(loss - error, loss / 2) * max(1 - promised, 0.0) / (1 - kept))
    enough = [one.promised for one in verdicts if one.kept >= required]
    return max(required, min([asked, *enough]))


def judge_next(
    winners: FineTuneObjective,
    space: SearchSpace,
    queue: Sequence[Schedule],
    required: float,
    start_progress: StartProgress,
    foreign_table: LatencyTable | None = None,
) -> SearchResult:
    """Fine-tune the first new candidate (and the full model) shortly from the supernet, unless one was good enough."""
    timing = winners.measure
    if foreign_table is not None:

        def timing(schedule: Schedule) -> dict[str, Any]:
            return predicted_timing(foreign_table, schedule, winners.full, winners.lengths)

    journal = Journal(winners.output / "trials.jsonl", winners.identity(), is_writer=PartialState().is_main_process)
    max_trials = max(len(journal.trials), 1) + 1
    result = run_search(
        space,
        winners,
        QueueSampler(space, queue, required),
        journal,
        required,
        max_trials,
        on_trial=start_progress("fine-tune a winner", max_trials, len(journal.trials)),
        timing=timing,
    )
    if result.interrupted:
        raise KeyboardInterrupt
    return result


def predicted_timing(table: LatencyTable, schedule: Schedule, full: Schedule, lengths: Sequence[int]) -> dict[str, Any]:
    """Give the latency of a schedule on the table's machine, as `FineTuneObjective.measure` would."""
    time_of, full_time = predict_policy(table, schedule, lengths), table.predict(full, lengths)
    return {
        "latency_ratio": time_of / full_time,
        "latency_milliseconds": time_of,
        "latency_source": "table",
        "hardware": table.hardware,
    }


class QueueSampler(Sampler):
    """Proposes given candidates in their order, until one keeps the requirement after its own fine-tuning.

    Args:
        space: What was searched.
        candidates: Schedules, fastest first.
        required: The share of the full model's performance that is asked.
    """

    def __init__(self, space: SearchSpace, candidates: Sequence[Schedule], required: float):
        super().__init__(space)
        self.candidates, self.required = list(candidates), required

    def propose(self) -> tuple[Schedule, str] | None:
        full = self.space.full
        kept = [one.performance for one in self.observations if one.is_ok and one.schedule != full]
        if any(performance is not None and performance >= self.required for performance in kept):
            return None
        return next(((one, "winner") for one in self.candidates if one not in self.taken), None)
