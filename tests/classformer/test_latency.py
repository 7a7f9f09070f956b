"""The latency table: predictions add up, a file survives a round trip or is refused, and a real build is sane."""

import dataclasses
import json
import runpy
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from classformer_hf import ClassformerConfig, ClassformerForSequenceClassification
from classformer_hf.latency import (
    Entry,
    LatencyTable,
    _list_jobs,
    build_latency_table,
    choose_grid,
    compare_latencies,
    describe_shape,
    drift,
)
from classformer_hf.modeling_classformer import ClassformerEncoder
from classformer_hf.search.space import Schedule, SearchSpace
from redundancy_hf.timing import Target, hardware_fingerprint

SETTINGS = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 80,
}
GRID = choose_grid(40)
FULL = Schedule((1, 1, 1), 0)


def reduce_ms(n, m):
    return 3 + 0.10 * n + 0.20 * m + 0.001 * n * m


def keep_ms(n):
    return reduce_ms(n, n) - 0.5


def first_ms(n):
    return reduce_ms(n, 1) - 0.25


def outside_ms(n):
    return 0.6 + 0.01 * n


def make_table(**changes):
    entries = [Entry("reduce", n, m, reduce_ms(n, m), 0, 0) for n in GRID for m in GRID if m <= n]
    for n in GRID:
        entries += [Entry("keep", n, n, keep_ms(n), 0, 0), Entry("first", n, 1, first_ms(n), 0, 0)]
        entries.append(Entry("outside", n, 1, outside_ms(n), 0, 0))
    entries.append(Entry("mask", 40, 40, 0.04, 0, 0))
    settings = {
        "shape": describe_shape(ClassformerConfig(**SETTINGS)),
        "hardware": hardware_fingerprint() | {"threads": 1},
        "clock": "thread_cpu",
        "anchor_tokens": 10,
        "anchor_ms": 12.0,
        "rounds": 3,
        "build_seconds": 1.0,
        "created": "2026-01-01T00:00:00+00:00",
        "entries": tuple(entries),
    }
    return LatencyTable(**settings | changes)


@pytest.fixture(scope="module")
def table():
    return make_table()


@pytest.mark.parametrize(
    ("schedule", "length", "parts"),
    [
        (FULL, 32, 0.04 + 2 * keep_ms(32) + first_ms(32)),
        (Schedule((2, 1, 1), 0), 32, 0.04 + reduce_ms(32, 16) + keep_ms(16) + first_ms(16)),
        (Schedule((1, 4, 1), 0), 32, 0.04 + keep_ms(32) + reduce_ms(32, 8) + first_ms(8)),
        (Schedule((512, 1, 1), 15), 32, 0.04 + reduce_ms(32, 16) + keep_ms(16) + first_ms(16)),
        # nothing is left to drop, but the layer takes the way of those that drop
        (Schedule((2, 1, 1), 8), 8, 0.04 + reduce_ms(8, 8) + keep_ms(8) + first_ms(8)),
    ],
    ids=lambda value: value.key if isinstance(value, Schedule) else "",
)
def test_prediction_is_the_sum_of_its_parts(table, schedule, length, parts):
    assert table.predict(schedule, [length]) == pytest.approx(outside_ms(length) + parts)


def test_all_queries_of_the_last_layer_where_the_config_says_so(table):
    shape = table.shape | {"last_layer_cls_only": False}
    expected = outside_ms(16) + 0.04 + 3 * keep_ms(16)
    assert make_table(shape=shape).predict(FULL, [16]) == pytest.approx(expected)


def test_prediction_follows_the_lengths_of_the_config(table):
    """The schedule's arithmetic is the config's, for any factor and eta."""
    for schedule in SearchSpace(3, 40, first_token_gamma=64).enumerate():
        config = ClassformerConfig(**SETTINGS, gamma=list(schedule.gamma), eta=schedule.eta)
        tokens, expected = 37, outside_ms(37) + 0.04
        for factor, left in zip(schedule.gamma[:2], config.layer_lengths(37), strict=False):
            if factor == 1:
                expected += table._dense["keep"][tokens]
            else:
                expected += table._dense["reduce"][tokens, left]
            tokens = left
        assert table.predict(schedule, [37]) == pytest.approx(expected + table._dense["first"][tokens]), schedule


