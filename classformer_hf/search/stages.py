"""The search with one training: a supernet gives the accuracy of every schedule, a table its latency.

Stages, each of which leaves a file that the next one reads and that a stopped search goes on from:

1. `supernet/`: one fine-tuning for all schedules.
2. `latency_table.json`: the times of one layer, from which those of every schedule follow.
3. `trials.jsonl`: the search; a trial is a validation, nothing is trained.
4. `direct_latency.json`: the best candidates timed directly, side by side, and the table's error on them.
5. `winners/`: the full model, before stage 3, and then the fastest candidate, fine-tuned shortly and judged. Where that
   falls short, or keeps clearly more than was asked, the bar of stage 3 moves, and stages 3 to 5 go on: until the
   fastest schedule that was not refuted is one that kept the requirement.
"""

import copy
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, extract_model_from_parallel

from redundancy_hf.folders import save_folder
from redundancy_hf.plan import describe_lost_training, describe_stop

from ..latency import LatencyTable
from .executors import Workers, on_main_process
from .journal import Journal, JournalLock, check_identity
from .loop import Hooks, SearchResult, run_search
from .objective import FineTuneObjective
from .pace import plan_supernet_search
from .policy import find_policy
from .reference import check_given
from .report import prune_models
from .runner import TrialRunner
from .settings import SearchSettings
from .space import Schedule, SearchSpace
from .strategies import build_sampler, list_known_costs
from .supernet import NUM_RANDOM, FlopsUniformSampler, mean_flops, train_supernet
from .supernet import STAGE as SUPERNET
from .target import DIRECT, NUM_REMEASURED, prepare_table, remeasure
from .validation import REUSE_SECONDS, SupernetObjective, check_study, read_supernet, reuse_trials
from .validation import STAGE as VALIDATION
from .winners import (
    FULL,
    WINNER,
    Judged,
    adopt_reference,
    answer,
    choose_candidates,
    judge,
    predicted_timing,
    prepare_winners,
    read_judged,
    required_promise,
    warn_of_drift,
)

logger = logging.getLogger(__name__)

# further trials after a winner that moved the bar
EXTRA_TRIALS = 10


@dataclass(frozen=True)
class SupernetResult:
    """What a search with a supernet gives: the judged winners, what fine-tuned them, and what the stages found."""

    result: SearchResult
    winners: FineTuneObjective
    about: dict[str, Any]


def search_with_supernet(
    objective: FineTuneObjective,
    space: SearchSpace,
    settings: SearchSettings,
    hooks: Hooks = Hooks(),
    workers: Workers = Workers(),
) -> SupernetResult:
    """Run all stages; what an earlier call has finished is taken from its files.

    Args:
        objective: Fine-tunes and times; its output folder is the study's.
        space: The schedules to choose from.
        settings: What is asked.
        hooks: What is called on the way. The reference of the stage `VALIDATION` is the full model with the supernet's
            weights, that of `FULL` and `WINNER` the one that winners are a share of; a classifier that was given is
            checked before the supernet is trained, too. When time is up, one winner is fine-tuned at most.
        workers: What validates schedules.

    Returns:
        The result of the last stage. Its best trial is the full model where no candidate kept the requirement.

    Raises:
        KeyboardInterrupt: Stopped by hand; the same call goes on.
        JournalError: The folder belongs to another study, another process searches there, or a file cannot be written.
    """
    with only_driver(objective.output):
        return _run_stages(objective, space, settings, hooks, workers)


@contextmanager
def only_driver(output: Path) -> Iterator[None]:
    """Refuse a second process that would train or search in a folder; of several processes the main one holds it.

    Raises:
        JournalError: Another process does.
    """
    with ExitStack() as held:
        on_main_process(partial(held.enter_context, JournalLock(output / "driver.json")))
        yield


def _run_stages(
    objective: FineTuneObjective, space: SearchSpace, settings: SearchSettings, hooks: Hooks, workers: Workers
) -> SupernetResult:
    """Run the stages of `search_with_supernet`."""
    output, reuse = objective.output, settings.reused
    output.mkdir(parents=True, exist_ok=True)
    # damage, or another study's trials, is better said before hours of training than behind them
    Journal(output / "trials.jsonl", identify(objective, space), is_writer=False)
    if reuse is not None:
        check_study(reuse, objective)
    plan_supernet_search(objective, space, settings, workers.num_workers)
    if reuse is None:
        (is_trained,) = broadcast_object_list([(output / "supernet" / "supernet.json").exists()])
        if not is_trained:
            check_given(objective, partial(hooks.check_reference, FULL))
        folder = prepare_supernet(objective, space)
    else:
        folder = reuse / "supernet"
    path = output / "latency_table.json"
    table = on_main_process(lambda: prepare_table(objective.meter, space.max_tokens, path, settings.latency_table))
    stage = SupernetStage(objective, space, settings, hooks, workers, folder, table)
    if not stage.is_here:
        logger.info("the latency table is of another machine: the candidates are not timed here.")
    # damaged weights would pass for those of another study
    on_main_process(stage.supernet.load)
    winners = prepare_winners(objective, folder, settings.winner_epochs)
    if reuse is not None:
        adopt_reference(winners, reuse)
    trained = read_supernet(folder)
    trained.pop("identity")
    about = {"supernet": trained, "is_reused": reuse is not None}
    result, found = _judge_winners(stage, winners)
    return SupernetResult(result, winners, about | found)


