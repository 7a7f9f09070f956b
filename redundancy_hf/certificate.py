"""Certificates: a fast model keeps at least a share of the full model's score, judged once on unseen examples.

The tests are in `paired` and `tilting`. A certificate is issued from one reading of examples that neither training nor
search saw, with what is left of 1 - confidence for each candidate judged on them.
"""

import functools
import math
from bisect import bisect
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from .significance import (
    PairedCounts,
    bootstrap_p_value,
    count_pairs,
    exact_p_value,
    largest_p_value,
    order_by,
)
from .tilting import TiltedBootstrap

POWER = 0.8  # of the number of examples needed
LARGEST_EXACT_SEARCH = 20_000  # examples; beyond, the normal approximation of that number serves
BOUND_STEPS = 10_000  # the lower bound is rounded down to 1 / 10,000

# entry `reference` of a search's full model, and what it says
GIVEN, UNTUNED, TUNED = "given", "untuned", "tuned"
REFERENCES = {
    GIVEN: "the classifier that was given, as it is",
    UNTUNED: "as it was before its own fine-tuning, which made it no better",
    TUNED: "after its own fine-tuning",
}


@dataclass(frozen=True)
class Judgement:
    """What a test says of a candidate.

    Attributes:
        p_value: Of this candidate alone.
        performance_lower_bound: The largest requirement, at most 1 and rounded down to 0.0001, that would be certified.
        num_examples_needed: Where refused, how many examples it takes about for 80 % power, if the rates seen are the
            true ones; `None` where the performance seen is not above the requirement.
        num_examples_lossless: Where refused, how many it takes about for a candidate that loses nothing and disagrees
            with the full model as often as this one.
    """

    p_value: float
    performance_lower_bound: float
    num_examples_needed: int | None
    num_examples_lossless: int | None


@dataclass(frozen=True)
class Certificate(Judgement):
    """The answer to "does the candidate keep at least `required_performance` of the full model's score?".

    Args:
        is_issued: Whether the p-value is at most (1 - confidence) / num_candidates.
        metric_name: One of `redundancy_hf.metrics.METRICS`.
        required_performance: Share r of the full model's score.
        confidence: Of all certificates together that are issued from this reading of the examples.
        num_examples: Examples that both models were judged on.
        num_candidates: Candidates judged on them.
        method: "exact" or "bootstrap".
        full_score: Of the full model.
        candidate_score: Of the candidate.
        performance: Candidate score over full score.
    """

    is_issued: bool
    metric_name: str
    required_performance: float
    confidence: float
    num_examples: int
    num_candidates: int
    method: str
    full_score: float
    candidate_score: float
    performance: float

    @property
    def sentence(self) -> str:
        """The certificate, or the refusal, in one sentence."""
        test = "exact paired test" if self.method == "exact" else "paired bootstrap"
        others = f", corrected for {self.num_candidates} candidates" if self.num_candidates > 1 else ""
        kept = f"{100 * self.required_performance:.6g} % of the full model's {self.metric_name}"
        evidence = (
            f"({self.candidate_score:.4f} against {self.full_score:.4f} on {self.num_examples:,} examples, "
            f"{test}, p = {self.p_value:.2g}{others})"
        )
        confidence = f"{100 * self.confidence:.6g} % confidence"
        if self.is_issued:
            return f"The candidate keeps at least {kept} with {confidence} {evidence}."
        way_out = f"it kept {100 * self.performance:.2f} %, so more examples help only if that is chance"
        if self.num_examples_needed is not None:
            way_out = f"at the rates seen it would take about {self.num_examples_needed:,} examples"
        elif self.num_examples_lossless is not None:
            way_out += f"; one that lost nothing, disagreeing as often, would take about {self.num_examples_lossless:,}"
        return (
            f"No certificate that the candidate keeps at least {kept} with {confidence} {evidence}: only "
            f"{100 * self.performance_lower_bound:.2f} % is certain enough; {way_out}."
        )


