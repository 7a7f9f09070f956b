"""Samplers to compare with: uniform draws, evolution, and Optuna's TPE and Gaussian process.

All of them list the allowed canonical schedules first, so that nothing is proposed twice and the end is known. Their
randomness depends on the seed and on how much is taken, not on a state, so a resumed search proposes the same.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from .samplers import Sampler
from .space import Schedule, SearchSpace

if TYPE_CHECKING:
    import optuna

POPULATION_SIZE = 10
MUTATION_RATE = 0.3
NUM_TRIES = 100
NUM_STARTUP = {"tpe": 10, "gp": 2}


class ListedSampler(Sampler):
    """A sampler that chooses among the listed schedules of its space.

    Args:
        space: What is searched; `enumerate` says what is refused.
        seed: Makes the sampler reproducible.
    """

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
        drawn = generator.integers(_num_options(self.space))
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
            for index, size in enumerate(_num_options(self.space))
            if size > 1
        }
        with _quiet_optuna():
            study = optuna.create_study(direction="maximize", sampler=self._build_sampler(seed))
            for trial in self._told_trials(distributions):
                study.add_trial(trial)
            chosen = study.ask(distributions).params
        return self.space.decode(chosen.get(f"choice_{i}", 0) for i in range(self.space.num_layers + 1))

    def _build_sampler(self, seed: int) -> "optuna.samplers.BaseSampler":
        import optuna

        if self.kind == "gp":
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=0)
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=0, multivariate=True, constant_liar=True)

    def _told_trials(self, distributions: dict[str, Any]) -> list["optuna.trial.FrozenTrial"]:
        from optuna.trial import TrialState, create_trial

        told = [(o.schedule, o.reward, TrialState.COMPLETE if o.is_ok else TrialState.FAIL) for o in self.observations]
        told += [(schedule, None, TrialState.RUNNING) for schedule in self.pending]
        trials = []
        for schedule, value, state in told:
            choices = enumerate(self.space.encode(schedule))
            params = {f"choice_{i}": choice for i, choice in choices if f"choice_{i}" in distributions}
            trials.append(create_trial(state=state, value=value, params=params, distributions=distributions))
        return trials

    def _nearest(self, proposal: Schedule, unseen: list[Schedule], generator: np.random.Generator) -> Schedule:
        wanted, is_unseen = np.array(self.space.encode(proposal)), set(unseen)
        rows = [index for index, schedule in enumerate(self.everything) if schedule in is_unseen]
        steps = np.abs(self._codes[rows] - wanted).sum(axis=1)
        return self.everything[rows[int(generator.choice(np.flatnonzero(steps == steps.min())))]]


def _draw(schedules: list[Schedule], generator: np.random.Generator) -> tuple[Schedule, str] | None:
    return (schedules[int(generator.integers(len(schedules)))], "random") if schedules else None


def _num_options(space: SearchSpace) -> list[int]:
    return [len(space.gamma_options)] * space.num_layers + [len(space.eta_options)]


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
