"""The search with one training: a supernet gives the accuracy of every schedule, a table its latency.

Stages, each of which leaves a file that the next one reads and that a stopped search goes on from:

1. `supernet/`: one fine-tuning for all schedules.
2. `latency_table.json`: the times of one layer, from which those of every schedule follow.
3. `trials.jsonl`: the search; a trial is a validation, nothing is trained.
4. `direct_latency.json`: the best candidates timed directly, side by side, and the table's error on them.
5. `winners/`: the full model and the fastest candidates, each fine-tuned shortly, then judged.
"""

import copy
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from .journal import Journal, JournalError, Trial
from .objective import FineTuneObjective
from .policy import find_policy
from .report import prune_models
from .space import SearchSpace
from .strategies import build_sampler, list_known_costs
from .study import SearchResult, run_search
from .supernet import FlopsUniformSampler, mean_flops, train_supernet
from .timing import prepare_table, remeasure
from .validation import REUSE_SECONDS, SupernetObjective, check_study, reuse_trials
from .winners import StartProgress, choose_candidates, judge_winners, prepare_winners

logger = logging.getLogger(__name__)

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
        policy = find_policy(result, supernet, table, settings.length_buckets, required)
        if policy is not None:
            about["length_policy"] = policy[0].config
            queue.insert(0, policy)
    about |= {"is_reused": settings.reuse is not None, "answer_seconds": round(time.monotonic() - started, 1)}
    winners = prepare_winners(objective, folder, settings.winner_epochs)
    judged = judge_winners(
        winners, space, queue, required, settings.num_winners, start_progress, None if is_here else table
    )
    prune_models(winners.output / "models", judged)
    return OneShotResult(judged, winners, about)


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
