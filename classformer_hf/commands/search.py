r"""Search the fastest Classformer for a checkpoint, a dataset, a machine and an accuracy floor.

Examples:

    redundancy-hf search --num_train_epochs 1 --max_trials 12 --output_dir runs/demo
    redundancy-hf search --model_name_or_path FacebookAI/roberta-base --dataset_name mrpc \
        --required_performance 0.95 --num_train_epochs 3 --output_dir runs/mrpc
    redundancy-hf search --model_name_or_path FacebookAI/roberta-base --dataset_name mrpc \
        --required_performance 0.95 --num_train_epochs 3 --reuse runs/mrpc --threads 4 --output_dir runs/mrpc-4

The folder OUTPUT_DIR/best then holds the model, OUTPUT_DIR/search_report.html the report. By default one training
serves all schedules (a supernet), trials only validate, and the winners are fine-tuned; --strategy thesis fine-tunes
every trial instead. The same command resumes a search that was stopped, another --required_performance reuses its
trials, and --reuse searches for another machine, dtype, number of threads or length of texts without a new training.
"""

import copy
import json
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedTokenizerBase

from redundancy_hf.command import describe_flags, parse_call, write_record
from redundancy_hf.data import load_task, tokenize
from redundancy_hf.folders import find_weights
from redundancy_hf.limits import load_tokenizer
from redundancy_hf.metrics import majority_score
from redundancy_hf.plan import Plan, describe_stop, stoppable
from redundancy_hf.task import Task, TaskArguments
from redundancy_hf.timing import Target

from ..checkpoints import read_encoder_config
from ..search import (
    Hooks,
    Journal,
    SearchResult,
    SearchSpace,
    Trial,
    TrialRunner,
    Workers,
    open_workers,
    run_search,
)
from ..search.objective import FineTuneObjective
from ..search.pace import plan_fine_tuning
from ..search.page import describe_certification, write_report
from ..search.reference import check_learned, check_requirement, describe_reference
from ..search.report import (
    describe_finding,
    describe_table,
    format_table,
    prune_models,
    summary,
    tabulate,
    write_full_folder,
    write_result_folder,
)
from ..search.settings import SearchSettings
from ..search.stages import search_with_supernet
from ..search.strategies import build_sampler, list_known_costs
from ..search.target import prepare_table, retime_trials, was_timed_elsewhere
from ..search.validation import STAGE as VALIDATION
from ..search.validation import check_supernet
from ..search.winners import FULL, WINNER
from ..training import ClassformerTrainingArguments
from .train import note_origin

logger = logging.getLogger(__name__)

TRIALS = "fine-tune and time schedules"


def search_classformer(
    model_name_or_path: str | None,
    task: TaskArguments,
    training: ClassformerTrainingArguments,
    settings: SearchSettings = SearchSettings(),
    target: Target = Target(),
    target_lengths: str | None = None,
    time_budget: float | None = None,
    workers: int = 1,
    dask: str | None = None,
    force: bool = False,
    results_file: str | None = None,
) -> SearchResult:
    """Search the fastest schedule that keeps a share of the full model's score, and leave it as a model folder.

    Args:
        model_name_or_path: Folder or Hub name of a RoBERTa-, BERT-, ELECTRA- or DistilBERT-family checkpoint. Default:
            a small classifier that is trained from scratch on the embedded task.
        task: The data, and how they are read; the test split is not.
        training: The recipe; its `output_dir` is the folder of the search. Training uses a GPU if there is one.
        settings: What is asked.
        target: Where the result shall be fast.
        target_lengths: JSON file with the token lengths of texts to be fast on. Default: the validation split's.
        time_budget: Minutes after which no further trial starts, nor any winner's fine-tuning but the first.
        workers: Trials at a time, each in a process of its own.
        dask: Scheduler of a Dask cluster, tcp://host:port, whose workers share this file system.
        force: Search on even if the full model, or what is asked, is no better than the majority class.
        results_file: JSON file for the summary and all trials, such as results/mrpc_search.json.

    Returns:
        The best trial and all others. The folder `best` of the output folder holds the model, `full` the one that it is
        a share of, `search_report.html` the account.

    Raises:
        ValueError: What is asked cannot be, or a model that learned nothing may meet it.
        JournalError: The output folder is another search's, or another process searches there.
    """
    check_places(target, workers, dask)
    if settings.reused is not None:
        check_supernet(settings.reused)
    # the caller's stays as it is
    training = copy.copy(training)
    if settings.is_thesis:
        training.follow_thesis()
    # bars that are written to a file only hide the lines
    training.disable_tqdm = training.disable_tqdm or not sys.stderr.isatty()
    data, tokenizer, checkpoint = load_inputs(model_name_or_path, task, training, settings.reuse)
    objective = FineTuneObjective(checkpoint, data, tokenizer, training, target)
    objective.flags = describe_flags(model_name_or_path=model_name_or_path, **asdict(task))
    if target_lengths is not None:
        objective.meter.use_lengths(read_lengths(Path(target_lengths)))
    space = build_space(objective, settings)
    about = describe_search(objective, space, settings, model_name_or_path)
    PartialState().print(
        f"{data.name}: {about['num_train_examples']} training and {about['num_validation_examples']} validation "
        f"examples, metric {data.metric_name}; {space.num_points:,} points over {space.num_layers} layers"
    )
    search = Search(objective, space, settings, about, force, time_budget)
    with open_workers(workers, dask) as crew:
        result = search.run(crew)
    search.report(result, results_file)
    return result


