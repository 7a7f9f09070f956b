"""Paired test of "the candidate's score is at most a share r of the full model's" for scores made of counts.

F1 and Matthews correlation are functions of sums over examples: how often each class was predicted, was right and was
true. Let T be the candidate's score minus r times the full model's. The p-value is the probability of a T at least as
large as the one seen where T is exactly 0, that is on the hypothesis' boundary: not the bootstrap from the examples as
they are, but from the nearest distribution that satisfies the hypothesis. It is found by exponential tilting,
weights p_i exp(l U_i) with U_i the influence of example i on T and l such that T = 0 (Efron 1981, Canadian Journal of
Statistics 9, "Nonparametric standard errors and confidence intervals", section 11; second-order correct: DiCiccio and
Romano 1990, International Statistical Review 58, "Nonparametric confidence limits by resampling methods and least
favorable families"). One set of resamples, from the untilted weights, answers every r by importance sampling, so that
small p-values are as exact as large ones; the examples seen count as one more resample, which makes the estimate a
p-value for any number of resamples (Harrison 2012, Biometrika 99, "Conservative hypothesis tests and confidence
intervals using importance sampling").

Where a class has few examples, these know neither all ways to be wrong nor how much is chance. So for every class the
shares of "both right", "only the full model", "only the candidate" and "none" are shrunk towards their mean over
classes, as if 4 more examples of the class had been seen, and 4 disagreements, won by either model alike, are spread
over all classes; a wrong answer is the next class. How many examples a class has stays as it is. The tilt ends at T = 0
whatever was added, so that nothing added looks like a share that was kept. By simulation the level is at most 5 % up to
77 classes with 200 examples, which `RESERVE` sees to. The claim is
about the classes that occur among the examples, as the score is: of one that no example has nothing is known.

Letters: N examples, K classes or labels, P patterns (distinct examples), R resamples.
"""

import functools
import math

import numpy as np
from scipy import optimize, sparse
from scipy.special import logsumexp

from .significance import EXTRA_DISAGREEMENTS

SHRINKAGE = 4  # examples of each class whose right and wrong are as on average over classes
RESERVE = 1.1  # the p-value is multiplied by it, since by simulation the plain one's level is 5 % and not below
CHUNK = 20_000_000  # drawn counts at once


