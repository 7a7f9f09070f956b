"""Constrained search over every schedule: latency is known, only performance is uncertain.

Equation 5.4 makes a surrogate fit a cliff. Here the surrogate fits the smooth performance, and a proposal maximises the
expected feasible improvement (Gardner et al. 2014, "Bayesian optimization with inequality constraints"), which is exact
because the latency of every schedule is known. Letters: N schedules, L layers, M observations.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .samplers import Observation, Sampler
from .space import Schedule, SearchSpace

# shares of the full model's score: the least error of a measurement, and what the prior mean is trusted to
SMALLEST_ERROR, PRIOR_ERROR = 0.001, 0.003
# standard errors: of a difference that breaks monotonicity, and below the requirement to prune what is shorter
SIGNIFICANT, CLEARLY_INFEASIBLE = 2.0, 2.5
LARGEST_VIOLATION_RATE = 0.05
# below so many observations the process keeps its first guess of its parameters, and proposals are drawn
NUM_TO_FIT = 4
# of the first guess of the slopes, relative to an observation
GUESS_WEIGHT = 0.1
TOLERANCE = 1e-9


@dataclass(frozen=True)
class KnownCosts:
    """What is known of every schedule before it is evaluated.

    Attributes:
        latency: Of a text, in any unit.
        features: Mean log2 length of every layer over the dataset.
        flops: Operations relative to the full model's: what an evaluation costs.
    """

    latency: Mapping[Schedule, float]
    features: Mapping[Schedule, Sequence[float]]
    flops: Mapping[Schedule, float]


@dataclass(frozen=True)
class MonotonicityAudit:
    """How often a shorter schedule was significantly better than a longer one.

    Attributes:
        pairs: P pairs (shorter, longer) of which one has no layer longer than the other has.
        halvings: How much shorter, summed over the layers, (P,).
        gains: How much higher the shorter one scores, in standard errors, (P,).
    """

    pairs: list[tuple[Schedule, Schedule]]
    halvings: np.ndarray
    gains: np.ndarray

    @property
    def violations(self) -> list[tuple[Schedule, Schedule]]:
        """Pairs in which the shorter one scores higher by more than 2 standard errors."""
        return [pair for pair, gain in zip(self.pairs, self.gains, strict=True) if gain > SIGNIFICANT]

    @property
    def rate(self) -> float:
        """Share of the comparable pairs."""
        return len(self.violations) / len(self.pairs) if self.pairs else 0.0


def audit_monotonicity(
    observations: Iterable[Observation], features: Mapping[Schedule, Sequence[float]]
) -> MonotonicityAudit:
    """Check on measured schedules that fewer tokens never score better.

    Args:
        observations: Finished trials; failed ones and those without features are left out.
        features: Mean log2 length of every layer.
    """
    known = [o for o in observations if o.performance is not None and o.schedule in features]
    lengths = np.array([features[o.schedule] for o in known], float)
    performance = np.array([o.performance for o in known], float)
    errors = np.array([_error_of(o) for o in known])
    shorter, longer = np.nonzero(is_shorter(lengths[:, None], lengths[None])) if known else np.zeros((2, 0), int)
    return MonotonicityAudit(
        [(known[one].schedule, known[other].schedule) for one, other in zip(shorter, longer, strict=True)],
        (lengths[longer] - lengths[shorter]).sum(axis=-1),
        (performance[shorter] - performance[longer]) / np.hypot(errors[shorter], errors[longer]),
    )


def is_shorter(lengths: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Say for lengths, (..., L), whether no layer is longer than the others' and one is shorter, (...)."""
    difference = np.asarray(others) - lengths
    return (difference >= -TOLERANCE).all(axis=-1) & (difference > TOLERANCE).any(axis=-1)


