"""What the verbs do, called from Python: results are returned, and folders are left as by the command."""

import json
import sys

import pytest

import classformer_hf
from classformer_hf import Target
from redundancy_hf import TaskArguments, TaskFlags
from redundancy_hf.runtimes import ExportedClassifier

QUIET = {"report_to": "none", "use_cpu": True, "disable_tqdm": True}


@pytest.fixture
def task(tiny_text_file):
    return TaskArguments(dataset_name=str(tiny_text_file), max_length=32, validation_fraction=0.25)


def test_train_then_measure_then_export(tiny_roberta_folder, task, tmp_path):
    quick = {"num_train_epochs": 1, "per_device_train_batch_size": 8, "save_strategy": "no", **QUIET}
    quick |= {"load_best_model_at_end": False}
    training = classformer_hf.ClassformerTrainingArguments(output_dir=str(tmp_path / "trained"), **quick)
    gamma = (1, 2, 1)
    rows = classformer_hf.train_classformer(str(tiny_roberta_folder), task, training, gamma=gamma, eta=1, seeds=2)
    assert [row["seed"] for row in rows] == [42, 43] and all(0 <= row["accuracy"] <= 1 for row in rows)
    assert training.output_dir == str(tmp_path / "trained"), "the caller's arguments stay"
    again = classformer_hf.train_classformer(str(tiny_roberta_folder), task, training, gamma=gamma, eta=1, seeds=2)
    assert again == rows

    folder = tmp_path / "trained" / "seed-42"
    target = Target(rounds=1)
    found = classformer_hf.compare_latency([str(folder), str(tiny_roberta_folder)], lengths=[8], target=target)
    assert [row["model"] for row in found["measurements"]] == ["seed-42", tiny_roberta_folder.name]
    assert found["hardware"]["threads"] == 1 and found["measurements"][0]["ratio"] == 1
    texts = TaskFlags(dataset_name=task.dataset_name)
    found = classformer_hf.compare_latency([str(folder)], task=texts, num_inputs=2, target=target)
    assert found["measurements"][0]["tokens"] <= 32, "as in its training"

    report = classformer_hf.export_classifier(str(folder), "torch", output_dir=str(tmp_path / "graph"), max_compared=4)
    assert report.num_texts == 4 and report.changed_labels == 0 and report.metric_name == "accuracy"
    assert ExportedClassifier.from_pretrained(tmp_path / "graph").runtime == "torch"


def test_table_of_latencies(tiny_roberta_folder, tmp_path):
    path = tmp_path / "table.json"
    table = classformer_hf.write_latency_table(
        str(tiny_roberta_folder), str(path), target=Target(rounds=1), task=TaskArguments(max_length=4)
    )
    assert table.max_tokens == 4 and json.loads(path.read_text())["rounds"] == 1


def test_pretrain_for_text_and_for_tasks(tiny_roberta_folder, tiny_text_file, tmp_path):
    corpus, second = tmp_path / "corpus.txt", tmp_path / "second.csv"
    corpus.write_text("\n".join(f"a warm and clever film number {n} works in every scene" for n in range(40)))
    second.write_text(tiny_text_file.read_text())
    quick = {"max_steps": 2, "save_strategy": "no", **QUIET}
    (row,) = classformer_hf.pretrain_classformer(
        classformer_hf.TextArguments(dataset_name=str(corpus), block_size=16, max_validation_blocks=2),
        classformer_hf.PretrainingArguments(output_dir=str(tmp_path / "text"), **quick),
        str(tiny_roberta_folder),
        gamma=(1, 2, 1),
        objectives=("first_k",),
    )
    assert row["objective"] == "first_k" and row["loss_after"] > 0
    assert (tmp_path / "text" / "first_k" / "model.safetensors").is_file()
    row = classformer_hf.train_multitask(
        str(tmp_path / "text" / "first_k"),
        (str(tiny_text_file), str(second)),
        classformer_hf.MultitaskTrainingArguments(output_dir=str(tmp_path / "tasks"), **quick),
        max_length=16,
    )
    assert row["objective"] == "multitask" and len(row["tasks"]) == 2
    assert (tmp_path / "tasks" / "model.safetensors").is_file()


def test_wrong_arguments_are_one_sentence(tiny_roberta_folder, task, tmp_path):
    training = classformer_hf.ClassformerTrainingArguments(output_dir=str(tmp_path), **QUIET)
    with pytest.raises(ValueError, match="^`seeds` must be at least 1, got 0"):
        classformer_hf.train_classformer(str(tiny_roberta_folder), task, training, seeds=0)
    with pytest.raises(ValueError, match="nothing to measure"):
        classformer_hf.compare_latency()
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = classformer_hf.nothing


def test_search_refuses_what_cannot_be_reused_before_it_reads_data(tmp_path):
    training = classformer_hf.ClassformerTrainingArguments(output_dir=str(tmp_path / "run"), **QUIET)
    settings = classformer_hf.SearchSettings(reuse=str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="nothing holds no supernet"):
        classformer_hf.search_classformer("no/model", TaskArguments(dataset_name="no.csv"), training, settings)
    assert not (tmp_path / "run").exists()


def test_search_and_cascade_are_functions(tmp_path, tiny_roberta_two_labels, task, monkeypatch):
    monkeypatch.setattr("classformer_hf.search.target.TABLE_ROUNDS", 1)
    # nothing reads the command line
    monkeypatch.setattr(sys, "argv", ["python", "--no_such_flag"])
    training = classformer_hf.ClassformerTrainingArguments(
        output_dir=str(tmp_path / "run"), num_train_epochs=1, **{**QUIET, "disable_tqdm": False}
    )
    asked = training.to_dict()
    result = classformer_hf.search_classformer(
        str(tiny_roberta_two_labels),
        task,
        training,
        classformer_hf.SearchSettings(required_performance=0.5, max_trials=3, num_winners=1),
        target=Target(rounds=1),
        force=True,
        results_file=str(tmp_path / "search.json"),
    )
    found = json.loads((tmp_path / "run" / "best" / "search.json").read_text())
    assert tuple(found["gamma"]) == result.best.schedule.gamma and result.reference in result.trials
    assert (tmp_path / "run" / "search_report.html").exists() and training.to_dict() == asked
    assert json.loads((tmp_path / "search.json").read_text())["summary"]["score"] == result.best.score

    (row,) = classformer_hf.choose_cascade(
        str(tmp_path / "run" / "supernet"),
        str(tmp_path / "cascade"),
        [0.5],
        num_schedules=4,
        num_inputs=2,
        rounds=1,
        unseen=True,
    )["rows"]
    assert 0 <= row["cascade"]["classified_twice"] <= 1 and row["single"]["latency_to_single"]["ratio"] == 1
    settings = json.loads((tmp_path / "cascade" / "50" / "config.json").read_text())
    assert settings["gamma"] == row["cascade"]["settings"]["gamma"]
