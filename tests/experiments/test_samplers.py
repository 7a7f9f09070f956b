"""Samplers behind one protocol, on tables by formula: optimum, exhaustion, pending, resuming, failures; the race."""

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tabular import (
    TableSpace,
    analytic_benchmark,
    evaluations_to_reach,
    read_benchmark,
    run_race,
    summarise_evaluations,
)

from classformer_hf.search import GaussianProcessSampler, Schedule, SearchSpace, strategies
from classformer_hf.search.constrained import ConstrainedSampler, PerformanceModel, audit_monotonicity, is_shorter
from classformer_hf.search.samplers import EvolutionSampler, Observation, OptunaSampler, RandomSampler
from classformer_hf.search.strategies import STRATEGIES

REQUIRED = 0.97
SCRIPT = Path(__file__).parents[2] / "experiments" / "samplers.py"


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


@pytest.mark.parametrize(("name", "num_trials"), [("constrained", 8), ("thesis", 15), ("gp", 15), ("tpe", 20)])
def test_models_find_the_optimum_of_a_small_table(table, name, num_trials):
    curves = run_race(table, name, REQUIRED, num_trials, 1)
    assert curves["speedup"][-1] >= 0.97 * table.best_speedup(REQUIRED) > 1.5


@pytest.mark.parametrize("name", ["random", "evolution"])
def test_draws_find_the_optimum_in_the_end(table, name):
    curves = run_race(table, name, REQUIRED, 80, 0)
    assert curves["speedup"][-1] == pytest.approx(table.best_speedup(REQUIRED))
    assert curves["reward"] == sorted(curves["reward"])


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


def test_evaluations_and_censored_medians():
    assert evaluations_to_reach([1.0, 1.97, 1.99, 2.0], 2.0) == 3
    assert evaluations_to_reach([1.0, 1.5], 2.0) is None
    summary = summarise_evaluations([3, 5, None, 4, 4], 10)
    assert summary["median"] == 4 and summary["reached"] == 0.8 and summary["runs"] == 5
    assert summarise_evaluations([None, None, 5], 10)["median"] is None


def test_runs_on_one_table_are_drawn_together():
    counts, tables = [3] * 20 + [9] * 20, [0] * 20 + [1] * 20
    together, apart = summarise_evaluations(counts, 10, tables), summarise_evaluations(counts, 10)
    assert together["median"] == apart["median"] == 3
    # half of all pairs of tables are twice the same one, a quarter twice the second
    assert together["low"] == 3 and together["high"] == 9
    one_table = summarise_evaluations([3, 5, 4, 9], 10, [0] * 4)
    assert one_table == summarise_evaluations([3, 5, 4, 9], 10)


def write_parquet(table, path, **changes):
    schedules = table.space.enumerate()
    frame = pd.DataFrame(
        {
            "gamma": [list(s.gamma) for s in schedules],
            "eta": [s.eta for s in schedules],
            "key": [s.key for s in schedules],
            "score": 0.9 * table.performance,
            "standard_error": 0.9 * table.standard_error,
            "latency_ratio": table.latency,
            "flops_ratio": table.flops,
            "mean_log2_lengths": table.lengths.tolist(),
            "dataset": "formula",
            "num_layers": table.space.num_layers,
            "max_tokens": 128,
        }
    )
    frame = frame.assign(**{key: value for key, value in changes.items() if value is not None})
    # rows may come in any order
    frame.drop(columns=[key for key, value in changes.items() if value is None]).iloc[::-1].to_parquet(path)
    return path


def test_table_survives_parquet(tmp_path):
    table = analytic_benchmark(3, num_examples=1000)
    read = read_benchmark(write_parquet(table, tmp_path / "table.parquet"))
    assert read.space.enumerate() == table.space.enumerate() and read.name == "formula"
    for column in ("performance", "standard_error", "latency", "flops", "lengths"):
        np.testing.assert_allclose(getattr(read, column), getattr(table, column), err_msg=column)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"latency_ratio": None}, "missing"), ({"eta": 0}, "twice"), ({"score": -1.0}, "positive score")],
)
def test_damaged_table_is_refused(tiny, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        read_benchmark(write_parquet(tiny, tmp_path / "table.parquet", **changes))


def test_table_without_the_full_model_is_refused():
    with pytest.raises(ValueError, match="no row of the unreduced model 1-1_eta0"):
        TableSpace([Schedule((2, 1))], 128)


def test_formula_is_nearly_monotone_and_latency_falls():
    table = analytic_benchmark(6, deviation=0.0)
    full = table.row[table.space.full]
    assert table.performance[full] == table.latency[full] == 1.0
    observations = [table.observe(s, REQUIRED) for s in table.space.enumerate() if s.eta == 0]
    assert audit_monotonicity(observations, table.known.features).rate == 0.0
    assert len(np.unique(table.latency)) > 100 and table.latency.min() > 0.05


@pytest.fixture
def run_script(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["experiments/samplers.py", *map(str, arguments)])
        monkeypatch.syspath_prepend(str(SCRIPT.parent))
        with pytest.raises(SystemExit) as exit_:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        return exit_.value.code, capsys.readouterr().out

    return call


def test_race_is_resumed_and_drawn(tiny, tmp_path, run_script):
    parquet = write_parquet(analytic_benchmark(3, seed=2), tmp_path / "table.parquet")
    flags = ["--benchmark", parquet, "--samplers", "random", "constrained", "--max_trials", 4, "--process_seeds", 2]
    flags += ["--output_dir", tmp_path / "runs", "--results_file", tmp_path / "r.json", "--figure", tmp_path / "r.png"]
    code, output = run_script(*flags, "--seeds", 2)
    assert not code and "| 97 % | constrained |" in output
    runs = tmp_path / "runs" / "runs.jsonl"
    first = runs.read_text()
    runs.write_text(first[:-20])  # torn: the last run is repeated
    assert not run_script(*flags, "--seeds", 3)[0]
    rows = [json.loads(line) for line in runs.read_text().splitlines() if line.endswith("}")]
    assert len(first.splitlines()) == 4 and len(rows) == 5
    result = json.loads((tmp_path / "r.json").read_text())
    summary = result["required"]["0.97"]["samplers"]["random"]
    assert summary["evaluations_to_99%"]["runs"] == 3 and len(summary["reward"]["median"]) == 4
    assert not result["is_analytic"] and result["arguments"]["benchmark"] == "path/to/table.parquet"
    assert (tmp_path / "r.png").stat().st_size > 10_000


def test_race_needs_one_table(run_script):
    assert "either `--benchmark" in run_script()[0]
