"""What the verbs do is done by documented functions, too, which return what they found."""

import json
import shutil
import subprocess
import sys

import pytest

import redundancy_hf
from redundancy_hf import TaskFlags
from redundancy_hf.folders import GOLDEN


@pytest.fixture
def folder(tiny_roberta_two_labels, tmp_path):
    return shutil.copytree(tiny_roberta_two_labels, tmp_path / "text")


def test_classifiers_are_evaluated_by_a_function(folder, tiny_text_file, tmp_path, capsys):
    task = TaskFlags(dataset_name=str(tiny_text_file), max_length=64)
    record = redundancy_hf.evaluate_classifiers(
        [str(folder)], split="train", device="cpu", results_file=str(tmp_path / "record.json"), task=task
    )
    (row,) = record["models"]
    assert row["metric_name"] == "accuracy" and f"accuracy {row['score']:.4f}" in capsys.readouterr().out
    stored = json.loads((tmp_path / "record.json").read_text())
    assert {name: stored[name] for name in record} == record
    with pytest.raises(ValueError, match="compares with the first"):
        redundancy_hf.evaluate_classifiers([str(folder)], required_performance=0.9, device="cpu", task=task)


def test_a_folder_is_used_and_verified_by_functions(tiny_classifier_folder, tmp_path):
    folder = shutil.copytree(tiny_classifier_folder, tmp_path / "model")
    results = redundancy_hf.classify(str(folder), texts=["a dull film", "a joy"])
    assert [set(result) for result in results] == [{"label", "score"}] * 2
    found = redundancy_hf.publish_folder(str(folder), "alice/x", license="mit", dry_run=True)
    assert found.model_class == "ClassformerForSequenceClassification" and found.difference is None
    assert not (folder / GOLDEN).exists() and not (folder / "README.md").exists()
    with pytest.raises(ValueError, match="has no owner"):
        redundancy_hf.publish_folder(str(folder), "x", license="mit", dry_run=True)


def test_functions_are_loaded_when_they_are_asked_for():
    heavy = ("torch", "datasets", "transformers")
    code = f"import sys, redundancy_hf; assert not sys.modules.keys() & {set(heavy)}; redundancy_hf.publish_folder"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        redundancy_hf.nothing  # noqa: B018
