r"""Compare supernet accuracy with individual fine-tuning, schedule by schedule.

Example:

    python experiments/supernet.py --model_name_or_path sentence-transformers/all-MiniLM-L6-v2 \
        --dataset_name sst2 --max_train_samples 10000 --max_validation_samples 2000 --num_train_epochs 2 \
        --output_dir runs/supernet-sst2 --results_file results/supernet_sst2.json

Schedules evenly spaced in operations are fine-tuned one by one with two seeds, and evaluated with the weights of one
supernet. Reported: Kendall's tau of supernet against individual scores, its ceiling (seed against seed), and the cost.
Where OUTPUT_DIR also holds a finished search (redundancy-hf search, same settings; the supernet is shared),
its winner is fine-tuned individually as well, and the gap to this twin is reported. Every finished training is kept in
OUTPUT_DIR; the same command goes on where it was stopped, and --stage and --seeds let processes share the work.
"""

import copy
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.stats import kendalltau
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from classformer_hf.checkpoints import read_encoder_config
from classformer_hf.search import Journal, Schedule, SearchSpace, Trial
from classformer_hf.search.loop import summarise
from classformer_hf.search.models import PREDICTIONS
from classformer_hf.search.objective import FineTuneObjective
from classformer_hf.search.stages import identify, prepare_supernet
from classformer_hf.search.supernet import FlopsUniformSampler, mean_flops, predict_schedules
from classformer_hf.training import ClassformerTrainingArguments, fine_tune
from redundancy_hf.command import describe_run, format_record, parse_arguments, run_command
from redundancy_hf.data import load_task, tokenize
from redundancy_hf.limits import load_tokenizer
from redundancy_hf.metrics import (
    compute_score,
    majority_score,
    paired_standard_error,
    predictions_from_logits,
    standard_error,
)
from redundancy_hf.task import TaskArguments
from redundancy_hf.timing import hardware_fingerprint


@dataclass
class StudyArguments:
    model_name_or_path: str = field(metadata={"help": "RoBERTa- or BERT-family checkpoint."})
    num_schedules: int = field(default=12, metadata={"help": "Shortened schedules to fine-tune, beside the full one."})
    seeds: int = field(default=2, metadata={"help": "Individual fine-tunings of each, with --seed, --seed + 1, ..."})
    max_reduction: float = field(default=16, metadata={"help": "Cap of the space: longest input to shortest state."})
    stage: str = field(
        default="all",
        metadata={"help": "What to do now.", "choices": ["all", "supernet", "individual", "report"]},
    )
    results_file: str | None = field(default=None, metadata={"help": "JSON file for the report."})


