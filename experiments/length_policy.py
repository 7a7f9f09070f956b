r"""Compare a schedule per length bucket with the best single schedule at equal accuracy, from the same weights.

Example, with predictions that experiments/every_schedule.py kept:

    python experiments/length_policy.py --validation runs/imdb/validation.npz --test runs/imdb/test.npz \
        --latency_table runs/imdb/latency_table.json --results_file results/length_policy_imdb.json

Both are chosen on the validation predictions: the fastest single schedule that keeps the requirement, then the policy
that is at least as accurate there. Their expected latency over the texts' lengths and their accuracy are then read off
the test predictions, which nothing was chosen on.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from frame import command_of, format_table, name_command, percent

from classformer_hf.latency import LatencyTable
from classformer_hf.search.policy import choose_policy, predict_policy
from classformer_hf.search.space import Schedule
from redundancy_hf.command import write_record
from redundancy_hf.metrics import compute_score, paired_standard_error


class Predictions:
    """What every schedule predicts for the texts of one split, or those of `keys` only."""

    def __init__(self, path: str, metric_name: str, keys: list[str] | None = None):
        with np.load(path) as data:
            found = [str(key) for key in data["keys"]]
            rows = [index for index, key in enumerate(found) if keys is None or key in keys]
            self.keys = [found[index] for index in rows]
            self.schedules = [Schedule.from_key(key) for key in self.keys]
            self.predictions, self.references = data["predictions"][rows], data["references"]
            self.lengths = data["lengths"].astype(int)
        is_full = [max(schedule.gamma) == 1 for schedule in self.schedules]
        if not any(is_full):
            raise ValueError(f"{path} has no predictions of the full model, which the others are a share of.")
        self.metric_name, self.full = metric_name, is_full.index(True)

    def score(self, predictions: np.ndarray) -> float:
        return compute_score(self.metric_name, predictions, self.references)

    def predict(self, policy: Schedule) -> np.ndarray:
        """Give the predictions of a schedule or of a policy."""
        rows = np.full(len(self.lengths), self.schedules.index(Schedule(policy.gamma, policy.eta)))
        for limit, schedule in reversed(policy.buckets):
            rows[self.lengths <= limit] = self.schedules.index(schedule)
        return self.predictions[rows, np.arange(len(rows))]

    def describe(self, policy: Schedule, table: LatencyTable) -> dict:
        """Score and expected latency, relative to the full model."""
        predictions, full = self.predict(policy), self.predictions[self.full]
        time, full_time = (predict_policy(table, one, self.lengths) for one in (policy, self.schedules[self.full]))
        return {
            "key": policy.key,
            "score": self.score(predictions),
            "performance": self.score(predictions) / self.score(full),
            "paired_standard_error": paired_standard_error(self.metric_name, predictions, full, self.references),
            "latency_ratio": time / full_time,
        }


def compare(
    required: float, limits: Sequence[int], validation: Predictions, test: Predictions, table: LatencyTable
) -> dict:
    """Choose both on the validation predictions and describe them on both splits."""
    scores = np.array([validation.score(one) for one in validation.predictions])
    times = table.predict_many(validation.schedules, validation.lengths)
    feasible = np.flatnonzero(scores >= required * scores[validation.full])
    single = feasible[np.argmin(times[feasible])]
    policy = choose_policy(
        validation.schedules,
        validation.predictions,
        validation.references,
        validation.lengths,
        table.predict_many,
        limits,
        validation.metric_name,
        scores[single],
    )
    splits, record = {"validation": validation, "test": test}, {"required_performance": required}
    for name, schedule in {"single": validation.schedules[single], "policy": policy}.items():
        record[name] = {split: predictions.describe(schedule, table) for split, predictions in splits.items()}
    for split in splits:
        ratio = record["policy"][split]["latency_ratio"] / record["single"][split]["latency_ratio"]
        record[f"{split}_latency_change"] = ratio - 1
    return record


def run(
    validation: str,
    test: str,
    latency_table: str,
    limits: Sequence[int] = (16, 32, 48, 64, 96),
    required_performance: Sequence[float] = (0.95, 0.97, 0.99),
    metric_name: str = "accuracy",
    results_file: str | None = None,
) -> dict[str, Any] | None:
    """Compare for several requirements.

    Args:
        validation: npz file of predictions to choose on.
        test: npz file of predictions of the same schedules to report on.
        latency_table: latency_table.json of the machine.
        limits: Longest inputs of the buckets, in tokens.
        required_performance: Shares of the full model's score.
        metric_name: Metric of the task.
        results_file: JSON file for the results.
    """
    latencies = LatencyTable.load(latency_table)
    # what has not been tried on the test texts cannot be reported on them
    chosen_on = Predictions(validation, metric_name, Predictions(test, metric_name).keys)
    told_on = Predictions(test, metric_name, chosen_on.keys)
    rows = [compare(required, limits, chosen_on, told_on, latencies) for required in required_performance]
    return write_record(
        results_file,
        limits_tokens=list(limits),
        num_validation_examples=len(chosen_on.references),
        num_test_examples=len(told_on.references),
        length_quantiles_tokens=np.percentile(told_on.lengths, [5, 25, 50, 75, 95]).tolist(),
        hardware=latencies.hardware,
        requirements=rows,
    )


def table(record: dict) -> str:
    """A schedule per length bucket against the best single one."""
    rows = []
    for row in record["requirements"]:
        both = [row[name]["test"] for name in ("single", "policy")]
        cells = [(f"`{one['key']}`", f"{one['latency_ratio']:.3f}", percent(one["performance"])) for one in both]
        change = f"{100 * row['test_latency_change']:+.1f}"
        rows.append([f"{percent(row['required_performance'], 0)} %", *cells[0], *cells[1], change])
    header = ["keep", "single", "latency", "kept, %", "by length", "latency", "kept, %", "change, %"]
    quantiles = " / ".join(f"{value:.0f}" for value in record["length_quantiles_tokens"])
    note = (
        f"Chosen on {record['num_validation_examples']} texts, reported on {record['num_test_examples']} others; "
        f"latency by the table, relative to the full model, {record['hardware']['device_name']}; lengths at "
        f"5/25/50/75/95 %: {quantiles} tokens. {name_command(record)}"
    )
    return format_table(header, rows, note)


main = command_of(run, __doc__, show=table)
