"""The race of samplers on a table of every schedule: best reward by evaluation, evaluations until nearly the optimum.

Figure 5.4 of Bidart 2023 (University of Waterloo): each search has 50 evaluations and no initial set. The unreduced
model, which the others are a share of, is told for free.
"""

from collections.abc import Callable, Sequence

import numpy as np

from .baselines import EvolutionSampler, OptunaSampler, RandomSampler
from .benchmark import TabularBenchmark
from .constrained import ConstrainedSampler
from .samplers import GaussianProcessSampler, Sampler

# a run has reached the optimum when its speed-up is this share of the best possible one
NEARLY = 0.99


def build_sampler(name: str, benchmark: TabularBenchmark, required: float, max_trials: int, seed: int) -> Sampler:
    """Build a sampler for a race, without an initial set beyond what it needs.

    Args:
        name: One of `SAMPLERS`.
        benchmark: What is searched.
        required: Share of the full model's performance that is asked.
        max_trials: Evaluations after the unreduced model's.
        seed: Of the sampler.

    Raises:
        ValueError: The name is unknown.
    """
    if name not in SAMPLERS:
        raise ValueError(f'unknown sampler "{name}"; choose among {sorted(SAMPLERS)}.')
    return SAMPLERS[name](benchmark, required, max_trials, seed)


SAMPLERS: dict[str, Callable[[TabularBenchmark, float, int, int], Sampler]] = {
    "random": lambda benchmark, required, max_trials, seed: RandomSampler(benchmark.space, seed),
    "evolution": lambda benchmark, required, max_trials, seed: EvolutionSampler(benchmark.space, seed),
    "tpe": lambda benchmark, required, max_trials, seed: OptunaSampler(benchmark.space, "tpe", seed),
    "optuna_gp": lambda benchmark, required, max_trials, seed: OptunaSampler(benchmark.space, "gp", seed),
    "skopt": lambda benchmark, required, max_trials, seed: GaussianProcessSampler(
        benchmark.space, max_trials, "none", seed
    ),
    "constrained": lambda benchmark, required, max_trials, seed: ConstrainedSampler(
        benchmark.space,
        benchmark.latencies,
        benchmark.features,
        required,
        seed,
    ),
}


def run_race(benchmark: TabularBenchmark, sampler: Sampler, required: float, max_trials: int) -> dict[str, list[float]]:
    """Let one sampler search the table.

    Args:
        benchmark: What is searched.
        sampler: New, told nothing.
        required: Share of the full model's performance that is asked.
        max_trials: Evaluations after the unreduced model's.

    Returns:
        After each evaluation the best `reward` (equation 5.4) and the best feasible `speedup` so far, both counting the
        unreduced model. A sampler that ends early keeps its last values.
    """
    sampler.tell(benchmark.observe(benchmark.space.full, required))
    # the full model is feasible, and so is whatever has the best reward from then on
    best = benchmark.row[benchmark.space.full]
    latency, rewards, speedups = benchmark.latency, [], []
    for _ in range(max_trials):
        proposal = sampler.ask()
        if proposal is not None:
            sampler.tell(benchmark.observe(proposal[0], required))
            row = benchmark.row[proposal[0]]
            if benchmark.performance[row] >= required and latency[row] < latency[best]:
                best = row
        rewards.append(required + 1 / float(latency[best]))
        speedups.append(1 / float(latency[best]))
    return {"reward": rewards, "speedup": speedups}


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
    counts: Sequence[int | None], max_trials: int, num_resamples: int = 2000, seed: int = 0
) -> dict[str, float | None]:
    """Summarise the evaluations of many runs; one that did not get there counts as more than `max_trials`.

    Args:
        counts: From `evaluations_to_reach`.
        max_trials: Evaluations that each run had.
        num_resamples: Of the bootstrap over runs.
        seed: Of the bootstrap.

    Returns:
        `median` with its 95 % interval `low` and `high`, each `None` where it is more than `max_trials`; the share of
        runs that `reached`; and the number of `runs`.
    """
    values = np.array([max_trials + 1 if count is None else count for count in counts], float)
    generator = np.random.default_rng(seed)
    # the lower median, so that half a censored value is not made up
    drawn = np.sort(generator.choice(values, (num_resamples, len(values))), axis=1)[:, (len(values) - 1) // 2]
    low, high = np.percentile(drawn, [2.5, 97.5], method="nearest")
    median = np.sort(values)[(len(values) - 1) // 2]
    numbers = {"median": median, "low": low, "high": high}
    return {
        **{name: None if value > max_trials else float(value) for name, value in numbers.items()},
        "reached": float((values <= max_trials).mean()),
        "runs": len(values),
    }
