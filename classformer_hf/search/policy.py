"""Length policies: another schedule for every range of input lengths, from the same weights.

A short text has little to drop and a long one much, so one schedule for all is a compromise. The choice is a
multiple-choice knapsack (one schedule per bucket; least time; a bound on lost answers), solved by Lagrangian relaxation
(Everett 1963).
"""

import logging
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from redundancy_hf.metrics import compute_score

from ..latency import LatencyTable
from .loop import SearchResult
from .space import Schedule
from .validation import SupernetObjective

logger = logging.getLogger(__name__)

NUM_MULTIPLIERS = 200


def choose_policy(
    schedules: Sequence[Schedule],
    predictions: np.ndarray,
    references: np.ndarray,
    lengths: np.ndarray,
    predict_milliseconds: Callable[[Sequence[Schedule], Any], np.ndarray],
    limits: Sequence[int],
    metric_name: str,
    required_score: float,
) -> Schedule | None:
    """Choose one schedule per length bucket, for the least expected time at a required score.

    Args:
        schedules: S schedules to choose from.
        predictions: What they predict for N examples, (S, N) or (S, N, K).
        references: The labels, (N,) or (N, K).
        lengths: Token lengths of the examples, (N,).
        predict_milliseconds: Gives the times, (S,), of schedules averaged over lengths, as a latency table does.
        limits: Longest input of every bucket but the last, in tokens, ascending.
        metric_name: Of the task.
        required_score: What the policy must reach on the examples.

    Returns:
        The policy, as a schedule with buckets (without, if one schedule is best everywhere), or `None` if no choice
        reaches the score.

    Raises:
        ValueError: The limits do not ascend from 1 on.
    """
    if list(limits) != sorted(set(limits)) or min(limits, default=1) < 1:
        raise ValueError(f"the limits of length buckets must ascend and be >= 1, got {list(limits)}.")
    buckets = [
        np.flatnonzero((lengths > low) & (lengths <= high))
        for low, high in pairwise([0, *limits, max(lengths.max(), *limits, 1) + 1])
    ]
    losses = _losses(predictions, references)  # (S, N)
    used = [index for index, rows in enumerate(buckets) if len(rows)]
    times = np.stack([predict_milliseconds(schedules, lengths[buckets[i]]) * len(buckets[i]) for i in used])
    lost = np.stack([losses[:, buckets[i]].sum(axis=1) for i in used])  # both (used buckets, S)

    def score(choice: np.ndarray) -> float:
        chosen = np.empty_like(predictions[0])
        for index, bucket in zip(choice, used, strict=True):
            chosen[buckets[bucket]] = predictions[index, buckets[bucket]]
        return compute_score(metric_name, chosen, references)

    best, best_time = None, np.inf
    for choice in _candidate_choices(times, lost):
        time = times[np.arange(len(used)), choice].sum()
        if time < best_time and score(choice) >= required_score:
            best, best_time = choice, time
    if best is None:
        return None
    by_bucket = {bucket: schedules[index] for bucket, index in zip(used, best, strict=True)}
    # a bucket without examples goes by the next longer one that has some, or by the longest
    chosen = [by_bucket[next((one for one in used if one >= bucket), used[-1])] for bucket in range(len(buckets))]
    return merge_buckets(chosen, limits)


def merge_buckets(chosen: Sequence[Schedule], limits: Sequence[int]) -> Schedule:
    """Build the schedule of a policy; neighbouring buckets with the same schedule become one."""
    merged = [
        (limit, schedule)
        for limit, schedule, longer in zip(limits, chosen[:-1], chosen[1:], strict=True)
        if schedule != longer
    ]
    return Schedule(chosen[-1].gamma, chosen[-1].eta, tuple(merged))


def _losses(predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    """How wrong every answer is, (S, N): 0 or 1 for classes and sets of labels, squared error for values."""
    if predictions.dtype.kind == "f":
        return (predictions - references) ** 2
    wrong = predictions != references
    return wrong.reshape(*wrong.shape[:2], -1).any(axis=2).astype(float)


def _candidate_choices(times: np.ndarray, lost: np.ndarray):
    """Give one choice per bucket for every price of a lost answer, and every single schedule for all buckets."""
    scale = times.max() / max(lost.max(), 1e-12)
    seen = set()
    for price in [0.0, *(scale * np.logspace(-4, 4, NUM_MULTIPLIERS))]:
        choice = tuple(np.argmin(times + price * lost, axis=1))
        if choice not in seen:
            seen.add(choice)
            yield np.array(choice)
    yield from (np.full(len(times), index) for index in range(times.shape[1]))


def find_policy(
    result: SearchResult,
    objective: SupernetObjective,
    table: LatencyTable,
    limits: Sequence[int],
) -> Schedule | None:
    """Choose a schedule per length bucket among the trials, for the least expected time at the score that is asked."""
    schedules = [trial.schedule for trial in result.trials if trial.is_ok]
    split = objective.task.splits["validation"]
    policy = choose_policy(
        schedules,
        np.stack([objective.load_predictions(schedule) for schedule in schedules]),
        np.asarray(split["labels"]),
        np.array([len(ids) for ids in split["input_ids"]]),
        table.predict_many,
        limits,
        objective.task.metric_name,
        result.required_performance * result.reference.score,
    )
    if policy is None or not policy.buckets:
        logger.info("no choice of schedules by length keeps the requirement and is faster than one for all.")
        return None
    return policy


def predict_policy(table: LatencyTable, schedule: Schedule, lengths: Sequence[int]) -> float:
    """Predict the mean milliseconds of a schedule that may have length buckets."""
    values, counts = np.unique(lengths, return_counts=True)
    by_length = [next((one for limit, one in schedule.buckets if n <= limit), schedule) for n in values]
    times = [
        table.predict(Schedule(one.gamma, one.eta), [n]) for one, n in zip(by_length, values.tolist(), strict=True)
    ]
    return float(np.average(times, weights=counts))
