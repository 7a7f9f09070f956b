r"""Search the fastest Classformer for a checkpoint, a dataset, a machine and an accuracy floor.

Examples:

    redundancy-hf search --num_train_epochs 1 --max_trials 12 --output_dir runs/demo
    redundancy-hf search --model_name_or_path FacebookAI/roberta-base --dataset_name mrpc \
        --required_performance 0.95 --num_train_epochs 3 --output_dir runs/mrpc
    redundancy-hf search --model_name_or_path FacebookAI/roberta-base --dataset_name mrpc \
        --required_performance 0.95 --num_train_epochs 3 --reuse runs/mrpc --threads 4 --output_dir runs/mrpc-4

The folder OUTPUT_DIR/best then holds the model, OUTPUT_DIR/search_report.html the account. By default one training
serves all schedules (a supernet), trials only validate, and the winners are fine-tuned; --strategy thesis fine-tunes
every trial instead. The same command resumes a search that was stopped, another --required_performance reuses its
trials, and --reuse answers for another machine, dtype, number of threads or length of texts without a new training.
"""

import json
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers.utils import logging as transformers_logging

from redundancy_hf.command import describe_flags, parse_arguments
from redundancy_hf.data import load_task, tokenize
from redundancy_hf.folders import find_weights
from redundancy_hf.limits import load_tokenizer
from redundancy_hf.metrics import majority_score
from redundancy_hf.plan import Plan, describe_stop, stoppable
from redundancy_hf.task import TaskArguments
from redundancy_hf.timing import Target

from ..checkpoints import is_classifier, read_encoder_config
from ..search import (
    Hooks,
    Journal,
    SearchResult,
    SearchSpace,
    Trial,
    TrialRunner,
    check_limits,
    open_workers,
    run_search,
)
from ..search.objective import FineTuneObjective
from ..search.pace import plan_fine_tuning
from ..search.page import describe_certification
from ..search.reference import check_learned, check_requirement, describe_reference
from ..search.report import (
    describe_finding,
    describe_table,
    format_table,
    prune_models,
    write_full_folder,
    write_report,
    write_result_folder,
    write_results_file,
)
from ..search.stages import SupernetSettings, search_with_supernet
from ..search.strategies import STRATEGIES, THESIS_STRATEGIES, build_sampler, list_known_costs
from ..search.target import prepare_table, retime_trials, was_timed_elsewhere
from ..search.validation import STAGE as VALIDATION
from ..search.winners import FULL, WINNER
from ..training import ClassformerTrainingArguments

logger = logging.getLogger(__name__)

TRIALS = "fine-tune and time schedules"


