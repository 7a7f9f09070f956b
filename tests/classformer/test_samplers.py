"""Samplers behind one protocol, on tables by formula: optimum, exhaustion, pending, resuming, failures."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from classformer_hf.search import GaussianProcessSampler, Schedule, SearchSpace, strategies
from classformer_hf.search.constrained import ConstrainedSampler, PerformanceModel, audit_monotonicity, is_shorter
from classformer_hf.search.samplers import EvolutionSampler, Observation, OptunaSampler, RandomSampler
from classformer_hf.search.strategies import STRATEGIES
from tests.classformer.tabular import analytic_benchmark

REQUIRED = 0.97


@pytest.fixture(scope="module")
def table():
    """63 schedules of four layers."""
    return analytic_benchmark(4, deviation=0.001, seed=1)


@pytest.fixture(scope="module")
def tiny():
    """8 schedules of two layers."""
    return analytic_benchmark(2, seed=1)


# bisection has a line of schedules of its own
@pytest.fixture(params=[name for name in STRATEGIES if name != "binary"])
def name(request):
    return request.param


def build_sampler(name, table, max_trials, seed):
    return strategies.build_sampler(name, table.space, REQUIRED, max_trials, seed, "none", table.known)


def constrained(table, **kwargs):
    return ConstrainedSampler(table.space, table.known, REQUIRED, **kwargs)


def told(table, sampler, num_trials):
    """Tell the unreduced model and so many proposals; returns the proposals."""
    sampler.tell(table.observe(table.space.full, REQUIRED))
    proposals = []
    # the constrained search may end earlier
    while len(proposals) < num_trials and (proposal := sampler.ask()) is not None:
        proposals.append(proposal[0])
        sampler.tell(table.observe(proposals[-1], REQUIRED))
    return proposals


def find_speedup(name, table, num_trials, seed):
    """Give the best feasible speed-up that a sampler finds beyond the unreduced model's."""
    rows = [table.row[schedule] for schedule in told(table, build_sampler(name, table, num_trials, seed), num_trials)]
    return max(1 / table.latency[row] for row in rows if table.performance[row] >= REQUIRED)


@pytest.mark.parametrize(("name", "num_trials"), [("constrained", 8), ("thesis", 15), ("gp", 15), ("tpe", 20)])
def test_models_find_the_optimum_of_a_small_table(table, name, num_trials):
    assert find_speedup(name, table, num_trials, 1) >= 0.97 * table.best_speedup(REQUIRED) > 1.5


@pytest.mark.parametrize("name", ["random", "evolution"])
def test_draws_find_the_optimum_in_the_end(table, name):
    assert find_speedup(name, table, 80, 0) == pytest.approx(table.best_speedup(REQUIRED))


def test_tiny_space_is_exhausted_without_a_duplicate(tiny, name):
    everything = tiny.space.enumerate()
    sampler = build_sampler(name, tiny, 20, 0)
    sampler.tell(tiny.observe(tiny.space.full, REQUIRED))
    proposals = []
    while (proposal := sampler.ask()) is not None:
        proposals.append(proposal[0])
        assert len(proposals) < len(everything), "more proposals than schedules"
        sampler.tell(tiny.observe(proposals[-1], REQUIRED))
    assert len(set(proposals)) == len(proposals) and tiny.space.full not in proposals
    if name == "constrained":
        # it ends when everything faster is taken or ruled out
        assert min(tiny.latency[tiny.performance >= REQUIRED]) in [tiny.known.latency[s] for s in proposals]
    else:
        assert len(proposals) == len(everything) - 1


def test_pending_schedules_are_not_proposed_again(table, name):
    sampler = build_sampler(name, table, 20, 0)
    seen = told(table, sampler, 4)
    pending = [sampler.ask()[0] for _ in range(4)]
    assert len({*seen, *pending, table.space.full}) == 9
    sampler.tell(table.observe(pending[1], REQUIRED))
    assert sampler.pending == [pending[0], *pending[2:]]
    assert sampler.ask()[0] not in {*seen, *pending}


