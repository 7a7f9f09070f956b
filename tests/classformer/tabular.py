"""A table of every schedule of a space by formula, on which samplers search without a model."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from classformer_hf.search import Schedule, SearchSpace, reward
from classformer_hf.search.constrained import KnownCosts
from classformer_hf.search.samplers import Observation

# a BERT-base layer on 128 tokens, a budget of work that no reduction touches
HIDDEN_SIZE, INTERMEDIATE_SIZE, MAX_TOKENS, FIXED_SHARE = 768, 3072, 128, 0.05
# what 16 times fewer tokens from the first layer on lose, and what leading tokens save of it
LOSS_AT_CAP, ETA_GAIN = 0.12, 0.1


@dataclass(frozen=True)
class TabularBenchmark:
    """A table of schedules, in the order in which their space lists them.

    Attributes:
        space: Its schedules.
        performance: Share of the full model's score, (N,).
        latency: Relative to the full model, (N,).
        flops: Relative to the full model, (N,).
        lengths: Log2 length of every layer but the last, (N, L - 1).
    """

    space: SearchSpace
    performance: np.ndarray
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
        columns = (self.latency.tolist(), self.lengths.tolist(), self.flops.tolist())
        return KnownCosts(*(dict(zip(self.row, column, strict=True)) for column in columns))

    def observe(self, schedule: Schedule, required: float) -> Observation:
        """Look up what an evaluation would give."""
        index = self.row[schedule]
        performance, latency = float(self.performance[index]), float(self.latency[index])
        return Observation(schedule, performance, latency, reward(performance, required, latency), 0.0)

    def best_speedup(self, required: float) -> float:
        """Speed-up over the full model of the fastest schedule that is good enough."""
        return float(1 / self.latency[self.performance >= required].min())


def analytic_benchmark(num_layers: int, deviation: float = 0.003, seed: int = 0) -> TabularBenchmark:
    """Make a table by formula: gamma from {1, 2, 4, 8}, eta from {0, 2}, 128 tokens, reduced at most 16 times.

    With d_l = log2(128 / n_l) of the n_l tokens that leave layer l, and weights w_l that sum to 1, fall linearly with
    depth and are each jittered by up to 50 % by `seed`:

        loss = LOSS_AT_CAP / 4 * (sum_l w_l d_l + sum_l w_l d_l^2 / 8) / 1.5

    Performance is 1 - loss plus a deviation, normal and fixed for each schedule, which breaks monotonicity a little.
    Latency follows the operations.

    Args:
        num_layers: Number of blocks.
        deviation: Standard deviation of what the formula misses, as a share of the full model's score.
        seed: Draws weights and deviations.
    """
    space = SearchSpace(num_layers, MAX_TOKENS, (1, 2, 4, 8), (0, 2), max_reduction=16)
    schedules, generator = space.enumerate(), np.random.default_rng(seed)
    log2_lengths = space.log2_lengths(schedules, [MAX_TOKENS])
    drops = np.log2(MAX_TOKENS) - log2_lengths
    is_full = (drops == 0).all(axis=1)
    weights = np.linspace(1, 0.3, num_layers - 1) * generator.uniform(0.5, 1.5, num_layers - 1)
    weights /= weights.sum()
    loss = LOSS_AT_CAP / 4 * (drops @ weights + drops**2 @ weights / 8) / 1.5
    loss *= np.where([schedule.eta > 0 for schedule in schedules], 1 - ETA_GAIN, 1.0)
    performance = 1 - loss + np.where(is_full, 0.0, generator.normal(0, deviation, len(schedules)))
    flops = _layer_flops(2**log2_lengths)
    flops /= flops[is_full]
    return TabularBenchmark(space, performance, FIXED_SHARE + (1 - FIXED_SHARE) * flops, flops, log2_lengths)


def _layer_flops(lengths: np.ndarray) -> np.ndarray:
    """Multiply-adds of all layers, (N,), from the tokens that leave all but the last, which computes position 0."""
    entering = np.column_stack([np.full(len(lengths), MAX_TOKENS), lengths])
    leaving = np.column_stack([lengths, np.ones(len(lengths))])
    keys = 2 * entering * HIDDEN_SIZE**2 + 2 * entering * leaving * HIDDEN_SIZE
    return (keys + leaving * (2 * HIDDEN_SIZE**2 + 2 * HIDDEN_SIZE * INTERMEDIATE_SIZE)).sum(axis=1)