def test_interpolation_is_linear_between_grid_points(table):
    dense = table._dense["reduce"]
    assert dense[28, 8] == pytest.approx((reduce_ms(24, 8) + reduce_ms(32, 8)) / 2)
    assert dense[28, 12] == pytest.approx(np.mean([reduce_ms(n, m) for n in (24, 32) for m in (8, 16)]))
    # beside the diagonal, in the plane of the three points that exist
    assert dense[28, 28] == pytest.approx((reduce_ms(24, 24) + reduce_ms(32, 32)) / 2)
    assert dense[30, 26] == pytest.approx((reduce_ms(24, 24) + 2 * reduce_ms(32, 24) + reduce_ms(32, 32)) / 4)


def test_prediction_averages_over_lengths(table):
    schedule = Schedule((2, 2, 1), 2)
    separate = [table.predict(schedule, [length]) for length in (5, 17, 17, 40)]
    assert table.predict(schedule, [5, 17, 17, 40]) == pytest.approx(np.mean(separate))


def test_many_predictions_equal_single_ones_and_are_fast(table):
    schedules = SearchSpace(3, 40).enumerate()
    lengths = [3, 9, 9, 31, 40]
    many = table.predict_many(schedules, lengths)
    assert many == pytest.approx([table.predict(schedule, lengths) for schedule in schedules])
    assert table.predict_ratios(schedules, lengths) == pytest.approx(many / table.predict(FULL, lengths))
    started = time.thread_time()
    table.predict_many([Schedule((2, 1, 1), 4)] * 5000, list(range(10, 26)))
    assert time.thread_time() - started < 1


def test_shorter_is_faster(table):
    gammas = [1, 2, 4, 8, 64]
    for layer in (0, 1):
        schedules = [Schedule(tuple(f if i == layer else 1 for i in range(3)), 0) for f in gammas]
        assert (np.diff(table.predict_many(schedules, [40])) < 0).all()


@pytest.mark.parametrize("lengths", [[], [0, 5], [41]], ids=str)
def test_unknown_lengths_are_refused(table, lengths):
    with pytest.raises(ValueError, match=r"knows inputs of 1 to 40 tokens, got"):
        table.predict(FULL, lengths)


def test_another_number_of_layers_is_refused(table):
    with pytest.raises(ValueError, match="the latency table is of 3 layers"):
        table.predict(Schedule((1, 1)), [5])


def test_file_round_trip(table, tmp_path):
    path = tmp_path / "folder" / "latency_table.json"
    table.save(path)
    assert LatencyTable.load(path) == table
    content = json.loads(path.read_text())
    assert content["hardware"]["torch"] == torch.__version__ and content["shape"]["hidden_size"] == 32
    # one entry a line, for people
    assert sum('"part": "reduce"' in line for line in path.read_text().splitlines()) == len(GRID) * (len(GRID) + 1) // 2
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"cannot be read .*; build one with `redundancy-hf"),
        ("{", r"cannot be read .*; build one with `redundancy-hf"),
        ("[]", "is no latency table, or a damaged one"),
        ('{"format_version": 1}', "is no latency table, or a damaged one"),
        ({"entries": []}, "is no latency table, or a damaged one"),
        ({"entries": [{"part": "keep"}]}, "is no latency table, or a damaged one"),
        ({"surplus": 1}, "is no latency table, or a damaged one"),
        ({"format_version": 99}, "is a latency table of format 99, not 2"),
    ],
    ids=["missing", "cut off", "a list", "empty", "no entries", "half an entry", "unknown field", "newer"],
)
def test_load_refuses(table, tmp_path, content, message):
    path = tmp_path / "latency_table.json"
    if isinstance(content, dict):
        table.save(path)
        path.write_text(json.dumps(json.loads(path.read_text()) | content))
    elif content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=message):
        LatencyTable.load(path)


