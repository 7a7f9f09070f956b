"""What to try next: Gaussian-process optimisation (thesis section 5.1.2) and the binary search of section 5.2.5.

Every sampler is asked for a schedule and told what came of it. What it proposes is a function of its seed and of what
it was told, so a resumed search, which is told its journal, proposes what the uninterrupted one would have.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from .space import Schedule, SearchSpace

# of a space that is too large to list; a listed one is ranked whole up to the second number
NUM_CANDIDATES, NUM_LISTED = 2000, 10_000


@dataclass(frozen=True)
class Observation:
    """What a sampler is told of a finished trial; a failed one has no numbers.

    Attributes:
        schedule: The canonical schedule.
        performance: Share of the full model's score.
        latency: Time, as in equation 5.4.
        reward: Equation 5.4 under the search's requirement.
        standard_error: Of `performance`, from predictions paired with the full model's; `None` where unknown.
    """

    schedule: Schedule
    performance: float | None = None
    latency: float | None = None
    reward: float | None = None
    standard_error: float | None = None

    @property
    def is_ok(self) -> bool:
        return self.reward is not None


class Sampler(ABC):
    """Proposes schedules; none that was told or is still pending is proposed again.

    Args:
        space: What is searched.
        seed: Makes the sampler reproducible.
    """

    def __init__(self, space: SearchSpace, seed: int = 42):
        self.space = space
        self.seed = seed
        self.observations: list[Observation] = []
        self.pending: list[Schedule] = []

    def ask(self) -> tuple[Schedule, str] | None:
        """Propose a schedule, which is pending from then on until it is told.

        Returns:
            The proposal and what made it, or `None` when there is nothing (yet) to try.
        """
        proposal = self.propose()
        if proposal is not None:
            self.pending.append(proposal[0])
        return proposal

    def tell(self, observation: Observation):
        """Take the result of a schedule, proposed by this sampler or not."""
        self.observations.append(observation)
        self.pending = [schedule for schedule in self.pending if schedule != observation.schedule]

    @property
    def taken(self) -> set[Schedule]:
        """What must not be proposed again."""
        return {observation.schedule for observation in self.observations} | set(self.pending)

    def rewards(self) -> list[tuple[Schedule, float]]:
        """List what was told with a number for everything: failed and pending trials count as the worst one seen.

        Taking the worst for a pending point (a constant liar, Ginsbourger et al. 2010) keeps parallel proposals apart.
        """
        worst = min((o.reward for o in self.observations if o.reward is not None), default=0.0)
        told = [(o.schedule, worst if o.reward is None else o.reward) for o in self.observations]
        return told + [(schedule, worst) for schedule in self.pending]

    @abstractmethod
    def propose(self) -> tuple[Schedule, str] | None:
        """Choose what comes next, given `observations` and `pending`."""


class GaussianProcessSampler(Sampler):
    """The search of the thesis: an initial set, then scikit-optimize's Gaussian process with expected improvement.

    Args:
        space: What is searched; its choices are ordered numbers to the process.
        max_trials: Planned number of trials; scales the initial set.
        initial_designs: "thesis": 10 seeded and 8 random schedules, scaled down so that at least half of the trials
            are proposed by the process; "random": as many, all random; "none": the process starts at once, from the
            unreduced model and one random schedule.
        seed: Makes the sampler reproducible.

    Raises:
        ValueError: `initial_designs` is none of the three.
    """

    def __init__(self, space: SearchSpace, max_trials: int, initial_designs: str = "thesis", seed: int = 42):
        super().__init__(space, seed)
        self.initial = self._initial_designs(initial_designs, max_trials)

    def _initial_designs(self, kind: str, max_trials: int) -> list[tuple[Schedule, str]]:
        if kind not in ("thesis", "random", "none"):
            raise ValueError(f'`initial_designs` must be "thesis", "random" or "none", got "{kind}".')
        num_initial = min(18, max_trials // 2) if kind != "none" else 2
        num_seeded = round(num_initial * 10 / 18) if kind == "thesis" else 1
        designs = {self.space.full: "reference"}
        # from a reduction near the output to one at the input
        for layer in np.linspace(self.space.num_layers - 2, 0, max(num_seeded - 1, 1)).round()[: num_seeded - 1]:
            if self.space.is_allowed(schedule := self.space.constrained(int(layer))):
                designs.setdefault(schedule, "seeded")
        generator = np.random.default_rng(self.seed)
        for _ in range(100 * num_initial):
            if len(designs) >= num_initial:
                break
            designs.setdefault(self.space.sample(generator), "random")
        return list(designs.items())

    def propose(self) -> tuple[Schedule, str] | None:
        seen = self.taken
        for schedule, origin in self.initial:
            if schedule not in seen:
                return schedule, origin
        return self._ask_process(self.rewards(), seen)

    def _draw_candidates(self, generator: np.random.Generator) -> set[Schedule]:
        if self.space.max_reduction is not None and len(everything := self.space.enumerate()) <= NUM_LISTED:
            return set(everything)
        return {self.space.sample(generator) for _ in range(NUM_CANDIDATES)}

    def _ask_process(self, observations: list[tuple[Schedule, float]], seen: set[Schedule]):
        import skopt
        from skopt.acquisition import gaussian_ei

        generator = np.random.default_rng([self.seed, len(observations)])
        pool = self._draw_candidates(generator)
        for schedule, _ in sorted(observations, key=lambda pair: -pair[1])[:3]:
            pool.update(self.space.neighbours(schedule))
        # sorted, because the order of a set differs between processes
        candidates = sorted(pool - seen)
        if not candidates:
            return None
        dimensions = [(0, len(self.space.gamma_options) - 1)] * self.space.num_layers
        dimensions.append((0, len(self.space.eta_options) - 1) if len(self.space.eta_options) > 1 else (0, 1))
        optimizer = skopt.Optimizer(
            dimensions,
            base_estimator="GP",
            n_initial_points=0,
            acq_func="EI",
            acq_optimizer="sampling",
            acq_optimizer_kwargs={"n_points": 10},
            random_state=self.seed + len(observations),
        )
        costs = [-reward for _, reward in observations]
        optimizer.tell([self.space.encode(schedule) for schedule, _ in observations], costs)
        # scikit-optimize's own proposal may repeat a point, so its process and acquisition rank the unseen ones
        points = optimizer.space.transform([self.space.encode(schedule) for schedule in candidates])
        improvement = gaussian_ei(points, optimizer.models[-1], y_opt=min(costs))
        return candidates[int(np.argmax(improvement))], "model"


class BinarySearchSampler(Sampler):
    """The constrained one-parameter search of section 5.2.5: the earliest first reduction that is good enough.

    Speed and performance are taken to be monotone in the first reduced layer, so a bisection finds it. It is
    sequential: while a proposal is pending there is none other.

    Args:
        space: What is searched.
        required: The share of the full model's performance that is asked; rewards at or above it are feasible.
    """

    def __init__(self, space: SearchSpace, required: float):
        super().__init__(space)
        self.required = required

    def propose(self) -> tuple[Schedule, str] | None:
        if self.pending:
            return None
        rewards = dict(self.rewards())
        if self.space.full not in rewards:
            return self.space.full, "reference"
        low, high = 0, self.space.num_layers  # high is feasible, what is below low is not
        while low < high:
            middle = (low + high) // 2
            schedule = self.space.constrained(middle)
            if schedule not in rewards:
                return schedule, "binary"
            if rewards[schedule] >= self.required:
                high = middle
            else:
                low = middle + 1
        return None
