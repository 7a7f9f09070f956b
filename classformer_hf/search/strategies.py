"""Search strategies by name, as a command line has them."""

from typing import get_args

from ..latency import LatencyTable
from .constrained import ConstrainedSampler, KnownCosts
from .samplers import (
    BinarySearchSampler,
    EvolutionSampler,
    GaussianProcessSampler,
    OptunaSampler,
    RandomSampler,
    Sampler,
)
from .settings import Strategy
from .space import SearchSpace
from .supernet import mean_flops
from .target import LatencyMeter

STRATEGIES = get_args(Strategy)


def build_sampler(
    strategy: str,
    space: SearchSpace,
    required_performance: float,
    max_trials: int,
    seed: int = 42,
    initial_designs: str = "thesis",
    known: KnownCosts | None = None,
) -> Sampler:
    """Build the sampler of a strategy.

    Raises:
        ValueError: There is no such strategy, or what it needs is missing.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"there is no strategy {strategy!r}; choose one of {', '.join(STRATEGIES)}.")
    if strategy == "constrained":
        if known is None:
            raise ValueError('the strategy "constrained" needs the latency of every schedule: give a latency table.')
        return ConstrainedSampler(space, known, required_performance, seed)
    if strategy == "thesis":
        return GaussianProcessSampler(space, max_trials, initial_designs, seed)
    if strategy == "binary":
        return BinarySearchSampler(space, required_performance)
    if strategy in ("tpe", "gp"):
        return OptunaSampler(space, strategy, seed)
    return (RandomSampler if strategy == "random" else EvolutionSampler)(space, seed)


def list_known_costs(meter: LatencyMeter, space: SearchSpace, table: LatencyTable) -> KnownCosts:
    """Predict for every schedule of a space, on the meter's input lengths, what needs no evaluation."""
    schedules, lengths = space.enumerate(), meter.lengths
    flops = mean_flops(meter.config, schedules, lengths)
    columns = table.predict_many(schedules, lengths), space.log2_lengths(schedules, lengths), flops / flops.max()
    return KnownCosts(*(dict(zip(schedules, column, strict=True)) for column in columns))