def test_a_table_without_one_part_is_damaged(table, tmp_path):
    for part in ("keep", "reduce", "first", "mask", "outside"):
        path = tmp_path / "latency_table.json"
        dataclasses.replace(table, entries=tuple(e for e in table.entries if e.part != part)).save(path)
        with pytest.raises(ValueError, match="is no latency table, or a damaged one"):
            LatencyTable.load(path)


def test_table_fits_only_its_shape_and_its_lengths(table):
    table.check_fits(ClassformerConfig(**SETTINGS, gamma=[1, 2, 1], num_labels=5), 40)
    with pytest.raises(ValueError, match="has intermediate_size 64 and the model 128; build one for this model"):
        table.check_fits(ClassformerConfig(**SETTINGS | {"intermediate_size": 128}), 40)
    with pytest.raises(ValueError, match="has attn_implementation sdpa and the model eager"):
        table.check_fits(ClassformerConfig(**SETTINGS, attn_implementation="eager"), 40)
    with pytest.raises(ValueError, match="ends at 40 tokens, inputs have up to 41"):
        table.check_fits(ClassformerConfig(**SETTINGS), 41)


def test_table_knows_its_machine(table):
    assert table.describes_this_machine()
    assert not table.describes_this_machine(Target(dtype="bfloat16"))
    assert not table.describes_this_machine(Target(threads=2))
    assert not make_table(hardware=table.hardware | {"cpu": "another"}).describes_this_machine()
    assert make_table(hardware=table.hardware | {"load_average": [9, 9, 9]}).describes_this_machine()


def test_drift_says_how_far_off_the_table_is(table):
    schedules = [Schedule((2, 1, 1), 0), Schedule((1, 4, 1), 2), Schedule((4, 4, 1), 0)]
    predicted = table.predict_ratios(schedules, [16, 40])
    factors = np.array([1.0, 1.02, 0.96])
    record = drift(table, dict(zip(schedules, predicted * factors, strict=True)), [16, 40])
    errors = [row["relative_error"] for row in record["schedules"]]
    assert errors == pytest.approx(1 / factors - 1)
    assert record["mean_relative_error"] == pytest.approx(np.abs(errors).mean())
    assert record["max_relative_error"] == pytest.approx(1 / 0.96 - 1)
    assert not record["has_drifted"] and json.loads(json.dumps(record)) == record
    assert drift(table, dict(zip(schedules, predicted * 1.06, strict=True)), [16, 40])["has_drifted"]
    with pytest.raises(ValueError, match="at least one schedule"):
        drift(table, {}, [16])


def test_ranking_counts_only_pairs_that_differ():
    direct = np.array([1.0, 0.98, 0.5, 0.4])
    figures = compare_latencies(np.array([0.9, 1.0, 0.45, 0.46]), direct)
    # the first pair is too close to be ordered; of the other five the last one is wrong
    assert figures["num_pairs"] == 5 and figures["kendall_tau"] == pytest.approx(3 / 5)
    assert compare_latencies(direct[:2], direct[:2])["kendall_tau"] is None


def test_grid_ends_at_the_longest_input():
    assert choose_grid(128)[-1] == 128 and choose_grid(100)[-2:] == [96, 100] and choose_grid(1) == [1]


@pytest.mark.clock
def test_built_table_is_sane():
    config = ClassformerConfig(**SETTINGS, gamma=[1, 2, 1])
    threads, steps = torch.get_num_threads(), []
    table = build_latency_table(config, 12, Target(rounds=2), on_round=lambda: steps.append(1))
    assert torch.get_num_threads() == threads and config.gamma == [1, 2, 1]
    assert table.rounds == 2 and len(steps) == 3
    pairs = {(entry.tokens_in, entry.tokens_out) for entry in table.entries if entry.part == "reduce"}
    assert pairs == {(n, m) for n in choose_grid(12) for m in choose_grid(12) if m <= n}
    assert all(entry.ms_low <= entry.ms <= entry.ms_high for entry in table.entries)
    assert all(entry.ms > 0 for entry in table.entries)
    table.check_fits(ClassformerForSequenceClassification(config).config, 12)
    assert table.describes_this_machine()
    assert 0.3 < table.predict_ratios([Schedule((12, 1, 1), 0)], [12])[0] < 2


