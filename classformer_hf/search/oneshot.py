"""The search with one training: a supernet gives the accuracy of every schedule, a table its latency.

Stages, each of which leaves a file that the next one reads and that a stopped search goes on from:

1. `supernet/`: one fine-tuning for all schedules.
2. `latency_table.json`: the times of one layer, from which those of every schedule follow.
3. `trials.jsonl`: the search; a trial is a validation, nothing is trained.
4. `direct_latency.json`: the best candidates timed directly, side by side, and the table's error on them.
5. `winners/`: the full model and the fastest candidates, each fine-tuned shortly, then judged.
"""

import copy
import datetime
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import broadcast_object_list
from tqdm import tqdm

from ..cost import Latency, measure_latency
from ..latency import LatencyTable, build_latency_table, count_steps, drift
from .journal import Journal, JournalError, Trial
from .objective import FineTuneObjective
from .policy import choose_policy
from .report import prune_models
from .samplers import Sampler
from .space import Schedule, SearchSpace
from .strategies import build_sampler, list_known_costs
from .study import SearchResult, run_search
from .supernet import FlopsUniformSampler, ScheduledModel, mean_flops, train_supernet
from .validation import REUSE_SECONDS, SupernetObjective, check_study, reuse_trials

logger = logging.getLogger(__name__)

TABLE_ROUNDS = 30
NUM_REMEASURED = 10


@dataclass(frozen=True)
class OneShotSettings:
    """What is asked of a search with a supernet.

    Attributes:
        strategy: One of `STRATEGIES`.
        required_performance: Share of the full model's score that the result must keep.
        max_trials: Schedules to validate.
        num_winners: Candidates that may be fine-tuned before one is good enough.
        winner_epochs: Epochs of that fine-tuning.
        latency_table: A table from elsewhere.
        length_buckets: Longest inputs, in tokens, of the buckets that get a schedule of their own; empty: one for all.
        reuse: Folder of an earlier study, whose supernet and trials are taken.
    """

    strategy: str = "constrained"
    required_performance: float = 0.99
    max_trials: int = 50
    num_winners: int = 3
    winner_epochs: float = 1.0
    latency_table: str | None = None
    length_buckets: Sequence[int] = ()
    reuse: Path | None = None


@dataclass(frozen=True)
class OneShotResult:
    """What a search with a supernet gives: the judged winners, what fine-tuned them, and what the stages found."""

    result: SearchResult
    winners: FineTuneObjective
    about: dict[str, Any]


StartProgress = Callable[[str, int, int], Callable[[SearchResult], Any]]