class Study:
    """What both sides share: task, space and the schedules that are compared."""

    def __init__(self, study: StudyArguments, task_arguments: TaskArguments, training: ClassformerTrainingArguments):
        self.arguments, self.training = study, training
        self.output = Path(str(training.output_dir))
        self.seeds = range(training.seed, training.seed + study.seeds)
        tokenizer = load_tokenizer(study.model_name_or_path)
        task = load_task(task_arguments).without_test()
        self.task = tokenize(task, tokenizer, task_arguments.max_length)
        self.tokenizer = tokenizer
        self.objective = FineTuneObjective(study.model_name_or_path, self.task, tokenizer, training)
        shape = read_encoder_config(study.model_name_or_path)
        longest = max(len(ids) for split in self.task.splits.values() for ids in split["input_ids"])
        self.space = SearchSpace(
            shape.num_hidden_layers,
            longest,
            first_token_gamma=shape.max_position_embeddings,
            max_reduction=study.max_reduction,
        )
        self.schedules = self.space.enumerate()
        self.flops = mean_flops(self.objective.meter.config, self.schedules, self.objective.meter.lengths)
        log2_lengths = self.space.log2_lengths(self.schedules, self.objective.meter.lengths)
        self.sampler = FlopsUniformSampler(self.schedules, self.flops, log2_lengths)

    def chosen(self) -> list[Schedule]:
        """The full model and one schedule from each of equal intervals of operations, drawn with a fixed seed."""
        generator = np.random.default_rng(0)
        edges = np.linspace(self.flops.min(), self.flops.max(), self.arguments.num_schedules + 1)
        edges[-1] = self.flops.max() - 1  # the full model is there anyway
        drawn = []
        for low, high in zip(edges[:-1], edges[1:], strict=True):
            members = np.flatnonzero((self.flops >= low) & (self.flops < high))
            if len(members):
                drawn.append(self.schedules[int(generator.choice(members))])
        return [self.space.full, *drawn]

    def journal(self, seed: int) -> Journal:
        identity = identify(self.objective, self.space)
        identity["recipe"]["seed"] = str(seed)
        del identity["latency"]  # nothing is timed here
        return Journal(self.output / f"individual-{seed}.jsonl", identity)

    def train_individually(self):
        """Fine-tune what is missing, seed by seed."""
        for seed in self.seeds:
            objective, arguments = copy.copy(self.objective), copy.copy(self.training)
            objective.arguments, arguments.seed = arguments, seed
            journal = self.journal(seed)
            done = {trial.schedule for trial in journal.trials}
            winner = self.winner()
            schedules = self.chosen() + ([] if winner is None else [winner.schedule])
            for schedule in tqdm(dict.fromkeys(schedules), desc=f"fine-tune, seed {seed}", unit="schedule"):
                if schedule in done:
                    continue
                arguments.output_dir = str(self.output / f"current-{seed}")
                result = fine_tune(objective.load(schedule), self.task, self.tokenizer, arguments)
                shutil.rmtree(arguments.output_dir, ignore_errors=True)
                measurement = {
                    "score": result.score,
                    "predictions": np.asarray(result.predictions).tolist(),
                    "num_epochs": result.num_epochs,
                }
                journal.append(
                    Trial(len(journal.trials), schedule, "individual", "ok", measurement, seconds=result.seconds)
                )

    def winner(self) -> Trial | None:
        """The fastest feasible candidate of a search in the same folder, after its own fine-tuning."""
        path = self.output / "winners" / "trials.jsonl"
        if not path.exists():
            return None
        trials = Journal(path, {}, is_writer=False).trials
        required = json.loads((self.output / "best" / "search.json").read_text())["required_performance"]
        best = summarise(trials, required, "latency_ratio").best
        return None if best.schedule == self.space.full else best

    def supernet_logits(self, schedules: list[Schedule]) -> np.ndarray:
        """Outputs of the supernet on the validation split, (S, N, K)."""
        from classformer_hf import ClassformerForSequenceClassification

        folder = prepare_supernet(self.objective, self.space)
        model = ClassformerForSequenceClassification.from_pretrained(folder)
        split = self.task.splits["validation"]
        with tqdm(total=len(split), desc=f"{len(schedules)} schedules", unit="text") as bar:
            return predict_schedules(model, schedules, split, self.tokenizer, on_batch=bar.update)

    def cost(self) -> dict:
        """Training operations of the supernet against 50 fine-tunings of random schedules, same epochs each."""
        return {
            "supernet_step_in_full_steps": self.sampler.flops_per_step / float(self.flops.max()),
            "fraction_of_50_trials": self.sampler.share_of_fine_tunings(50),
            "smallest": self.sampler.smallest.key,
        }


def tau_with_interval(first: np.ndarray, second: np.ndarray, seed: int = 0) -> dict:
    """Kendall's tau-b of paired scores with a bootstrap interval over the schedules (95 %, percentiles).

    Raises:
        ValueError: One side does not tell the schedules apart.
    """
    generator = np.random.default_rng(seed)
    taus = []
    for _ in range(2000):
        rows = generator.integers(len(first), size=len(first))
        if len(set(first[rows])) > 1 and len(set(second[rows])) > 1:
            taus.append(kendalltau(first[rows], second[rows]).statistic)
    if not taus:
        raise ValueError(f"all {len(first)} schedules score the same, so they have no order to compare; train longer.")
    low, high = np.percentile(taus, [2.5, 97.5])
    return {"tau": float(kendalltau(first, second).statistic), "low": float(low), "high": float(high)}


