"""What to try next: Gaussian-process optimisation (thesis section 5.1.2) and the binary search of section 5.2.5.

A sampler is a function of what was seen and of its seed; it keeps no state. A resumed search therefore proposes what
the uninterrupted one would have.
"""

from typing import Protocol

import numpy as np

from .space import Schedule, SearchSpace

Observations = list[tuple[Schedule, float]]
NUM_CANDIDATES = 2000


class Sampler(Protocol):
    def ask(self, observations: Observations) -> tuple[Schedule, str] | None:
        """Propose a schedule that was not observed.

        Args:
            observations: Canonical schedules with their rewards, oldest first.

        Returns:
            The proposal and what made it, or `None` when there is nothing left to try.
        """


class GaussianProcessSampler:
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
        self.space = space
        self.seed = seed
        self.initial = self._initial_designs(initial_designs, max_trials)

    def _initial_designs(self, kind: str, max_trials: int) -> list[tuple[Schedule, str]]:
        if kind not in ("thesis", "random", "none"):
            raise ValueError(f'`initial_designs` must be "thesis", "random" or "none", got "{kind}".')
        num_initial = min(18, max_trials // 2) if kind != "none" else 2
        num_seeded = round(num_initial * 10 / 18) if kind == "thesis" else 1
        designs = {self.space.full: "reference"}
        # from a reduction near the output to one at the input
        for layer in np.linspace(self.space.num_layers - 2, 0, max(num_seeded - 1, 1)).round()[: num_seeded - 1]:
            designs.setdefault(self.space.constrained(int(layer)), "seeded")
        generator = np.random.default_rng(self.seed)
        for _ in range(100 * num_initial):
            if len(designs) >= num_initial:
                break
            designs.setdefault(self.space.sample(generator), "random")
        return list(designs.items())

    def ask(self, observations: Observations) -> tuple[Schedule, str] | None:
        seen = {schedule for schedule, _ in observations}
        for schedule, origin in self.initial:
            if schedule not in seen:
                return schedule, origin
        return self._propose(observations, seen)

    def _propose(self, observations: Observations, seen: set[Schedule]) -> tuple[Schedule, str] | None:
        import skopt
        from skopt.acquisition import gaussian_ei

        generator = np.random.default_rng([self.seed, len(observations)])
        pool = {self.space.sample(generator) for _ in range(NUM_CANDIDATES)}
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


class BinarySearchSampler:
    """The constrained one-parameter search of section 5.2.5: the earliest first reduction that is good enough.

    Speed and performance are taken to be monotone in the first reduced layer, so a bisection finds it.

    Args:
        space: What is searched.
        required: The share of the full model's performance that is asked; rewards at or above it are feasible.
    """

    def __init__(self, space: SearchSpace, required: float):
        self.space = space
        self.required = required

    def ask(self, observations: Observations) -> tuple[Schedule, str] | None:
        rewards = dict(observations)
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