def _judge_winners(stage: "SupernetStage", winners: FineTuneObjective) -> tuple[SearchResult, dict[str, Any]]:
    """Search and fine-tune the fastest candidate in turns, until it is one that kept the requirement already."""
    settings, hooks, objective = stage.settings, stage.hooks, stage.objective
    question, num_left = settings.question, None
    judge_one = partial(judge, winners, stage.space, question, hooks, None if stage.is_here else stage.table)
    verdict = judge_one(None)
    while True:
        judged = on_main_process(lambda: read_judged(objective.output, question))
        num_left = settings.num_winners - judged.num_asked if num_left is None else num_left - 1
        queue, about = stage.search(judged, is_last=num_left <= 0)
        candidate = queue[0] if queue and queue[0] not in judged.kept else None
        if candidate is None or not _may_judge(candidate, judged, num_left, hooks.is_time_up):
            result = answer(verdict.trials, question)
            # what is best under another question stays, too
            judged_all = replace(result, trials=verdict.trials)
            on_main_process(partial(prune_models, winners.models.root, judged_all))
            return result, about
        verdict = judge_one(candidate)
        if stage.is_here:
            warn_of_drift(verdict.trials[-1], objective.output / "direct_latency.json")
        objective.plan.repeat({VALIDATION: EXTRA_TRIALS, DIRECT: objective.target.rounds, WINNER: 1})


def _may_judge(candidate: Schedule, judged: Judged, num_left: int, is_time_up: Callable[[], bool]) -> bool:
    """Say whether another winner may be fine-tuned; the first one may whatever the time."""
    is_late = is_time_up() and bool(judged.kept or judged.refuted)
    if num_left > 0 and not is_late:
        return True
    logger.info(
        "%s was not fine-tuned, which promises enough and would be faster: %s.",
        candidate.key,
        "no time is left" if is_late else "--num_winners are used up",
    )
    return False


class SupernetStage:
    """The search among schedules with a supernet's weights: nothing is trained.

    Attributes:
        is_here: Whether the table is of this machine, so that candidates can be timed directly.
    """

    def __init__(
        self,
        objective: FineTuneObjective,
        space: SearchSpace,
        settings: SearchSettings,
        hooks: Hooks,
        workers: Workers,
        folder: Path,
        table: LatencyTable,
    ):
        started = time.monotonic()
        self.objective, self.space, self.settings, self.hooks, self.workers = objective, space, settings, hooks, workers
        self.table, self.is_here = table, table.describes_this_machine(objective.target)
        self.known = list_known_costs(objective.meter, space, table)
        # with those of an earlier search that told more schedules apart
        studies = [objective.output] if settings.reused is None else [objective.output, settings.reused]
        journals = [Journal(study / "trials.jsonl", {}, is_writer=False) for study in studies]
        schedules = [trial.schedule for journal in journals for trial in journal.trials]
        milliseconds = dict(zip(schedules, table.predict_many(schedules, objective.meter.lengths), strict=True))
        self.supernet = SupernetObjective(folder, objective, {**milliseconds, **self.known.latency})
        self.seconds = time.monotonic() - started

    def search(self, judged: Judged, is_last: bool) -> tuple[list[Schedule], dict[str, Any]]:
        """Search with what the winners so far have shown.

        Args:
            judged: The winners.
            is_last: Whether no further winner may be fine-tuned, so that more trials are of no use.

        Returns:
            What deserves a fine-tuning and what had one and kept the requirement, fastest first; and what was found on
            the way.

        Raises:
            KeyboardInterrupt: Stopped by hand.
        """
        started, required, reuse = time.monotonic(), self.settings.required_performance, self.settings.reused
        verdicts = list(judged.verdicts)
        if reuse is not None:
            verdicts += on_main_process(lambda: read_judged(reuse, self.settings.question)).verdicts
        asked = required_promise(verdicts, required)
        if asked != required:
            logger.info("by what winners kept of their promises, a candidate must promise %.2f %% now.", 100 * asked)
        num_extra = 0 if is_last else EXTRA_TRIALS * sum(one.moves_bar(required) for one in judged.verdicts)
        # trials are shares of the supernet's full model
        result = self.validate(min(asked * judged.reference_ratio, 1.0), num_extra)
        queue, about = self.choose(result, judged)
        self.seconds += time.monotonic() - started
        about |= {"num_search_trials": len(result.trials), "answer_seconds": round(self.seconds, 1)}
        return queue, about

    def validate(self, asked: float, num_extra: int) -> SearchResult:
        """Validate schedules until the budget is used up.

        Raises:
            KeyboardInterrupt: Stopped by hand.
        """
        started, reuse, max_trials = time.monotonic(), self.settings.reused, self.settings.max_trials
        identity, is_writer = identify(self.objective, self.space), PartialState().is_main_process
        journal = Journal(self.objective.output / "trials.jsonl", identity, is_writer)
        # the table may be another one than when they were tried
        journal.retime(self.supernet.list_latencies(journal.trials))
        if reuse is not None:
            is_same_dtype = on_main_process(lambda: reuse_trials(reuse, journal, self.supernet, asked))
            journal.read()
            num_reused = sum(trial.origin in ("reference", "reused") for trial in journal.trials)
            if is_same_dtype:
                max_trials = max(max_trials, num_reused + EXTRA_TRIALS)
            else:
                # chosen by what they promised; a few examples only show that the other dtype does not break them
                asked, max_trials, num_extra = min(asked, self.settings.required_performance), num_reused, 0
        max_trials += num_extra

        def is_over() -> bool:
            # one clock for all processes
            is_late = reuse is not None and time.monotonic() > started + REUSE_SECONDS
            (is_late,) = broadcast_object_list([is_late])
            return is_late or self.hooks.is_time_up()

        seed = self.objective.arguments.seed
        result = run_search(
            self.space,
            TrialRunner(self.supernet, self.workers),
            build_sampler(self.settings.strategy, self.space, asked, max_trials, seed, known=self.known),
            journal,
            asked,
            max_trials,
            replace(self.hooks, is_time_up=is_over),
            VALIDATION,
        )
        if result.interrupted:
            raise KeyboardInterrupt(describe_stop("the trial that was running"))
        return result

    def choose(self, result: SearchResult, judged: Judged) -> tuple[list[Schedule], dict[str, Any]]:
        """List what deserves a fine-tuning, and what had one and kept the requirement, fastest first."""
        queue = [trial.schedule for trial in choose_candidates(result, NUM_REMEASURED, judged.refuted)]
        if limits := self.settings.length_buckets:
            policy = on_main_process(lambda: find_policy(result, self.supernet, self.table, limits))
            if policy is not None and policy not in judged.refuted:
                queue.append(policy)
        queue = list(dict.fromkeys([*queue, *judged.kept]))
        meter, about = self.objective.meter, {}
        predict = partial(predicted_timing, self.table, full=meter.full, lengths=meter.lengths)
        ratios = {one: predict(one)["latency_ratio"] for one in queue}
        if self.is_here and set(queue) > set(judged.kept):
            path = self.objective.output / "direct_latency.json"
            seconds = None if self.settings.reused is None else REUSE_SECONDS
            record = on_main_process(lambda: remeasure(meter, self.table, queue, path, seconds))
            about["drift"] = record["drift"]
            ratios = {one: record["latency"][one.key]["ratio"] for one in queue}
        return sorted(queue, key=lambda one: ratios[one]), about


