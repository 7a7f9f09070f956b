"""How long the stages of a search take, estimated from a few steps of the unreduced model on this machine."""

import copy
from dataclasses import dataclass

from redundancy_hf.plan import describe_seconds
from redundancy_hf.timing import measure_latency

from ..latency import count_passes
from ..training import count_training_steps, time_step
from .journal import Journal
from .objective import FineTuneObjective
from .settings import SearchSettings
from .space import SearchSpace
from .supernet import STAGE as SUPERNET
from .target import DIRECT, NUM_REMEASURED, TABLE, TABLE_ROUNDS, TABLE_SECONDS, WARMUP
from .validation import REUSE_SECONDS
from .validation import STAGE as VALIDATION
from .winners import FULL, WINNER

# work of a schedule and of a supernet's step, as a share of the unreduced model's: schedules are drawn evenly up to it
SCHEDULE_SHARE, SUPERNET_STEP = 0.6, 2.3


@dataclass(frozen=True)
class Pace:
    """What the unreduced model takes: a training step, and a text of middle length where latency is measured."""

    objective: FineTuneObjective
    step_seconds: float
    pass_seconds: float

    @classmethod
    def measure(cls, objective: FineTuneObjective) -> "Pace":
        """Measure a few steps and passes."""
        model = objective.load(objective.full)
        step_seconds = time_step(model, objective.task, objective.tokenizer, objective.arguments)
        meter = objective.meter
        middle = meter.inputs[len(meter.inputs) // 2]
        with meter.target.use_threads():
            latency = measure_latency({"full": meter.build(meter.full)}, [middle], "full", rounds=3, warmup=1)
        return cls(objective, step_seconds, latency["full"].wall_p50_ms / 1000)

    def fine_tuning(self, num_epochs: float | None = None) -> float:
        """Estimate the seconds of a fine-tuning that does not stop early, by default as long as the recipe says."""
        arguments = copy.copy(self.objective.arguments)
        if num_epochs is not None:
            arguments.num_train_epochs = num_epochs
        return self.step_seconds * count_training_steps(self.objective.task, arguments)

    def validation(self) -> float:
        """Estimate the seconds of a pass over the validation split, which takes a third of a training step's time."""
        batches = len(self.objective.task.splits["validation"]) / self.objective.arguments.per_device_train_batch_size
        return self.step_seconds * batches / 3

    def timing(self, num_models: float) -> float:
        """Estimate the seconds of timing so many models side by side."""
        passes = len(self.objective.meter.inputs) * (self.objective.target.rounds + WARMUP)
        return self.pass_seconds * num_models * passes

    def table(self, space: SearchSpace) -> float:
        """Estimate the seconds of building a latency table; beside every part a whole pass is timed."""
        longest = max(space.max_tokens, *self.objective.meter.lengths)
        return min(self.pass_seconds * count_passes(longest, TABLE_ROUNDS), TABLE_SECONDS)


def plan_fine_tuning(
    objective: FineTuneObjective, space: SearchSpace, stage: str, num_trials: int, needs_table: bool, num_workers: int
):
    """Plan a search whose every trial is a fine-tuning and a timing."""
    if num_trials <= 0:
        return
    pace = Pace.measure(objective)
    # a candidate beside the full and the stock model
    trial = pace.fine_tuning() + pace.timing(2 + SCHEDULE_SHARE)
    stages = {TABLE: pace.table(space)} if needs_table else {}
    objective.plan.add({**stages, stage: trial * num_trials / num_workers})
    objective.plan.announce(" Schedules that reduce, and trainings that stop early, take less.")


def plan_supernet_search(
    objective: FineTuneObjective, space: SearchSpace, settings: SearchSettings, num_workers: int = 1
):
    """Plan a search with a supernet, from where an earlier call has stopped; arguments as of `plan_fine_tuning`."""
    output = objective.output
    num_trials = settings.max_trials - len(Journal(output / "trials.jsonl", {}, is_writer=False).trials)
    needs_supernet = settings.reuse is None and not (output / "supernet" / "supernet.json").exists()
    needs_table = settings.latency_table is None and not (output / "latency_table.json").exists()
    needs_full = not (output / "winners" / "trials.jsonl").exists()
    if num_trials <= 0 and not (needs_full or needs_supernet or needs_table):
        return
    pace = Pace.measure(objective)
    # a classifier that was given stays as it is
    full = pace.validation() if objective.has_head else pace.fine_tuning(settings.winner_epochs)
    winner = SCHEDULE_SHARE * pace.fine_tuning(settings.winner_epochs) + pace.timing(2 + SCHEDULE_SHARE)
    longest = float("inf") if settings.reuse is None else REUSE_SECONDS
    direct = min(pace.timing(1 + SCHEDULE_SHARE * NUM_REMEASURED), longest)
    stages = {
        SUPERNET: SUPERNET_STEP * pace.fine_tuning() * needs_supernet,
        TABLE: pace.table(space) * needs_table,
        FULL: (full + pace.timing(3)) * needs_full,
        VALIDATION: min(SCHEDULE_SHARE * pace.validation() * max(num_trials, 0) / num_workers, longest),
        DIRECT: direct,
        WINNER: winner,
    }
    objective.plan.add({name: seconds for name, seconds in stages.items() if seconds > 0})
    more, each = settings.num_winners - 1, describe_seconds(winner + direct)
    note = f" Where that winner is not the answer, up to {more} more follow, each {each}."
    objective.plan.announce(note if more > 0 else "")
