"""The last stage of a search with a supernet: the fastest candidates get a fine-tuning of their own and are judged."""

import copy
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import PartialState

from redundancy_hf.command import FLAGS
from redundancy_hf.plan import describe_stop

from ..latency import LatencyTable
from .journal import Journal, Trial
from .loop import Hooks, SearchResult, find_reference, run_search, summarise
from .objective import FineTuneObjective
from .policy import predict_policy
from .runner import TrialRunner
from .samplers import Sampler
from .space import Schedule, SearchSpace
from .target import retime_trials, was_timed_elsewhere

logger = logging.getLogger(__name__)

# stages of a search, as the screen calls them
FULL, WINNER = "fine-tune the full model", "fine-tune a winner"
DRIFT = 0.05  # between two measurements of one latency ratio that is worth a word


def choose_candidates(result: SearchResult, number: int, refuted: Collection[Schedule] = ()) -> list[Trial]:
    """List the fastest trials that meet the requirement with the supernet's weights, fastest first."""
    left = [one for one in result.trials if one is not result.reference and one.schedule not in refuted]
    return sorted(filter(result.is_feasible, left), key=lambda trial: trial.latency_ratio)[:number]


def prepare_winners(objective: FineTuneObjective, supernet: Path, num_epochs: float) -> FineTuneObjective:
    """Give what fine-tunes candidates shortly from a supernet, in a folder of its own."""
    arguments = copy.copy(objective.arguments)
    arguments.output_dir = str(objective.output / "winners")
    arguments.num_train_epochs = num_epochs
    winners = objective.for_checkpoint(str(supernet), arguments)
    winners.original = objective
    return winners


def adopt_reference(winners: FineTuneObjective, study: Path):
    """Take the full model's fine-tuning over from an earlier study, if it was the same one; its time is not taken."""
    journal, wanted = Journal(study / "winners" / "trials.jsonl", {}, is_writer=False), winners.identity()
    reference, model = find_reference(journal.trials), study / "winners" / "models" / winners.full.key
    # without the entry it is of a time when the full model was fine-tuned even where that made it worse
    if reference is None or "reference" not in reference.measurement or not model.exists():
        return
    found = {**journal.found_identity, "latency": journal.found_identity["latency"]["dtype"], FLAGS: wanted[FLAGS]}
    if found == {**wanted, "latency": wanted["latency"]["dtype"]}:
        winners.adopt(winners.full, reference.measurement, model)


def warn_of_drift(winner: Trial, record: Path):
    """Say if a winner's latency differs from that of its candidate, so that one of the two was disturbed."""
    if not winner.is_ok or not record.exists():
        return
    earlier = json.loads(record.read_text())["latency"].get(winner.schedule.key)
    if earlier is not None and abs(winner.latency_ratio / earlier["ratio"] - 1) > DRIFT:
        logger.warning(
            "warning: %s took %.3f of the full model's time as a candidate and %.3f now; the machine may have been "
            "busy in between, so time the result again by `redundancy-hf benchmark`.",
            winner.schedule.key,
            earlier["ratio"],
            winner.latency_ratio,
        )


class Verdict(NamedTuple):
    """A winner of an earlier round: its performance with the supernet's weights, and after its own fine-tuning."""

    promised: float
    kept: float
    standard_error: float

    def moves_bar(self, required: float) -> bool:
        """Whether it fell short of a requirement, or kept clearly more, so that it says where to look."""
        return self.kept < required or self.kept > required + self.standard_error


@dataclass(frozen=True)
class Judged:
    """What the last stage of a study has judged so far, by one requirement.

    Attributes:
        verdicts: Of the winners whose fine-tuning succeeded.
        kept: Winners that kept the requirement.
        refuted: Those that fell short or failed.
        num_asked: Winners that were fine-tuned for the very question that is asked.
        reference_ratio: Score of the full model that the promises are shares of, relative to the supernet's.
    """

    verdicts: list[Verdict] = field(default_factory=list)
    kept: list[Schedule] = field(default_factory=list)
    refuted: list[Schedule] = field(default_factory=list)
    num_asked: int = 0
    reference_ratio: float = 1.0


def read_judged(study: Path, question: Mapping[str, Any]) -> Judged:
    """Read what the last stage of a study has judged so far."""
    trials = Journal(study / "winners" / "trials.jsonl", {}, is_writer=False).trials
    if find_reference(trials) is None:
        return Judged()
    result = answer(trials, question)
    winners = [trial for trial in result.trials if trial.schedule != result.reference.schedule]
    full_as_is = result.reference.measurement["score_as_is"]
    supernet_score = result.reference.measurement.get("supernet_score", full_as_is)
    verdicts = [
        Verdict(
            trial.measurement["score_as_is"] / full_as_is,
            result.performance(trial),
            trial.measurement.get("paired_standard_error") or 0.0,
        )
        for trial in winners
        if trial.is_ok
    ]
    return Judged(
        verdicts,
        [trial.schedule for trial in winners if result.is_feasible(trial)],
        [trial.schedule for trial in winners if not result.is_feasible(trial)],
        sum(trial.measurement.get("question") == question for trial in winners),
        full_as_is / supernet_score if supernet_score > 0 else 1.0,
    )


