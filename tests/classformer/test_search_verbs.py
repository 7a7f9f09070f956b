"""The search and the choice of a cascade, called from Python without a command line."""

import json
import sys

import classformer_hf
from redundancy_hf.task import TaskArguments
from redundancy_hf.timing import Target


def test_search_and_cascade_are_functions(tmp_path, tiny_roberta_two_labels, tiny_text_file, monkeypatch):
    monkeypatch.setattr("classformer_hf.search.target.TABLE_ROUNDS", 1)
    # nothing reads the command line
    monkeypatch.setattr(sys, "argv", ["python", "--no_such_flag"])
    training = classformer_hf.ClassformerTrainingArguments(
        output_dir=str(tmp_path / "run"), num_train_epochs=1, use_cpu=True, save_strategy="no", disable_tqdm=True
    )
    result = classformer_hf.search_classformer(
        str(tiny_roberta_two_labels),
        task=TaskArguments(dataset_name=str(tiny_text_file), validation_fraction=0.25, max_length=64),
        training=training,
        settings=classformer_hf.SearchSettings(required_performance=0.5, max_trials=3, num_winners=1),
        target=Target(rounds=1),
        force=True,
        results_file=str(tmp_path / "search.json"),
    )
    found = json.loads((tmp_path / "run" / "best" / "search.json").read_text())
    assert tuple(found["gamma"]) == result.best.schedule.gamma and result.reference in result.trials
    assert (tmp_path / "run" / "search_report.html").exists()
    assert json.loads((tmp_path / "search.json").read_text())["summary"]["score"] == result.best.score

    (row,) = classformer_hf.choose_cascade(
        str(tmp_path / "run" / "supernet"), str(tmp_path / "cascade"), [0.5], num_schedules=4, num_inputs=2, rounds=1
    )["rows"]
    assert 0 <= row["cascade"]["classified_twice"] <= 1 and row["single"]["latency_to_single"]["ratio"] == 1
    settings = json.loads((tmp_path / "cascade" / "50" / "config.json").read_text())
    assert settings["gamma"] == row["cascade"]["settings"]["gamma"]
