"""Paired tests of "the candidate's score is at most a share r of the full model's", on the same examples.

Accuracy gets an exact test. With p_a both models right, p_b only the full one, p_c only the candidate, the hypothesis
to refute reads (1 - r) p_a + p_c <= r p_b. On its boundary the variance of one example's (1 - r) a + c - r b is
r (p_b + p_c), so tables are ordered by

    z = ((1 - r) a + c - r b) / sqrt(r (b + c + 4)),

for r = 1 McNemar's statistic but for the 4, which keeps few disagreements from looking certain; above z = 4 it grows
to z ** 2 / 4, so that an example in the candidate's favour never lowers z. z only orders: the p-value is the
multinomial probability of a z at least as large, summed over the tables and maximised over a confidence region of
(p_a, p_b, p_c) within the hypothesis (Berger and Boos 1994, JASA 89, "P values maximized over a confidence set for the
nuisance parameter"). The region costs a share of the level, and the p-value is the smallest level at which the
hypothesis is refuted. For r = 1 it is the exact McNemar test. Scores made of counts have a test of their own in
`tilting`; Spearman's correlation gets the plain paired bootstrap.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy import stats
from scipy.special import betaincinv

EXTRA_DISAGREEMENTS = 4  # in z, up to z = 4
REGION_SHARE = 0.02  # of the level, spent on the confidence region
OMITTED_SHARE = 1e-4  # of the level, bound of each of the probabilities that sums leave out (they are added back)
SMALLEST_LEVEL = 1e-12  # no p-value is looked for below
USUAL_LEVEL = 1e-4  # from here on the middle of the region says how large the largest tail can be
MANY_DISAGREEMENTS = 100  # from here on the tail hardly depends on where in the region it is taken


class PairedCounts(NamedTuple):
    """Examples on which both models are right, only the full one, only the candidate; and all examples.

    Expected counts may be fractions.
    """

    both: float
    only_full: float
    only_candidate: float
    num_examples: int


def count_pairs(full: np.ndarray, candidate: np.ndarray, references: np.ndarray) -> PairedCounts:
    """Count who is right where; a row of several labels is right in all of them or not at all."""
    full_right, candidate_right = (
        (predictions == references).reshape(len(references), -1).all(axis=1) for predictions in (full, candidate)
    )
    return PairedCounts(
        both=int((full_right & candidate_right).sum()),
        only_full=int((full_right & ~candidate_right).sum()),
        only_candidate=int((~full_right & candidate_right).sum()),
        num_examples=len(references),
    )


def exact_p_value(counts: PairedCounts, required_performance: float, alpha: float, is_decision: bool = False) -> float:
    """Test on paired counts whether the candidate's accuracy is at most a share of the full model's.

    The p-value is the same whatever `alpha` it will be compared with, and 1.0 where the share seen is not above the
    requirement. A mere decision stops as soon as it is clear, with a bound on the same side of `alpha`.
    """
    if required_performance == 1:
        # given the number of disagreements, the candidate wins each with a probability of at most 1 / 2
        num_disagreements = counts.only_full + counts.only_candidate
        return float(stats.binom.sf(counts.only_candidate - 1, num_disagreements, 0.5))
    gap = (1 - required_performance) * counts.both + counts.only_candidate - required_performance * counts.only_full
    # for r below 1 the same as "at most r of the full accuracy", but for rounding
    if gap <= 1e-9 * counts.num_examples:
        return 1.0
    z = order_by(gap, counts.only_full + counts.only_candidate, required_performance)
    if is_decision:
        return largest_p_value(counts, z, required_performance, alpha, is_decision)
    return _smallest_level(counts, z, required_performance, alpha)


def order_by(gap: float, disagreements: float, r: float) -> float:
    """Compute z of tables whose (1 - r) a + c - r b and b + c are given."""
    z = gap / math.sqrt(r * (disagreements + EXTRA_DISAGREEMENTS))
    if z * z <= 4 * EXTRA_DISAGREEMENTS:
        return z
    # gap = z sqrt(r (b + c + z ** 2 / 4)), solved for z
    return math.sqrt(2 * (math.hypot(disagreements, gap / math.sqrt(r)) - disagreements))


def _extra(z: float) -> float:
    return max(EXTRA_DISAGREEMENTS, z * z / 4)


def _smallest_level(counts: PairedCounts, z: float, r: float, alpha: float) -> float:
    """Find the smallest level at which the hypothesis is refuted, from `alpha` on, to 1 %.

    A smaller level has a larger region, so what is refuted at one level is refuted at every larger one, and the
    smallest one is a p-value. The fixed point is soon found, since the largest tail hardly depends on the region.
    """
    level, smallest, is_at_alpha = alpha, 1.0, True
    while level > SMALLEST_LEVEL:
        tail = largest_p_value(counts, z, r, level) - REGION_SHARE * level
        following = max(tail / (1 - REGION_SHARE), REGION_SHARE * level)
        if level == alpha:
            is_at_alpha = following <= alpha
        smallest = min(smallest, max(level, following))
        if abs(following / level - 1) < 0.01:
            break
        level = following
    # the search's grid must not contradict its own decision
    return smallest if is_at_alpha else max(smallest, math.nextafter(alpha, 1))


def largest_p_value(counts: PairedCounts, z: float, r: float, alpha: float, is_decision: bool = False) -> float:
    """Maximise P(Z >= z) over the hypothesis within a confidence region, and add what the region costs.

    Only the hypothesis' boundary is searched: towards it, every move (from only the full model right to both or none,
    from none to both or only the candidate) raises z.
    """
    region = _NullRegion(counts, r, REGION_SHARE * alpha)
    omitted = OMITTED_SHARE * alpha
    cost = REGION_SHARE * alpha
    if region.b_low > region.b_high:
        return cost
    is_flat = counts.only_full + counts.only_candidate > MANY_DISAGREEMENTS
    if is_decision:
        middle = region.points(np.array([(region.b_low + region.b_high) / 2]), np.array([0.5]))
        first = float(_tail(*middle, counts.num_examples, r, z, omitted)[0])
        is_clear = alpha >= USUAL_LEVEL and (1.5 if is_flat else 5) * first + cost <= alpha
        if first + cost > alpha or is_clear:
            return first + cost
    num_levels, num_shares = (9, 3) if is_flat else (25, 5)
    levels, shares = region.levels(num_levels), np.linspace(0, 1, num_shares)
    largest = 0.0
    for _ in range(1 if is_flat else 3):  # few disagreements give jags: twice more around the largest so far
        tails = _tail(*region.points(levels, shares), counts.num_examples, r, z, omitted)
        largest = max(largest, float(tails.max()))
        level, share = divmod(int(tails.argmax()), len(shares))
        levels = np.linspace(levels[max(level - 1, 0)], levels[min(level + 1, len(levels) - 1)], 5)
        shares = np.linspace(shares[max(share - 1, 0)], shares[min(share + 1, len(shares) - 1)], 5)
    return min(1.0, largest + cost)


class _NullRegion:
    """Boundary of the hypothesis, (1 - r) p_a + p_c = r p_b, within Clopper-Pearson intervals of p_a, p_b and p_c.

    The region misses the truth with a probability of at most `miss`.
    """

    def __init__(self, counts: PairedCounts, r: float, miss: float) -> None:
        self.r = r
        self.both, full, self.candidate = (
            _clopper_pearson(count, counts.num_examples, miss / 3) for count in counts[:3]
        )
        (a_low, a_high), (c_low, c_high) = self.both, self.candidate
        slope = r / (1 - r) + (1 + r) / r
        self.b_low = max(full[0], (c_low + (1 - r) * a_low) / r)
        self.b_high = min(
            full[1],
            (c_high + (1 - r) * a_high) / r,
            (1 - r * a_low) / (1 + r),
            (1 / r + c_high / (1 - r)) / slope,
        )
        # between the corners the range of p_a is linear in p_b, and maxima like to sit in corners
        corners = np.array(
            [
                (1 / r + c_low / (1 - r)) / slope,
                (c_low + (1 - r) * a_high) / r,
                (1 - r * a_high) / (1 + r),
                (c_high + (1 - r) * a_low) / r,
            ]
        )
        self.corners = corners[(corners > self.b_low) & (corners < self.b_high)]

    def levels(self, num_levels: int) -> np.ndarray:
        """Values of p_b from the lowest to the highest that the region has, its corners among them."""
        return np.unique(np.concatenate([np.linspace(self.b_low, self.b_high, num_levels), self.corners]))

    def points(self, levels: np.ndarray, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """p_a, p_b and p_c, each (B * S,): at every level of p_b, p_a that share of the way through its range."""
        r, b, (a_low, a_high), (c_low, c_high) = self.r, levels, self.both, self.candidate
        low = np.maximum(a_low, (r * b - c_high) / (1 - r))
        high = np.minimum(np.minimum(a_high, (r * b - c_low) / (1 - r)), (1 - (1 + r) * b) / r)
        high = np.maximum(low, high)  # at an end of the levels they are equal but for rounding
        a = np.clip(low[:, None] + (high - low)[:, None] * shares, 0, 1)
        b = np.broadcast_to(levels[:, None], a.shape)
        return a.ravel(), b.ravel(), np.maximum(r * b - (1 - r) * a, 0).ravel()


def _clopper_pearson(count: float, num_examples: int, miss: float) -> tuple[float, float]:
    low = betaincinv(count, num_examples - count + 1, miss / 2) if count > 0 else 0.0
    high = betaincinv(count + 1, num_examples - count, 1 - miss / 2) if count < num_examples else 1.0
    return float(low), float(high)


def _tail(
    p_both: np.ndarray,
    p_full: np.ndarray,
    p_candidate: np.ndarray,
    num_examples: int,
    r: float,
    z: float,
    omitted: float,
) -> np.ndarray:
    """Sum P(Z >= z) at G points, from above: what is left out is counted as if it were in.

    For b and c given, Z >= z where a is large enough. That is (nearly) sure above some c and (nearly) impossible below
    another, so the sum over a, a binomial tail, is computed between the two only.

    Returns:
        Upper bounds, (G,), at most about three times `omitted` above the probabilities.
    """
    a, b_probability, c_probability = p_both[:, None], p_full[:, None], p_candidate[:, None]
    b_low = np.maximum(stats.binom.ppf(omitted, num_examples, p_full), 0).astype(int)
    b_high = np.maximum(stats.binom.isf(omitted, num_examples, p_full), 0).astype(int)
    b = np.minimum(b_low[:, None] + np.arange((b_high - b_low).max() + 1), num_examples)  # (G, B)
    weights = np.where(b <= b_high[:, None], stats.binom.pmf(b, num_examples, b_probability), 0)
    a_share, c_share = (np.minimum(p / (1 - b_probability), 1) for p in (a, c_probability))
    a_low, a_high = (quantile(omitted, num_examples - b, a_share) for quantile in (stats.binom.ppf, stats.binom.isf))
    c_low = np.floor(_smallest_c(b, (1 - r) * a_high, r, z)).astype(int)
    c_sure = np.ceil(_smallest_c(b, (1 - r) * a_low, r, z)).astype(int)
    sure = np.minimum(stats.binom.sf(c_sure - 1, num_examples - b, c_share) + omitted, 1)
    totals = (weights * sure).sum(axis=1) + np.maximum(0, 1 - weights.sum(axis=1))
    c = c_low[..., None] + np.arange(max(1, (c_sure - c_low).max()))  # (G, B, C)
    is_open = (c < c_sure[..., None]) & (c <= (num_examples - b)[..., None]) & (weights[..., None] > 0)
    point, i, j = np.nonzero(is_open)
    b, c, weights = b[point, i], c[point, i, j], weights[point, i]
    weights = weights * stats.binom.pmf(c, num_examples - b, c_share[point, 0])
    # many cells together weigh nothing
    is_light = weights < 1e-3 * omitted
    totals += np.bincount(point[is_light], weights[is_light], len(totals))
    point, b, c, weights = (values[~is_light] for values in (point, b, c, weights))
    a_needed = np.ceil((z * np.sqrt(r * (b + c + _extra(z))) + r * b - c) / (1 - r) - 1e-6)
    a_share = np.minimum(p_both[point] / (1 - p_full[point] - p_candidate[point]), 1)
    tails = stats.binom.sf(a_needed - 1, num_examples - b - c, a_share)
    return totals + np.bincount(point, weights * tails, len(totals))


def _smallest_c(b: np.ndarray, gain: np.ndarray, r: float, z: float) -> np.ndarray:
    """The smallest c, at least 0, with z sqrt(r (b + c + extra)) <= gain + c - r b, by the quadratic formula."""
    constant = (1 + r) * b + _extra(z) - gain
    discriminant = z * z * r + 4 * constant
    root = (z * math.sqrt(r) + np.sqrt(np.maximum(discriminant, 0))) / 2
    return np.where(discriminant < 0, 0, np.maximum(root**2 - b - _extra(z), 0))


def bootstrap_p_value(full_scores: np.ndarray, candidate_scores: np.ndarray, r: float) -> float:
    """Share of the resamples, and one more, in which the candidate does not keep more than r of the full score."""
    return float((1 + (candidate_scores <= r * full_scores).sum()) / (1 + len(full_scores)))