def answer(trials: list[Trial], question: Mapping[str, Any]) -> SearchResult:
    """Judge the winners' trials by a question; policies with other length buckets than it allows are left out."""
    limits = set(question["length_buckets"])
    fitting = [trial for trial in trials if {limit for limit, _ in trial.schedule.buckets} <= limits]
    return summarise(fitting, question["required_performance"])


def required_promise(verdicts: Sequence[Verdict], required: float) -> float:
    """Say what a candidate must promise with the supernet's weights, so that its fine-tuning keeps the requirement.

    The full model gains by its fine-tuning, mostly more than a shorter one, so the loss against it grows by a factor;
    candidates may promise to lose as much less, by the largest factor seen among those that fell short. They were
    chosen for looking good, so that they are aimed a standard error above the requirement, though at most halfway to no
    loss; and no higher than what a winner promised that did keep it.

    Where those that kept it all gained, candidates may promise less than is asked: by the smallest of the gains, less
    its standard error.
    """
    enough = [one for one in verdicts if one.kept >= required]
    gain = min((one.kept - one.promised - one.standard_error for one in enough), default=0.0)
    # half of what is asked bounds what a few examples may claim
    asked, loss = max(required - max(gain, 0.0), required / 2), 1 - required
    for promised, kept, error in verdicts:
        if kept < required:
            asked = max(asked, 1 - max(loss - error, loss / 2) * max(1 - promised, 0.0) / (1 - kept))
    return min(asked, max(required, min((one.promised for one in enough), default=1.0)))


def judge(
    winners: FineTuneObjective,
    space: SearchSpace,
    question: Mapping[str, Any],
    hooks: Hooks,
    foreign_table: LatencyTable | None,
    candidate: Schedule | None,
) -> SearchResult:
    """Fine-tune a candidate shortly from the supernet, and before the first one choose the full model.

    Args:
        winners: Fine-tunes.
        space: What was searched.
        question: What is asked; noted beside each winner.
        hooks: As in `search_with_supernet`.
        foreign_table: The latency table where nothing can be timed here.
        candidate: A schedule that was not judged yet; `None`: the full model alone.
    """
    hardware, measure = winners.target.hardware, winners.meter.measure
    if foreign_table is not None:
        measure = partial(predicted_timing, foreign_table, full=winners.full, lengths=winners.meter.lengths)

    def is_stale(trial: Trial) -> bool:
        if foreign_table is not None:
            return trial.latency_ratio != measure(trial.schedule)["latency_ratio"]
        return was_timed_elsewhere(trial, hardware)

    def timing(schedule: Schedule) -> dict[str, Any]:
        return {**measure(schedule), "question": dict(question)}

    journal = Journal(winners.output / "trials.jsonl", winners.identity(), is_writer=PartialState().is_main_process)
    retime_trials(journal, measure, is_stale)
    max_trials = max(len(journal.trials), 1) + (candidate is not None)
    if max_trials == len(journal.trials):
        # nothing is to come
        hooks = replace(hooks, begin=Hooks().begin)
    result = run_search(
        space,
        TrialRunner(winners, timing=timing),
        OneProposal(space, candidate),
        journal,
        question["required_performance"],
        max_trials,
        hooks,
        FULL if candidate is None else WINNER,
    )
    if result.interrupted:
        raise KeyboardInterrupt(describe_stop("the fine-tuning that was running"))
    return result


def predicted_timing(table: LatencyTable, schedule: Schedule, full: Schedule, lengths: Sequence[int]) -> dict[str, Any]:
    """Give the latency of a schedule on the table's machine, as `LatencyMeter.measure` would."""
    time_of, full_time = predict_policy(table, schedule, lengths), table.predict(full, lengths)
    return {
        "latency_ratio": time_of / full_time,
        "latency_milliseconds": time_of,
        "latency_source": "table",
        "hardware": table.hardware,
    }


class OneProposal(Sampler):
    """Proposes one schedule, if there is one, and then no other."""

    def __init__(self, space: SearchSpace, candidate: Schedule | None):
        super().__init__(space)
        self.candidate = candidate

    def propose(self) -> tuple[Schedule, str] | None:
        return None if self.candidate is None or self.candidate in self.taken else (self.candidate, "winner")