def prepare_supernet(objective: FineTuneObjective, space: SearchSpace) -> Path:
    """Train the supernet, or take it if an earlier call has.

    Returns:
        The folder of its weights and tokenizer, with `supernet.json`.

    Raises:
        JournalError: The folder holds the supernet of another study.
    """
    folder = objective.output / "supernet"
    identity = identify(objective, space)
    identity.pop("latency")
    (is_done,) = broadcast_object_list([(folder / "supernet.json").exists()])
    if is_done:
        found = read_supernet(folder)["identity"]
        check_identity(f"{folder} was trained for another study", json.loads(json.dumps(identity)), found)
        return folder
    schedules = space.enumerate()
    model: Any = objective.load(space.full)
    lengths = objective.meter.lengths
    flops = mean_flops(model.config, schedules, lengths)
    sampler = FlopsUniformSampler(schedules, flops, space.log2_lengths(schedules, lengths))
    arguments = copy.copy(objective.arguments)
    arguments.output_dir = str(objective.output / "supernet_checkpoints")
    logger.info(
        "training one supernet for %d schedules: %g epochs of the full model, the smallest one and %d others a step.",
        len(schedules),
        arguments.num_train_epochs,
        NUM_RANDOM,
    )
    with objective.plan.stage(SUPERNET, lost=describe_lost_training(arguments)):
        seconds = train_supernet(model, objective.task, objective.tokenizer, arguments, sampler, objective.plan)
    record = {
        "identity": identity,
        "train_seconds": round(seconds, 1),
        "smallest": sampler.smallest.key,
        "num_schedules": len(schedules),
        "flops_of_50_trials_ratio": sampler.share_of_fine_tunings(50),
    }

    def save():
        partial = folder.with_name("supernet.partial")
        shutil.rmtree(partial, ignore_errors=True)
        trained: Any = extract_model_from_parallel(model, keep_fp32_wrapper=False)
        save_folder(trained, partial, objective.tokenizer, objective.task.record)
        (partial / "supernet.json").write_text(json.dumps(record, indent=2) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        shutil.rmtree(arguments.output_dir, ignore_errors=True)

    on_main_process(save)
    return folder


def identify(objective: FineTuneObjective, space: SearchSpace) -> dict[str, Any]:
    """Say what was asked, so that only the same study is resumed; nothing that was measured is in it."""
    options = {name: value for name, value in vars(space).items() if not name.startswith("_")}
    return {**objective.identity(), "space": options}
