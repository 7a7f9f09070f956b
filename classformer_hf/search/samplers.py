"""What to try next: the thesis' Gaussian process (section 5.1.2) and binary search (5.2.5), and others beside them.

Every sampler is asked for a schedule and told what came of it. What it proposes is a function of its seed and of what
it was told, so a resumed search, which is told its journal, proposes what the uninterrupted one would have. The
samplers to compare with (uniform draws, evolution, Optuna's) list the allowed schedules first.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .space import Schedule, SearchSpace

if TYPE_CHECKING:
    import optuna

# of a space that is too large to list; a listed one is ranked whole up to the second number
NUM_CANDIDATES, NUM_LISTED = 2000, 10_000
# of the evolution
POPULATION_SIZE, MUTATION_RATE, NUM_TRIES = 10, 0.3, 100
# random trials before Optuna is asked
NUM_STARTUP = {"tpe": 10, "gp": 2}


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
        self.space, self.seed = space, seed
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
        optimizer = skopt.Optimizer(
            # one option is too few for a dimension
            [(0, max(size - 1, 1)) for size in self.space.sizes],
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


class ListedSampler(Sampler):
    """A sampler that chooses among the listed schedules of its space."""

    def __init__(self, space: SearchSpace, seed: int = 42):
        super().__init__(space, seed)
        self.everything = space.enumerate()

    def unseen(self) -> list[Schedule]:
        """List what may be proposed, in the order of the space."""
        taken = self.taken
        return [schedule for schedule in self.everything if schedule not in taken]

    def generator(self) -> np.random.Generator:
        return np.random.default_rng([self.seed, len(self.taken)])


class RandomSampler(ListedSampler):
    """Draws uniformly from the allowed canonical schedules that are not taken, not from the choices behind them."""

    def propose(self) -> tuple[Schedule, str] | None:
        return _draw(self.unseen(), self.generator())


class EvolutionSampler(ListedSampler):
    """Evolution over the choices, elitist: the parents are the ten best by reward of everything that was told.

    As in HAT (Wang et al. 2020) and Length-Adaptive Transformer (Kim and Cho 2021), a child is a mutated parent, whose
    choices each change with probability 0.3, or takes each choice from one of two parents; both are as likely. The
    first ten are random. A child that is taken or not allowed is drawn again; after 100 tries an unseen schedule is
    drawn instead, so that the search ends only when nothing is left.
    """

    def propose(self) -> tuple[Schedule, str] | None:
        unseen, generator = self.unseen(), self.generator()
        if len(self.observations) + len(self.pending) < POPULATION_SIZE:
            return _draw(unseen, generator)
        # failed trials are told as the worst; the sort keeps the order of the trials where rewards are equal
        told = sorted(self.rewards(), key=lambda pair: -pair[1])[:POPULATION_SIZE]
        parents = [np.array(self.space.encode(schedule)) for schedule, _ in told]
        allowed = set(unseen)
        for _ in range(NUM_TRIES if unseen else 0):
            child = self.space.decode(self._breed(parents, generator))
            if child in allowed:
                return child, "evolution"
        return _draw(unseen, generator)

    def _breed(self, parents: list[np.ndarray], generator: np.random.Generator) -> np.ndarray:
        first, second = (parents[generator.integers(len(parents))] for _ in range(2))
        if generator.random() < 0.5:
            return np.where(generator.random(len(first)) < 0.5, first, second)
        drawn = generator.integers(self.space.sizes)
        return np.where(generator.random(len(first)) < MUTATION_RATE, drawn, first)


class OptunaSampler(ListedSampler):
    """Optuna's TPE (multivariate) or Gaussian process on ordinal choices, maximising the reward.

    Every proposal builds a new study from what was told, so nothing is kept in a database; failed trials are told as
    failed, pending ones as running, which TPE counts as bad (a constant liar) and the Gaussian process integrates out.
    Optuna may propose what is taken or not allowed: the nearest unseen schedule then takes its place (fewest steps of
    the ordinal choices, drawn among equals). The startup trials are uniform over the canonical schedules, because few
    of Optuna's own would be allowed.

    Args:
        space: What is searched.
        kind: "tpe" or "gp".
        seed: Makes the sampler reproducible.
        num_startup: Random trials before the model is asked; by default 10 for TPE, as Optuna has it, and 2 for the
            process.

    Raises:
        ValueError: The kind is neither of the two.
        ImportError: Optuna is not installed.
    """

    def __init__(self, space: SearchSpace, kind: str = "tpe", seed: int = 42, num_startup: int | None = None):
        if kind not in NUM_STARTUP:
            raise ValueError(f'`kind` must be "tpe" or "gp", got "{kind}".')
        try:
            import optuna  # noqa: F401
        except ImportError as error:
            raise ImportError(
                "this sampler needs Optuna, which is not installed; run pip install 'redundancy-hf[optuna]'."
            ) from error
        super().__init__(space, seed)
        self.kind = kind
        self.num_startup = NUM_STARTUP[kind] if num_startup is None else num_startup
        self._codes = np.array([space.encode(schedule) for schedule in self.everything])

    def propose(self) -> tuple[Schedule, str] | None:
        unseen, generator = self.unseen(), self.generator()
        # the unreduced model says nothing about where to go, and is told for free
        num_known = sum(o.is_ok for o in self.observations)
        if not unseen or num_known < max(self.num_startup, 1):
            return _draw(unseen, generator)
        proposal = self._ask_optuna(int(generator.integers(2**31)))
        if proposal in set(unseen):
            return proposal, self.kind
        return self._nearest(proposal, unseen, generator), f"{self.kind}, nearest unseen"

    def _ask_optuna(self, seed: int) -> Schedule:
        import optuna

        distributions: dict[str, optuna.distributions.BaseDistribution] = {
            f"choice_{index}": optuna.distributions.IntDistribution(0, size - 1)
            for index, size in enumerate(self.space.sizes)
            if size > 1
        }
        with _quiet_optuna():
            if self.kind == "gp":
                sampler: Any = optuna.samplers.GPSampler(seed=seed, n_startup_trials=0)
            else:
                sampler = optuna.samplers.TPESampler(
                    seed=seed, n_startup_trials=0, multivariate=True, constant_liar=True
                )
            study = optuna.create_study(direction="maximize", sampler=sampler)
            for trial in self._told_trials(distributions):
                study.add_trial(trial)
            chosen = study.ask(distributions).params
        return self.space.decode(chosen.get(f"choice_{i}", 0) for i in range(self.space.num_layers + 1))

    def _told_trials(self, distributions: dict[str, Any]) -> list["optuna.trial.FrozenTrial"]:
        from optuna.trial import TrialState, create_trial

        def describe(schedule: Schedule, value: float | None, state: TrialState) -> "optuna.trial.FrozenTrial":
            named = {f"choice_{i}": choice for i, choice in enumerate(self.space.encode(schedule))}
            params = {name: choice for name, choice in named.items() if name in distributions}
            return create_trial(state=state, value=value, params=params, distributions=distributions)

        told = [
            describe(o.schedule, o.reward, TrialState.COMPLETE if o.is_ok else TrialState.FAIL)
            for o in self.observations
        ]
        return told + [describe(schedule, None, TrialState.RUNNING) for schedule in self.pending]

    def _nearest(self, proposal: Schedule, unseen: list[Schedule], generator: np.random.Generator) -> Schedule:
        wanted, is_unseen = np.array(self.space.encode(proposal)), set(unseen)
        rows = [index for index, schedule in enumerate(self.everything) if schedule in is_unseen]
        steps = np.abs(self._codes[rows] - wanted).sum(axis=1)
        return self.everything[rows[int(generator.choice(np.flatnonzero(steps == steps.min())))]]


def _draw(schedules: list[Schedule], generator: np.random.Generator) -> tuple[Schedule, str] | None:
    return (schedules[int(generator.integers(len(schedules)))], "random") if schedules else None


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Keep Optuna's report of every new study, and its notes on experimental options, off the terminal."""
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)
