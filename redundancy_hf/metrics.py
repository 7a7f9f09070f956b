"""Scores of a text-classification task: the thesis' metrics, their floor and their standard error.

Bidart 2023 (University of Waterloo), section 5.2: accuracy; Matthews correlation for CoLA, Spearman correlation for
STS-B, F1 of the positive class for QQP and MRPC. Macro F1 is an addition. Letters: N examples, K labels, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import datasets
import evaluate
import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from transformers import EvalPrediction

from .labels import MULTI_LABEL, REGRESSION, SINGLE_LABEL

if TYPE_CHECKING:
    from .task import Task

# which problem types a metric can score
METRICS = {
    "accuracy": (SINGLE_LABEL, MULTI_LABEL),
    "f1": (SINGLE_LABEL, MULTI_LABEL),
    "macro_f1": (SINGLE_LABEL, MULTI_LABEL),
    "matthews_correlation": (SINGLE_LABEL,),
    "spearmanr": (REGRESSION,),
}
DEFAULT_METRICS = {SINGLE_LABEL: "accuracy", REGRESSION: "spearmanr", MULTI_LABEL: "f1"}


def check_metric(metric_name: str, problem_type: str, num_labels: int) -> None:
    """Check that a metric exists and can score a task.

    Raises:
        ValueError: The metric is unknown, does not fit the problem type, or is F1 of more than two classes.
    """
    _check_name(metric_name)
    if problem_type not in METRICS[metric_name]:
        fitting = sorted(name for name, problem_types in METRICS.items() if problem_type in problem_types)
        raise ValueError(f"metric {metric_name!r} cannot score {problem_type}; choose one of {fitting}.")
    if metric_name == "f1" and problem_type == SINGLE_LABEL and num_labels != 2:
        raise ValueError(
            f"metric 'f1' is the F1 of class 1 of two classes, got {num_labels} classes; choose 'macro_f1'."
        )


def compute_score(metric_name: str, predictions: ArrayLike, references: ArrayLike) -> float:
    """Compute one metric of class ids or values, (N,), or of 0-1 rows, (N, K), not of logits; higher is better.

    `f1` is the F1 of class 1 where labels are class ids, and micro F1 where they are 0-1 rows. `macro_f1` is the mean
    over the classes that occur in either argument, or over all K labels of 0-1 rows. `accuracy` of 0-1 rows counts rows
    that are right in every label. A correlation with something constant is 0.0.

    Raises:
        ValueError: The metric is unknown or does not fit the values; the shapes differ or are empty; a value is NaN.
    """
    predictions, references = _check_values(metric_name, predictions, references)
    if metric_name == "spearmanr":
        return _spearman(predictions, references)
    if metric_name == "accuracy":
        return float(accuracy_score(references, predictions))
    if metric_name == "matthews_correlation":
        # scikit-learn returns 0 for something constant as well, but with a warning
        return 0.0 if _is_constant(predictions, references) else float(matthews_corrcoef(references, predictions))
    average = "macro" if metric_name == "macro_f1" else "binary" if references.ndim == 1 else "micro"
    return float(f1_score(references, predictions, average=average, zero_division=0.0))


def predictions_from_logits(problem_type: str, logits: ArrayLike | tuple) -> np.ndarray:
    """Turn logits into what `compute_score` takes.

    Of a tuple, as a model with several outputs gives, the first counts; values of a regression are (N, 1) or (N,).

    Returns:
        The class of the largest logit, (N,); the values, (N,); or, multi-label, 1 where a logit is positive, (N, K).

    Raises:
        ValueError: A logit is NaN.
    """
    logits = np.asarray(logits[0] if isinstance(logits, tuple) else logits)
    # argmax would silently take a NaN for the largest logit
    _check_no_nan("logits", logits)
    if problem_type == REGRESSION:
        return logits.reshape(len(logits))
    if problem_type == MULTI_LABEL:
        return (logits > 0).astype(np.int64)
    return logits.argmax(axis=-1)


class TaskMetric(evaluate.Metric):
    """One metric as an `evaluate.Metric` that needs no network.

    With one process, or where every process holds all predictions (as `Trainer` gathers them), nothing is written to
    disk, so processes cannot meet in a cache file. To let each of P processes add its share, give all of them
    `num_process=P`, the same `cache_dir` and the same `experiment_id`, which no other evaluation has, and each its
    `process_id`; `compute` returns the score over all shares in process 0 and `None` in the others. An example must be
    added by one process only: leave out those that a distributed sampler repeats to fill the last batch.

    Raises:
        ValueError: The metric is unknown, or several processes have no `experiment_id`.
    """

    def __init__(
        self,
        config_name: str,
        num_process: int = 1,
        experiment_id: str | None = None,
        process_id: int = 0,
        cache_dir: str | None = None,
        timeout: float = 100,
    ) -> None:
        _check_name(config_name)
        if num_process > 1 and experiment_id is None:
            raise ValueError(
                f"a metric over {num_process} processes needs an `experiment_id`, got None; "
                "pass one that is equal in all of them and new in every evaluation."
            )
        super().__init__(
            config_name,
            keep_in_memory=num_process == 1,
            cache_dir=cache_dir,
            num_process=num_process,
            process_id=process_id,
            experiment_id=experiment_id,
            timeout=timeout,
        )

    def _info(self) -> evaluate.MetricInfo:
        # float64 even for class ids: an integer feature would cut a fraction or fail on a NaN without saying so
        value = datasets.Value("float64")
        shapes = [value] if self.config_name in ("spearmanr", "matthews_correlation") else [value, datasets.List(value)]
        return evaluate.MetricInfo(
            description=compute_score.__doc__,
            citation="",
            inputs_description="predictions and references, as in compute_score",
            features=[datasets.Features({"predictions": shape, "references": shape}) for shape in shapes],
        )

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        return {self.config_name: compute_score(self.config_name, predictions, references)}


def build_compute_metrics(task: Task) -> Callable[[EvalPrediction], dict[str, float]]:
    """Build the `compute_metrics` of a `Trainer`: a function from logits and labels to `{metric_name: score}`."""
    metric = TaskMetric(task.metric_name)

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        return metric.compute(
            predictions=predictions_from_logits(task.problem_type, prediction.predictions),
            references=np.asarray(prediction.label_ids),
        )

    return compute_metrics


def majority_score(task: Task, split: str = "validation") -> float:
    """Compute the score of the best constant prediction, a floor for every model.

    The constant is chosen on the train split: its most frequent label (or set of labels), or class 1 (or every label)
    where that scores higher, as it does for F1 when class 1 is the rare one. Correlations have the floor 0.0.

    Raises:
        ValueError: The task has no such split.
    """
    if split not in task.splits:
        raise ValueError(f"task {task.name!r} has no split {split!r}; found {list(task.splits)}.")
    return constant_score(task.metric_name, task.splits["train"]["labels"][:], task.splits[split]["labels"][:])


def constant_score(metric_name: str, known: ArrayLike, references: ArrayLike) -> float:
    """Compute what the constant scores on references that is best on known labels, as in [`majority_score`]."""
    if metric_name in ("matthews_correlation", "spearmanr"):
        return 0.0
    labels, references = (np.asarray(values).astype(int) for values in (known, references))
    values, counts = np.unique(labels, axis=0, return_counts=True)
    majority = values[counts.argmax()]

    def score(constant: np.ndarray, labels: np.ndarray) -> float:
        return compute_score(metric_name, np.broadcast_to(constant, labels.shape), labels)

    return score(max([majority, np.ones_like(majority)], key=lambda constant: score(constant, labels)), references)


def standard_error(
    metric_name: str, predictions: ArrayLike, references: ArrayLike, seed: int = 0, num_resamples: int = 1000
) -> float:
    """Estimate the standard error of a score by the bootstrap over examples; values as in [`compute_score`].

    Raises:
        ValueError: As `compute_score`, or there are fewer than 2 resamples.
    """
    if num_resamples < 2:
        raise ValueError(f"`num_resamples` must be at least 2, got {num_resamples}; 1000 is usual.")
    return float(np.std(resample_scores(metric_name, [predictions], references, seed, num_resamples), ddof=1))


def paired_standard_error(
    metric_name: str,
    predictions: ArrayLike,
    full_predictions: ArrayLike,
    references: ArrayLike,
    num_resamples: int = 300,
) -> float:
    """Estimate the standard error of a score divided by the full model's on the same examples, by the bootstrap.

    Both models err on much the same examples, so this is far smaller than the error of either score. Arguments as for
    [`standard_error`].

    Returns:
        Standard deviation of the ratio over the resamples in which the full model's score is positive; NaN where there
        are fewer than two.
    """
    scores, full = resample_scores(metric_name, [predictions, full_predictions], references, 0, num_resamples)
    ratios = scores[full > 0] / full[full > 0]
    return float(np.std(ratios, ddof=1)) if len(ratios) > 1 else float("nan")


def resample_scores(
    metric_name: str, models: Sequence[ArrayLike], references: ArrayLike, seed: int, num_resamples: int
) -> np.ndarray:
    """Score the predictions of M models on the same R resamples of the examples, (M, R)."""
    checked = [_check_values(metric_name, predictions, references) for predictions in models]
    columns, truth = [predictions for predictions, _ in checked], checked[0][1]
    generator, num_examples = np.random.default_rng(seed), len(truth)
    if metric_name == "spearmanr":
        rows = [generator.integers(num_examples, size=num_examples) for _ in range(num_resamples)]
        return np.array([[_spearman(column[row], truth[row]) for row in rows] for column in columns])
    # only how often a row of predictions and reference is drawn matters, and those counts are multinomial
    kinds, counts = np.unique(np.stack([*columns, truth], axis=1), axis=0, return_counts=True)
    drawn = generator.multinomial(num_examples, counts / num_examples, size=num_resamples)
    return np.array([scores_of_counts(metric_name, kinds[:, n], kinds[:, -1], drawn) for n in range(len(columns))])


def scores_of_counts(
    metric_name: str, predictions: np.ndarray, references: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """Score R samples of the same P (prediction, reference) pairs, (P,) or (P, K), by their counts, (R, P)."""
    totals = counts.sum(axis=1)
    if metric_name == "accuracy":
        is_right = (predictions == references).reshape(len(references), -1).all(axis=1)
        return counts @ is_right / totals
    is_multi_label = references.ndim == 2
    if not is_multi_label:
        classes = np.array([0, 1]) if metric_name == "f1" else np.union1d(predictions, references)
        predictions, references = predictions[:, None] == classes, references[:, None] == classes  # (P, K)
    correct, predicted, actual = (counts @ values for values in (predictions & references, predictions, references))
    return scores_of_sums(metric_name, correct, predicted, actual, totals, is_multi_label)


def scores_of_sums(
    metric_name: str,
    correct: np.ndarray,
    predicted: np.ndarray,
    actual: np.ndarray,
    totals: np.ndarray,
    is_multi_label: bool,
) -> np.ndarray:
    """Score R samples by their numbers of right answers, predictions and references of each class, (R, K), K >= 2.

    All may be fractions. Columns are labels of one row where that is multi-label; else they are classes, of `f1` 0 and
    1. Gives "f1", "macro_f1" or "matthews_correlation", (R,), as `compute_score` defines them.
    """
    if metric_name == "matthews_correlation":
        covariance = correct.sum(axis=-1) * totals - (predicted * actual).sum(axis=-1)
        variances = [np.maximum(totals**2 - (sums**2).sum(axis=-1), 0) for sums in (predicted, actual)]
        return _divide(covariance, np.sqrt(variances[0]) * np.sqrt(variances[1]))
    either = predicted + actual
    if metric_name == "macro_f1":
        num_labels = correct.shape[-1] if is_multi_label else (either > 0).sum(axis=-1)
        return _divide(2 * correct, either).sum(axis=-1) / num_labels
    if not is_multi_label:
        correct, either = correct[..., 1:2], either[..., 1:2]
    return _divide(2 * correct.sum(axis=-1), either.sum(axis=-1))


def _divide(values: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Divide; 0 where there is nothing to divide by."""
    return np.divide(values, by, out=np.zeros(np.shape(values)), where=np.asarray(by) > 1e-9)


