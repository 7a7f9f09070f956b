r"""Compare supernet accuracy with individual fine-tuning, schedule by schedule.

Example:

    python experiments/supernet.py --model_name_or_path sentence-transformers/all-MiniLM-L6-v2 \
        --dataset_name sst2 --max_train_samples 10000 --max_validation_samples 2000 --num_train_epochs 2 \
        --output_dir runs/supernet-sst2 --results_file results/supernet_sst2.json

Schedules evenly spaced in operations are fine-tuned one by one with two seeds, and evaluated with the weights of one
supernet. Reported: Kendall's tau of supernet against individual scores, its ceiling (seed against seed), and the cost.
Where OUTPUT_DIR also holds a finished search (redundancy-hf search, same settings; the supernet is shared),
its winner is fine-tuned individually as well, and the gap to this twin is reported. Every finished training is kept in
OUTPUT_DIR; the same command goes on where it was stopped, and --stage, --seed and --seeds let processes share the work.
"""

import copy
import json
import shutil
from typing import Any, Literal

import numpy as np
from frame import command_of, format_table, interval, name_command, percent
from scipy.stats import kendalltau
from tqdm import tqdm

from classformer_hf import ClassformerForSequenceClassification
from classformer_hf.checkpoints import read_encoder_config
from classformer_hf.search import Journal, Schedule, SearchSpace, Trial
from classformer_hf.search.loop import summarise
from classformer_hf.search.models import PREDICTIONS
from classformer_hf.search.objective import FineTuneObjective
from classformer_hf.search.stages import identify, prepare_supernet
from classformer_hf.search.supernet import FlopsUniformSampler, mean_flops, predict_schedules
from classformer_hf.training import ClassformerTrainingArguments, fine_tune
from redundancy_hf.command import write_record
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
from redundancy_hf.training import list_seeds

NUM_RESAMPLES = 2000


class BothWays:
    """A supernet beside trainings of its schedules alone: what both share, and what was found of each."""

    def __init__(self, objective: FineTuneObjective, max_reduction: float, seeds: range):
        self.objective, self.task, self.seeds = objective, objective.task, seeds
        shape = read_encoder_config(objective.checkpoint)
        longest = max(len(ids) for split in self.task.splits.values() for ids in split["input_ids"])
        limits = {"first_token_gamma": shape.max_position_embeddings, "max_reduction": max_reduction}
        self.space = SearchSpace(shape.num_hidden_layers, longest, **limits)
        self.schedules = self.space.enumerate()
        self.flops = mean_flops(objective.meter.config, self.schedules, objective.meter.lengths)
        self.winner = self.read_winner()

    def choose(self, number: int) -> list[Schedule]:
        """The full model and one schedule from each of equal intervals of operations, drawn with a fixed seed."""
        generator = np.random.default_rng(0)
        edges = np.linspace(self.flops.min(), self.flops.max(), number + 1)
        edges[-1] = self.flops.max() - 1  # the full model is there anyway
        members = [
            np.flatnonzero((self.flops >= low) & (self.flops < high))
            for low, high in zip(edges[:-1], edges[1:], strict=True)
        ]
        return [self.space.full, *(self.schedules[int(generator.choice(some))] for some in members if len(some))]

    def journal(self, seed: int) -> Journal:
        identity = identify(self.objective, self.space)
        identity["recipe"]["seed"] = str(seed)
        del identity["latency"]  # nothing is timed here
        return Journal(self.objective.output / f"individual-{seed}.jsonl", identity)

    def read_winner(self) -> Trial | None:
        """The fastest feasible candidate of a search in the same folder, after its own fine-tuning."""
        path = self.objective.output / "winners" / "trials.jsonl"
        if not path.exists():
            return None
        search = json.loads((self.objective.output / "best" / "search.json").read_text())
        trials = Journal(path, {}, is_writer=False).trials
        best = summarise(trials, search["required_performance"], "latency_ratio").best
        return None if best.schedule == self.space.full else best

    def train_individually(self, schedules: list[Schedule], seed: int):
        """Fine-tune what is missing of a seed, one after the other."""
        objective, arguments = copy.copy(self.objective), copy.copy(self.objective.arguments)
        arguments.output_dir, arguments.seed = str(objective.output / f"current-{seed}"), seed
        objective.arguments, journal = arguments, self.journal(seed)
        done = {trial.schedule for trial in journal.trials}
        for schedule in tqdm(dict.fromkeys(schedules), desc=f"fine-tune, seed {seed}", unit="schedule"):
            if schedule in done:
                continue
            result = fine_tune(objective.load(schedule), self.task, objective.tokenizer, arguments)
            shutil.rmtree(arguments.output_dir, ignore_errors=True)
            measurement = {"score": result.score, "predictions": np.asarray(result.predictions).tolist()}
            measurement["num_epochs"] = result.num_epochs
            number = len(journal.trials)
            journal.append(Trial(number, schedule, "individual", "ok", measurement, seconds=result.seconds))

    def read_individual(self, schedules: list[Schedule]) -> list[list[Trial]]:
        """Give the individual trainings of schedules, seed by seed.

        Raises:
            ValueError: A training is missing.
        """
        found = []
        for seed in self.seeds:
            trials = {trial.schedule: trial for trial in self.journal(seed).trials}
            missing = [schedule.key for schedule in schedules if schedule not in trials]
            if missing:
                raise ValueError(f"seed {seed} has not been fine-tuned with {missing}; run --stage individual first.")
            found.append([trials[schedule] for schedule in schedules])
        return found

    def predict(self, schedules: list[Schedule]) -> list[np.ndarray]:
        """Predictions of the supernet on the validation split."""
        model = ClassformerForSequenceClassification.from_pretrained(prepare_supernet(self.objective, self.space))
        split = self.task.splits["validation"]
        with tqdm(total=len(split), desc=f"{len(schedules)} schedules", unit="text") as bar:
            logits = predict_schedules(model, schedules, split, self.objective.tokenizer, on_batch=bar.update)
        return [predictions_from_logits(self.task.problem_type, single) for single in logits]

    def cost(self) -> dict:
        """Training operations of the supernet against 50 fine-tunings of random schedules, same epochs each."""
        log2_lengths = self.space.log2_lengths(self.schedules, self.objective.meter.lengths)
        sampler = FlopsUniformSampler(self.schedules, self.flops, log2_lengths)
        return {
            "supernet_step_in_full_steps": sampler.flops_per_step / float(self.flops.max()),
            "fraction_of_50_trials": sampler.share_of_fine_tunings(50),
            "smallest": sampler.smallest.key,
        }