def search_with_supernet(
    objective: FineTuneObjective,
    space: SearchSpace,
    settings: OneShotSettings,
    start_progress: StartProgress,
    check_reference: Callable[[Trial], None] | None = None,
    is_time_up: Callable[[], bool] | None = None,
    executors: Mapping[str, Any] | None = None,
) -> OneShotResult:
    """Run all stages; what an earlier call has finished is taken from its files.

    Args:
        objective: Fine-tunes and times; its output folder is the study's.
        space: The schedules to choose from.
        settings: What is asked.
        start_progress: Called with the name of a stage, its largest number of trials and that of the finished ones;
            gives what is called after every trial.
        check_reference: As in `run_search`.
        is_time_up: As in `run_search`, for the trials with the supernet.
        executors: Arguments of `run_search` that say where these trials run.

    Returns:
        The result of the last stage. Its best trial is the full model where no candidate kept the requirement.

    Raises:
        KeyboardInterrupt: Stopped by hand; the same call goes on.
        JournalError: The folder belongs to another study, or a file cannot be written.
    """
    output, required = objective.output, settings.required_performance
    output.mkdir(parents=True, exist_ok=True)
    if settings.reuse is None:
        folder = prepare_supernet(objective, space)
    else:
        check_study(settings.reuse, objective)
        folder = settings.reuse / "supernet"
    table = prepare_table(objective, space, output / "latency_table.json", settings.latency_table)
    started = time.monotonic()
    known = list_known_costs(objective, space, table)
    supernet = SupernetObjective(
        folder,
        objective.task,
        objective.tokenizer,
        known.latency,
        space.full,
        output,
        str(objective.arguments.device),
        objective.dtype,
    )
    # stands for the latency table and the lengths, on which every trial's latency depends
    target = {"full_model_milliseconds": round(known.latency[space.full], 4)}
    journal = Journal(output / "trials.jsonl", {**objective.identity(), "space": describe_space(space), **target})
    max_trials = settings.max_trials
    if settings.reuse is not None:
        is_same_dtype = reuse_trials(settings.reuse, journal, supernet, required)
        max_trials = max_trials if is_same_dtype else len(journal.trials)

    def is_over() -> bool:
        # one clock for all processes
        is_late = settings.reuse is not None and time.monotonic() > started + REUSE_SECONDS
        (is_late,) = broadcast_object_list([is_late])
        return is_late or (is_time_up is not None and is_time_up())

    result = run_search(
        space,
        supernet,
        build_sampler(
            settings.strategy,
            space,
            required,
            max_trials,
            objective.arguments.seed,
            known=known,
        ),
        journal,
        required,
        max_trials,
        is_over,
        check_reference=check_reference,
        on_trial=start_progress("validate with the supernet", max_trials, len(journal.trials)),
        **(executors or {}),
    )
    if result.interrupted:
        raise KeyboardInterrupt
    candidates = choose_candidates(result, NUM_REMEASURED)
    is_here = table.describes_this_machine(objective.device, objective.dtype, objective.latency_threads)
    about: dict[str, Any] = {"supernet": read_supernet(folder), "num_search_trials": len(result.trials)}
    ratios = {trial.schedule: trial.latency_ratio for trial in candidates}
    if is_here and candidates:
        seconds = None if settings.reuse is None else REUSE_SECONDS
        record = remeasure(objective, table, list(ratios), output / "direct_latency.json", seconds)
        about["drift"] = record["drift"]
        ratios = {schedule: record["latency"][schedule.key]["ratio"] for schedule in ratios}
    elif not is_here:
        logger.info("the latency table is of another machine: the candidates are not timed here.")
    promised = {trial.schedule: result.performance(trial) for trial in candidates}
    queue = sorted(promised.items(), key=lambda item: ratios[item[0]])
    if settings.length_buckets:
        policy = find_policy(result, supernet, table, settings)
        if policy is not None:
            about["length_policy"] = policy[0].config
            queue.insert(0, policy)
    about |= {"is_reused": settings.reuse is not None, "answer_seconds": round(time.monotonic() - started, 1)}
    winners = prepare_winners(objective, folder, settings)
    judged = judge_winners(winners, space, queue, settings, table if not is_here else None, start_progress)
    prune_models(winners.output / "models", judged)
    return OneShotResult(judged, winners, about)


def prepare_winners(objective: FineTuneObjective, supernet: Path, settings: OneShotSettings) -> FineTuneObjective:
    """Give what fine-tunes candidates shortly from a supernet, in a folder of its own."""
    arguments = copy.copy(objective.arguments)
    arguments.output_dir = str(objective.output / "winners")
    arguments.num_train_epochs = settings.winner_epochs
    return objective.for_checkpoint(str(supernet), arguments)