class ConstrainedSampler(Sampler):
    """Proposes the schedule with the largest gain in latency times the chance that it is good enough, by cost.

    Performance is a monotone prior mean plus a Gaussian process. The prior mean is 1 minus slopes times the log2
    reduction of every layer; the slopes are not negative, and lean on a common one until the observations tell them
    apart. The process (Matern 5/2 with one length scale, and a nugget for what no neighbour foretells) is fitted to the
    rest, with the observations' own errors. Its inputs are the log2 reductions and log2(1 + eta).

    A schedule that is clearly not good enough (by 2.5 of its errors, nugget included) rules out every schedule with no
    longer layer, unless more than 5 % of the comparable observations contradict monotonicity. One that is good enough
    rules out everything not faster. Pending schedules are believed to score their prediction (kriging believer,
    Ginsbourger et al. 2010). The end (`None`) comes only when every faster schedule is taken or ruled out; believing a
    pending one may bring it early, until that one is told.

    Until four schedules are known, a proposal is drawn among those at least half as promising as the best, because the
    prior is a guess; from then on it is the best.

    Args:
        space: What is searched; the unreduced model is proposed first.
        known: Latency, features and cost of every schedule that may be proposed.
        required: Share of the full model's performance that is asked.
        seed: Of the first proposals.

    Raises:
        ValueError: A schedule with a latency has no features or no cost, or the unreduced model has no latency.
    """

    def __init__(
        self,
        space: SearchSpace,
        known: KnownCosts,
        required: float,
        seed: int = 42,
    ):
        super().__init__(space, seed)
        self.schedules = sorted(known.latency)
        if space.full not in known.latency:
            raise ValueError(f"the unreduced model {space.full.key} has no latency; time it with the others.")
        for name, values in (("features", known.features), ("flops", known.flops)):
            missing = [schedule.key for schedule in self.schedules if schedule not in values]
            if missing:
                raise ValueError(f"{len(missing)} schedules with a latency have no {name}, {missing[0]} among them.")
        self.required = required
        self.features = known.features
        self.latency = np.array([known.latency[schedule] for schedule in self.schedules], float)
        self.cost = np.array([known.flops[schedule] for schedule in self.schedules], float)
        self.lengths = np.array([known.features[schedule] for schedule in self.schedules], float)
        self._row = {schedule: row for row, schedule in enumerate(self.schedules)}
        self._full = self._row[space.full]
        eta = np.array([schedule.eta for schedule in self.schedules], float)
        self.model = PerformanceModel(self.lengths[self._full] - self.lengths, eta, required)

    def audit(self) -> MonotonicityAudit:
        """Check the observations so far; above 5 % of violations nothing is ruled out by monotonicity."""
        return audit_monotonicity(self.observations, self.features)

    def propose(self) -> tuple[Schedule, str] | None:
        from scipy.stats import norm

        if self.space.full not in self.taken:
            return self.space.full, "reference"
        # the unreduced model is all of itself; once it is told, that stands here
        known = {self._full: (1.0, SMALLEST_ERROR)}
        known |= {self._row[o.schedule]: (performance, _error_of(o)) for o, performance in self._usable()}
        self.model.fit(known)
        pending = [self._row[schedule] for schedule in self.pending if schedule in self._row]
        if unknown := [row for row in pending if row not in known]:
            believed, _ = self.model.predict(np.array(unknown))
            known |= {row: (value, SMALLEST_ERROR) for row, value in zip(unknown, believed, strict=True)}
            self.model.fit(known, keep_parameters=True)
        is_enough = [row == self._full or value >= self.required for row, (value, _) in known.items()]
        fastest = float(self.latency[list(known)][is_enough].min())
        candidates = self._candidates(fastest)
        if not len(candidates):
            return None
        mean, deviation = self.model.predict(candidates)
        gain = (fastest - self.latency[candidates]) * norm.cdf((mean - self.required) / deviation)
        value = gain / self.cost[candidates]
        chosen = int(np.argmax(value))
        if len(known) < NUM_TO_FIT:
            promising = np.flatnonzero(value >= value[chosen] / 2)
            chosen = int(np.random.default_rng([self.seed, len(self.taken)]).choice(promising))
        return self.schedules[candidates[chosen]], "model"

    def _usable(self) -> list[tuple[Observation, float]]:
        """List the finished observations of listed schedules with their performance."""
        told = [(o, o.performance) for o in self.observations if o.schedule in self._row]
        return [(o, performance) for o, performance in told if performance is not None]

    def _candidates(self, fastest: float) -> np.ndarray:
        """List the rows that are neither taken nor ruled out, given the latency of the fastest that is good enough."""
        is_open = self.latency < fastest
        is_open[[self._row[schedule] for schedule in self.taken if schedule in self._row]] = False
        if self.audit().rate <= LARGEST_VIOLATION_RATE:
            for observation, performance in self._usable():
                margin = CLEARLY_INFEASIBLE * np.hypot(_error_of(observation), self.model.nugget)
                if performance < self.required - margin:
                    is_open &= ~is_shorter(self.lengths, self.lengths[self._row[observation.schedule]])
        return np.flatnonzero(is_open)