def tau_with_interval(first: np.ndarray, second: np.ndarray, seed: int = 0) -> dict:
    """Kendall's tau-b of paired scores with a bootstrap interval over the schedules (95 %, percentiles).

    Raises:
        ValueError: One side does not tell the schedules apart.
    """
    drawn = np.random.default_rng(seed).integers(len(first), size=(NUM_RESAMPLES, len(first)))
    taus = [
        kendalltau(first[rows], second[rows]).statistic
        for rows in drawn
        if len(set(first[rows])) > 1 and len(set(second[rows])) > 1
    ]
    if not taus:
        raise ValueError(f"all {len(first)} schedules score the same, so they have no order to compare; train longer.")
    low, high = np.percentile(taus, [2.5, 97.5])
    return {"tau": float(kendalltau(first, second).statistic), "low": float(low), "high": float(high)}


def report(both: BothWays, chosen: list[Schedule]) -> dict[str, Any]:
    """Put both sides next to each other.

    Raises:
        ValueError: A training is missing.
    """
    name, references = both.task.metric_name, np.asarray(both.task.splits["validation"]["labels"])
    scores = np.array([[trial.score for trial in trials] for trials in both.read_individual(chosen)])
    predictions = both.predict(chosen)
    supernet = np.array([compute_score(name, single, references) for single in predictions])
    return {
        "num_schedules_in_space": len(both.schedules),
        "schedules": [
            {
                "key": schedule.key,
                "flops_ratio": float(both.flops[both.schedules.index(schedule)] / both.flops.max()),
                "supernet": float(supernet[index]),
                "standard_error": standard_error(name, predictions[index], references),
                "individual": scores[:, index].tolist(),
            }
            for index, schedule in enumerate(chosen)
        ],
        "tau_supernet_individual": tau_with_interval(supernet, scores.mean(axis=0)),
        "tau_supernet_each_seed": [tau_with_interval(supernet, row) for row in scores],
        "tau_ceiling": tau_with_interval(scores[0], scores[1]),
        "cost": both.cost(),
        "winner": None if both.winner is None else compare_winner(both, both.winner, references),
    }