def _check_values(metric_name: str, predictions: ArrayLike, references: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return both as arrays, of integers unless the metric is Spearman's; `compute_score` says what raises."""
    predictions, references = np.asarray(predictions), np.asarray(references)
    is_table = references.ndim == 2 and references.shape[1] > 1
    if predictions.shape != references.shape or not (references.ndim == 1 or is_table) or not references.size:
        raise ValueError(
            "predictions and references must be of one shape, (N,) or (N, K >= 2), and not empty, got "
            f"{predictions.shape} and {references.shape}; logits need predictions_from_logits first."
        )
    problem_type = MULTI_LABEL if references.ndim == 2 else REGRESSION if metric_name == "spearmanr" else SINGLE_LABEL
    check_metric(metric_name, problem_type, num_labels=2)
    _check_no_nan("predictions", predictions)
    _check_no_nan("references", references)
    if problem_type == REGRESSION:
        return predictions, references
    classes = np.unique([*np.unique(predictions), *np.unique(references)])
    if np.any(classes != np.floor(classes)):
        raise ValueError(f"{metric_name} compares class ids, got fractions; logits need predictions_from_logits first.")
    if (problem_type == MULTI_LABEL or metric_name == "f1") and not np.isin(classes, (0, 1)).all():
        raise ValueError(
            f"{metric_name} of {problem_type} takes 0 and 1, got {classes.astype(int).tolist()}; "
            "for more than two classes choose 'macro_f1'."
        )
    return predictions.astype(np.int64), references.astype(np.int64)


def _check_name(metric_name: str) -> None:
    if metric_name not in METRICS:
        raise ValueError(f"unknown metric {metric_name!r}; choose one of {sorted(METRICS)}.")


def _check_no_nan(what: str, values: np.ndarray) -> None:
    if num_nan := int(np.isnan(values).sum()):
        raise ValueError(f"{what} hold {num_nan} NaN of {values.size} values; a training that diverged gives them.")


def _spearman(predictions: np.ndarray, references: np.ndarray) -> float:
    ranks = rankdata(predictions), rankdata(references)
    return 0.0 if _is_constant(predictions, references) else float(np.corrcoef(*ranks)[0, 1])


def _is_constant(*values: np.ndarray) -> bool:
    return any(np.ptp(one) == 0 for one in values)
