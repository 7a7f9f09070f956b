"""The race of samplers on a table of every schedule: best reward by evaluation, evaluations until nearly the optimum.

Figure 5.4 of Bidart 2023 (University of Waterloo): each search has 50 evaluations and no initial set. The unreduced
model, which the others are a share of, is told for free.
"""

from collections.abc import Sequence

import numpy as np

from .benchmark import TabularBenchmark
from .strategies import build_sampler

# a run has reached the optimum when its speed-up is this share of the best possible one
NEARLY = 0.99


def run_race(
    benchmark: TabularBenchmark, strategy: str, required: float, max_trials: int, seed: int
) -> dict[str, list[float]]:
    """Let one strategy search the table, without an initial set beyond what it needs.

    Args:
        benchmark: What is searched.
        strategy: One of `STRATEGIES`.
        required: Share of the full model's performance that is asked.
        max_trials: Evaluations after the unreduced model's.
        seed: Of the strategy.

    Returns:
        After each evaluation the best `reward` (equation 5.4) and the best feasible `speedup` so far, both counting the
        unreduced model, and the `cost` so far: operations in evaluations of the unreduced model, which is free. A
        strategy that ends early keeps its last values.
    """
    sampler = build_sampler(strategy, benchmark.space, required, max_trials, seed, "none", benchmark.known)
    sampler.tell(benchmark.observe(benchmark.space.full, required))
    # the full model is feasible, and so is whatever has the best reward from then on
    best = benchmark.row[benchmark.space.full]
    latency, cost = benchmark.latency, 0.0
    curves: dict[str, list[float]] = {"reward": [], "speedup": [], "cost": []}
    for _ in range(max_trials):
        proposal = sampler.ask()
        if proposal is not None:
            sampler.tell(benchmark.observe(proposal[0], required))
            row = benchmark.row[proposal[0]]
            cost += float(benchmark.flops[row])
            if benchmark.performance[row] >= required and latency[row] < latency[best]:
                best = row
        curves["reward"].append(required + 1 / float(latency[best]))
        curves["speedup"].append(1 / float(latency[best]))
        curves["cost"].append(cost)
    return curves


def evaluations_to_reach(speedups: Sequence[float], best_speedup: float, share: float = NEARLY) -> int | None:
    """Count the evaluations until the best feasible speed-up is at least `share` of the best possible one.

    Args:
        speedups: Best feasible speed-up after each evaluation.
        best_speedup: Of the fastest schedule of the table that is good enough.
        share: How near is near.

    Returns:
        The number, from 1, or `None` where it was not reached.
    """
    reached = np.flatnonzero(np.asarray(speedups) >= share * best_speedup)
    return int(reached[0]) + 1 if len(reached) else None


def summarise_evaluations(
    counts: Sequence[int | None],
    max_trials: int,
    tables: Sequence[int] | None = None,
    num_resamples: int = 2000,
    seed: int = 0,
) -> dict[str, float | None]:
    """Summarise the evaluations of many runs; one that did not get there counts as more than `max_trials`.

    Args:
        counts: From `evaluations_to_reach`.
        max_trials: Evaluations that each run had.
        tables: Which table each run searched; where there are several, they are what the bootstrap draws.
        num_resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        `median` with its 95 % interval `low` and `high`, each `None` where it is more than `max_trials`; the share of
        runs that `reached`; and the number of `runs`.
    """
    values = np.array([max_trials + 1 if count is None else count for count in counts], float)
    generator = np.random.default_rng(seed)
    is_one_table = tables is None or len(set(tables)) == 1
    units = np.arange(len(values)) if is_one_table else np.asarray(tables)
    groups = [values[units == unit] for unit in np.unique(units)]
    drawn = [
        _lower_median(np.concatenate([groups[index] for index in generator.integers(len(groups), size=len(groups))]))
        for _ in range(num_resamples)
    ]
    low, high = np.percentile(drawn, [2.5, 97.5], method="nearest")
    numbers = {"median": _lower_median(values), "low": low, "high": high}
    return {
        **{name: None if value > max_trials else float(value) for name, value in numbers.items()},
        "reached": float((values <= max_trials).mean()),
        "runs": len(values),
    }


def _lower_median(values: np.ndarray) -> float:
    # so that half a censored value is not made up
    return float(np.sort(values)[(len(values) - 1) // 2])