def compare_winner(both: BothWays, winner: Trial, references: np.ndarray) -> dict[str, Any]:
    """Put the search's winner beside the same schedule fine-tuned individually.

    Raises:
        ValueError: The twin's training is missing.
    """
    ours = np.load(both.objective.output / "winners" / "models" / winner.schedule.key / PREDICTIONS)
    twins = [trials[0] for trials in both.read_individual([winner.schedule])]
    # of ours divided by the twin's, here in units of the score
    name, theirs = both.task.metric_name, [np.asarray(twin.measurement["predictions"]) for twin in twins]
    errors = [paired_standard_error(name, ours, one, references) for one in theirs]
    scores = [twin.score for twin in twins]
    return {
        "key": winner.schedule.key,
        "latency_ratio": winner.latency_ratio,
        "num_epochs": winner.measurement["num_epochs"],
        "score": winner.score,
        "twins": scores,
        "gap": float(np.mean(scores) - winner.score),
        "standard_error": float(np.mean(np.multiply(errors, scores))),
        "standard_error_kind": "paired",
    }


def run(
    model_name_or_path: str,
    task: TaskArguments,
    training: ClassformerTrainingArguments,
    num_schedules: int = 12,
    seeds: int = 2,
    max_reduction: float = 16,
    stage: Literal["all", "supernet", "individual", "report"] = "all",
    results_file: str | None = None,
) -> dict[str, Any] | None:
    """Train both sides and report; gives the report where that is made.

    Args:
        model_name_or_path: RoBERTa- or BERT-family checkpoint.
        task: The data.
        training: The recipe.
        num_schedules: Shortened schedules to fine-tune, beside the full one.
        seeds: Individual fine-tunings of each, with --seed, --seed + 1, ...
        max_reduction: Cap of the space: longest input to shortest state.
        stage: What to do now.
        results_file: JSON file for the report.
    """
    training.disable_tqdm = True
    tokenizer, numbers = load_tokenizer(model_name_or_path), list_seeds(training.seed, seeds)
    data = tokenize(load_task(task).without_test(), tokenizer, task.max_length)
    both = BothWays(FineTuneObjective(model_name_or_path, data, tokenizer, training), max_reduction, numbers)
    chosen = both.choose(num_schedules)
    if stage in ("all", "supernet"):
        prepare_supernet(both.objective, both.space)
    if stage in ("all", "individual"):
        for seed in numbers:
            both.train_individually([*chosen, *([both.winner.schedule] if both.winner else [])], seed)
    if stage not in ("all", "report"):
        return None
    found = report(both, chosen)
    return write_record(
        results_file,
        dataset=data.name,
        metric_name=data.metric_name,
        num_train_examples=len(data.splits["train"]),
        num_evaluation_examples=len(data.splits["validation"]),
        majority_score=majority_score(data),
        seeds=list(numbers),
        recipe=training.describe_recipe(),
        hardware=hardware_fingerprint(),
        **found,
    )


def table(record: dict) -> str:
    """Supernet against individual fine-tuning, schedule by schedule, then tau, its ceiling, the winner and the cost."""
    rows = []
    for row in record["schedules"]:
        scores = [f"{score:.3f}" for score in (row["supernet"], *row["individual"])]
        rows.append([f"`{row['key']}`", f"{row['flops_ratio']:.2f}", *scores])
    header = ["schedule", "operations", "supernet", *(f"individual, seed {seed}" for seed in record["seeds"])]
    taus = [interval(*record[f"tau_{name}"].values()) for name in ("supernet_individual", "ceiling")]
    each = " and ".join(f"{one['tau']:.2f}" for one in record["tau_supernet_each_seed"])
    note = (
        f"{record['dataset'].upper()}, {record['metric_name']} on {record['num_evaluation_examples']} examples "
        f"(majority {record['majority_score']:.3f}), {record['num_train_examples']} training examples, the same epochs "
        f"on both sides. **Kendall's tau, supernet against individual: {taus[0]}** ({each} with single seeds); its "
        f"ceiling, seed against seed: {taus[1]}; intervals: bootstrap over the schedules, 95 %. A supernet costs the "
        f"training operations of {percent(record['cost']['fraction_of_50_trials'])} % of 50 fine-tunings. "
    )
    if winner := record["winner"]:
        twins = " and ".join(f"{score:.3f}" for score in winner["twins"])
        note += (
            f"The search's winner `{winner['key']}`, after {winner['num_epochs']:g} epoch of its own, has "
            f"{winner['score']:.3f}; fine-tuned individually {twins}: **gap {percent(winner['gap'], 2)} points** "
            f"(standard error {percent(winner['standard_error'], 2)}, {winner['standard_error_kind']}). "
        )
    return format_table(header, rows, note + name_command(record))


main = command_of(run, __doc__, show=table)