@dataclass
class SearchArguments:
    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Folder or Hub name of a RoBERTa-, BERT-, ELECTRA- or DistilBERT-family checkpoint. "
            "Default: a small classifier that is trained from scratch on the embedded task."
        },
    )
    required_performance: float = field(
        default=0.99, metadata={"help": "Share of the full model's validation score that the result must keep."}
    )
    max_trials: int = field(
        default=50,
        metadata={
            "help": "Number of schedules to evaluate, those of a resumed search included; with a supernet, 10 more for "
            "every winner that falls short or keeps clearly more than was asked."
        },
    )
    time_budget: float | None = field(
        default=None,
        metadata={"help": "Minutes after which no further trial starts, nor any winner's fine-tuning but the first."},
    )
    strategy: str = field(
        default="constrained",
        metadata={
            "help": "How schedules are proposed. constrained: latency known from a table, accuracy by a Gaussian "
            "process, fastest feasible first. thesis: Gaussian-process optimisation of the reward 5.4. tpe, gp: "
            "Optuna's. random, evolution. binary: bisection of the first layer of three evenly spaced 2x reductions.",
            "choices": list(STRATEGIES),
        },
    )
    evaluation: str | None = field(
        default=None,
        metadata={
            "help": "What a trial is. supernet: a validation with weights that were trained once for all schedules; "
            "finetune: a fine-tuning of its own. Default: finetune for thesis and binary, supernet for the others.",
            "choices": ["supernet", "finetune"],
        },
    )
    max_reduction: float | None = field(
        default=None,
        metadata={
            "help": "The longest text keeps at least one position in so many until the last layer. "
            "Default: 16; no limit for thesis and binary."
        },
    )
    num_winners: int = field(
        default=5,
        metadata={
            "help": "Candidates of a supernet that may be fine-tuned to find the fastest that is good enough; those of "
            "a resumed search count, those that another requirement, number of trials or buckets asked for do not."
        },
    )
    winner_epochs: float = field(default=1.0, metadata={"help": "Epochs of a winner's own fine-tuning."})
    reuse: str | None = field(
        default=None,
        metadata={"help": "Folder of a finished search with a supernet; nothing but the winners is trained again."},
    )
    latency_table: str | None = field(
        default=None,
        metadata={
            "help": "Latency table of the machine where the result shall run (`redundancy-hf latency-table`). "
            "Default: built here, once."
        },
    )
    target_lengths: str | None = field(
        default=None,
        metadata={"help": "JSON file with the token lengths of texts to be fast on. Default: the validation split's."},
    )
    length_buckets: list[int] = field(
        default_factory=list,
        metadata={"help": "Choose another schedule for inputs of at most so many tokens each, such as 32 64."},
    )
    dtype: str = field(
        default="float32",
        metadata={"help": "Of the weights where the result shall run.", "choices": ["float32", "bfloat16", "float16"]},
    )
    workers: int = field(default=1, metadata={"help": "Trials at a time, each in a process of its own."})
    dask: str | None = field(
        default=None,
        metadata={"help": "Scheduler of a Dask cluster, tcp://host:port, whose workers share this file system."},
    )
    initial_designs: str = field(
        default="thesis",
        metadata={
            "help": "First trials. thesis: 10 seeded and 8 random, scaled to at most half of the trials; random: as "
            "many, all random; none: the model proposes from the third trial on.",
            "choices": ["thesis", "random", "none"],
        },
    )
    gamma_options: list[str] = field(
        default_factory=lambda: ["1", "2", "4", "8", "first"],
        metadata={"help": "Reduction factors to choose from; 'first' keeps one token beside the first eta."},
    )
    eta_options: list[int] = field(
        default_factory=lambda: [0, 2, 4, 8, 16], metadata={"help": "Numbers of leading tokens that may stay."}
    )
    reward_latency: str = field(
        default="ratio",
        metadata={
            "help": "Delta in the reward (equation 5.4): ratio, to the full model in the same round; or milliseconds.",
            "choices": ["ratio", "milliseconds"],
        },
    )
    device: str = field(
        default="cpu",
        metadata={
            "help": "Where the result shall be fast: cpu or cuda. Training uses a GPU if there is one (--use_cpu)."
        },
    )
    threads: int = field(default=1, metadata={"help": "CPU threads while latency is measured."})
    rounds: int = field(default=20, metadata={"help": "Rounds of interleaved latency measurement per trial."})
    force: bool = field(
        default=False,
        metadata={"help": "Search on even if the full model, or what is asked, is no better than the majority class."},
    )
    results_file: str | None = field(
        default=None, metadata={"help": "JSON file for the summary and all trials, such as results/mrpc_search.json."}
    )


