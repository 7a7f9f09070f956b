"""What is said of an export: labels and score on the texts of a task, and if an answer depends on other texts."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from classformer_hf import ClassformerConfig, ClassformerForSequenceClassification
from classformer_hf.parity import compare_export, largest_difference, write_report
from redundancy_hf.cards import add_results, complete_card
from redundancy_hf.data import tokenize
from redundancy_hf.evaluation import predict
from redundancy_hf.limits import InputLimits, read_limits
from redundancy_hf.metrics import compute_score
from redundancy_hf.runtimes import ExportedClassifier


@pytest.fixture
def task(tiny_task, tiny_tokenizer):
    return tokenize(tiny_task.without_test(), tiny_tokenizer, 64)


@pytest.fixture
def model(tiny_settings, task):
    torch.manual_seed(0)
    config = ClassformerConfig(**{**tiny_settings, **task.head_config}, gamma=[1, 2, 1], eta=1)
    return ClassformerForSequenceClassification(config).eval()


def open_graph(model, change=lambda logits, ids: logits, int8=False):
    """Open a graph that is the model with changed logits."""

    def graph(**inputs):
        with torch.no_grad():
            return SimpleNamespace(logits=change(model(**inputs).logits, inputs["input_ids"]))

    graphs = [{"folder": "graph-64", "max_tokens": 64, "min_padded_tokens": 1}]
    index = {"runtime": "onnx", "int8": int8, "inputs": ["input_ids", "attention_mask"], "graphs": graphs}
    return ExportedClassifier(model.config, index, [graph], False, (Path(),))


def test_a_faithful_export_changes_nothing(model, task, tiny_tokenizer):
    exported = open_graph(model)
    report = compare_export(model, exported, tiny_tokenizer, task, 1000)
    assert report.num_texts == len(task.splits["validation"]) == 12
    assert report.changed_labels == report.batch_changed_labels == 0
    assert max(report.difference, report.batch_difference) < 1e-5
    assert report.score_before == report.score_after and report.metric_name == "accuracy"
    assert report.verdict.startswith(f"0 of 12 validation rows of {task.name} get another label, accuracy 0.")
    assert largest_difference(model, exported) < 1e-5


def test_inputs_beyond_an_exports_tables_are_refused(model, task, tiny_tokenizer):
    exported = open_graph(model)
    assert read_limits(exported) == InputLimits(64, 300, None)
    long = task.splits["validation"].map(lambda row: {"input_ids": [5] * 65, "attention_mask": [1] * 65})
    with pytest.raises(ValueError, match="longest input has 65 tokens and the model positions for 64"):
        predict(exported, long, tiny_tokenizer)


def test_changed_labels_and_scores_are_counted(model, task, tiny_tokenizer):
    split = task.splits["validation"]
    before = predict(model, split, tiny_tokenizer)
    is_even = np.array([ids[1] % 2 == 0 for ids in split["input_ids"]])
    after = np.where(is_even[:, None], before[:, ::-1], before)

    def swap(logits, ids):
        return torch.where((ids[:, 1] % 2 == 0)[:, None], logits.flip(1), logits)

    report = compare_export(model, open_graph(model, swap), tiny_tokenizer, task, 1000)
    assert report.changed_labels == is_even.sum() > 0
    assert report.score_before == compute_score("accuracy", before.argmax(1), split["labels"])
    assert report.score_after == compute_score("accuracy", after.argmax(1), split["labels"])
    assert report.difference == pytest.approx(np.abs(after - before).max(), abs=1e-5)
    assert report.batch_changed_labels == 0
    assert compare_export(model, open_graph(model, swap), tiny_tokenizer, task, 5).num_texts == 5


def test_answers_that_depend_on_others_are_counted(model, task, tiny_tokenizer, tmp_path):
    def center(logits, ids):
        return logits - logits.mean(0) if len(logits) > 1 else logits

    split = task.splits["validation"]
    before = predict(model, split, tiny_tokenizer)
    exported = open_graph(model, center, int8=True)
    report = compare_export(model, exported, tiny_tokenizer, task, 1000)
    # as it is opened by default, it answers as the model does
    assert exported.one_at_a_time and report.changed_labels == 0 and report.difference < 1e-5
    together = before - before.mean(0)
    assert report.batch_changed_labels == (together.argmax(1) != before.argmax(1)).sum() > 0
    assert report.batch_difference == pytest.approx(np.abs(before.mean(0)).max(), abs=1e-5)
    assert f"{report.batch_changed_labels} of 12" in report.batch_verdict and "in batches of 32" in report.batch_verdict
    # the card of a model tells of it, and the export's own
    export = tmp_path / "onnx-int8"
    export.mkdir()
    (export / "graphs.json").write_text(json.dumps({"runtime": "onnx", "int8": True}))
    write_report(report, export)
    for folder in (tmp_path, export):
        model.config.save_pretrained(folder)
    complete_card(tmp_path, "alice/fast", license="mit")
    add_results(export, [])
    for card in (tmp_path, export):
        text = (card / "README.md").read_text()
        assert report.verdict in text and report.batch_verdict in text and "`batch_int8=True`" in text
        assert "ExportedClassifier.from_pretrained(folder" in text
    assert 'snapshot_download("alice/fast") + "/onnx-int8"' in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("num_labels, changed", [(3, 64), (1, None)])
def test_random_texts_stand_in(tiny_settings, tiny_tokenizer, num_labels, changed):
    config = ClassformerConfig(**{**tiny_settings, "num_labels": num_labels}, gamma=[1, 2, 1], eta=1)
    model = ClassformerForSequenceClassification(config).eval()
    exported = open_graph(model, lambda logits, ids: logits + 100 * (torch.arange(num_labels) == logits.argmin()))
    report = compare_export(model, exported, tiny_tokenizer, None, 1000)
    assert (report.num_texts, report.metric_name, report.score_before) == (64, None, None)
    assert "64 random texts" in report.verdict and ("get another label" in report.verdict) == (num_labels > 1)
    assert report.changed_labels == changed and report.difference == pytest.approx(100, rel=1e-3)


def test_large_values_are_compared_in_proportion(tiny_settings):
    # the rounding of float32 grows with what is predicted, as prices of houses
    config = ClassformerConfig(**{**tiny_settings, "num_labels": 1}, gamma=[1, 2, 1], eta=1)
    model = ClassformerForSequenceClassification(config).eval()
    with torch.no_grad():
        model.classifier.out_proj.weight *= 1e5
    assert largest_difference(model, open_graph(model, lambda logits, ids: logits * (1 + 1e-6))) < 1e-5
    assert largest_difference(model, open_graph(model, lambda logits, ids: logits * 1.01)) > 1e-3
