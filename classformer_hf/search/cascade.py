"""A cascade from one set of weights: which fast schedule, which fuller one, and from what margin on the first is
trusted."""

from dataclasses import dataclass

import numpy as np

from redundancy_hf.metrics import scores_of_counts

# shares of the texts that are classified twice
SHARES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)


@dataclass(frozen=True)
class Cascade:
    """A choice among S schedules.

    Attributes:
        fast: Index of the schedule that every text gets.
        full: Index of the one that unsure texts get as well.
        margin: A text is unsure below this difference of its two largest probabilities.
        score: On the texts it was chosen on.
        time: Mean time of a text, in the unit of the times given.
    """

    fast: int
    full: int
    margin: float
    score: float
    time: float


def margins_of(logits: np.ndarray) -> np.ndarray:
    """Give the difference of the two largest probabilities, (...,), of logits, (..., K)."""
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    ordered = np.sort(exponentials / exponentials.sum(-1, keepdims=True), axis=-1)
    return ordered[..., -1] - ordered[..., -2]


def find_cascade(
    logits: np.ndarray, times: np.ndarray, references: np.ndarray, metric_name: str, required_score: float
) -> Cascade | None:
    """Choose the cascade with the shortest mean time among those that reach a score.

    Args:
        logits: Of S schedules for N texts, (S, N, K).
        times: Of every schedule on every text, (S, N).
        references: Class of every text, (N,).
        metric_name: One of `redundancy_hf.metrics.METRICS` for single labels.
        required_score: On these texts.

    Returns:
        The choice, or `None` where none reaches the score. One without unsure texts is a single schedule: no cascade is
        faster.
    """
    predictions, margins = logits.argmax(-1), margins_of(logits)
    once = np.ones((1, len(references)))
    best: Cascade | None = None
    mean_times = times.mean(axis=1)
    for fast in np.argsort(mean_times):
        if best is not None and mean_times[fast] >= best.time:
            break
        for margin in np.unique([0, *np.quantile(margins[fast], SHARES).round(4)]):
            unsure = margins[fast] < margin
            for full in np.flatnonzero(mean_times > mean_times[fast]) if unsure.any() else [fast]:
                time = mean_times[fast] + (times[full] * unsure).mean()
                if best is not None and time >= best.time:
                    continue
                chosen = np.where(unsure, predictions[full], predictions[fast])
                score = float(scores_of_counts(metric_name, chosen, references, once)[0])
                # sums in another order differ in the last digits
                if score >= required_score - 1e-9:
                    best = Cascade(int(fast), int(full), float(margin), score, float(time))
    return best
