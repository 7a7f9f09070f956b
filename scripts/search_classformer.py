"""Search the fastest Classformer for a checkpoint, a dataset, a machine and an accuracy floor.

Examples:

    python scripts/search_classformer.py recipes/demo.json
    python scripts/search_classformer.py --model_name_or_path FacebookAI/roberta-base --dataset_name mrpc \
        --required_performance 0.95 --max_trials 50 --output_dir runs/mrpc

The folder OUTPUT_DIR/best then holds the model. The same command resumes a search that was stopped, and another
--required_performance reuses its trials.
"""

import json
import logging
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from tqdm import tqdm
from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

from classformer_hf.command import parse_arguments, run_command
from classformer_hf.data import Task, TaskArguments, load_task, load_tokenizer, tokenize
from classformer_hf.metrics import majority_score
from classformer_hf.search import (
    BinarySearchSampler,
    GaussianProcessSampler,
    Journal,
    SearchResult,
    SearchSpace,
    Trial,
    check_limits,
    run_search,
)
from classformer_hf.search.objective import FineTuneObjective
from classformer_hf.search.report import (
    TABLE_LEGEND,
    format_table,
    prune_models,
    write_result_folder,
    write_results_file,
)
from classformer_hf.training import ClassformerTrainingArguments

logger = logging.getLogger(__name__)


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
        default=50, metadata={"help": "Number of fine-tunings, those of a resumed search included."}
    )
    time_budget: float | None = field(default=None, metadata={"help": "Minutes after which no further trial starts."})
    strategy: str = field(
        default="thesis",
        metadata={
            "help": "thesis: Gaussian-process optimisation of all factors. binary: bisection of the first reduced "
            "layer of three evenly spaced 2x reductions.",
            "choices": ["thesis", "binary"],
        },
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
    latency_threads: int = field(default=1, metadata={"help": "CPU threads while latency is measured."})
    latency_rounds: int = field(default=20, metadata={"help": "Rounds of interleaved latency measurement per trial."})
    force: bool = field(
        default=False, metadata={"help": "Search on even if the full model is no better than the majority class."}
    )
    results_file: str | None = field(
        default=None, metadata={"help": "JSON file for the summary and all trials, such as results/mrpc_search.json."}
    )


def check_arguments(search: SearchArguments):
    """Refuse at once what would only show after the first training."""
    check_limits(search.required_performance, search.max_trials)
    SearchSpace(1, 1, search.gamma_options, search.eta_options)
    if torch.device(search.device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {search.device} was asked for, but torch finds no GPU; use --device cpu.")


def load_inputs(search: SearchArguments, arguments: TaskArguments, training: ClassformerTrainingArguments):
    """Load the task without its test split, tokenised, and name the checkpoint."""
    task = load_task(arguments).without_test()
    checkpoint = search.model_name_or_path
    if checkpoint is None:
        if arguments.dataset_name is not None:
            raise ValueError(
                "--dataset_name needs --model_name_or_path: the embedded classifier fits its own task only."
            )
        from classformer_hf.corpus import tfidf_score
        from classformer_hf.demo import prepare_demo_checkpoint

        PartialState().print(
            f"embedded task: functions of Python's standard library, label = package ({', '.join(task.label_names)}). "
            "It is lexical: it shows the mechanics, not the method's value."
        )
        PartialState().print(
            f"floors: majority {majority_score(task):.3f}, TF-IDF {tfidf_score(task):.3f} validation accuracy"
        )
        checkpoint = str(Path(training.output_dir) / "checkpoint")
        prepare_demo_checkpoint(task, Path(checkpoint), training.disable_tqdm)
    tokenizer = load_tokenizer(checkpoint)
    return tokenize(task, tokenizer, arguments.max_length), tokenizer, checkpoint


def check_reference(trial: Trial, task: Task, search: SearchArguments):
    """Refuse to trade away accuracy that is not there, and warn where the requirement is hardly above the floor."""
    floor, margin = majority_score(task), 2 * trial.measurement["standard_error"]
    if trial.score < floor + margin:
        message = (
            f"the full model's {task.metric_name} of {trial.score:.3f} is not above the majority score {floor:.3f} by "
            f"2 standard errors ({margin:.3f}), so there is nothing to keep; train longer, take another checkpoint or "
            "more data, or search anyway with --force."
        )
        if not search.force:
            raise ValueError(message)
        logger.warning("warning: %s", message)
    elif (1 - search.required_performance) * trial.score < trial.measurement["standard_error"]:
        logger.warning(
            "warning: the loss that is allowed, %.3f, is smaller than the standard error of %.3f on %d validation "
            "examples, so the search cannot tell who meets the requirement; give it more examples, or ask for less.",
            (1 - search.required_performance) * trial.score,
            trial.measurement["standard_error"],
            trial.measurement["num_examples"],
        )
    elif search.required_performance * trial.score < floor + margin:
        logger.warning(
            "warning: %g %% of %.3f is within 2 standard errors of the majority score %.3f; a model that learned "
            "nothing may pass, so ask for more.",
            100 * search.required_performance,
            trial.score,
            floor,
        )


class Progress:
    """A bar over trials with a line per trial; keeps the best-so-far folder up to date."""

    def __init__(self, objective: FineTuneObjective, journal: Journal, max_trials: int, about: dict, is_main: bool):
        self.objective, self.journal, self.about, self.is_main = objective, journal, about, is_main
        self.output = Path(objective.arguments.output_dir)
        self.max_trials, self.started, self.num_before = max_trials, time.monotonic(), len(journal.trials)
        is_hidden = not is_main or objective.arguments.disable_tqdm
        self.bar = tqdm(total=max_trials, initial=self.num_before, desc="trials", unit="trial", disable=is_hidden)

    def __call__(self, result: SearchResult):
        trial, best = result.trials[-1], result.best
        text = f"trial {trial.number + 1} of {self.max_trials}: {trial.schedule.key} ({trial.origin}) "
        if trial.is_ok:
            as_is = trial.measurement["score_as_is"]
            text += f"{'' if as_is is None else f'as is {as_is:.3f}, '}tuned {trial.score:.3f} "
            text += f"({100 * result.performance(trial):.1f} % of full), latency {trial.latency_ratio:.3f}"
        else:
            text += f"failed: {trial.error}"
        done = len(result.trials)
        minutes = (time.monotonic() - self.started) / 60 / (done - self.num_before) * (self.max_trials - done)
        text += f" | best so far {best.schedule.key}: {1 / best.latency_ratio:.2f}x | {minutes:.0f} minutes left"
        self.bar.update()
        if self.is_main:
            self.bar.write(text)
            prune_models(self.output / "models", result)
        self.write(result)

    def write(self, result: SearchResult):
        model_folder = self.objective.model_folder(result.best.schedule)
        (is_kept,) = broadcast_object_list([model_folder.exists()])
        if not is_kept:
            PartialState().print(f"training {result.best.schedule.key} again: its weights are gone")
            self.objective(result.best.schedule)
        if self.is_main:
            write_result_folder(result, model_folder, self.journal.path, self.output / "best", self.about)


def main() -> int | None:
    types = (SearchArguments, TaskArguments, ClassformerTrainingArguments)
    search, task_arguments, training = parse_arguments(types, __doc__)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    check_arguments(search)
    # bars that are written to a file only hide the lines
    training.disable_tqdm = training.disable_tqdm or not sys.stderr.isatty()
    task, tokenizer, checkpoint = load_inputs(search, task_arguments, training)
    objective = FineTuneObjective(
        checkpoint, task, tokenizer, training, search.device, search.latency_threads, search.latency_rounds
    )
    config = AutoConfig.from_pretrained(checkpoint)
    longest = max(len(ids) for split in task.splits.values() for ids in split["input_ids"])
    space = SearchSpace(
        config.num_hidden_layers,
        longest,
        search.gamma_options,
        search.eta_options,
        first_token_gamma=config.max_position_embeddings,
    )
    is_main = training.process_index == 0
    journal = Journal(Path(training.output_dir) / "trials.jsonl", objective.identity(), is_main)
    if search.strategy == "binary":
        sampler = BinarySearchSampler(space, search.required_performance)
    else:
        sampler = GaussianProcessSampler(space, search.max_trials, search.initial_designs, training.seed)
    about = {
        "dataset": task.name,
        "dataset_fingerprint": task.fingerprint,
        "base_model": search.model_name_or_path
        and (Path(checkpoint).name if Path(checkpoint).exists() else checkpoint),
        "strategy": search.strategy,
        "num_train_examples": len(task.splits["train"]),
        "num_validation_examples": len(task.splits["validation"]),
        "truncated": task.truncated,
        "majority_score": majority_score(task),
    }
    remaining = search.max_trials - len(journal.trials)
    PartialState().print(
        f"{task.name}: {about['num_train_examples']} training and {about['num_validation_examples']} validation "
        f"examples, metric {task.metric_name}; {space.num_points:,} points over {space.num_layers} layers"
    )
    if remaining > 0:
        minutes = objective.estimate_seconds() * remaining / 60
        PartialState().print(f"{remaining} trials to go, about {minutes:.0f} minutes if the machine stays as it is")
    deadline = None if search.time_budget is None else time.monotonic() + 60 * search.time_budget

    def is_time_up() -> bool:
        # one clock for all processes
        (is_over,) = broadcast_object_list([deadline is not None and time.monotonic() > deadline])
        return is_over

    progress = Progress(objective, journal, search.max_trials, about, is_main)
    result = run_search(
        space,
        objective,
        sampler,
        journal,
        required_performance=search.required_performance,
        max_trials=search.max_trials,
        is_time_up=is_time_up,
        latency_name=f"latency_{search.reward_latency}",
        check_reference=lambda trial: check_reference(trial, task, search),
        on_trial=progress,
    )
    progress.bar.close()
    progress.write(result)
    if is_main:
        print(f"\n{format_table(result)}\n{TABLE_LEGEND}\n")
        print_summary(Path(training.output_dir) / "best", result)
        if search.results_file is not None:
            write_results_file(Path(search.results_file), result, about, training.seed)
    return 130 if result.interrupted else None


def print_summary(folder: Path, result: SearchResult):
    data = json.loads((folder / "search.json").read_text())
    low, high = data["speedup_schedule_only_quartiles"]
    print(
        f"asked: {100 * result.required_performance:g} % of the full model's "
        f"{data['metric_name']} {data['full_score']:.3f}\n"
        f"found: gamma {data['gamma']}, eta {data['eta']}: {data['score']:.3f} (standard error "
        f"{result.best.measurement['standard_error']:.3f}, n = {result.best.measurement['num_examples']}), "
        f"{100 * data['performance']:.1f} %\n"
        f"speed-up: {data['speedup_schedule_only']:.2f}x [{low:.2f} {high:.2f}] by the schedule alone, "
        f"{data['speedup_against_stock']:.2f}x against the stock model\n"
        f"model: {folder}"
    )


if __name__ == "__main__":
    run_command(main)