def test_jobs_run_what_their_entries_say(monkeypatch):
    """Every layer once, from the tokens that enter to those that leave, as the model itself does it."""
    model = ClassformerForSequenceClassification(ClassformerConfig(**SETTINGS)).eval()
    step, create_layer_mask, calls, masks = ClassformerEncoder.step, ClassformerEncoder.create_layer_mask, [], []

    def note_step(self, layer, state, gamma, eta, cls_only=False):
        after = step(self, layer, state, gamma, eta, cls_only)
        calls.append((layer, state.hidden_states.shape[1], after.hidden_states.shape[1], gamma > 1, cls_only))
        return after

    def note_mask(self, *arguments):
        masks.append(1)
        return create_layer_mask(self, *arguments)

    monkeypatch.setattr(ClassformerEncoder, "step", note_step)
    monkeypatch.setattr(ClassformerEncoder, "create_layer_mask", note_mask)
    with torch.inference_mode():
        jobs = _list_jobs(model, [1, 2, 7, 12])
        for job in jobs:
            calls.clear()
            masks.clear()
            job.call()
            expected = []
            if job.part in ("keep", "reduce", "first"):
                rest = (job.tokens_in, job.tokens_out, job.part == "reduce", job.part == "first")
                expected = [(layer, *rest) for layer in model.roberta.encoder.layer]
            assert calls == expected, job
            assert job.repeats == max(len(calls), 1)
            assert len(masks) == (job.part == "mask"), job


def test_build_stops_in_time():
    assert 1 <= build_latency_table(ClassformerConfig(**SETTINGS), 2, Target(rounds=60), max_seconds=0.2).rounds < 60


def test_two_threads_are_timed_by_the_wall_clock():
    before = torch.get_num_threads()
    table = build_latency_table(ClassformerConfig(**SETTINGS), 1, Target(threads=2, rounds=1))
    assert torch.get_num_threads() == before
    assert table.clock == "wall" and table.hardware["threads"] == 2 and table.describes_this_machine(Target(threads=2))


def test_build_keeps_the_attention_of_the_config():
    config = ClassformerConfig(**SETTINGS, attn_implementation="eager")
    table = build_latency_table(config, 1, Target(rounds=1))
    assert table.shape["attn_implementation"] == "eager"
    table.check_fits(config, 1)


@pytest.mark.parametrize("max_tokens", [0, 80], ids=["no tokens", "too long"])
def test_build_refuses(max_tokens):
    with pytest.raises(ValueError, match=f"reads 1 to 78 tokens, got `max_tokens` = {max_tokens}"):
        build_latency_table(ClassformerConfig(**SETTINGS), max_tokens)


def test_script_builds_and_checks(tmp_path, monkeypatch, capsys):
    ClassformerForSequenceClassification(ClassformerConfig(**SETTINGS)).save_pretrained(tmp_path / "model")
    script = Path(__file__).parents[2] / "scripts" / "build_latency_table.py"
    output, results = tmp_path / "latency_table.json", tmp_path / "check.json"
    flags = ["--model_name_or_path", tmp_path / "model", "--max_length", 8, "--rounds", 1, "--latency_table", output]
    flags += ["--check", 3, "--check_rounds", 4, "--results_file", results]
    monkeypatch.setattr(sys, "argv", [str(script), *map(str, flags)])
    monkeypatch.syspath_prepend(script.parent)
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(script), run_name="__main__")
    assert not exit_.value.code
    assert LatencyTable.load(output).max_tokens == 8
    record = json.loads(results.read_text())
    assert len(record["schedules"]) == 3 and len(record["lengths_tokens"]) == 16
    assert {"table_against_direct", "direct_against_direct", "hardware", "arguments", "busy_processes"} <= set(record)
    assert record["arguments"]["model_name_or_path"] == "path/to/model"
    assert "mean error" in capsys.readouterr().out