def check_arguments(search: SearchArguments):
    """Refuse at once what would only show after the first training, and fill in what follows from the strategy."""
    check_limits(search.required_performance, search.max_trials)
    is_thesis = search.strategy in THESIS_STRATEGIES
    search.evaluation = search.evaluation or ("finetune" if is_thesis else "supernet")
    if search.max_reduction is None and not is_thesis:
        search.max_reduction = 16
    SearchSpace(1, 1, search.gamma_options, search.eta_options, max_reduction=search.max_reduction)
    if torch.device(search.device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {search.device} was asked for, but torch finds no GPU; use --device cpu.")
    for name in ("workers", "num_winners", "rounds", "threads"):
        if getattr(search, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(search, name)}.")
    needs_supernet = [name for name in ("reuse", "length_buckets") if getattr(search, name)]
    if search.evaluation == "finetune" and needs_supernet:
        raise ValueError(f"--{needs_supernet[0]} needs --evaluation supernet.")
    if search.reuse and not (Path(search.reuse) / "supernet").is_dir():
        raise ValueError(
            f"{search.reuse} holds no supernet; --reuse takes the --output_dir of a finished search with --evaluation "
            "supernet."
        )
    defaults = SearchArguments()
    needs_finetune = [n for n in ("initial_designs", "reward_latency") if getattr(search, n) != getattr(defaults, n)]
    if search.evaluation == "supernet" and needs_finetune:
        raise ValueError(f"--{needs_finetune[0]} needs --evaluation finetune.")
    if PartialState().num_processes > 1 and (search.workers > 1 or search.dask):
        raise ValueError(
            "--workers and --dask run trials side by side, torchrun runs each in several processes: not both."
        )


def load_inputs(search: SearchArguments, arguments: TaskArguments, training: ClassformerTrainingArguments):
    """Load the task without its test split, tokenised, and name the checkpoint."""
    task = load_task(arguments).without_test()
    training.check_best_metric(task.metric_name)
    checkpoint = search.model_name_or_path
    if checkpoint is None:
        if arguments.dataset_name is not None:
            raise ValueError(
                "--dataset_name needs --model_name_or_path: the embedded classifier fits its own task only."
            )
        from redundancy_hf.corpus import tfidf_score

        from ..demo import prepare_demo_checkpoint

        PartialState().print(
            f"embedded task: functions of Python's standard library, label = package ({', '.join(task.label_names)}). "
            "It is lexical: it shows the mechanics, not the method's value."
        )
        PartialState().print(
            f"floors: majority {majority_score(task):.3f}, TF-IDF {tfidf_score(task):.3f} validation accuracy"
        )
        checkpoint = str(Path(str(training.output_dir)) / "checkpoint")
        prepare_demo_checkpoint(task, Path(checkpoint), bool(training.disable_tqdm))
    tokenizer = load_tokenizer(checkpoint)
    if task.record is not None:
        is_trained = is_classifier(checkpoint, task.num_labels)
        record = task.record.after(checkpoint, Path(str(training.output_dir)), is_trained=is_trained)
        task = replace(task, record=record.by_choice_of(search.reuse))
    return tokenize(task, tokenizer, arguments.max_length), tokenizer, checkpoint


class TrialLog:
    """A stage of the plan and a line per trial in it, with the best so far.

    Args:
        plan: Of the search.
        name: Of the stage.
        max_trials: How many there may be.
        num_before: How many an earlier call has left.
    """

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
    """One search: what it works on, and where it leaves what."""

    def __init__(self, search: SearchArguments, task_arguments: TaskArguments, training: ClassformerTrainingArguments):
        self.arguments, self.training, self.is_checked = search, training, False
        self.output = Path(str(training.output_dir))
        self.task, tokenizer, checkpoint = load_inputs(search, task_arguments, training)
        self.objective = FineTuneObjective(
            checkpoint,
            self.task,
            tokenizer,
            training,
            Target(search.device, search.threads, search.dtype, search.rounds),  # type: ignore
        )
        flags = {"model_name_or_path": search.model_name_or_path, **asdict(task_arguments)}
        self.objective.flags = describe_flags(**flags)
        if search.target_lengths is not None:
            self.objective.meter.use_lengths(read_lengths(Path(search.target_lengths)))
        config = read_encoder_config(checkpoint)
        longest = max(len(ids) for split in self.task.splits.values() for ids in split["input_ids"])
        self.space = SearchSpace(
            config.num_hidden_layers,
            longest,
            search.gamma_options,
            search.eta_options,
            first_token_gamma=config.max_position_embeddings,
            max_reduction=search.max_reduction,
            judged_tokens=max(*map(len, self.task.splits["validation"]["input_ids"]), *self.objective.meter.lengths),
        )
        self.is_main = training.process_index == 0
        self.about = {
            "dataset": self.task.name,
            "dataset_fingerprint": self.task.fingerprint,
            "base_model": search.model_name_or_path
            and (Path(checkpoint).name if Path(checkpoint).exists() else checkpoint),
            "strategy": search.strategy,
            "evaluation": search.evaluation,
            "num_train_examples": len(self.task.splits["train"]),
            "num_validation_examples": len(self.task.splits["validation"]),
            "truncated": self.task.truncated,
            "majority_score": majority_score(self.task),
            "input_tokens": {
                "median": sorted(self.objective.meter.lengths)[len(self.objective.meter.lengths) // 2],
                "longest": longest,
            },
            "timed_lengths": sorted(self.objective.meter.lengths),
        }
        self.deadline = None if search.time_budget is None else time.monotonic() + 60 * search.time_budget

    def is_time_up(self) -> bool:
        # one clock for all processes
        (is_over,) = broadcast_object_list([self.deadline is not None and time.monotonic() > self.deadline])
        return is_over

    def check_reference(self, stage: str, trial: Trial):
        """Refuse to trade away accuracy that is not there; each full model is checked once."""
        floor, is_forced = self.about["majority_score"], self.arguments.force
        if stage == VALIDATION:
            check_learned(trial, floor, is_forced, is_supernet=True)
        elif not self.is_checked:
            self.is_checked = True
            check_requirement(trial, floor, self.arguments.required_performance, is_forced)

    def by_fine_tuning(self) -> SearchResult:
        """Fine-tune every trial (thesis section 5.1.2)."""
        if self.arguments.strategy not in THESIS_STRATEGIES:
            self.objective.original = self.objective
        search, journal = self.arguments, Journal(self.output / "trials.jsonl", self.objective.identity(), self.is_main)
        known, path = None, self.output / "latency_table.json"
        has_table = search.strategy == "constrained"
        needs_table = has_table and search.latency_table is None and not path.exists()
        num_trials = search.max_trials - len(journal.trials)
        plan_fine_tuning(self.objective, self.space, TRIALS, num_trials, needs_table, search.workers)
        if has_table:
            table = prepare_table(self.objective.meter, self.space, path, search.latency_table)
            known = list_known_costs(self.objective.meter, self.space, table)
        sampler = build_sampler(
            search.strategy,
            self.space,
            search.required_performance,
            search.max_trials,
            self.training.seed,
            search.initial_designs,
            known,
        )

        def begin(*stage) -> Callable[[SearchResult], None]:
            show = TrialLog(self.objective.plan, *stage)

            def on_trial(result: SearchResult):
                show(result)
                if self.is_main:
                    prune_models(self.objective.models.root, result)
                self.write(result, self.objective)

            return on_trial

        hardware, measure = self.objective.target.hardware, self.objective.meter.measure
        with open_workers(search.workers, search.dask) as workers:
            if workers.latency_executor is None:
                retime_trials(journal, measure, lambda trial: was_timed_elsewhere(trial, hardware))
            result = run_search(
                self.space,
                TrialRunner(self.objective, workers, measure),
                sampler,
                journal,
                search.required_performance,
                search.max_trials,
                Hooks(begin, self.check_reference, self.is_time_up),
                TRIALS,
                f"latency_{search.reward_latency}",
            )
        self.objective.plan.end()
        if result.interrupted:
            logger.warning(f"stopped by hand: {describe_stop('the trial that was running')}")
        self.write(result, self.objective)
        return result

    def with_supernet(self) -> SearchResult:
        """Train once, search with those weights, fine-tune the winners."""
        search = self.arguments
        settings = SupernetSettings(
            strategy=search.strategy,
            required_performance=search.required_performance,
            max_trials=search.max_trials,
            num_winners=search.num_winners,
            winner_epochs=search.winner_epochs,
            latency_table=search.latency_table,
            length_buckets=search.length_buckets,
            reuse=None if search.reuse is None else Path(search.reuse),
        )
        hooks = Hooks(partial(TrialLog, self.objective.plan), self.check_reference, self.is_time_up)
        with stoppable(), open_workers(search.workers, search.dask) as workers:
            found = search_with_supernet(self.objective, self.space, settings, hooks, workers)
        self.objective.plan.end()
        self.about |= found.about
        self.write(found.result, found.winners)
        return found.result

    def write(self, result: SearchResult, objective: FineTuneObjective):
        """Bring OUTPUT_DIR/best and OUTPUT_DIR/full up to date, with the models that the objective trained."""
        journal, record = objective.output / "trials.jsonl", self.task.record
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
        if self.is_main:
            if record is not None:
                record.write(self.output)
            files = {"latency_table.json": self.output / "latency_table.json"}
            if self.arguments.evaluation == "supernet":
                files["search_trials.jsonl"] = self.output / "trials.jsonl"
                files["direct_latency.json"] = self.output / "direct_latency.json"
            best, reference = models[result.best.number], models[result.reference.number]
            write_result_folder(result, best, journal, self.output / "best", self.about, files, record)
            if reference != full:
                write_full_folder(result, reference, full, self.about, record)


def read_lengths(path: Path) -> list[int]:
    """Read a JSON list of token lengths.

    Raises:
        ValueError: The file is no such list.
    """
    try:
        lengths = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"--target_lengths {path} cannot be read: {error}.") from error
    if not isinstance(lengths, list) or not lengths or not all(isinstance(n, int) and n >= 1 for n in lengths):
        raise ValueError(f"--target_lengths {path} must be a JSON list of token lengths >= 1, such as [12, 31, 64].")
    return lengths


def main() -> int | None:
    types = (SearchArguments, TaskArguments, ClassformerTrainingArguments)
    search, task_arguments, training = parse_arguments(types, __doc__)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    check_arguments(search)
    if search.strategy in THESIS_STRATEGIES:
        training.follow_thesis()
    # bars that are written to a file only hide the lines
    training.disable_tqdm = training.disable_tqdm or not sys.stderr.isatty()
    study = Search(search, task_arguments, training)
    PartialState().print(
        f"{study.task.name}: {study.about['num_train_examples']} training and "
        f"{study.about['num_validation_examples']} validation examples, metric {study.task.metric_name}; "
        f"{study.space.num_points:,} points over {study.space.num_layers} layers"
    )
    result = study.with_supernet() if search.evaluation == "supernet" else study.by_fine_tuning()
    if study.is_main:
        has_supernet = search.evaluation == "supernet"
        print(f"\n{format_table(result)}\n{describe_table(has_supernet)}\n")
        print_summary(study.output / "best", result, has_supernet)
        print(f"report: {write_report(study.output, result, study.about)}")
        if search.results_file is not None:
            write_results_file(Path(search.results_file), result, study.about, training.seed)
    return 130 if result.interrupted else None


def print_summary(folder: Path, result: SearchResult, has_supernet: bool):
    data = json.loads((folder / "search.json").read_text())
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
