"""Search strategies by name, as a command line has them."""

from collections.abc import Mapping, Sequence

from .samplers import BinarySearchSampler, GaussianProcessSampler, Sampler
from .space import Schedule, SearchSpace

STRATEGIES = ("constrained", "thesis", "tpe", "gp", "random", "evolution", "binary")
# these come from the thesis, whose every trial is a fine-tuning
THESIS_STRATEGIES = ("thesis", "binary")


def build_sampler(
    strategy: str,
    space: SearchSpace,
    required_performance: float,
    max_trials: int,
    seed: int = 42,
    initial_designs: str = "thesis",
    milliseconds: Mapping[Schedule, float] | None = None,
    lengths: Sequence[int] = (),
) -> Sampler:
    """Build the sampler of a strategy.

    Args:
        strategy: One of `STRATEGIES`.
        space: What is searched.
        required_performance: Share of the full model's score that is asked.
        max_trials: Planned number of trials.
        seed: Makes it reproducible.
        initial_designs: First trials of "thesis".
        milliseconds: Known latency of every schedule; "constrained" needs it.
        lengths: Token lengths that stand for the dataset; "constrained" needs them.

    Raises:
        ValueError: There is no such strategy.
    """
    if strategy == "constrained":
        from .constrained import ConstrainedSampler

        if milliseconds is None:
            raise ValueError('the strategy "constrained" needs the latency of every schedule: give a latency table.')
        schedules = list(milliseconds)
        features = dict(zip(schedules, space.log2_lengths(schedules, lengths), strict=True))
        return ConstrainedSampler(space, milliseconds, features, required_performance, seed)
    if strategy == "thesis":
        return GaussianProcessSampler(space, max_trials, initial_designs, seed)
    if strategy == "binary":
        return BinarySearchSampler(space, required_performance)
    from .baselines import EvolutionSampler, OptunaSampler, RandomSampler

    if strategy in ("tpe", "gp"):
        return OptunaSampler(space, strategy, seed)
    if strategy == "random":
        return RandomSampler(space, seed)
    if strategy == "evolution":
        return EvolutionSampler(space, seed)
    raise ValueError(f"there is no strategy {strategy!r}; choose one of {', '.join(STRATEGIES)}.")
