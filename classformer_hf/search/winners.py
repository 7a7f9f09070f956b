"""The last stage of a search with a supernet: the fastest candidates get a fine-tuning of their own and are judged."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..latency import LatencyTable
from .journal import Journal, Trial
from .objective import FineTuneObjective
from .policy import predict_policy
from .samplers import Sampler
from .space import Schedule, SearchSpace
from .study import SearchResult, run_search

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


def judge_winners(
    winners: FineTuneObjective,
    space: SearchSpace,
    queue: Sequence[tuple[Schedule, float]],
    required: float,
    num_winners: int,
    start_progress: StartProgress,
    foreign_table: LatencyTable | None = None,
) -> SearchResult:
    """Fine-tune the full model and the candidates shortly from the supernet, until one keeps the requirement."""
    timing = winners.measure
    if foreign_table is not None:

        def timing(schedule: Schedule) -> dict[str, Any]:
            return predicted_timing(foreign_table, schedule, winners.full, winners.lengths)

    journal = Journal(winners.output / "trials.jsonl", winners.identity())
    max_trials = len(journal.trials) + num_winners + (not journal.trials)
    result = run_search(
        space,
        winners,
        QueueSampler(space, queue, required),
        journal,
        required,
        max_trials,
        on_trial=start_progress("fine-tune the winners", max_trials, len(journal.trials)),
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
    """Proposes given candidates, fastest first, until one keeps the requirement after its own fine-tuning.

    Where one falls short, the next must have promised more by as much.

    Args:
        space: What was searched.
        candidates: Schedules with their promised performance, fastest first.
        required: The share of the full model's performance that is asked.
    """

    def __init__(self, space: SearchSpace, candidates: Sequence[tuple[Schedule, float]], required: float):
        super().__init__(space)
        self.candidates, self.required = list(candidates), required

    def propose(self) -> tuple[Schedule, str] | None:
        promised = dict(self.candidates)
        needed = 0.0
        for observation in self.observations:
            if observation.schedule not in promised or observation.performance is None:
                continue
            if observation.performance >= self.required:
                return None
            needed = max(needed, promised[observation.schedule] + self.required - observation.performance)
        for schedule, performance in self.candidates:
            if schedule not in self.taken and performance >= needed:
                return schedule, "winner"
        return None