def main() -> int | None:
    result = search_classformer(**parse_call(search_classformer, __doc__))
    return 130 if result.interrupted else None


def check_places(target: Target, workers: int, dask: str | None):
    """Refuse at once devices and workers that would only be missed after the first training.

    Raises:
        ValueError: There is no such GPU, fewer than one worker, or both ways to run trials.
    """
    if torch.device(target.device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"`device` {target.device} was asked for, but torch finds no GPU; use `device` cpu.")
    if workers < 1:
        raise ValueError(f"`workers` must be at least 1, got {workers}.")
    if PartialState().num_processes > 1 and (workers > 1 or dask):
        raise ValueError(
            "`workers` and `dask` run trials side by side, torchrun runs each in several processes: not both."
        )


def load_inputs(
    checkpoint: str | None, arguments: TaskArguments, training: ClassformerTrainingArguments, reuse: str | None
) -> tuple[Task, PreTrainedTokenizerBase, str]:
    """Load the task without its test split, tokenised, the tokenizer, and name the checkpoint."""
    task = load_task(arguments).without_test()
    training.check_best_metric(task.metric_name)
    if checkpoint is None:
        checkpoint = prepare_demo(task, arguments, training)
    tokenizer = load_tokenizer(checkpoint)
    task = note_origin(task, checkpoint, Path(str(training.output_dir)), reuse)
    return tokenize(task, tokenizer, arguments.max_length), tokenizer, checkpoint


def prepare_demo(task: Task, arguments: TaskArguments, training: ClassformerTrainingArguments) -> str:
    """Train the small classifier of the embedded task, once; gives its folder."""
    if arguments.dataset_name is not None:
        raise ValueError("`dataset_name` needs `model_name_or_path`: the embedded classifier fits its own task only.")
    from redundancy_hf.corpus import tfidf_score

    from ..demo import prepare_demo_checkpoint

    PartialState().print(
        f"embedded task: functions of Python's standard library, label = package ({', '.join(task.label_names)}). "
        "It is lexical: it shows the mechanics, not the method's value.\n"
        f"floors: majority {majority_score(task):.3f}, TF-IDF {tfidf_score(task):.3f} validation accuracy"
    )
    folder = Path(str(training.output_dir)) / "checkpoint"
    prepare_demo_checkpoint(task, folder, bool(training.disable_tqdm))
    return str(folder)


def read_lengths(path: Path) -> list[int]:
    """Read a JSON list of token lengths.

    Raises:
        ValueError: The file is no such list.
    """
    try:
        lengths = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"`target_lengths` {path} cannot be read: {error}.") from error
    if not isinstance(lengths, list) or not lengths or not all(isinstance(n, int) and n >= 1 for n in lengths):
        raise ValueError(f"`target_lengths` {path} must be a JSON list of token lengths >= 1, such as [12, 31, 64].")
    return lengths


def build_space(objective: FineTuneObjective, settings: SearchSettings) -> SearchSpace:
    """Build the space of a checkpoint and a task, which tells apart what the validated and timed texts do."""
    config, splits = read_encoder_config(objective.checkpoint), objective.task.splits
    return settings.build_space(
        config.num_hidden_layers,
        max(len(ids) for split in splits.values() for ids in split["input_ids"]),
        first_token_gamma=config.max_position_embeddings,
        judged_tokens=max(*map(len, splits["validation"]["input_ids"]), *objective.meter.lengths),
    )