def judge_winners(
    winners: FineTuneObjective,
    space: SearchSpace,
    queue: Sequence[tuple[Schedule, float]],
    settings: OneShotSettings,
    foreign_table: LatencyTable | None,
    start_progress: StartProgress,
) -> SearchResult:
    """Fine-tune the full model and the candidates shortly from the supernet, until one keeps the requirement."""
    timing = winners.measure
    if foreign_table is not None:

        def timing(schedule: Schedule) -> dict[str, Any]:
            return predicted_timing(foreign_table, schedule, winners.full, winners.lengths)

    journal = Journal(winners.output / "trials.jsonl", winners.identity())
    max_trials = len(journal.trials) + settings.num_winners + (not journal.trials)
    result = run_search(
        space,
        winners,
        QueueSampler(space, queue, settings.required_performance),
        journal,
        settings.required_performance,
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


def predict_policy(table: LatencyTable, schedule: Schedule, lengths: Sequence[int]) -> float:
    """Predict the mean milliseconds of a schedule that may have length buckets."""
    total = 0.0
    values, counts = np.unique(np.asarray(lengths), return_counts=True)
    for length, count in zip(values.tolist(), counts, strict=True):
        single = next((one for limit, one in schedule.buckets if length <= limit), schedule)
        total += count * table.predict(Schedule(single.gamma, single.eta), [length])
    return total / len(lengths)


def find_policy(
    result: SearchResult, objective: SupernetObjective, table: LatencyTable, settings: OneShotSettings
) -> tuple[Schedule, float] | None:
    """Choose a schedule per length bucket among the trials; gives it with the performance that it promises."""
    trials = [trial for trial in result.trials if trial.is_ok]
    split = objective.task.splits["validation"]
    references, name = np.asarray(split["labels"]), objective.task.metric_name
    lengths = np.array([len(ids) for ids in split["input_ids"]])
    required_score = settings.required_performance * result.reference.score
    schedules = [trial.schedule for trial in trials]
    predictions = np.stack([objective.load_predictions(schedule) for schedule in schedules])
    policy = choose_policy(
        schedules,
        predictions,
        references,
        lengths,
        table.predict_many,
        settings.length_buckets,
        name,
        required_score,
    )
    if policy is None or not policy.buckets:
        logger.info("no choice of schedules by length keeps the requirement and is faster than one for all.")
        return None
    # what it promises is at least what was asked; its own fine-tuning judges it
    return policy, settings.required_performance


def prepare_supernet(objective: FineTuneObjective, space: SearchSpace) -> Path:
    """Train the supernet, or take it if an earlier call has.

    Args:
        objective: Has the checkpoint, the task, the recipe and the folder of the search.
        space: Whose schedules are drawn.

    Returns:
        The folder of its weights and tokenizer, with `supernet.json`.

    Raises:
        JournalError: The folder holds the supernet of another study.
    """
    folder = objective.output / "supernet"
    identity = {**objective.identity(), "space": describe_space(space)}
    identity.pop("latency")
    if (folder / "supernet.json").exists():
        found = json.loads((folder / "supernet.json").read_text())["identity"]
        for name, expected in json.loads(json.dumps(identity)).items():
            if found.get(name) != expected:
                raise JournalError(
                    f"{folder} was trained for another study: its {name} is {found.get(name)!r}, now it is "
                    f"{expected!r}; use another --output_dir, or the old settings to resume."
                )
        return folder
    schedules = space.enumerate()
    model: Any = objective.load(space.full)
    flops = mean_flops(model.config, schedules, objective.lengths)
    sampler = FlopsUniformSampler(schedules, flops, space.log2_lengths(schedules, objective.lengths))
    arguments = copy.copy(objective.arguments)
    arguments.output_dir = str(objective.output / "supernet_checkpoints")
    seconds = train_supernet(model, objective.task, objective.tokenizer, arguments, sampler)
    partial = folder.with_name("supernet.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    objective.tokenizer.save_pretrained(partial)
    record = {
        "identity": identity,
        "train_seconds": round(seconds, 1),
        "smallest": sampler.smallest.key,
        "num_schedules": len(schedules),
        "flops_of_50_trials_ratio": sampler.share_of_fine_tunings(50),
    }
    (partial / "supernet.json").write_text(json.dumps(record, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    shutil.rmtree(arguments.output_dir, ignore_errors=True)
    return folder


def read_supernet(folder: Path) -> dict[str, Any]:
    """Read what a supernet's training was and cost."""
    record = json.loads((folder / "supernet.json").read_text())
    return {name: value for name, value in record.items() if name != "identity"}


def describe_space(space: SearchSpace) -> dict[str, Any]:
    """List what makes one space differ from another, for a journal's identity."""
    return {name: value for name, value in vars(space).items() if not name.startswith("_")}


def measure_directly(
    objective: FineTuneObjective, schedules: Sequence[Schedule], rounds: int, warmup: int = 5
) -> dict[Schedule, Latency]:
    """Time schedules side by side on the dataset's lengths, relative to the full model.

    Args:
        objective: Says on what device, with how many threads, on which inputs.
        schedules: What to time.
        rounds: Timed passes over the inputs.
        warmup: Untimed passes before them.
    """
    full = objective.full
    with objective.ready_to_time() as (build, inputs):
        model = build(full)
        models = {schedule.key: ScheduledModel(model, schedule) for schedule in [full, *schedules]}
        latency = measure_latency(models, inputs, full.key, rounds, warmup)
    return {schedule: latency[schedule.key] for schedule in [full, *schedules]}


def choose_candidates(result: SearchResult, number: int) -> list[Trial]:
    """List the fastest trials that meet the requirement with the supernet's weights, fastest first."""
    feasible = [trial for trial in result.trials if result.is_feasible(trial) and trial is not result.reference]
    return sorted(feasible, key=lambda trial: trial.latency_ratio)[:number]


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


def prepare_table(
    objective: FineTuneObjective, space: SearchSpace, path: Path, given: str | None = None
) -> LatencyTable:
    """Load the latency table of the target, or build it on this machine.

    Args:
        objective: Says which model, device, dtype and number of threads.
        space: Says how long the inputs are.
        path: Where the table of this search is, or will be.
        given: A table from elsewhere: another machine's, or an earlier search's.

    Raises:
        ValueError: The table is damaged, of another model or too short.
    """
    longest = max(space.max_tokens, *objective.lengths)
    if given is not None:
        table = LatencyTable.load(given)
        table.check_fits(objective.config, longest)
        table.save(path)
        return table
    if path.exists():
        table = LatencyTable.load(path)
        is_ours = table.describes_this_machine(objective.device, objective.dtype, objective.latency_threads)
        if is_ours and table.max_tokens >= longest:
            return table
        logger.info("%s is of another machine, dtype, number of threads or length; building it anew.", path)
    total, is_hidden = count_steps(longest, TABLE_ROUNDS), bool(objective.arguments.disable_tqdm)
    with tqdm(total=total, desc="latency table", disable=is_hidden) as bar:
        table = build_latency_table(
            objective.config,
            longest,
            objective.device,
            objective.dtype,
            objective.latency_threads,
            TABLE_ROUNDS,
            on_step=bar.update,
        )
    table.save(path)
    return table


def remeasure(
    objective: FineTuneObjective,
    table: LatencyTable,
    candidates: Sequence[Schedule],
    path: Path,
    seconds: float | None = None,
) -> dict[str, Any]:
    """Time the best candidates directly and compare with the table; takes what an earlier call has measured.

    Args:
        objective: Says on what inputs, device and threads.
        table: What predicted.
        candidates: At most ten or so.
        path: Where the record is kept.
        seconds: About how long it may take; fewer rounds, at least three, are timed then.

    Returns:
        The record: statistics per schedule, and the table's drift.
    """
    if path.exists():
        record = json.loads(path.read_text())
        if {schedule.key for schedule in candidates} <= set(record["latency"]):
            return record
    rounds, warmup = objective.latency_rounds, 5
    if seconds is not None:
        milliseconds = table.predict_many([objective.full, *candidates], objective.lengths).sum()
        warmup = 1
        rounds = int(np.clip(1000 * seconds / (milliseconds * len(objective.lengths)) - warmup, 3, rounds))
    started = time.monotonic()
    latency = measure_directly(objective, candidates, rounds, warmup)
    errors = drift(table, {schedule: value.ratio for schedule, value in latency.items()}, objective.lengths)
    record = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - started, 1),
        "latency": {schedule.key: vars(value) for schedule, value in latency.items()},
        "drift": errors,
    }
    path.write_text(json.dumps(record, indent=2) + "\n")
    return record
