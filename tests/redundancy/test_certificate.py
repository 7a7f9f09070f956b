"""Certificates: the exact test keeps its level, small datasets refuse, the sentence says what was found."""

import itertools
import json
from dataclasses import asdict

import numpy as np
import pytest
from scipy import stats

from redundancy_hf import significance as paired
from redundancy_hf.certificate import certify
from redundancy_hf.metrics import compute_score, resample_scores
from redundancy_hf.significance import PairedCounts, exact_p_value
from redundancy_hf.tilting import TiltedBootstrap

ALPHA = 0.05


def predictions(counts: PairedCounts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Full and candidate predictions and references with those counts."""
    both, only_full, only_candidate, num_examples = counts
    none = num_examples - both - only_full - only_candidate
    sizes = (both, only_full, only_candidate, none)
    return np.repeat([1, 1, 0, 0], sizes), np.repeat([1, 0, 1, 0], sizes), np.ones(num_examples, dtype=int)


def boundary(r: float, accuracy: float, only_candidate: float) -> tuple[float, float, float, float]:
    """Probabilities of both, only full, only candidate and none where the candidate keeps exactly r."""
    only_full = only_candidate + (1 - r) * accuracy
    both = accuracy - only_full
    return both, only_full, only_candidate, 1 - both - only_full - only_candidate


def draw(generator, num_examples: int, probabilities, size: int) -> list[PairedCounts]:
    rows = generator.multinomial(num_examples, probabilities, size=size)
    return [PairedCounts(*map(int, row[:3]), num_examples) for row in rows]


@pytest.mark.parametrize("r", [0.8, 0.95])
def test_exact_level_over_the_whole_hypothesis(r):
    """Every table of 12 examples, and the hypothesis with its interior."""
    num_examples, alpha = 12, 0.2
    tables = [t for t in itertools.product(range(num_examples + 1), repeat=3) if sum(t) <= num_examples]
    is_rejected = [exact_p_value(PairedCounts(*t, num_examples), r, alpha, is_decision=True) <= alpha for t in tables]
    rejected = np.array([t for t, is_in in zip(tables, is_rejected, strict=True) if is_in])
    assert len(rejected)
    quadruples = np.column_stack([rejected, num_examples - rejected.sum(axis=1)])
    grid = np.linspace(0, 1, 26)
    hypothesis = [
        (a, b, c, 1 - a - b - c)
        for a, b, c in itertools.product(grid, repeat=3)
        if a + b + c <= 1 and (1 - r) * a + c <= r * b
    ]
    hypothesis += [
        p
        for accuracy in np.linspace(0.02, 1, 50)
        for c in np.linspace(0, 0.4, 41)
        if min(p := boundary(r, accuracy, c)) >= 0
    ]
    logs = np.log(np.maximum(hypothesis, 1e-300))
    constant = stats.multinomial(num_examples, [0.25] * 4).logpmf(quadruples) + num_examples * np.log(4)
    level = np.exp(logs @ quadruples.T + constant).sum(axis=1).max()
    assert 0.25 * alpha < level <= alpha


@pytest.mark.parametrize(("r", "counts"), [(0.9, (50, 2, 3)), (0.98, (52, 0, 3)), (0.7, (50, 3, 5))])
def test_exact_p_value_is_the_largest_tail(r, counts):
    """Against all tables, at points of the boundary within the confidence region."""
    num_examples, alpha = 60, ALPHA
    counts = PairedCounts(*counts, num_examples)
    tables = np.array([t for t in itertools.product(range(num_examples + 1), range(31), range(31))])
    tables = tables[tables.sum(axis=1) <= num_examples]

    def z(a, b, c):
        gap = (1 - r) * a + c - r * b
        value = gap / np.sqrt(r * (b + c + 4))
        return np.where(value < 4, value, np.sqrt(2 * (np.hypot(b + c, gap / np.sqrt(r)) - b - c)))

    extreme = tables[z(*tables.T) >= z(*counts[:3]) - 1e-9]
    quadruples = np.column_stack([extreme, num_examples - extreme.sum(axis=1)])
    p_value = exact_p_value(counts, r, alpha)
    region = [paired._clopper_pearson(count, num_examples, 0.02 * p_value / 3) for count in counts[:3]]
    accuracies, rates = np.linspace(0.5, 1, 201), np.linspace(0, 0.25, 101)
    points = [boundary(r, accuracy, c) for accuracy in accuracies for c in rates]
    points += [boundary(r, 1 - c - 1e-9, c) for c in np.linspace(0, 0.1, 1001)]  # none wrong in both
    points = [
        p for p in points if min(p) >= 0 and all(low <= x <= high for x, (low, high) in zip(p[:3], region, strict=True))
    ]
    assert len(points) > 50
    constant = stats.multinomial(num_examples, [0.25] * 4).logpmf(quadruples) + num_examples * np.log(4)
    tails = [np.exp(quadruples @ np.log(np.maximum(p, 1e-300)) + constant).sum() for p in points]
    assert 0.99 * max(tails) / 0.98 <= p_value <= 1.08 * max(tails) / 0.98
    # where every table can be drawn, sums with parts left out are upper bounds, and tight ones
    point = tuple(np.array([x]) for x in points[int(np.argmax(tails))][:3])
    (summed,) = paired._tail(*point, num_examples, r, z(*counts[:3]), 1e-6)
    assert max(tails) <= summed <= max(tails) + 1e-5


def check_level_on_the_boundary(r: float, churn: float, num_examples: int):
    """The worst case: the candidate keeps exactly r."""
    draws = draw(np.random.default_rng(0), num_examples, boundary(r, 0.9, churn), 5000)
    decisions = {counts: is_certified(counts, r) for counts in set(draws)}
    num_wrong = sum(decisions[counts] for counts in draws)
    assert stats.binomtest(num_wrong, len(draws), ALPHA, alternative="greater").pvalue > 1e-3
    return num_wrong / len(draws)


def is_certified(counts: PairedCounts, r: float) -> bool:
    both, only_full, only_candidate, _ = counts
    z = ((1 - r) * both + only_candidate - r * only_full) / np.sqrt(r * (only_full + only_candidate + 4))
    # to save time: no z below 1 is certified, and counting those above 3 only makes the rate larger
    return z > 1 and (z > 3 or exact_p_value(counts, r, ALPHA, is_decision=True) <= ALPHA)


@pytest.mark.parametrize(("r", "churn"), [(0.95, 0.0), (0.99, 0.005)])
def test_level_is_kept_on_the_boundary(r, churn):
    assert check_level_on_the_boundary(r, churn, 277) > 0.001


@pytest.mark.slow
@pytest.mark.parametrize("num_examples", [277, 2000])
@pytest.mark.parametrize("churn", [0.0, 0.01, 0.05])
@pytest.mark.parametrize("r", [0.9, 0.99])
def test_level_is_kept_and_used_on_the_boundary(r, churn, num_examples):
    rate = check_level_on_the_boundary(r, churn, num_examples)
    print(f"r {r}, churn {churn}, {num_examples} examples: {rate:.4f} certified")
    if num_examples == 2000 and churn > 0:
        assert rate > 0.03, "not much of the 5 % is wasted"


def test_decisions_equal_the_whole_test():
    generator = np.random.default_rng(1)
    answers = []
    for r, churn, num_examples in [(0.95, 0.0, 277), (0.98, 0.01, 872), (0.99, 0.03, 3000)]:
        full = np.array(boundary(r, 0.9, churn))
        better = full + np.array([0, -1, 0, 1]) * 0.4 * (1 - r) * 0.9
        for counts in draw(generator, num_examples, better, 8):
            answers.append(exact_p_value(counts, r, ALPHA) <= ALPHA)
            assert answers[-1] == (exact_p_value(counts, r, ALPHA, is_decision=True) <= ALPHA)
    assert 2 < sum(answers) < len(answers) - 2


@pytest.mark.parametrize("counts", [PairedCounts(900, 0, 0, 1000), PairedCounts(1800, 20, 40, 2000)])
def test_p_values_are_as_small_as_they_are(counts):
    """Not above what the confidence region costs at some level, and the same whatever they are compared with."""
    p_values = [exact_p_value(counts, 0.98, alpha) for alpha in (0.2, ALPHA, 1e-3)]
    assert 1e-12 < min(p_values) and max(p_values) < 1e-5
    assert max(p_values) < 1.02 * min(p_values)
    (p_value, *_) = p_values
    for factor in (0.9, 1.1):
        is_refuted = exact_p_value(counts, 0.98, factor * p_value, is_decision=True) <= factor * p_value
        assert is_refuted == (factor > 1)


def test_requirement_of_everything_is_mcnemars_test():
    p_value = exact_p_value(PairedCounts(500, 10, 25, 600), 1.0, ALPHA)
    assert p_value == pytest.approx(stats.binomtest(25, 35, alternative="greater").pvalue)
    # and just below it about the same
    assert exact_p_value(PairedCounts(500, 10, 25, 600), 0.99999, ALPHA) == pytest.approx(p_value, rel=0.4)
    assert exact_p_value(PairedCounts(500, 0, 0, 600), 1.0, ALPHA) == 1


def test_without_disagreements_the_p_value_is_that_of_none():
    """All right, none lost: at best p_b = 0.01 explains it, with probability 0.99 ** 277."""
    p_value = exact_p_value(PairedCounts(277, 0, 0, 277), 0.99, ALPHA)
    assert p_value == pytest.approx(0.99**277 / 0.98, abs=1e-4)


@pytest.mark.parametrize(
    ("num_examples", "accuracy", "lost", "won"),
    [(277, 0.70, 0.03, 0.03), (277, 0.8, 0.005, 0.0), (408, 0.88, 0.02, 0.02)],
)
def test_small_test_splits_refuse_99_percent(num_examples, accuracy, lost, won):
    """RTE, and MRPC's validation split, at rates as a schedule and the full model have them."""
    generator = np.random.default_rng(2)
    certificates = [
        certify("accuracy", *predictions(counts), 0.99)
        for counts in draw(generator, num_examples, (accuracy - lost, lost, won, 1 - accuracy - won), 4)
    ]
    assert not any(c.is_issued for c in certificates)
    assert all(c.num_examples_needed is None or c.num_examples_needed > num_examples for c in certificates)
    assert all("No certificate" in c.sentence for c in certificates if not c.is_issued)


def test_mrpc_test_split_is_too_small_for_99_percent():
    """1,725 examples, 62 lost and 52 won, 99.3 % kept; with luck a candidate as good as the full model may pass."""
    certificate = certify("accuracy", *predictions(PairedCounts(1439, 62, 52, 1725)), 0.99)
    assert not certificate.is_issued and certificate.performance > 0.993
    assert certificate.num_examples_needed > 10_000


def test_f1_on_mrpc_refuses_99_percent():
    generator = np.random.default_rng(0)
    references = (generator.random(408) < 0.68).astype(int)
    full = np.where(generator.random(408) < 0.12, 1 - references, references)
    issued = 0
    for _ in range(10):
        candidate = np.where(generator.random(408) < 0.04, 1 - full, full)
        issued += certify("f1", full, candidate, references, 0.99).is_issued
    assert issued == 0
    assert certify("f1", full, candidate, references, 0.9).is_issued


def test_bootstrap_is_not_certain_of_what_it_has_not_seen():
    """On 100 examples, two of 100 positives may be lost with nothing seen, even by what looks like a copy."""
    references = np.repeat([1, 0], [100, 100])
    for metric_name in ("f1", "macro_f1", "matthews_correlation"):
        assert not certify(metric_name, references, references, references, 0.99).is_issued
        assert certify(metric_name, references, references, references, 0.9).is_issued


def test_large_sample_is_issued_with_all_fields():
    certificate = certify("accuracy", *predictions(PairedCounts(4500, 110, 105, 5000)), 0.99)
    assert certificate.is_issued and certificate.method == "exact" and certificate.num_examples_needed is None
    assert certificate.p_value == pytest.approx(0.0028, abs=2e-4)
    assert 0.99 < certificate.performance_lower_bound < certificate.performance == pytest.approx(4605 / 4610)
    assert certificate.sentence == (
        "The candidate keeps at least 99 % of the full model's accuracy with 95 % confidence (0.9210 against 0.9220 on "
        "5,000 examples, exact paired test, p = 0.0028)."
    )
    assert json.loads(json.dumps(asdict(certificate)))["num_examples"] == 5000


def test_lower_bound_is_where_the_certificate_ends():
    values = predictions(PairedCounts(800, 20, 15, 1000))
    bound = certify("accuracy", *values, 0.99).performance_lower_bound
    assert 0.9 < bound < 0.99
    assert certify("accuracy", *values, bound).is_issued
    assert not certify("accuracy", *values, bound + 1e-4).is_issued
    better = certify("accuracy", *predictions(PairedCounts(800, 5, 40, 1000)), 0.9)
    assert better.performance_lower_bound == 1


def test_candidates_share_the_risk():
    values = predictions(PairedCounts(1800, 44, 41, 2000))
    one, ten = (certify("accuracy", *values, 0.99, num_candidates=number) for number in (1, 10))
    assert one.is_issued and not ten.is_issued
    assert ten.performance_lower_bound < one.performance_lower_bound
    assert "corrected for 10 candidates" in ten.sentence


@pytest.mark.parametrize(("r", "both", "lost", "won"), [(0.99, 0.9, 0.01, 0.01), (0.98, 0.85, 0.02, 0.02)])
def test_number_needed_has_80_percent_power(r, both, lost, won):
    certificate = certify("accuracy", *predictions(PairedCounts(*(int(300 * x) for x in (both, lost, won)), 300)), r)
    needed = certificate.num_examples_needed
    assert f"about {needed:,} examples" in certificate.sentence
    draws = draw(np.random.default_rng(3), needed, (both, lost, won, 1 - both - lost - won), 120)
    power = np.mean([exact_p_value(counts, r, ALPHA, is_decision=True) <= ALPHA for counts in draws])
    assert 0.68 < power < 0.92


def test_more_examples_are_no_help_below_the_requirement():
    certificate = certify("accuracy", *predictions(PairedCounts(80, 5, 0, 100)), 0.99)
    assert certificate.num_examples_needed is None and certificate.p_value == 1
    assert (
        "it kept 94.12 %, so more examples help only if that is chance; one that lost nothing" in certificate.sentence
    )
    lossless = certificate.num_examples_lossless
    assert f"would take about {lossless:,}" in certificate.sentence


def draw_classes(generator, num_classes: int, num_examples: int, performance: float) -> tuple[np.ndarray, ...]:
    """Classes as frequent as each other, errors in favour of any: macro F1 is the accuracy, the full model's 0.8."""
    references = generator.integers(0, num_classes, num_examples)
    wrong, other = ((references + generator.integers(1, num_classes, num_examples)) % num_classes for _ in range(2))
    full = np.where(generator.random(num_examples) < 0.8, references, wrong)
    is_kept = (full == references) & (generator.random(num_examples) < performance)
    return full, np.where(is_kept, references, np.where(full == references, other, wrong)), references


@pytest.mark.parametrize(("num_classes", "num_examples", "r"), [(20, 300, 0.5), (40, 600, 0.7)])
def test_many_classes_keep_the_level_on_the_boundary(num_classes, num_examples, r):
    generator = np.random.default_rng(0)
    issued = 0
    for _ in range(60):
        sample = draw_classes(generator, num_classes, num_examples, r)
        if compute_score("macro_f1", sample[1], sample[2]) > r * compute_score("macro_f1", sample[0], sample[2]):
            issued += certify("macro_f1", *sample, r, num_resamples=200).is_issued
    assert stats.binomtest(issued, 60, ALPHA, alternative="greater").pvalue > 0.01


def test_many_classes_cost_no_more_than_their_examples():
    """And what is far above the requirement is certain, with a p-value that no number of resamples bounds."""
    sample = draw_classes(np.random.default_rng(0), 77, 3080, 0.9)
    assert len(TiltedBootstrap("macro_f1", *sample, 1000, 0).weights) <= 3080 + 4 * 77
    certificate = certify("macro_f1", *sample, 0.8, num_resamples=500)
    assert certificate.is_issued and 0 < certificate.p_value < 1e-9
    assert 0.85 < certificate.performance_lower_bound < certificate.performance


@pytest.mark.parametrize("metric_name", ["f1", "macro_f1", "matthews_correlation", "labels f1", "labels macro_f1"])
def test_importance_sampling_is_sampling_where_nothing_is_gained(metric_name):
    """The p-value is the share of samples from the tilted weights, in which the required share is kept exactly."""
    generator = np.random.default_rng(1)
    *labels, metric_name = metric_name.split()
    shape = (300, 4) if labels else 300
    references = generator.integers(0, 2, shape)
    full = np.where(generator.random(shape) < 0.1, 1 - references, references)
    candidate = np.where(generator.random(shape) < 0.1, 1 - full, full)
    bootstrap = TiltedBootstrap(metric_name, full, candidate, references, 4000, 0)
    expected = [compute_score(metric_name, predictions, references) for predictions in (full, candidate)]
    assert bootstrap.seen_scores == pytest.approx(expected)
    r = bootstrap.seen_scores[1] / bootstrap.seen_scores[0] - (0.015 if labels else 0.04)
    influence = bootstrap.influences[1] - r * bootstrap.influences[0]
    weights = bootstrap.weights * np.exp(bootstrap._find_tilt(r, influence) * influence)
    full_score, score = bootstrap._scores(weights / weights.sum() * 300)
    assert score == pytest.approx(r * full_score, abs=1e-4)
    scores = bootstrap._scores(generator.multinomial(300, weights / weights.sum(), 4000).astype(float))
    share = np.mean(scores[1] - r * scores[0] >= bootstrap.seen_scores[1] - r * bootstrap.seen_scores[0])
    assert 0.005 < share < 0.3 and bootstrap.p_value(r) == pytest.approx(1.1 * share, rel=0.15)


@pytest.mark.parametrize("metric_name", ["f1", "macro_f1", "matthews_correlation"])
def test_bootstrap_agrees_with_resampled_rows(metric_name):
    generator = np.random.default_rng(0)
    references = generator.integers(0, 2, 600)
    full = np.where(generator.random(600) < 0.1, 1 - references, references)
    candidate = np.where(generator.random(600) < 0.08, 1 - full, full)
    certificate = certify(metric_name, full, candidate, references, 0.8)
    ratios = []
    for _ in range(250):
        rows = generator.integers(600, size=600)
        ratios.append(
            compute_score(metric_name, candidate[rows], references[rows])
            / compute_score(metric_name, full[rows], references[rows])
        )
    assert certificate.method == "bootstrap"
    assert certificate.performance_lower_bound == pytest.approx(np.quantile(ratios, ALPHA), abs=0.02)


@pytest.mark.parametrize("churn", [0.003, 0.05])
def test_bootstrap_level_on_the_boundary(churn):
    """Also where a handful of disagreements is all there is, which a plain bootstrap takes for certainty."""
    generator = np.random.default_rng(4)
    r = 1 - churn / 5
    probabilities = boundary(r, 0.9, churn)
    issued = 0
    for counts in draw(generator, 500, probabilities, 200):
        full, candidate, references = predictions(counts)
        is_negative = generator.random(500) < 0.4
        full, candidate, references = (np.where(is_negative, 1 - x, x) for x in (full, candidate, references))
        score, full_score = (compute_score("macro_f1", x, references) for x in (candidate, full))
        # to save time: what was not seen to keep enough is not certified
        if score > r * full_score:
            issued += certify("macro_f1", full, candidate, references, r, num_resamples=400).is_issued
    assert stats.binomtest(issued, 200, ALPHA, alternative="greater").pvalue > 1e-3


def test_spearman_is_that_of_scipy():
    generator = np.random.default_rng(0)
    references = generator.integers(0, 6, 300) / 2
    full = references + generator.normal(size=300)
    drawn = np.random.default_rng(7)
    rows = [drawn.integers(300, size=300) for _ in range(3)]
    expected = [stats.spearmanr(full[row], references[row]).statistic for row in rows]
    assert resample_scores("spearmanr", [full], references, 7, 3)[0] == pytest.approx(expected)
    certificate = certify(
        "spearmanr", full, full + 0.1 * generator.normal(size=300), references, 0.9, num_resamples=500
    )
    assert certificate.is_issued and certificate.method == "bootstrap"


def test_rows_of_several_labels():
    generator = np.random.default_rng(0)
    references = generator.integers(0, 2, (400, 4)).astype(float)
    full = np.where(generator.random((400, 4)) < 0.05, 1 - references, references)
    candidate = np.where(generator.random((400, 4)) < 0.01, 1 - full, full)
    assert certify("accuracy", full, candidate, references, 0.5).method == "exact"
    assert certify("f1", full, candidate, references, 0.9).is_issued


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"required_performance": 0}, "above 0 and at most 1, got 0"),
        ({"required_performance": 1.5}, "got 1.5; 0.99 asks for 99 %"),
        ({"confidence": 1.0}, "below 1, got 1.0"),
        ({"confidence": 95}, "got 95"),
        ({"num_candidates": 0}, "`num_candidates` must be at least 1"),
        ({"num_resamples": 100}, "take more resamples"),
        ({"candidate_predictions": np.ones(3, dtype=int)}, r"of one shape.*\(3,\) and \(4,\)"),
        ({"full_predictions": np.zeros(4, dtype=int)}, "a positive score only, got accuracy 0.0000"),
        ({"metric_name": "bleu"}, "unknown metric 'bleu'"),
    ],
)
def test_errors_say_the_rule(changes, message):
    ones = np.ones(4, dtype=int)
    arguments = {
        "metric_name": "accuracy",
        "full_predictions": ones,
        "candidate_predictions": ones,
        "references": ones,
        "required_performance": 0.9,
    }
    with pytest.raises(ValueError, match=message):
        certify(**arguments | changes)
