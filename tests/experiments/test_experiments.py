"""The experiments on a search with a supernet, one after the other on one tiny search."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from classformer_hf.search import cascade

pytestmark = pytest.mark.slow
CARVED = ("--validation_fraction", 0.25, "--max_length", 64)
REQUIRED = 0.3


@pytest.fixture
def flags(tiny_roberta_two_labels, tiny_text_file):
    return [
        *("--model_name_or_path", tiny_roberta_two_labels, "--dataset_name", tiny_text_file, "--use_cpu"),
        *("--num_train_epochs", 1, "--learning_rate", 1e-3, *CARVED, "--save_strategy", "no", "--eval_strategy", "no"),
        *("--load_best_model_at_end", "False", "--disable_tqdm", "True"),
    ]


@pytest.fixture
def search(run, flags, monkeypatch):
    monkeypatch.setattr("classformer_hf.search.target.TABLE_ROUNDS", 1)
    few = ("--required_performance", REQUIRED, "--max_trials", 6, "--rounds", 1, "--force")

    def call(folder, *more):
        return run("search_classformer", *flags, *few, "--output_dir", folder, *more)

    return call


@pytest.fixture
def found(search, tmp_path):
    code, _, words = search(tmp_path / "one")
    assert code == 0, words
    return tmp_path / "one"


def test_winners_are_timed_on_each_other_s_targets(run, search, found, tmp_path):
    other, results = tmp_path / "bf16", tmp_path / "cross.json"
    code, _, words = search(other, "--reuse", found, "--dtype", "bfloat16")
    assert code == 0, words
    code, printed, words = run(*("targets", "--folders", found, other, "--rounds", 1, "--results_file", results))
    assert code == 0 and "timed on bf16" in printed, words
    record = json.loads(results.read_text())
    assert set(record["ratios"]) == set(record["ratios"]["one"]) == {"one", "bf16"}
    first, second = record["targets"]
    assert not first["is_reused"] and second["is_reused"] and second["dtype"] == "bfloat16"
    assert second["answer_seconds"] < 60
    assert run("targets", "--folders", found, found)[2].startswith("error: the folders need different names")
    shutil.rmtree(other / "best")
    assert "holds no finished search" in run("targets", "--folders", found, other)[2]


def test_supernet_is_compared_with_individual_fine_tuning(run, found, flags, tmp_path, monkeypatch):
    def draw(model, schedules, split, *_, **__):
        # the tiny supernet says the same of all texts
        return np.random.default_rng(0).normal(size=(len(schedules), len(split), 2))

    monkeypatch.setattr("classformer_hf.search.supernet.predict_schedules", draw)
    trained = (found / "supernet" / "model.safetensors").stat().st_mtime_ns
    supernet = ("supernet", *flags, "--output_dir", found, "--num_schedules", 8, "--seeds", 2)
    assert "run --stage individual first" in run(*supernet, "--stage", "report")[2]
    code, _, words = run(*supernet, "--stage", "individual")
    assert code == 0, words
    code, printed, words = run(*supernet, "--results_file", tmp_path / "report.json")
    assert code == 0 and "its ceiling, seed against seed" in printed, words
    assert (found / "supernet" / "model.safetensors").stat().st_mtime_ns == trained, "trained again"
    record = json.loads((tmp_path / "report.json").read_text())
    assert len(record["schedules"]) > 2 and len(record["schedules"][0]["individual"]) == 2
    winner = record["winner"]
    if winner is not None:
        assert winner["gap"] == pytest.approx(np.mean(winner["twins"]) - winner["score"])


def test_peers_are_trained_timed_and_resumed(run, flags, tmp_path):
    code, _, words = run("train_classformer", *flags, "--output_dir", tmp_path / "full")
    assert code == 0, words
    compare = [
        *("peers", *flags, "--model_name_or_path", tmp_path / "full" / "seed-42", "--rounds", 2),
        *("--schedules", "1-2-1_eta0", "1-2_eta0", "--methods", "core-set", "entropy", "patience", "--num_inputs", 4),
        *("--output_dir", tmp_path / "peers", "--results_file", tmp_path / "peers.json"),
    ]
    code, printed, words = run(*compare)
    assert code == 0, words
    record = json.loads((tmp_path / "peers.json").read_text())
    assert [point["method"] for point in record["points"][:2]] == ["full", "classformer"] and len(record["points"]) == 9
    assert record["points"][0]["ratio"] == 1
    for point in record["points"]:
        is_beaten = any(
            other["ratio"] <= point["ratio"] and other["test_score"] > point["test_score"] for other in record["points"]
        )
        assert not (is_beaten and point["is_on_front"])
    assert "Time relative to the full model" in printed
    figure = tmp_path / "peers.png"
    code, _, words = run("peers", "--draw", tmp_path / "peers.json", "--figure", figure)
    assert code == 0 and figure.stat().st_size > 10_000, words
    # early exits are trained once; a point whose row and weights are lost is trained again, the others are read
    assert len(list((tmp_path / "peers" / "entropy" / "seed-42").glob("row_*.json"))) == 2
    for lost in (tmp_path / "peers" / "entropy" / "seed-42").iterdir():
        lost.unlink()
    before = (tmp_path / "peers" / "full" / "seed-42" / "weights.pt").stat().st_mtime_ns
    assert run(*compare)[0] == 0
    assert (tmp_path / "peers" / "full" / "seed-42" / "weights.pt").stat().st_mtime_ns == before
    again = json.loads((tmp_path / "peers.json").read_text())["points"]
    assert [point["test_score"] for point in again] == [point["test_score"] for point in record["points"]]
    for bad, message in (
        (["--schedules", "1-2-1-2_eta0"], "the model has 3 layers"),
        (["--schedules", "fast"], "a schedule is named like"),
        (["--methods", "magic"], "--methods knows pooled queries"),
        (["--learning_rate", 0.5], "holds another training: --learning_rate (0.001, now 0.5)"),
    ):
        code, _, words = run(*compare, *bad)
        assert code == 1 and message in words


def test_cascade_is_chosen_reported_and_left_as_a_model(run, flags, tmp_path, monkeypatch):
    choose = cascade.find_cascade

    def choose_one(*arguments):
        # so tiny a model need not have a faster one
        return dataclasses.replace(choose(*arguments), fast=1, full=0, margin=0.9)

    monkeypatch.setattr("classformer_hf.commands.cascade.find_cascade", choose_one)
    code, _, words = run("train_classformer", *flags, "--output_dir", tmp_path / "full")
    assert code == 0, words
    data = [flag for flag in zip(flags, flags[1:], strict=False) if flag[0] in ("--dataset_name", "--max_length")]
    command = [
        *("choose_cascade", *(part for flag in data for part in flag), "--output_dir", tmp_path / "cascade"),
        *("--model_name_or_path", tmp_path / "full" / "seed-42", "--num_schedules", 8, "--rounds", 2),
        *("--num_inputs", 6, "--required_performance", 0.9, "--results_file", tmp_path / "cascade.json"),
        "--unseen",
    ]
    code, printed, words = run(*command)
    assert code == 0 and "are classified twice" in printed, words
    row = json.loads((tmp_path / "cascade.json").read_text())["rows"][0]
    assert row["cascade"]["settings"]["cascade"]["margin"] == 0.9 and row["cascade"]["classified_twice"] > 0
    assert row["cascade"]["latency_to_single"]["ratio"] > 0
    settings = json.loads((tmp_path / "cascade" / "90" / "config.json").read_text())
    assert settings.get("cascade") == row["cascade"]["settings"]["cascade"]
    assert run(*command, "--required_performance", 1.5)[0] == 1


@pytest.fixture
def two_folders(run, flags, tmp_path):
    """A trained model without reductions, and one with."""
    for name, schedule in (("full", ()), ("short", ("--gamma", 1, 2, 1))):
        code, _, words = run("train_classformer", *flags, *schedule, "--output_dir", tmp_path / name)
        assert code == 0, words
        (tmp_path / name / "seed-42").rename(tmp_path / f"{name}-model")
    return [tmp_path / "full-model", tmp_path / "short-model"]


def test_runtimes_are_scored_and_timed_side_by_side(run, two_folders, tiny_text_file, tmp_path):
    command = [
        *("runtimes", "--models", *two_folders, "--dataset_name", tiny_text_file, *CARVED),
        *("--variants", "torch", "torch-bf16", "onnx", "onnx-int8", "--output_dir", tmp_path / "graphs"),
        *("--rounds", 2, "--num_inputs", 4, "--results_file", tmp_path / "runtimes.json"),
    ]
    code, printed, words = run(*command)
    assert code == 0, words
    # the test split was read for both
    assert all((folder / "test_readings.jsonl").exists() for folder in two_folders)
    record = json.loads((tmp_path / "runtimes.json").read_text())
    rows = {(row["model"], row["variant"]): row for row in record["rows"]}
    assert len(rows) == 10 and rows["stock", "eager"]["latency"]["ratio"] == 1
    assert all(row["latency"]["clock"] == "process_cpu" for row in rows.values())
    # float32 graphs and the model itself agree on every text
    for model in ("full-model", "short-model"):
        assert rows[model, "onnx"]["score"] == rows[model, "torch"]["score"]
    assert rows["stock", "eager"]["score"] == rows["full-model", "torch"]["score"]
    kept = [path.stat().st_mtime_ns for path in (tmp_path / "graphs").rglob("graphs.json")]
    assert len(kept) == 4 and run(*command)[0] == 0
    assert [path.stat().st_mtime_ns for path in (tmp_path / "graphs").rglob("graphs.json")] == kept
    assert "knows torch, torch-compile" in run(*command, "--variants", "tensorrt")[2]
    assert (
        "the reference and needs weights" in run(*command, "--models", tmp_path / "graphs" / "full-model" / "onnx")[2]
    )
    assert "equals a model without reductions" in run(*command, "--models", *reversed(two_folders))[2]


def test_exports_are_compared_too(run, two_folders, tiny_text_file, tmp_path):
    code, _, words = run("export_model", two_folders[0], "--runtime", "torch", "--output_dir", tmp_path / "graphs")
    assert code == 0, words
    models = ("--models", two_folders[0], tmp_path / "graphs", "--dataset_name", tiny_text_file, *CARVED)
    flags = ("--variants", "torch", "--output_dir", tmp_path, "--rounds", 1, "--num_inputs", 2)
    code, _, words = run("runtimes", *models, *flags, "--results_file", tmp_path / "runtimes.json")
    assert code == 0, words
    rows = json.loads((tmp_path / "runtimes.json").read_text())["rows"]
    assert (rows[-1]["model"], rows[-1]["variant"]) == ("graphs", "torch")
    assert rows[-1]["score"] == next(row for row in rows if row["model"] == "full-model")["score"]
    flags = ("--rounds", 1, "--num_inputs", 6, "--batch_size", 4, "--results_file", tmp_path / "throughput.json")
    code, _, words = run("throughput", *models, *flags)
    assert code == 0, words
    rows = json.loads((tmp_path / "throughput.json").read_text())["rows"]
    assert {row["clock"] for row in rows} == {"process_cpu"} and rows[-1]["model"] == "graphs"


def test_throughput_of_four_ways_to_batch(run, two_folders, tiny_text_file, tmp_path):
    command = [
        *("throughput", "--models", *two_folders, "--dataset_name", tiny_text_file, *CARVED, "--rounds", 2),
        *("--batch_size", 4, "--num_inputs", 10, "--results_file", tmp_path / "throughput.json"),
    ]
    code, printed, words = run(*command)
    assert code == 0, words
    record = json.loads((tmp_path / "throughput.json").read_text())
    rows = {(row["model"], row["batching"]): row for row in record["rows"]}
    assert len(rows) == 12 and rows["stock", "unsorted"]["ratio"] == 1
    padding = {
        batching: rows["stock", batching]["padding"] for batching in ("padded", "unsorted", "sorted", "bucketed")
    }
    assert padding["padded"] >= padding["unsorted"] >= padding["sorted"] >= 0
    assert padding["padded"] >= padding["bucketed"] > 0
    assert "equals a model without reductions" in run(*command, "--models", *reversed(two_folders))[2]
    assert run(*command, "--batch_size", 0)[0] == 1