class PerformanceModel:
    """A monotone prior mean and a Gaussian process on what it leaves.

    Args:
        drops: Mean log2 reduction of every layer, (N, L).
        eta: Leading tokens that stay, (N,).
        required: Share of the full model's performance that is asked; before anything is known, half of the schedules
            are taken to have it.

    Attributes:
        slopes: Performance lost by a halving of each layer's tokens, (L,), not negative.
        nugget: Standard deviation of what no neighbour foretells.
    """

    def __init__(self, drops: np.ndarray, eta: np.ndarray, required: float):
        self.drops = np.maximum(drops, 0.0)
        self.inputs = np.column_stack([self.drops, 2 * np.log2(1 + eta) / np.log2(2 + eta.max())])
        self.guess = (np.median(self.drops.sum(axis=1)), max(1 - required, 0.01))
        self.slopes = np.zeros(drops.shape[1])
        self.nugget = PRIOR_ERROR
        self._kernel: Any = None
        self._process: Any = None

    def fit(self, known: Mapping[int, tuple[float, float]], keep_parameters: bool = False):
        """Fit to performances and their standard errors by row; optionally with the kernel of the last fit."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

        rows = np.array(list(known))
        performance, errors = np.array(list(known.values()), float).T
        if not keep_parameters:
            self.slopes = self._fit_slopes(self.drops[rows], 1 - performance, np.maximum(errors, PRIOR_ERROR))
            smooth = ConstantKernel(1e-4, (1e-6, 1e-1)) * Matern(3.0, (0.5, 30.0), nu=2.5)
            self._kernel = smooth + WhiteKernel(PRIOR_ERROR**2, (1e-7, 1e-3))
        optimizer = "fmin_l_bfgs_b" if len(rows) >= NUM_TO_FIT and not keep_parameters else None
        self._process = GaussianProcessRegressor(self._kernel, alpha=errors**2, optimizer=optimizer)
        with warnings.catch_warnings():
            # a parameter at its bound is no fault with few observations
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._process.fit(self.inputs[rows], performance - self._prior(rows))
        self._kernel = self._process.kernel_
        self.nugget = float(np.sqrt(self._kernel.k2.noise_level))

    def predict(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Give the mean and the standard deviation, nugget included, of the performance of rows."""
        mean, deviation = self._process.predict(self.inputs[rows], return_std=True)
        return self._prior(rows) + mean, deviation

    def _prior(self, rows: np.ndarray) -> np.ndarray:
        return 1 - self.drops[rows] @ self.slopes

    def _fit_slopes(self, drops: np.ndarray, loss: np.ndarray, errors: np.ndarray) -> np.ndarray:
        """Fit slopes by non-negative least squares with a ridge towards one common slope; drops are (M, L)."""
        from scipy.optimize import nnls

        # the common slope comes from the observations and, weakly, from the first guess
        total = np.append(drops.sum(axis=1), self.guess[0])
        weights = np.append(1 / errors, GUESS_WEIGHT / PRIOR_ERROR) ** 2
        common = max(np.sum(weights * total * np.append(loss, self.guess[1])) / np.sum(weights * total**2), TOLERANCE)
        # each slope is itself uncertain by as much as the common one
        ridge = np.eye(drops.shape[1]) / common
        return nnls(np.vstack([drops / errors[:, None], ridge]), np.append(loss / errors, np.ones(len(ridge))))[0]


def _error_of(observation: Observation) -> float:
    return max(observation.standard_error or 0.0, SMALLEST_ERROR)