def describe_search(
    objective: FineTuneObjective, space: SearchSpace, settings: SearchSettings, model_name_or_path: str | None
) -> dict[str, Any]:
    """Say what is searched on, as plain data for report, card and record."""
    task, lengths, folder = objective.task, sorted(objective.meter.lengths), Path(objective.checkpoint)
    return {
        "dataset": task.name,
        "dataset_fingerprint": task.fingerprint,
        "base_model": model_name_or_path and (folder.name if folder.exists() else objective.checkpoint),
        "strategy": settings.strategy,
        "evaluation": "supernet" if settings.has_supernet else "finetune",
        "num_train_examples": len(task.splits["train"]),
        "num_validation_examples": len(task.splits["validation"]),
        "truncated": task.truncated,
        "majority_score": majority_score(task),
        "input_tokens": {"median": lengths[len(lengths) // 2], "longest": space.max_tokens},
        "timed_lengths": lengths,
    }


class TrialLog:
    """A stage of the plan and a line per trial in it, with the best so far."""

    def __init__(self, plan: Plan, name: str, max_trials: int, num_before: int):
        self.plan, self.name, self.max_trials = plan, name, max_trials
        plan.begin(name, max_trials, num_before)

    def __call__(self, result: SearchResult):
        trial, best = result.trials[-1], result.best
        if self.name == FULL:
            text = f"the full model, {describe_reference(trial.measurement)}: "
        elif self.name == WINNER:
            text = f"fine-tuned {trial.schedule.key} ({trial.origin}): "
        else:
            text = f"trial {len(result.trials)} of at most {self.max_trials}: {trial.schedule.key} ({trial.origin}) "
        if trial.is_ok:
            as_is = trial.measurement.get("score_as_is")
            text += f"{'' if as_is is None else f'as is {as_is:.3f}, '}score {trial.score:.3f} "
            text += f"({100 * result.performance(trial):.1f} % of full), latency {trial.latency_ratio:.3f}"
        else:
            text += f"failed: {trial.error}"
        best_text = "best so far the full model"
        if best is not result.reference:
            kept = "keeps" if result.is_feasible(best) else "does not keep"
            best_text = f"best so far {best.schedule.key}: {1 / best.latency_ratio:.2f}x, {kept} what was asked"
        self.plan.update(note=best_text)
        self.plan.say(" | ".join(filter(None, [text, best_text, self.plan.left])))


class Search:
    """One search: how it goes, and where it leaves what."""

    def __init__(
        self,
        objective: FineTuneObjective,
        space: SearchSpace,
        settings: SearchSettings,
        about: dict[str, Any],
        force: bool = False,
        time_budget: float | None = None,
    ):
        self.objective, self.space, self.settings, self.about, self.force = objective, space, settings, about, force
        self.output, self.record = objective.output, objective.task.record
        self.is_main, self.is_checked = PartialState().is_main_process, False
        self.deadline = None if time_budget is None else time.monotonic() + 60 * time_budget

    def is_time_up(self) -> bool:
        # one clock for all processes
        (is_over,) = broadcast_object_list([self.deadline is not None and time.monotonic() > self.deadline])
        return is_over

    def check_reference(self, stage: str, trial: Trial):
        """Refuse to trade away accuracy that is not there; each full model is checked once."""
        floor = self.about["majority_score"]
        if stage == VALIDATION:
            check_learned(trial, floor, self.force, is_supernet=True)
        elif not self.is_checked:
            self.is_checked = True
            check_requirement(trial, floor, self.settings.required_performance, self.force)

    def run(self, workers: Workers) -> SearchResult:
        """Search, and leave the folders of the result and of the full model."""
        begin, trained = partial(TrialLog, self.objective.plan), self.objective
        if self.settings.has_supernet:
            hooks = Hooks(begin, self.check_reference, self.is_time_up)
            with stoppable():
                found = search_with_supernet(self.objective, self.space, self.settings, hooks, workers)
            self.about |= found.about
            result, trained = found.result, found.winners
        else:
            result = self.fine_tune_trials(workers)
        self.objective.plan.end()
        if result.interrupted:
            logger.warning(f"stopped by hand: {describe_stop('the trial that was running')}")
        self.write(result, trained)
        return result

    def fine_tune_trials(self, workers: Workers) -> SearchResult:
        """Fine-tune every trial (thesis section 5.1.2)."""
        objective, space, settings = self.objective, self.space, self.settings
        if not settings.is_thesis:
            objective.original = objective
        journal = Journal(self.output / "trials.jsonl", objective.identity(), self.is_main)
        known, path = None, self.output / "latency_table.json"
        has_table = settings.strategy == "constrained"
        needs_table = has_table and settings.latency_table is None and not path.exists()
        num_trials = settings.max_trials - len(journal.trials)
        plan_fine_tuning(objective, space, TRIALS, num_trials, needs_table, workers.num_workers)
        if has_table:
            table = prepare_table(objective.meter, space.max_tokens, path, settings.latency_table)
            known = list_known_costs(objective.meter, space, table)
        required, max_trials, seed = settings.required_performance, settings.max_trials, objective.arguments.seed
        sampler = build_sampler(settings.strategy, space, required, max_trials, seed, settings.initial_designs, known)
        measure, hardware = objective.meter.measure, objective.target.hardware
        if workers.latency_executor is None:
            retime_trials(journal, measure, lambda trial: was_timed_elsewhere(trial, hardware))
        return run_search(
            space,
            TrialRunner(objective, workers, measure),
            sampler,
            journal,
            required,
            max_trials,
            Hooks(self.begin_trials, self.check_reference, self.is_time_up),
            TRIALS,
            f"latency_{settings.reward_latency}",
        )

    def begin_trials(self, *stage) -> Callable[[SearchResult], None]:
        show = TrialLog(self.objective.plan, *stage)

        def on_trial(result: SearchResult):
            show(result)
            if self.is_main:
                prune_models(self.objective.models.root, result)
            self.write(result, self.objective)

        return on_trial

    def write(self, result: SearchResult, objective: FineTuneObjective):
        """Bring OUTPUT_DIR/best and OUTPUT_DIR/full up to date, with the models that the objective trained."""
        full = self.output / "full"
        models: dict[int, Path] = {}
        for trial in (result.reference, result.best):
            folder = objective.models.folder(trial.schedule)
            # that of the full model may have been deleted to save space
            places = [folder, full] if trial is result.reference else [folder]
            (kept,) = broadcast_object_list([next((place for place in places if find_weights(place)), None)])
            if kept is None and trial.number not in models:
                PartialState().print(f"training {trial.schedule.key} again: its weights are gone")
                objective(trial.schedule)
            models.setdefault(trial.number, kept or folder)
        if not self.is_main:
            return
        if self.record is not None:
            self.record.write(self.output)
        names = {"trials.jsonl": objective.output / "trials.jsonl"}
        names["latency_table.json"] = self.output / "latency_table.json"
        if self.settings.has_supernet:
            names["search_trials.jsonl"] = self.output / "trials.jsonl"
            names["direct_latency.json"] = self.output / "direct_latency.json"
        best, reference = models[result.best.number], models[result.reference.number]
        write_result_folder(result, best, self.output / "best", self.about, names, self.record)
        if reference != full:
            write_full_folder(result, reference, full, self.about, self.record)

    def report(self, result: SearchResult, results_file: str | None):
        """Print what was found, and write the account and, where a path is given, the record."""
        if not self.is_main:
            return
        print(f"\n{format_table(result)}\n{describe_table(self.settings.has_supernet)}\n")
        data = summary(result, self.about)
        print_summary(data, self.output / "best", result, self.settings.has_supernet)
        print(f"report: {write_report(self.output, result, self.about)}")
        write_record(results_file, seed=self.objective.arguments.seed, summary=data, trials=tabulate(result))


def print_summary(data: dict[str, Any], folder: Path, result: SearchResult, has_supernet: bool):
    speed = f"{data['speedup_schedule_only']:.2f}x by the schedule alone"
    if data["speedup_against_stock"] is not None:
        low, high = data["speedup_schedule_only_quartiles"]
        speed += f" [{low:.2f} {high:.2f}], {data['speedup_against_stock']:.2f}x against the stock model"
    print(
        f"asked: {100 * result.required_performance:g} % of the full model's "
        f"{data['metric_name']} {data['full_score']:.3f} ({describe_reference(data)})\n"
        f"{describe_finding(result, has_supernet)}\n"
        f"speed-up: {speed}\n"
        f"model: {folder}"
    )
    if result.best is not result.reference:
        command = describe_certification(folder.parent, result.required_performance)
        # of an environment that need not be active
        runs_here = Path(sys.executable).is_relative_to(Path.cwd())
        programs = f"{Path(sys.executable).parent.relative_to(Path.cwd())}/" if runs_here else ""
        print(f"certify it, once: {programs}{command}")