@pytest.mark.parametrize("num_trials", [0, 2, 11])
def test_resumed_sampler_proposes_the_same(table, name, num_trials):
    first = build_sampler(name, table, 20, 3)
    proposals = told(table, first, num_trials)
    second = build_sampler(name, table, 20, 3)
    for schedule in (table.space.full, *proposals):
        second.tell(table.observe(schedule, REQUIRED))
    assert second.ask() == first.ask()


def test_failed_trials_are_tolerated_and_not_repeated(table, name):
    sampler = build_sampler(name, table, 20, 0)
    sampler.tell(table.observe(table.space.full, REQUIRED))
    failed = []
    for number in range(13 if name in ("tpe", "evolution") else 6):
        schedule = sampler.ask()[0]
        assert schedule not in failed
        if number % 2:
            failed.append(schedule)
        sampler.tell(Observation(schedule) if number % 2 else table.observe(schedule, REQUIRED))


@pytest.mark.parametrize("sampler_class", [RandomSampler, EvolutionSampler, OptunaSampler])
def test_capped_space_gets_allowed_schedules_only(sampler_class):
    space = SearchSpace(6, 64, (1, 2, 4, 8), (0, 2), max_reduction=8)
    sampler = sampler_class(space, seed=1)
    for number in range(14):
        schedule, _ = sampler.ask()
        assert space.is_allowed(schedule) and space.canonical(schedule) == schedule
        sampler.tell(Observation(schedule, 1.0, 0.5, float(number)))


def test_thesis_sampler_keeps_to_the_cap():
    space = SearchSpace(6, 64, (1, 2, 4, 8), (0, 2), max_reduction=4)
    sampler = GaussianProcessSampler(space, 36, seed=1)
    # the seeded designs reduce 8 times where all three of their steps are
    assert all(space.is_allowed(schedule) for schedule, _ in sampler.initial)
    for number in range(len(sampler.initial) + 2):
        schedule, _ = sampler.ask()
        assert space.is_allowed(schedule)
        sampler.tell(Observation(schedule, 1.0, 0.5, float(number % 5)))


def test_random_is_uniform_over_schedules(tiny):
    first = [RandomSampler(tiny.space, seed).ask()[0] for seed in range(800)]
    counts = [first.count(schedule) for schedule in tiny.space.enumerate()]
    expected = 800 / len(counts)
    assert sum((count - expected) ** 2 / expected for count in counts) < 30


def test_evolution_breeds_from_the_best(table):
    sampler = EvolutionSampler(table.space, 0)
    told(table, sampler, 30)
    assert sampler.ask()[1] == "evolution"
    rewards = dict(sampler.rewards())
    late = [rewards[o.schedule] for o in sampler.observations[-15:]]
    assert np.mean(late) > np.mean([table.observe(s, REQUIRED).reward for s in table.space.enumerate()])


def test_unknown_names_are_refused(tiny):
    with pytest.raises(ValueError, match='"tpe" or "gp", got "cma"'):
        OptunaSampler(tiny.space, "cma")
    with pytest.raises(ValueError, match="no strategy 'grid'"):
        build_sampler("grid", tiny, 10, 0)


def test_missing_optuna_names_the_extra(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"pip install 'redundancy-hf\[optuna\]'"):
        OptunaSampler(tiny.space)


def test_slopes_are_not_negative_and_told_apart():
    generator = np.random.default_rng(0)
    drops = np.cumsum(generator.integers(0, 2, (300, 5)), axis=1).astype(float)
    # the second layer seems to help
    performance = 1 - drops @ [0.03, -0.02, 0.0, 0.01, 0.002]
    model = PerformanceModel(drops, np.zeros(300), REQUIRED)
    model.fit({row: (performance[row], 0.001) for row in range(30)})
    assert (model.slopes >= 0).all() and model.slopes[1] == 0
    assert model.slopes[0] > 0.01 > model.slopes[4]
    mean, deviation = model.predict(np.arange(300))
    assert np.abs(mean - performance).mean() < 0.005 and (deviation > 0).all()


