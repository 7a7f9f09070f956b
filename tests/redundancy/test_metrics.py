"""Scores: the thesis' metrics, their floors and errors, and the same value under one and several processes."""

import json
import multiprocessing
import time
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from transformers import EvalPrediction

from redundancy_hf.metrics import (
    TaskMetric,
    build_compute_metrics,
    check_metric,
    compute_score,
    constant_score,
    majority_score,
    paired_standard_error,
    predictions_from_logits,
    scores_of_counts,
    standard_error,
)
from redundancy_hf.task import Task

REFERENCES = [0, 0, 0, 1, 1, 1, 1, 1]
PREDICTIONS = [0, 1, 1, 1, 1, 1, 0, 1]
ROWS = [[1, 0, 1], [0, 0, 1], [0, 0, 0], [1, 0, 0]]
PREDICTED_ROWS = [[1, 0, 1], [1, 0, 1], [0, 0, 0], [1, 0, 1]]


def make_task(metric_name, problem_type="single_label_classification", num_labels=2, **labels):
    splits = {
        name: Dataset.from_dict({"text": ["a"] * len(values), "labels": values}) for name, values in labels.items()
    }
    return Task("toy", DatasetDict(splits), ("text",), problem_type, [str(i) for i in range(num_labels)], metric_name)


# worked out by hand: of class 1, 4 right, 2 false alarms, 1 miss; of class 0, 1 right, 1 false alarm, 2 misses
@pytest.mark.parametrize(
    ("metric_name", "expected"),
    [
        ("accuracy", 5 / 8),
        ("f1", 8 / 11),
        ("macro_f1", (8 / 11 + 2 / 5) / 2),
        ("matthews_correlation", (4 * 1 - 2 * 1) / np.sqrt(6 * 5 * 3 * 2)),
    ],
)
def test_score_of_class_ids(metric_name, expected):
    assert compute_score(metric_name, PREDICTIONS, REFERENCES) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("metric_name", "expected"), [("accuracy", 0.5), ("f1", 8 / 10), ("macro_f1", (4 / 5 + 4 / 5) / 3)]
)
def test_score_of_rows(metric_name, expected):
    """Exact match, micro F1, and the mean over all labels, also the one that never occurs."""
    assert compute_score(metric_name, PREDICTED_ROWS, ROWS) == pytest.approx(expected)


def test_spearman_sees_ranks_only():
    assert compute_score("spearmanr", [1.0, 2.0, 3.0, 900.0], [0.1, 0.2, 0.3, 0.4]) == pytest.approx(1.0)
    assert compute_score("spearmanr", [4.0, 3.0, 2.0, 1.0], [0.1, 0.2, 0.3, 0.4]) == pytest.approx(-1.0)


@pytest.mark.parametrize("metric_name", ["matthews_correlation", "spearmanr", "f1", "macro_f1"])
def test_constant_predictions_are_scored_quietly(metric_name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score = compute_score(metric_name, [0] * 8, REFERENCES)
    assert score == pytest.approx(3 / 11 if metric_name == "macro_f1" else 0.0)


def test_predictions_from_logits():
    logits = np.array([[-1.0, 2.0, 0.5], [3.0, 0.1, -4.0]])
    assert predictions_from_logits("single_label_classification", logits).tolist() == [1, 0]
    assert predictions_from_logits("single_label_classification", (logits, "hidden states")).tolist() == [1, 0]
    assert predictions_from_logits("multi_label_classification", logits).tolist() == [[0, 1, 1], [1, 1, 0]]
    assert predictions_from_logits("regression", logits[:, :1]).tolist() == [-1.0, 3.0]


def test_compute_metrics_goes_from_logits_to_the_named_score():
    task = make_task("f1", train=[0, 1], validation=[0, 1])
    logits = np.eye(2)[PREDICTIONS]
    compute_metrics = build_compute_metrics(task)
    for _ in range(2):
        assert compute_metrics(EvalPrediction(logits, np.array(REFERENCES))) == {"f1": pytest.approx(8 / 11)}


def test_task_metric_adds_batches():
    metric = TaskMetric("f1")
    for start in range(0, 8, 3):
        metric.add_batch(predictions=PREDICTIONS[start : start + 3], references=REFERENCES[start : start + 3])
    assert metric.compute() == {"f1": pytest.approx(8 / 11)}
    rows = TaskMetric("accuracy").compute(predictions=np.array(PREDICTED_ROWS), references=np.array(ROWS, dtype=float))
    assert rows == {"accuracy": 0.5}


def score_in_a_process(process_id, folder, predictions, references):
    scores = {}
    for name in ("f1", "matthews_correlation"):
        gathered = TaskMetric(name, cache_dir=folder).compute(predictions=predictions, references=references)
        share = TaskMetric(name, num_process=2, process_id=process_id, experiment_id=f"test-{name}", cache_dir=folder)
        share.add_batch(predictions=predictions[process_id::2], references=references[process_id::2])
        scores[name] = [gathered[name], (share.compute() or {}).get(name)]
    (folder / f"scores-{process_id}.json").write_text(json.dumps(scores))


def test_two_processes_score_like_one(tmp_path):
    """Both where every process holds all predictions, as Trainer gathers them, and where each adds its share."""
    generator = np.random.default_rng(0)
    references = generator.integers(0, 2, 41)
    predictions = np.where(generator.random(41) < 0.7, references, 1 - references)
    # forked, because two processes that load the libraries anew take most of a minute on a busy machine
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=score_in_a_process, args=(process_id, tmp_path, predictions, references), daemon=True)
        for process_id in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    first, second = (json.loads((tmp_path / f"scores-{process_id}.json").read_text()) for process_id in range(2))
    for name in ("f1", "matthews_correlation"):
        expected = compute_score(name, predictions, references)
        # no share alone scores the same, so a metric that ignored the other process would be seen
        assert compute_score(name, predictions[::2], references[::2]) != pytest.approx(expected)
        assert first[name] == [pytest.approx(expected), pytest.approx(expected)]
        assert second[name] == [pytest.approx(expected), None]