class TiltedBootstrap:
    """R resamples of two models' scores on the same examples, from which p-values for any share r follow.

    Predictions and references are class ids, (N,), or 0-1 rows, (N, K).
    """

    def __init__(
        self,
        metric_name: str,
        full: np.ndarray,
        candidate: np.ndarray,
        references: np.ndarray,
        num_resamples: int,
        seed: int,
    ) -> None:
        self.metric_name, self.is_multi_label = metric_name, references.ndim == 2
        self.num_examples = len(references)
        describe = _patterns_of_rows if self.is_multi_label else _patterns_of_classes
        seen, weights, designs = describe(full, candidate, references)
        self.weights, self.designs = weights / weights.sum(), designs
        self.seen_scores = self._scores(seen)
        self.influences = [self._influence(design) for design in designs]
        self.seen_influences = [float(seen @ influence) for influence in self.influences]
        self.num_resamples, self.seed = num_resamples, seed

    def p_value(self, r: float) -> float:
        """Test the hypothesis that the candidate keeps at most a share r; 1.0 where it was not seen to keep more."""
        observed = self.seen_scores[1] - r * self.seen_scores[0]
        if observed <= 1e-12:
            return 1.0
        influence = self.influences[1] - r * self.influences[0]
        tilt = self._find_tilt(r, influence)
        if tilt is None:
            return 1.0
        log_norm = logsumexp(tilt * influence, b=self.weights)
        scores, influences = self.resamples
        drawn = influences[1] - r * influences[0]
        seen = self.seen_influences[1] - r * self.seen_influences[0]
        is_as_large = scores[1] - r * scores[0] >= observed - 1e-12
        # likelihood under the hypothesis over that under which was drawn
        ratios = np.exp(np.minimum(tilt * np.append(drawn[is_as_large], seen) - self.num_examples * log_norm, 700))
        return float(min(1.0, RESERVE * ratios.sum() / (len(drawn) + 1)))

    def _find_tilt(self, r: float, influence: np.ndarray) -> float | None:
        """Find l with T = 0; `None` if no tilt along the influence gets there."""

        def gap(tilt: float) -> float:
            exponents = tilt * influence
            tilted = self.weights * np.exp(exponents - exponents.max())
            full, candidate = self._scores(tilted * (self.num_examples / tilted.sum()))
            return float(candidate - r * full)

        start = gap(0.0)
        # where influences are exact and small, T falls by variance * tilt
        step = -(abs(start) + 1e-6) / max(float(self.weights @ influence**2), 1e-12) * math.copysign(1, start)
        near, far = 0.0, step
        for _ in range(60):
            if gap(far) * start <= 0:
                return float(optimize.brentq(gap, near, far, rtol=1e-6))
            near, far = far, 2 * far
        return None

    @functools.cached_property
    def resamples(self) -> tuple[np.ndarray, np.ndarray]:
        """Both models' scores, and the sums of the influences of what was drawn; each (2, R)."""
        generator, parts = np.random.default_rng(self.seed), []
        size = max(1, CHUNK // len(self.weights))
        for start in range(0, self.num_resamples, size):
            number = min(size, self.num_resamples - start)
            drawn = generator.multinomial(self.num_examples, self.weights, number).astype(np.float64)
            parts.append([self._scores(drawn), [drawn @ influence for influence in self.influences]])
        scores, influences = np.concatenate(parts, axis=-1)
        return scores, influences

    def _scores(self, counts: np.ndarray) -> list[np.ndarray]:
        """Score both models by how often each pattern occurs, (..., P) to (...)."""
        return [self._scores_of_sums(counts @ design, counts.sum(-1)) for design in self.designs]

    def _scores_of_sums(self, sums: np.ndarray, totals: np.ndarray) -> np.ndarray:
        # metrics imports datasets, and importing the search must not
        from .metrics import scores_of_sums

        correct, predicted, actual = np.split(sums, 3, axis=-1)
        return scores_of_sums(self.metric_name, correct, predicted, actual, totals, self.is_multi_label)

    def _influence(self, design: sparse.csr_array) -> np.ndarray:
        """By how much one more example of each pattern changes a model's score, (P,), but for a constant."""
        sums = (self.weights @ design) * self.num_examples
        steps = 1e-4 * np.eye(len(sums))
        total = np.array(self.num_examples)
        up, down = (self._scores_of_sums(sums + moved, total) for moved in (steps, -steps))
        return design @ ((up - down) / 2e-4 * self.num_examples)


def _patterns_of_classes(
    full: np.ndarray, candidate: np.ndarray, references: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[sparse.csr_array]]:
    """Describe distinct examples, and what every class may do beyond them.

    Returns:
        How often each pattern was seen, (P,); its weight, (P,); and for either model what it adds to the numbers of
        right answers, of predictions and of references, by class, (P, 3 K).
    """
    classes = np.unique([*np.unique(full), *np.unique(candidate), *np.unique(references), 0, 1])
    triples, seen = np.unique(np.stack([full, candidate, references], axis=1), axis=0, return_counts=True)
    triples = np.searchsorted(classes, triples)
    actual, one_hot = triples[:, 2], sparse.eye_array(len(classes), format="csr")
    is_right = (triples[:, :2] == triples[:, 2:]).T  # (2, P)
    num_actual = np.bincount(actual, seen, len(classes))
    # both right, only the full model, only the candidate, none; every class counts alike
    kinds = [is_right[0] & is_right[1], is_right[0] & ~is_right[1], ~is_right[0] & is_right[1], ~is_right.any(axis=0)]
    held = np.flatnonzero(num_actual)
    mean = np.array([(seen / num_actual[actual])[kind].sum() for kind in kinds]) / len(held)
    extra = SHRINKAGE * mean + np.array([0, 0.5, 0.5, 0]) * EXTRA_DISAGREEMENTS / len(held)
    # a class keeps its number of examples
    scale = num_actual / (num_actual + extra.sum())
    weights = np.concatenate([seen * scale[actual], *(scale[held] * part for part in extra)])
    truth, wrong = one_hot[held], one_hot[(held + 1) % len(classes)]
    designs: list[sparse.csr_array] = []
    for model, rights in enumerate(((1, 1, 0, 0), (1, 0, 1, 0))):
        correct = one_hot[actual].multiply(is_right[model][:, None])
        rows = [sparse.hstack([correct, one_hot[triples[:, model]], one_hot[actual]])]
        rows += [sparse.hstack([truth * right, truth if right else wrong, truth]) for right in rights]
        designs.append(sparse.csr_array(sparse.vstack(rows)))
    return np.concatenate([seen, np.zeros(4 * len(held))]), weights, designs


def _patterns_of_rows(
    full: np.ndarray, candidate: np.ndarray, references: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[sparse.csr_array]]:
    """The same of rows of labels; what may happen beyond them is a disagreement on one label of an average row."""
    num_labels = references.shape[1]
    rows, seen = np.unique(np.concatenate([full, candidate, references], axis=1), axis=0, return_counts=True)
    *models, actual = np.split(rows, 3, axis=1)
    designs = [[np.concatenate([predicted * actual, predicted, actual], axis=1)] for predicted in models]
    extra = []
    for label in range(num_labels):
        for value in (0, 1):
            is_such = actual[:, label] == value
            if not is_such.any():
                continue
            for loser in (0, 1):
                for model, predicted in enumerate(models):
                    sums = np.stack([predicted * actual, predicted, actual])[:, is_such]
                    row = np.average(sums, axis=1, weights=seen[is_such])
                    answer = 1 - value if model == loser else value
                    row[:, label] = [answer * value, answer, value]
                    designs[model].append(row.reshape(1, -1))
                extra.append(EXTRA_DISAGREEMENTS / 2 / num_labels * seen[is_such].sum() / len(references))
    return (
        np.concatenate([seen, np.zeros(len(extra))]),
        np.concatenate([seen, extra]),
        [sparse.csr_array(np.concatenate(parts)) for parts in designs],
    )
