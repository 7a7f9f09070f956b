"""Tables of every schedule of a space with its performance and cost, and the race of samplers on them, without models.

A table is read from a parquet file, or made by a formula and then labelled analytic. The race is figure 5.4 of Bidart
2023 (University of Waterloo): each search has 50 evaluations and no initial set; the unreduced model, which the others
are a share of, is told for free.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from classformer_hf.search import Schedule, SearchSpace, reward
from classformer_hf.search.constrained import KnownCosts
from classformer_hf.search.samplers import Observation
from classformer_hf.search.strategies import build_sampler

# of the formula: a BERT-base layer on 128 tokens, a budget of work that no reduction touches
HIDDEN_SIZE, INTERMEDIATE_SIZE, MAX_TOKENS, FIXED_SHARE = 768, 3072, 128, 0.05
# a run has reached the optimum when its speed-up is this share of the best possible one
NEARLY = 0.99


class TableSpace(SearchSpace):
    """A space whose allowed schedules are the rows of a table.

    Args:
        schedules: All rows, canonical, the unreduced model among them.
        max_tokens: Longest input of the dataset, in tokens.

    Raises:
        ValueError: The unreduced model is missing.
    """

    def __init__(self, schedules: Sequence[Schedule], max_tokens: int):
        gamma_options = {factor for schedule in schedules for factor in schedule.gamma}
        super().__init__(
            num_layers=len(schedules[0].gamma),
            max_tokens=max_tokens,
            gamma_options=sorted(gamma_options),
            eta_options=sorted({0, *(schedule.eta for schedule in schedules)}),
            max_reduction=float("inf"),
        )
        self._rows = frozenset(schedules)
        self._schedules = sorted(self._rows)
        if self.full not in self._rows:
            raise ValueError(
                f"the table has no row of the unreduced model {self.full.key}, which the others are a share of."
            )

    def is_allowed(self, schedule: Schedule) -> bool:
        return schedule in self._rows

    def enumerate(self, limit: int = 200_000) -> list[Schedule]:
        return list(self._schedules)


@dataclass(frozen=True)
class TabularBenchmark:
    """A table of schedules, in the order of its space.

    Attributes:
        name: What it stands for.
        space: Its schedules.
        performance: Share of the full model's score, (N,).
        standard_error: Of the performance, paired with the full model's predictions, (N,).
        latency: Relative to the full model, (N,).
        flops: Relative to the full model, (N,).
        lengths: Mean log2 length of every layer, (N, L); without a last layer that computes position 0 only.
    """

    name: str
    space: TableSpace
    performance: np.ndarray
    standard_error: np.ndarray
    latency: np.ndarray
    flops: np.ndarray
    lengths: np.ndarray

    @cached_property
    def row(self) -> Mapping[Schedule, int]:
        """Where each schedule stands."""
        return {schedule: index for index, schedule in enumerate(self.space.enumerate())}

    @cached_property
    def known(self) -> KnownCosts:
        """What a sampler may know before the first evaluation."""
        return KnownCosts(
            {schedule: float(self.latency[index]) for schedule, index in self.row.items()},
            {schedule: self.lengths[index].tolist() for schedule, index in self.row.items()},
            {schedule: float(self.flops[index]) for schedule, index in self.row.items()},
        )

    def observe(self, schedule: Schedule, required: float) -> Observation:
        """Look up what an evaluation would give."""
        index = self.row[schedule]
        performance, latency = float(self.performance[index]), float(self.latency[index])
        return Observation(
            schedule, performance, latency, reward(performance, required, latency), float(self.standard_error[index])
        )

    def best_speedup(self, required: float) -> float:
        """Speed-up over the full model of the fastest schedule that is good enough."""
        return float(1 / self.latency[self.performance >= required].min())


def read_benchmark(path: str | Path) -> TabularBenchmark:
    """Read a table of one dataset.

    Args:
        path: Parquet file with the columns `gamma`, `eta`, `score`, `standard_error` (paired with the full model),
            `latency_ratio`, `flops_ratio`, `mean_log2_lengths`, `dataset` and `max_tokens`.

    Raises:
        ValueError: A column is missing, a schedule is there twice, there are several datasets, or the full model is
            missing or has no positive score.
    """
    import pandas as pd

    frame = pd.read_parquet(path)
    columns = ["gamma", "eta", "score", "standard_error", "latency_ratio", "flops_ratio", "mean_log2_lengths"]
    missing = [column for column in [*columns, "dataset", "max_tokens"] if column not in frame]
    if missing:
        raise ValueError(f"{path} is no benchmark table: the columns {missing} are missing.")
    if frame["dataset"].nunique() != 1:
        raise ValueError(f"{path} must hold one dataset, got {frame['dataset'].nunique()}; write one file for each.")
    frame["schedule"] = [
        Schedule(tuple(map(int, row.gamma)), int(row.eta)) for row in frame[["gamma", "eta"]].itertuples()
    ]
    if frame["schedule"].duplicated().any():
        raise ValueError(f"{path} holds {frame['schedule'].duplicated().sum()} schedules twice; keep one row of each.")
    frame = frame.sort_values("schedule")
    space = TableSpace(frame["schedule"].tolist(), int(frame["max_tokens"].iloc[0]))
    full = frame[frame["schedule"] == space.full].iloc[0]
    if full["score"] <= 0:
        raise ValueError(f"the unreduced model of {path} scores {full['score']}; a share of it needs a positive score.")
    return TabularBenchmark(
        name=str(full["dataset"]),
        space=space,
        performance=(frame["score"] / full["score"]).to_numpy(float),
        standard_error=(frame["standard_error"] / full["score"]).to_numpy(float),
        latency=frame["latency_ratio"].to_numpy(float),
        flops=frame["flops_ratio"].to_numpy(float),
        lengths=np.stack(frame["mean_log2_lengths"].tolist()).astype(float),
    )


def analytic_benchmark(
    num_layers: int,
    loss_at_cap: float = 0.12,
    late_share: float = 0.3,
    interaction: float = 0.5,
    eta_gain: float = 0.1,
    deviation: float = 0.003,
    num_examples: int = 0,
    seed: int = 0,
) -> TabularBenchmark:
    """Make a table by formula: gamma from {1, 2, 4, 8}, eta from {0, 2}, 128 tokens, reduced at most 16 times.

    With d_l = log2(128 / n_l) of the n_l tokens that leave layer l, and weights w_l that sum to 1, fall linearly with
    depth and are each jittered by up to 50 % by `seed`:

        loss = loss_at_cap / 4 * (sum_l w_l d_l + interaction * sum_l w_l d_l^2 / 4) / (1 + interaction)

    so that 16 times fewer tokens from the first layer on cost `loss_at_cap`. Leading tokens (eta = 2) take off the
    share `eta_gain`. Performance is 1 - loss plus a deviation, normal and fixed for each schedule, which breaks
    monotonicity a little. Latency follows the operations of a BERT-base layer; 5 % of it are fixed.

    Args:
        num_layers: Number of blocks.
        loss_at_cap: Share of the score that the strongest reduction loses.
        late_share: Weight of the last layer relative to the first.
        interaction: How much the loss bends: 0 is linear in the logarithms.
        eta_gain: Share of the loss that leading tokens save.
        deviation: Standard deviation of what the formula misses, as a share of the full model's score.
        num_examples: Size of the split that a score comes from, whose paired binomial error is drawn by `seed` too;
            0 gives the exact performance.
        seed: Draws weights, deviations and errors.
    """
    everything = SearchSpace(num_layers, MAX_TOKENS, (1, 2, 4, 8), (0, 2), max_reduction=16).enumerate()
    space = TableSpace(everything, MAX_TOKENS)
    generator = np.random.default_rng(seed)
    log2_lengths = space.log2_lengths(everything, [MAX_TOKENS])
    drops = np.log2(MAX_TOKENS) - log2_lengths
    is_full = (drops == 0).all(axis=1)
    weights = np.linspace(1, late_share, num_layers - 1) * generator.uniform(0.5, 1.5, num_layers - 1)
    weights /= weights.sum()
    loss = loss_at_cap / 4 * (drops @ weights + interaction * (drops**2 @ weights) / 4) / (1 + interaction)
    loss *= np.where([schedule.eta > 0 for schedule in everything], 1 - eta_gain, 1.0)
    performance = 1 - loss + np.where(is_full, 0.0, generator.normal(0, deviation, len(everything)))
    # predictions that change sides: those that are lost, and as many again of each kind where nothing is lost
    disagreement = np.abs(1 - performance) + 0.02 * (1 - np.exp(-drops.sum(axis=1)))
    standard_error = np.sqrt(disagreement / num_examples) if num_examples else np.zeros(len(everything))
    performance = performance + generator.normal(size=len(everything)) * np.where(is_full, 0.0, standard_error)
    flops = _layer_flops(2**log2_lengths)
    flops /= flops[is_full]
    return TabularBenchmark(
        f"analytic, {num_layers} layers",
        space,
        performance,
        np.where(is_full, 0.0, standard_error),
        FIXED_SHARE + (1 - FIXED_SHARE) * flops,
        flops,
        log2_lengths,
    )


def _layer_flops(lengths: np.ndarray) -> np.ndarray:
    """Multiply-adds of all layers, (N,), from the tokens that leave all but the last, which computes position 0."""
    entering = np.column_stack([np.full(len(lengths), MAX_TOKENS), lengths])
    leaving = np.column_stack([lengths, np.ones(len(lengths))])
    keys = 2 * entering * HIDDEN_SIZE**2 + 2 * entering * leaving * HIDDEN_SIZE
    return (keys + leaving * (2 * HIDDEN_SIZE**2 + 2 * HIDDEN_SIZE * INTERMEDIATE_SIZE)).sum(axis=1)


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
    # so that half a censored value is not made up
    lower_median = partial(np.percentile, q=50, method="lower")
    is_one_table = tables is None or len(set(tables)) == 1
    units = np.arange(len(values)) if is_one_table else np.asarray(tables)
    groups = [values[units == unit] for unit in np.unique(units)]
    drawn = [
        lower_median(np.concatenate([groups[index] for index in generator.integers(len(groups), size=len(groups))]))
        for _ in range(num_resamples)
    ]
    low, high = np.percentile(drawn, [2.5, 97.5], method="nearest")
    numbers = {"median": lower_median(values), "low": low, "high": high}
    return {
        **{name: None if value > max_trials else float(value) for name, value in numbers.items()},
        "reached": float((values <= max_trials).mean()),
        "runs": len(values),
    }