@pytest.mark.parametrize(
    ("metric_name", "expected"),
    # class 0 is the majority of train: 3 of 4 in validation, but F1 is better served by class 1
    [("accuracy", 3 / 4), ("f1", 2 / 5), ("macro_f1", 3 / 7), ("matthews_correlation", 0.0)],
)
def test_majority_score(metric_name, expected):
    task = make_task(metric_name, train=[0, 0, 0, 1, 1], validation=[0, 0, 0, 1])
    assert majority_score(task) == pytest.approx(expected)


def test_majority_score_learns_from_train_only():
    task = make_task("accuracy", train=[0, 0, 1], validation=[1, 1, 1, 0], test=[0, 1])
    assert majority_score(task) == 0.25
    assert majority_score(task, "test") == 0.5


def test_majority_score_of_other_problems():
    rows = [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    task = make_task("accuracy", "multi_label_classification", train=rows, validation=rows)
    assert majority_score(task) == pytest.approx(2 / 3)
    assert majority_score(make_task("spearmanr", "regression", 1, train=[0.5, 1.0], validation=[0.5, 1.0])) == 0.0


@pytest.mark.parametrize("metric_name", ["accuracy", "f1", "macro_f1", "matthews_correlation", "spearmanr"])
@pytest.mark.parametrize("labels", [[0], [0, 0, 0], [1, 0, 1, 0, 1]])
def test_scores_of_few_rows_warn_of_nothing(metric_name, labels):
    """Where the full model is never right, a share of its score is not known, and numpy need not say it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for predictions in (labels, [0] * len(labels), [1 - label for label in labels]):
            compute_score(metric_name, predictions, labels)
            standard_error(metric_name, predictions, labels, num_resamples=10)
            for full in (labels, [1 - label for label in labels]):
                paired_standard_error(metric_name, predictions, full, labels, num_resamples=10)
            constant_score(metric_name, labels, labels)


@pytest.mark.parametrize(
    ("metric_name", "num_classes", "is_rows"),
    [
        ("accuracy", 2, False),
        ("f1", 2, False),
        ("macro_f1", 5, False),
        ("matthews_correlation", 3, False),
        ("spearmanr", 9, False),
        ("accuracy", 2, True),
        ("f1", 2, True),
        ("macro_f1", 2, True),
    ],
)
def test_standard_error_agrees_with_plain_resampling(metric_name, num_classes, is_rows):
    generator = np.random.default_rng(0)
    references = generator.integers(0, num_classes, (60, 3) if is_rows else 60)
    predictions = np.where(generator.random(references.shape) < 0.6, references, references[::-1])
    scores = []
    for _ in range(200):
        drawn = generator.integers(0, 60, 60)
        scores.append(compute_score(metric_name, predictions[drawn], references[drawn]))
    estimate = standard_error(metric_name, predictions, references, seed=1)
    assert estimate == pytest.approx(np.std(scores), rel=0.2)


@pytest.mark.parametrize(
    ("metric_name", "predictions", "references"),
    [
        *((name, PREDICTIONS, REFERENCES) for name in ("accuracy", "f1", "macro_f1", "matthews_correlation")),
        *((name, PREDICTED_ROWS, ROWS) for name in ("accuracy", "f1", "macro_f1")),
        ("macro_f1", [0, 2, 2, 5], [0, 2, 5, 5]),
        ("matthews_correlation", [0, 2, 2, 5], [0, 2, 5, 5]),
        ("matthews_correlation", [1, 1, 1, 1], [0, 1, 0, 1]),
        ("f1", [0, 0, 0], [0, 0, 0]),
    ],
)
def test_counted_scores_are_the_scores(metric_name, predictions, references):
    """The bootstrap has formulas of its own for speed: each example once, and the first one three times."""
    predictions, references = np.array(predictions), np.array(references)
    counts = np.ones((2, len(references)), dtype=int)
    counts[1, 0] = 3
    repeated = [np.concatenate([values[:1], values[:1], values]) for values in (predictions, references)]
    assert scores_of_counts(metric_name, predictions, references, counts) == pytest.approx(
        [compute_score(metric_name, predictions, references), compute_score(metric_name, *repeated)]
    )


@pytest.mark.parametrize("metric_name", ["accuracy", "spearmanr"])
def test_standard_error_depends_on_the_seed_only(metric_name):
    first, again, other = (
        standard_error(metric_name, PREDICTIONS, REFERENCES, seed=seed, num_resamples=50) for seed in (1, 1, 2)
    )
    assert first == again != other


@pytest.mark.parametrize("metric_name", ["macro_f1", "spearmanr"])
def test_standard_error_is_fast(metric_name):
    generator = np.random.default_rng(0)
    predictions, references = generator.integers(0, 20, (2, 2000))
    start = time.thread_time()
    standard_error(metric_name, predictions, references)
    assert time.thread_time() - start < 5


def test_a_score_without_spread_has_no_error():
    assert standard_error("accuracy", REFERENCES, REFERENCES) == 0.0
    assert standard_error("matthews_correlation", [1] * 8, REFERENCES) == 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("f2", "single_label_classification", 2), r"unknown metric 'f2'; choose one of \['accuracy', 'f1'"),
        (("matthews_correlation", "regression", 1), r"cannot score regression; choose one of \['spearmanr'\]"),
        (("spearmanr", "single_label_classification", 2), "'spearmanr' cannot score single_label"),
        (("matthews_correlation", "multi_label_classification", 3), "cannot score multi_label"),
        (("f1", "single_label_classification", 3), "of two classes, got 3 classes; choose 'macro_f1'"),
    ],
)
def test_metric_must_fit_the_task(arguments, message):
    with pytest.raises(ValueError, match=message):
        check_metric(*arguments)


@pytest.mark.parametrize(
    ("metric_name", "predictions", "references", "message"),
    [
        ("f1", [0, 1, 2], [0, 1, 1], r"takes 0 and 1, got \[0, 1, 2\]; for more than two classes choose 'macro_f1'"),
        ("accuracy", [0.2, 0.8], [0, 1], "compares class ids, got fractions"),
        ("accuracy", [[0.1, 0.9]], [1], r"one shape.*got \(1, 2\) and \(1,\); logits need"),
        ("accuracy", [], [], "not empty"),
        ("spearmanr", [1.0, float("nan")], [0.0, 1.0], "predictions hold 1 NaN of 2 values; a training that diverged"),
        ("accuracy", [0, 1], [0, float("nan")], "references hold 1 NaN"),
        ("matthews_correlation", ROWS, ROWS, "cannot score multi_label"),
    ],
)
def test_values_that_cannot_be_scored(metric_name, predictions, references, message):
    for score in (compute_score, standard_error):
        with pytest.raises(ValueError, match=message):
            score(metric_name, predictions, references)


@pytest.mark.parametrize("problem_type", ["single_label_classification", "regression", "multi_label_classification"])
def test_nan_logits_are_an_error(problem_type):
    with pytest.raises(ValueError, match="logits hold 2 NaN of 4 values"):
        predictions_from_logits(problem_type, np.array([[1.0], [np.nan], [np.nan], [2.0]]))


def test_nan_reaches_the_user_of_the_metric():
    with pytest.raises(ValueError, match="predictions hold 1 NaN"):
        TaskMetric("f1").compute(predictions=[0.0, float("nan")], references=[0, 1])


def test_several_processes_need_an_experiment_id():
    with pytest.raises(ValueError, match="2 processes needs an `experiment_id`, got None"):
        TaskMetric("f1", num_process=2, process_id=0)


def test_unknown_metric_has_no_task_metric():
    with pytest.raises(ValueError, match="unknown metric 'bleu'"):
        TaskMetric("bleu")


def test_standard_error_needs_resamples():
    with pytest.raises(ValueError, match="`num_resamples` must be at least 2, got 1"):
        standard_error("accuracy", [0, 1], [0, 1], num_resamples=1)


def test_majority_of_a_split_that_is_not_there():
    task = SimpleNamespace(name="toy", splits={"train": [], "validation": []})
    with pytest.raises(ValueError, match=r"'toy' has no split 'test'; found \['train', 'validation'\]"):
        majority_score(task, "test")