def certify(
    metric_name: str,
    full_predictions: ArrayLike,
    candidate_predictions: ArrayLike,
    references: ArrayLike,
    required_performance: float,
    confidence: float = 0.95,
    num_candidates: int = 1,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Certificate:
    """Certify, or refuse to, that a candidate keeps a share of the full model's score.

    The examples must have had no part in training or choosing either model, and be read once: whoever reads them again
    after a refusal, or picks one of several candidates by them, must count all readings in `num_candidates`.

    Args:
        metric_name: One of `redundancy_hf.metrics.METRICS`.
        full_predictions: As in `redundancy_hf.metrics.compute_score`, (N,) or (N, K).
        candidate_predictions: Of the same examples in the same order.
        references: Labels of the same shape.
        required_performance: Share r of the full model's score, above 0 and at most 1.
        confidence: Probability, at least, that no certificate is issued wrongly.
        num_candidates: Candidates that are judged on these examples; each gets an equal share of 1 - confidence
            (Bonferroni), so that all claims hold together.
        num_resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        ValueError: As `compute_score`, or a number is out of its range, or the full model's score is not positive.
    """
    # metrics imports datasets, and importing the search must not
    from .metrics import compute_score

    check_request(required_performance, confidence, num_candidates, num_resamples)
    full, candidate, references = (np.asarray(x) for x in (full_predictions, candidate_predictions, references))
    full_score, candidate_score = (compute_score(metric_name, x, references) for x in (full, candidate))
    if full_score <= 0:
        raise ValueError(
            f"a share can be kept of a positive score only, got {metric_name} {full_score:.4f} of the full model; "
            "train it longer or choose another metric."
        )
    alpha = (1 - confidence) / num_candidates
    if metric_name == "accuracy":
        judged = _judge_exactly(count_pairs(full, candidate, references), required_performance, alpha)
    else:
        test, scores = _resample(metric_name, full, candidate, references, num_resamples, seed)
        gaps = (candidate_score - required_performance * full_score, (1 - required_performance) * full_score)
        judged = _judge_by_resamples(test, scores, required_performance, alpha, gaps, len(full))
    return Certificate(
        is_issued=judged.p_value <= alpha,
        metric_name=metric_name,
        required_performance=required_performance,
        confidence=confidence,
        num_examples=len(full),
        num_candidates=num_candidates,
        method="exact" if metric_name == "accuracy" else "bootstrap",
        full_score=full_score,
        candidate_score=candidate_score,
        performance=candidate_score / full_score,
        **vars(judged),
    )


def _judge_exactly(counts: PairedCounts, r: float, alpha: float) -> Judgement:
    p_value, needed, lossless = exact_p_value(counts, r, alpha), None, None
    bound = _lower_bound(lambda r: exact_p_value(counts, r, alpha, is_decision=True) <= alpha, r, p_value <= alpha)
    if p_value > alpha:
        needed = _exact_examples_needed(counts, r, alpha)
        # the refusal shows that so many as there are do not do
        needed = None if needed is None else max(needed, counts.num_examples + 1)
        # of a candidate as good as the full model that disagrees with it as often
        each = (counts.only_full + counts.only_candidate) / 2
        equal = PairedCounts(max(counts.both + counts.only_full - each, 0.0), each, each, counts.num_examples)
        lossless = _exact_examples_needed(equal, r, alpha)
    return Judgement(p_value, bound, needed, lossless)


def _resample(
    metric_name: str,
    full: np.ndarray,
    candidate: np.ndarray,
    references: np.ndarray,
    num_resamples: int,
    seed: int,
) -> tuple[Callable[[float], float], np.ndarray]:
    """Give what tests a share, and both models' scores of the resamples, (2, R)."""
    from .metrics import resample_scores

    if metric_name == "spearmanr":
        scores = resample_scores(metric_name, [full, candidate], references, seed, num_resamples)
        return functools.partial(bootstrap_p_value, *scores), scores
    full, candidate, references = (values.astype(np.int64) for values in (full, candidate, references))
    bootstrap = TiltedBootstrap(metric_name, full, candidate, references, num_resamples, seed)
    return bootstrap.p_value, bootstrap.resamples[0]


def _judge_by_resamples(
    test: Callable[[float], float],
    scores: np.ndarray,
    r: float,
    alpha: float,
    gaps: tuple[float, float],
    num_examples: int,
) -> Judgement:
    """Judge other scores; `gaps` to the requirement are what was seen, and that without a loss."""
    p_value, needed, lossless = test(r), None, None
    bound = _lower_bound(lambda r: test(r) <= alpha, r, p_value <= alpha)
    if p_value > alpha:
        sd = float(np.std(scores[1] - r * scores[0])) * math.sqrt(num_examples)
        needed, lossless = (_normal_examples_needed(gap, sd, alpha) if gap > 0 else None for gap in gaps)
        needed = None if needed is None else max(needed, num_examples + 1)
    return Judgement(p_value, bound, needed, lossless)


def _lower_bound(is_certified: Callable[[float], bool], required: float, is_issued: bool) -> float:
    """Find the largest r on the grid of `BOUND_STEPS` that a test certifies, by bisection from the answer known."""
    step = round(required * BOUND_STEPS, 6)
    low, high = (math.floor(step), BOUND_STEPS + 1) if is_issued else (0, math.ceil(step))
    refused = bisect(range(low + 1, high), False, key=lambda step: not is_certified(step / BOUND_STEPS))
    return (low + refused) / BOUND_STEPS


def _exact_examples_needed(counts: PairedCounts, r: float, alpha: float) -> int | None:
    """Find how many examples certify, at the rates given, in 80 % of samples; `None` where no number does."""
    both, only_full, only_candidate = (count / counts.num_examples for count in counts[:3])
    gap = (1 - r) * both + only_candidate - r * only_full
    if gap <= 0:
        return None
    sd = math.sqrt((1 - r) ** 2 * both + only_candidate + r**2 * only_full - gap**2)
    needed = max(_normal_examples_needed(gap, sd, alpha), 1)
    # where disagreements are few the normal approximation is too low: go up until the sample in reach passes
    while needed <= LARGEST_EXACT_SEARCH:
        expected = PairedCounts(both * needed, only_full * needed, only_candidate * needed, needed)
        reached = needed * gap - stats.norm.ppf(POWER) * math.sqrt(needed) * sd
        z = order_by(reached, expected.only_full + expected.only_candidate, r)
        if z > 0 and (r == 1 or largest_p_value(expected, z, r, alpha, is_decision=True) <= alpha):
            break
        needed = math.ceil(1.02 * needed)
    return needed


def _normal_examples_needed(gap: float, sd: float, alpha: float) -> int:
    """Count the examples that lift the mean `gap` of a variable over 0 at level `alpha` with 80 % power."""
    return math.ceil(((stats.norm.isf(alpha) + stats.norm.ppf(POWER)) * sd / gap) ** 2)


def check_request(
    required_performance: float, confidence: float, num_candidates: int, num_resamples: int = 10_000
) -> None:
    if not 0 < required_performance <= 1:
        raise ValueError(
            f"`required_performance` must be above 0 and at most 1, got {required_performance}; 0.99 asks for 99 %."
        )
    if not 0.5 <= confidence < 1:
        raise ValueError(f"`confidence` must be at least 0.5 and below 1, got {confidence}; 0.95 is usual.")
    if num_candidates < 1:
        raise ValueError(f"`num_candidates` must be at least 1, got {num_candidates}; count every model judged.")
    if num_resamples * (1 - confidence) / num_candidates < 10:
        raise ValueError(
            f"`num_resamples` must be at least 10 * num_candidates / (1 - confidence), got {num_resamples} for "
            f"{num_candidates} candidates and confidence {confidence}; take more resamples."
        )