def test_clearly_infeasible_schedule_rules_out_the_shorter_ones(table):
    sampler = constrained(table)
    schedule = Schedule((2, 1, 2, 1))
    sampler.tell(table.observe(table.space.full, REQUIRED))
    sampler.tell(Observation(schedule, 0.9, 0.5, 0.9, 0.002))
    candidates = [sampler.schedules[row] for row in sampler._candidates(1.0)]
    lengths = {s: np.array(table.known.features[s]) for s in sampler.schedules}
    shorter = {s for s in sampler.schedules if is_shorter(lengths[s], lengths[schedule])}
    assert Schedule((4, 1, 1, 1)) in shorter and Schedule((1, 8, 1, 1)) not in shorter
    assert set(candidates) == set(sampler.schedules) - shorter - {schedule, table.space.full}
    # within the error nothing is ruled out
    unsure = constrained(table)
    unsure.tell(Observation(schedule, 0.96, 0.5, 0.96, 0.02))
    assert len(unsure._candidates(1.0)) == len(sampler.schedules) - 2


def test_feasible_schedule_rules_out_what_is_not_faster(table):
    sampler = constrained(table)
    sampler.tell(table.observe(table.space.full, REQUIRED))
    feasible = max((s for s in sampler.schedules), key=lambda s: table.observe(s, REQUIRED).reward)
    sampler.tell(table.observe(feasible, REQUIRED))
    while (proposal := sampler.ask()) is not None:
        assert table.known.latency[proposal[0]] < table.known.latency[feasible]
        sampler.tell(table.observe(proposal[0], REQUIRED))


def test_pruning_is_switched_off_by_violations(table):
    sampler = constrained(table)
    for schedule, performance in ((Schedule((2, 1, 1, 1)), 0.9), (Schedule((4, 1, 1, 1)), 0.95)):
        sampler.tell(Observation(schedule, performance, 0.5, performance, 0.002))
    assert sampler.audit().rate == 1.0
    assert len(sampler._candidates(1.0)) == len(sampler.schedules) - 3


def test_audit_counts_significant_violations_of_comparable_pairs():
    schedules = {length: Schedule((length, 1)) for length in (1, 2, 4)}
    other = Schedule((1, 8))
    features = {schedules[1]: (7, 7), schedules[2]: (6, 6), schedules[4]: (5, 5), other: (7, 4)}
    scores = {schedules[1]: 1.0, schedules[2]: 0.95, schedules[4]: 0.97, other: 1.0005}
    observations = [Observation(s, score, 1.0, score, 0.005) for s, score in scores.items()]
    audit = audit_monotonicity([*observations, Observation(Schedule((8, 8)))], features)
    # `other` is shorter than the full model only, and better by less than its error
    assert len(audit.pairs) == 4
    assert audit.violations == [(schedules[4], schedules[2])]
    assert audit.rate == 0.25
    assert audit_monotonicity([], features).rate == 0.0


def test_costs_turn_the_choice_and_must_be_complete(table):
    def proposals(**costs):
        known = replace(table.known, flops=dict.fromkeys(table.known.latency, 1.0) | costs.pop("flops", {}))
        return told(table, ConstrainedSampler(table.space, known, REQUIRED), 5)

    cheap = proposals()[-1]
    assert cheap not in proposals(flops={cheap: 1e6})
    incomplete = replace(table.known, flops={s: 1.0 for s in table.known.latency if s != cheap})
    with pytest.raises(ValueError, match="1 schedules with a latency have no flops"):
        ConstrainedSampler(table.space, incomplete, REQUIRED)


def test_formula_is_nearly_monotone_and_latency_falls():
    table = analytic_benchmark(6, deviation=0.0)
    full = table.row[table.space.full]
    assert table.performance[full] == table.latency[full] == 1.0
    observations = [table.observe(s, REQUIRED) for s in table.space.enumerate() if s.eta == 0]
    assert audit_monotonicity(observations, table.known.features).rate == 0.0
    assert len(np.unique(table.latency)) > 100 and table.latency.min() > 0.05


def test_what_is_not_told_yet_counts_as_the_worst():
    sampler = RandomSampler(SearchSpace(3, 16), seed=0)
    first, _ = sampler.ask()
    sampler.tell(Observation(first, reward=0.5))
    second, _ = sampler.ask()
    assert sampler.rewards() == [(first, 0.5), (second, 0.5)]