def report(study: Study) -> dict:
    """Put both sides next to each other.

    Raises:
        ValueError: A training is missing.
    """
    chosen, task = study.chosen(), study.task
    references = np.asarray(task.splits["validation"]["labels"])
    individual = []
    for seed in study.seeds:
        scores = {trial.schedule: trial.score for trial in study.journal(seed).trials}
        missing = [schedule.key for schedule in chosen if schedule not in scores]
        if missing:
            raise ValueError(f"seed {seed} has not been fine-tuned with {missing}; run --stage individual first.")
        individual.append([scores[schedule] for schedule in chosen])
    logits = study.supernet_logits(chosen)
    predictions = [predictions_from_logits(task.problem_type, single) for single in logits]
    supernet = np.array([compute_score(task.metric_name, single, references) for single in predictions])
    table = np.array(individual)
    return {
        **describe_run(),
        "dataset": task.name,
        "metric_name": task.metric_name,
        "num_train_examples": len(task.splits["train"]),
        "num_evaluation_examples": len(references),
        "majority_score": majority_score(task),
        "seeds": list(study.seeds),
        "recipe": study.training.describe_recipe(),
        "hardware": hardware_fingerprint(),
        "num_schedules_in_space": len(study.schedules),
        "schedules": [
            {
                "key": schedule.key,
                "flops_ratio": float(flops / study.flops.max()),
                "supernet": float(supernet[index]),
                "standard_error": standard_error(task.metric_name, predictions[index], references),
                "individual": table[:, index].tolist(),
            }
            for index, schedule in enumerate(chosen)
            for flops in [study.flops[study.schedules.index(schedule)]]
        ],
        "tau_supernet_individual": tau_with_interval(supernet, table.mean(axis=0)),
        "tau_supernet_each_seed": [tau_with_interval(supernet, row) for row in table],
        "tau_ceiling": tau_with_interval(table[0], table[1]),
        "cost": study.cost(),
        "winner": compare_winner(study, references),
    }


def compare_winner(study: Study, references: np.ndarray) -> dict | None:
    """Put the search's winner beside the same schedule fine-tuned individually; `None` where nothing was searched.

    Raises:
        ValueError: The twin's training is missing.
    """
    winner, name = study.winner(), study.task.metric_name
    if winner is None:
        return None
    ours = np.load(study.output / "winners" / "models" / winner.schedule.key / PREDICTIONS)
    twins = [trial for seed in study.seeds for trial in study.journal(seed).trials if trial.schedule == winner.schedule]
    if len(twins) < len(study.seeds):
        raise ValueError(f"the twin of {winner.schedule.key} is missing; run --stage individual first.")
    # of ours divided by the twin's, here in units of the score
    errors = [
        paired_standard_error(name, ours, np.asarray(twin.measurement["predictions"]), references) * twin.score
        for twin in twins
    ]
    return {
        "key": winner.schedule.key,
        "latency_ratio": winner.latency_ratio,
        "num_epochs": winner.measurement["num_epochs"],
        "score": winner.score,
        "twins": [twin.score for twin in twins],
        "gap": float(np.mean([twin.score for twin in twins]) - winner.score),
        "standard_error": float(np.mean(errors)),
        "standard_error_kind": "paired",
    }


def main():
    types = (StudyArguments, TaskArguments, ClassformerTrainingArguments)
    arguments, task_arguments, training = parse_arguments(types, __doc__)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    training.disable_tqdm = True
    study = Study(arguments, task_arguments, training)
    if arguments.stage in ("all", "supernet"):
        prepare_supernet(study.objective, study.space)
    if arguments.stage in ("all", "individual"):
        study.train_individually()
    if arguments.stage in ("all", "report"):
        record = report(study)
        print(json.dumps({name: record[name] for name in record if name.startswith(("tau", "cost"))}, indent=2))
        if arguments.results_file is not None:
            Path(arguments.results_file).write_text(format_record(record) + "\n")


if __name__ == "__main__":
    run_command(main)
