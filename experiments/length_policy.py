r"""Compare a schedule per length bucket with the best single schedule at equal accuracy, from the same weights.

Example, with predictions that experiments/every_schedule.py kept:

    python experiments/length_policy.py --validation runs/imdb/validation.npz --test runs/imdb/test.npz \
        --latency_table runs/imdb/latency_table.json --results_file results/length_policy_imdb.json

Both are chosen on the validation predictions: the fastest single schedule that keeps the requirement, then the policy
that is at least as accurate there. Their expected latency over the texts' lengths and their accuracy are then read off
the test predictions, which nothing was chosen on.
"""

from dataclasses import dataclass, field

import numpy as np

from classformer_hf.latency import LatencyTable
from classformer_hf.search.policy import choose_policy, predict_policy
from classformer_hf.search.space import Schedule
from redundancy_hf.command import parse_arguments, run_command, write_record
from redundancy_hf.metrics import compute_score, paired_standard_error


@dataclass
class PolicyArguments:
    validation: str = field(metadata={"help": "npz file of predictions to choose on."})
    test: str = field(metadata={"help": "npz file of predictions of the same schedules to report on."})
    latency_table: str = field(metadata={"help": "latency_table.json of the machine."})
    limits: list[int] = field(
        default_factory=lambda: [16, 32, 48, 64, 96], metadata={"help": "Longest inputs of the buckets, in tokens."}
    )
    required_performance: list[float] = field(
        default_factory=lambda: [0.95, 0.97, 0.99], metadata={"help": "Shares of the full model's score."}
    )
    metric_name: str = field(default="accuracy", metadata={"help": "Metric of the task."})
    results_file: str | None = field(default=None, metadata={"help": "JSON file for the results."})


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
        if not any(max(schedule.gamma) == 1 for schedule in self.schedules):
            raise ValueError(f"{path} has no predictions of the full model, which the others are a share of.")
        self.metric_name = metric_name
        self.full = next(i for i, schedule in enumerate(self.schedules) if max(schedule.gamma) == 1)

    def predict(self, policy: Schedule) -> np.ndarray:
        """Give the predictions of a schedule or of a policy."""
        rows = np.full(len(self.lengths), self.schedules.index(Schedule(policy.gamma, policy.eta)))
        for limit, schedule in reversed(policy.buckets):
            rows[self.lengths <= limit] = self.schedules.index(schedule)
        return self.predictions[rows, np.arange(len(rows))]

    def describe(self, policy: Schedule, table: LatencyTable) -> dict:
        """Score and expected latency, relative to the full model."""
        predictions, full = self.predict(policy), self.predictions[self.full]
        scores = [compute_score(self.metric_name, one, self.references) for one in (predictions, full)]
        full_schedule = self.schedules[self.full]
        time = predict_policy(table, policy, self.lengths) / predict_policy(table, full_schedule, self.lengths)
        return {
            "key": policy.key,
            "score": scores[0],
            "performance": scores[0] / scores[1],
            "paired_standard_error": paired_standard_error(self.metric_name, predictions, full, self.references),
            "latency_ratio": time,
        }


def compare(
    required: float, limits: list[int], validation: Predictions, test: Predictions, table: LatencyTable
) -> dict:
    """Choose both on the validation predictions and describe them on both splits."""
    scores = np.array(
        [compute_score(validation.metric_name, one, validation.references) for one in validation.predictions]
    )
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
    chosen = {"single": validation.schedules[single], "policy": policy}
    record: dict = {"required_performance": required}
    for name, schedule in chosen.items():
        record[name] = {"validation": validation.describe(schedule, table), "test": test.describe(schedule, table)}
    for split in ("validation", "test"):
        ratio = record["policy"][split]["latency_ratio"] / record["single"][split]["latency_ratio"]
        record[f"{split}_latency_change"] = ratio - 1
    return record


def main():
    (arguments,) = parse_arguments([PolicyArguments], __doc__)
    table = LatencyTable.load(arguments.latency_table)
    test = Predictions(arguments.test, arguments.metric_name)
    # what has not been tried on the test texts cannot be reported on them
    validation = Predictions(arguments.validation, arguments.metric_name, test.keys)
    test = Predictions(arguments.test, arguments.metric_name, validation.keys)
    rows = [compare(r, arguments.limits, validation, test, table) for r in arguments.required_performance]
    for row in rows:
        single, policy = row["single"]["test"], row["policy"]["test"]
        print(
            f"{100 * row['required_performance']:g} %: single {single['latency_ratio']:.3f} of the full time at "
            f"{100 * single['performance']:.1f} %, policy {policy['latency_ratio']:.3f} at "
            f"{100 * policy['performance']:.1f} %: {100 * row['test_latency_change']:+.1f} % latency"
        )
    write_record(
        arguments.results_file,
        limits_tokens=arguments.limits,
        num_validation_examples=len(validation.references),
        num_test_examples=len(test.references),
        length_quantiles_tokens=np.percentile(test.lengths, [5, 25, 50, 75, 95]).tolist(),
        hardware=table.hardware,
        requirements=rows,
    )


if __name__ == "__main__":
    run_command(main)
