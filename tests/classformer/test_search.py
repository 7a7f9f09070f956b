"""The search loop on a formula: rewards, resuming, failures, budgets, the journal's damages."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from classformer_hf.search import (
    BinarySearchSampler,
    GaussianProcessSampler,
    Hooks,
    Journal,
    JournalError,
    Schedule,
    SearchSpace,
    Trial,
    pareto_front,
    reward,
    run_search,
)
from classformer_hf.search.reference import check_requirement
from classformer_hf.search.samplers import Observation

IDENTITY = {"dataset": "formula"}


def formula(schedule: Schedule) -> dict:
    """Early reductions cost most score; time goes with the tokens."""
    num_tokens, score, work = 64, 0.9, 0.0
    for layer, factor in enumerate(schedule.gamma):
        rest = max(num_tokens - schedule.eta, 0)
        left = num_tokens - rest + -(-rest // factor)
        score -= 0.01 * (len(schedule.gamma) - layer) * np.log2(num_tokens / left)
        work, num_tokens = work + left, left
    return {"score": float(score), "latency_ratio": work / (64 * len(schedule.gamma))}


@pytest.fixture
def space() -> SearchSpace:
    return SearchSpace(4, 64, (1, 2, 4), (0, 2))


def search(space, path, max_trials=8, objective=formula, required=0.95, sampler=None, **hooks):
    sampler = sampler or GaussianProcessSampler(space, 8, seed=1)
    return run_search(space, objective, sampler, Journal(path, IDENTITY), required, max_trials, Hooks(**hooks))


def test_reward_is_equation_5_4():
    assert reward(0.8, 0.9, 0.5) == 0.8
    assert reward(0.9, 0.9, 0.5) == pytest.approx(0.9 + 2)


def test_search_finds_one_of_the_best_of_hundreds(tmp_path):
    space = SearchSpace(5, 64, (1, 2, 4, 8), (0, 2))
    generator = np.random.default_rng(0)
    everything = {space.sample(generator) for _ in range(5000)} | {space.full}
    result = search(space, tmp_path / "trials.jsonl", max_trials=25, sampler=GaussianProcessSampler(space, 25, seed=0))
    full = formula(space.full)["score"]
    feasible = [formula(s)["latency_ratio"] for s in everything if formula(s)["score"] >= 0.95 * full]
    assert len(everything) > 200
    assert result.is_feasible(result.best)
    assert result.best.latency_ratio <= sorted(feasible)[4]


def test_first_trial_is_the_full_model_and_nothing_repeats(space, tmp_path):
    result = search(space, tmp_path / "trials.jsonl")
    schedules = [trial.schedule for trial in result.trials]
    assert schedules[0] == space.full
    assert len(set(schedules)) == len(schedules) == 8
    assert all(space.canonical(schedule) == schedule for schedule in schedules)


@pytest.mark.parametrize(
    ("num_layers", "max_trials", "origins"),
    [(12, 50, {"seeded": 9, "random": 8, "model": 2}), (6, 12, {"seeded": 2, "random": 3, "model": 6})],
)
def test_initial_designs_leave_half_of_the_trials_to_the_model(num_layers, max_trials, origins):
    space = SearchSpace(num_layers, 128)
    sampler = GaussianProcessSampler(space, max_trials)
    counts = {"reference": 0, "seeded": 0, "random": 0, "model": 0}
    for _ in range(sum(origins.values()) + 1):
        schedule, origin = sampler.ask()
        counts[origin] += 1
        sampler.tell(Observation(schedule, 1.0, 1.0, 1.0))
    assert counts == {"reference": 1, **origins}
    first_layers = [next(i for i, f in enumerate(s.gamma) if f > 1) for s, o in sampler.initial if o == "seeded"]
    assert first_layers == sorted(first_layers, reverse=True), "progressively earlier"


@pytest.mark.parametrize(
    ("kind", "origins"), [("random", ["reference", *["random"] * 3]), ("none", ["reference", "random"])]
)
def test_other_initial_designs(space, kind, origins):
    assert [origin for _, origin in GaussianProcessSampler(space, 8, kind).initial] == origins


def test_unknown_initial_designs_are_refused(space):
    with pytest.raises(ValueError, match='"thesis", "random" or "none", got "grid"'):
        GaussianProcessSampler(space, 8, "grid")


def test_resumed_search_equals_the_uninterrupted_one(space, tmp_path):
    whole = search(space, tmp_path / "whole.jsonl", max_trials=7)
    for max_trials in (1, 3, 4, 7):
        pieces = search(space, tmp_path / "pieces.jsonl", max_trials=max_trials)
    assert [t.schedule for t in pieces.trials] == [t.schedule for t in whole.trials]
    assert pieces.best.schedule == whole.best.schedule


def test_another_requirement_reuses_the_journal(space, tmp_path):
    strict = search(space, tmp_path / "trials.jsonl", required=0.99)
    loose = search(space, tmp_path / "trials.jsonl", required=0.5, objective=lambda schedule: pytest.fail("evaluated"))
    assert loose.best.latency_ratio < strict.best.latency_ratio
    assert loose.best == min(loose.trials, key=lambda trial: trial.latency_ratio)


def test_failed_trial_is_a_row_and_the_search_goes_on(space, tmp_path):
    def failing(schedule):
        if schedule != space.full and schedule.gamma[0] == 1:
            raise MemoryError("no room")
        return formula(schedule)

    result = search(space, tmp_path / "trials.jsonl", objective=failing)
    failed = [trial for trial in result.trials if not trial.is_ok]
    assert len(result.trials) == 8 and failed
    assert failed[0].error == "MemoryError: no room"
    assert Journal(tmp_path / "trials.jsonl", IDENTITY).trials == result.trials


def test_failing_full_model_stops_the_search(space, tmp_path):
    def failing(schedule):
        raise FloatingPointError("the loss became nan")

    with pytest.raises(JournalError, match="unreduced model was not evaluated .*the loss became nan"):
        search(space, tmp_path / "trials.jsonl", objective=failing)


def test_failed_full_model_is_tried_again(space, tmp_path):
    calls = []

    def failing_once(schedule):
        calls.append(schedule)
        if len(calls) == 1:
            raise MemoryError("no room")
        return formula(schedule)

    with pytest.raises(JournalError, match="MemoryError: no room"):
        search(space, tmp_path / "trials.jsonl", objective=failing_once)
    result = search(space, tmp_path / "trials.jsonl", objective=failing_once)
    assert result.reference.number == 1 and result.reference.schedule == space.full
    assert len(result.trials) == 8


@pytest.mark.parametrize(
    ("score", "required", "message"),
    [
        (
            0.83,
            0.99,
            "0.830 is not above the majority score 0.812 by 2 standard errors (0.030), so there is nothing",
        ),
        # README's first headline: what was asked of MRPC is met by a model that learned nothing
        (0.864, 0.95, "95 % of the full model's f1 0.864 is 0.821, which is not above the majority score 0.812 by 2"),
        (0.864, 0.95, "ask for at least --required_performance 0.975, or search anyway with --force"),
    ],
)
def test_requirement_that_learning_nothing_meets_is_refused(score, required, message, caplog):
    measurement = {"score": score, "standard_error": 0.015, "metric_name": "f1", "num_examples": 408}
    trial = Trial(0, Schedule((1, 1)), "reference", "ok", measurement)
    with pytest.raises(ValueError, match=re.escape(message)):
        check_requirement(trial, 0.812, required, is_forced=False)
    assert not caplog.messages
    check_requirement(trial, 0.812, required, is_forced=True)
    assert len(caplog.messages) == 1 and message in caplog.messages[0]


def test_requirement_above_the_floor_is_searched(caplog):
    measurement = {"score": 0.9, "standard_error": 0.015, "metric_name": "f1", "num_examples": 408}
    trial = Trial(0, Schedule((1, 1)), "reference", "ok", measurement)
    check_requirement(trial, 0.812, 0.95, is_forced=False)
    assert not caplog.messages
    check_requirement(trial, 0.812, 0.99, is_forced=False)
    assert "the loss that is allowed, 0.009, is smaller than the standard error of 0.015" in caplog.text


@pytest.mark.parametrize("score", [0.0, -0.1])
def test_full_model_without_a_positive_score_is_refused(space, tmp_path, score):
    with pytest.raises(JournalError, match=f"scores {score:.3f}, and no share of that can be kept"):
        search(space, tmp_path / "trials.jsonl", objective=lambda schedule: {"score": score, "latency_ratio": 1.0})


def test_failed_trial_is_never_better_than_a_finished_one(space, tmp_path):
    def negative(schedule):
        if schedule == space.full:
            return {"score": 0.5, "latency_ratio": 1.0}
        if schedule.gamma[0] > 1:
            raise MemoryError("no room")
        return {"score": -0.4, "latency_ratio": 0.5}

    result = search(space, tmp_path / "trials.jsonl", objective=negative)
    failed = [value for trial, value in zip(result.trials, result.rewards, strict=True) if not trial.is_ok]
    assert failed and max(failed) <= min(result.rewards)


def test_reference_check_can_stop_the_search(space, tmp_path):
    def check(stage, trial):
        raise ValueError("not above the majority")

    with pytest.raises(ValueError, match="not above the majority"):
        search(space, tmp_path / "trials.jsonl", check_reference=check)
    assert len(Journal(tmp_path / "trials.jsonl", IDENTITY).trials) == 1


def test_interrupt_returns_the_best_so_far(space, tmp_path):
    def interrupted(schedule):
        if schedule.gamma[0] > 1:
            raise KeyboardInterrupt
        return formula(schedule)

    result = search(space, tmp_path / "trials.jsonl", objective=interrupted)
    assert result.interrupted
    assert 1 <= len(result.trials) < 8


def test_time_budget_stops_after_the_running_trial(space, tmp_path):
    assert len(search(space, tmp_path / "trials.jsonl", is_time_up=lambda: True).trials) == 1


@pytest.mark.parametrize("required", [0, -1, 1.01, 99])
def test_impossible_requirement_is_refused(space, tmp_path, required):
    with pytest.raises(ValueError, match=f"above 0 and at most 1, got {required}"):
        search(space, tmp_path / "trials.jsonl", required=required)


def test_no_trials_is_refused(space, tmp_path):
    with pytest.raises(ValueError, match="at least 1, got 0"):
        search(space, tmp_path / "trials.jsonl", max_trials=0)


def test_binary_search_finds_the_earliest_good_layer(tmp_path):
    space = SearchSpace(12, 64)
    sampler = BinarySearchSampler(space, 0.9)
    result = search(space, tmp_path / "trials.jsonl", max_trials=50, required=0.9, sampler=sampler)
    full = formula(space.full)["score"]
    feasible = [k for k in range(13) if formula(space.constrained(k))["score"] >= 0.9 * full]
    assert 0 < min(feasible) < 10
    assert result.best.schedule == space.constrained(min(feasible))
    assert len(result.trials) <= 5


def test_pareto_front_holds_what_nothing_beats():
    def trial(number, score, latency):
        return Trial(number, Schedule((number,)), "random", "ok", {"score": score, "latency_ratio": latency})

    trials = [trial(1, 0.9, 1.0), trial(2, 0.8, 0.5), trial(3, 0.7, 0.6), trial(4, 0.9, 1.1), trial(5, 0.6, 0.2)]
    assert [t.number for t in pareto_front(trials)] == [5, 2, 1]


def test_kill_9_loses_no_finished_trial(space, tmp_path):
    code = f"""
        import os, signal, sys
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        from test_search import formula, search
        from classformer_hf.search import SearchSpace
        calls = []
        def objective(schedule):
            calls.append(schedule)
            if len(calls) == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            return formula(schedule)
        search(SearchSpace(4, 64, (1, 2, 4), (0, 2)), {str(tmp_path / "trials.jsonl")!r}, objective=objective)
    """
    process = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert len(Journal(tmp_path / "trials.jsonl", IDENTITY).trials) == 3
    resumed = search(space, tmp_path / "trials.jsonl")
    assert resumed.trials[3:] and resumed.best.schedule == search(space, tmp_path / "whole.jsonl").best.schedule


@pytest.fixture
def journal_path(space, tmp_path):
    search(space, tmp_path / "trials.jsonl", max_trials=3)
    return tmp_path / "trials.jsonl"


def test_torn_last_line_is_dropped(space, journal_path):
    content = journal_path.read_bytes()
    for cut in (1, 20, len(content.splitlines()[-1]) - 2):
        journal_path.write_bytes(content[:-cut])
        journal = Journal(journal_path, IDENTITY)
        assert len(journal.trials) == 2
        assert journal_path.read_bytes() == content[:-cut], "another process may be writing it"
        assert len(search(space, journal_path, max_trials=3).trials) == 3
        assert Journal(journal_path, IDENTITY).trials == search(space, journal_path, max_trials=3).trials


def test_damaged_line_is_named_and_kept(journal_path):
    lines = journal_path.read_text().splitlines(keepends=True)
    journal_path.write_text(lines[0] + lines[1][:30] + "\n" + lines[2])
    with pytest.raises(JournalError, match="line 2 cannot be read"):
        Journal(journal_path, IDENTITY)


def test_journal_of_another_dataset_is_refused(journal_path):
    with pytest.raises(JournalError, match=r"--dataset_name, or .* \(fingerprint formula, now other\); .*--output_dir"):
        Journal(journal_path, {"dataset": "other"})


def test_changed_checkpoint_is_refused_and_nothing_lost(journal_path):
    content = journal_path.read_bytes()
    header = json.dumps({"type": "study", "identity": {**IDENTITY, "checkpoint": "aaa"}}).encode()
    journal_path.write_bytes(header + content[content.index(b"\n") :])
    before = journal_path.read_bytes()
    with pytest.raises(JournalError, match=r"--model_name_or_path, or .* \(fingerprint aaa, now bbb\)"):
        Journal(journal_path, {**IDENTITY, "checkpoint": "bbb"})
    assert journal_path.read_bytes() == before


def test_line_of_garbage_is_named(journal_path):
    lines = journal_path.read_bytes().splitlines(keepends=True)
    journal_path.write_bytes(lines[0] + lines[1] + b"\xff\x00\n" + lines[2])
    with pytest.raises(JournalError, match="line 3 cannot be read"):
        Journal(journal_path, IDENTITY)


def test_numbers_stay_unique_where_a_line_was_deleted(space, journal_path):
    lines = journal_path.read_bytes().splitlines(keepends=True)
    journal_path.write_bytes(lines[0] + lines[1] + lines[3])
    assert [trial.number for trial in search(space, journal_path, max_trials=4).trials] == [0, 2, 3, 4]


def test_disk_that_fills_up_within_a_line_loses_only_that_line(space, journal_path):
    journal = Journal(journal_path, IDENTITY)
    content = journal_path.read_bytes()
    trial = Trial(3, Schedule((9,)), "random", "ok", {"score": 1.0, "latency_ratio": 0.5})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) + 30, limits[1]))
    try:
        with pytest.raises(JournalError, match="File too large.*earlier trials are safe"):
            journal.append(trial)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert journal_path.read_bytes() == content and len(journal.trials) == 3
    journal.append(trial)
    assert Journal(journal_path, IDENTITY).trials[3] == trial


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs the device that is always full")
def test_full_disk_is_one_sentence(space, tmp_path):
    journal = Journal(tmp_path / "trials.jsonl", IDENTITY)
    journal.path = Path("/dev/full")
    with pytest.raises(JournalError, match="No space left on device.*earlier trials are safe"):
        journal.append(Trial(0, space.full, "reference", "ok", {"score": 1.0}))


def test_later_latency_replaces_what_was_timed(journal_path):
    journal = Journal(journal_path, IDENTITY)
    before = journal.trials
    journal.retime({1: {"latency_ratio": 0.25, "hardware": {"cpu": "another"}}, 9: {"latency_ratio": 0.5}})
    again = Journal(journal_path, IDENTITY)
    assert again.trials == journal.trials
    assert again.trials[1].measurement == {
        "score": before[1].score,
        "latency_ratio": 0.25,
        "hardware": {"cpu": "another"},
    }
    assert [again.trials[0], again.trials[2]] == [before[0], before[2]]
    again.retime({1: {"latency_milliseconds": 3.0}})
    assert again.trials[1].measurement == {"score": before[1].score, "latency_milliseconds": 3.0}, "nothing is mixed"
    size = journal_path.stat().st_size
    again.retime({})
    assert journal_path.stat().st_size == size


def test_rows_can_be_read_by_a_person(journal_path):
    header, first, *_ = [json.loads(line) for line in journal_path.read_text().splitlines()]
    assert header == {"type": "study", "identity": IDENTITY}
    assert first["key"] == "1-1-1-1_eta0" and first["origin"] == "reference" and first["time"].endswith("+00:00")
