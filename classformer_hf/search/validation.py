"""What a trial with a supernet costs and gives: a validation, and a latency from a table.

An earlier study's trials carry over to another target here, because what they measured does not depend on the machine.
"""

import json
import logging
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetDict
from safetensors import SafetensorError

from redundancy_hf.command import FLAGS, describe_changes
from redundancy_hf.metrics import predictions_from_logits

from ..modeling_classformer import ClassformerForSequenceClassification
from .executors import on_main_process
from .journal import Journal, JournalError, Trial
from .models import describe_validation
from .objective import FineTuneObjective
from .space import Schedule
from .supernet import predict_schedules

logger = logging.getLogger(__name__)

# of a search, as the screen calls it
STAGE = "validate with the supernet"

# a study that reuses another validates for about so long, then times its candidates for about so long
REUSE_SECONDS = 20.0


class SupernetObjective:
    """Scores a schedule with the supernet's weights and looks its latency up; nothing is trained or timed.

    Args:
        folder: The supernet.
        search: Has task, tokenizer and device, the number format that the result will run in, and the output folder,
            where predictions are kept.
        milliseconds: Predicted latency of every schedule that may come.
    """

    def __init__(self, folder: Path, search: FineTuneObjective, milliseconds: Mapping[Schedule, float]):
        self.folder, self.task, self.tokenizer, self.full = folder, search.task, search.tokenizer, search.full
        self.milliseconds = dict(milliseconds)
        self.predictions = search.output / "predictions"
        self.device, self.dtype = str(search.arguments.device), search.target.torch_dtype
        self.model: Any = None
        self.is_limited = False

    def __getstate__(self) -> dict[str, Any]:
        # a worker loads the weights itself
        return {**vars(self), "model": None}

    def __call__(self, schedule: Schedule) -> dict[str, Any]:
        """Validate a schedule.

        Returns:
            Plain data for the journal: `score`, `standard_error`, `paired_standard_error` (of the score divided by the
            full model's), `latency_ratio` and `latency_milliseconds` by the table, ...
        """
        return on_main_process(lambda: self.predict([self.full, schedule])[schedule])

    def predict(self, schedules: Sequence[Schedule]) -> dict[Schedule, dict[str, Any]]:
        """Compute and keep the predictions that are missing; schedules that begin alike share their first layers.

        Returns:
            What is known of every schedule.
        """
        missing = [one for one in dict.fromkeys(schedules) if not self._path(one).exists()]
        if missing:
            self.load()
            logits = predict_schedules(self.model, missing, self.task.splits["validation"], self.tokenizer)
            self.predictions.mkdir(parents=True, exist_ok=True)
            for schedule, single in zip(missing, logits, strict=True):
                partial = self._path(schedule).with_suffix(".partial")
                with open(partial, "wb") as file:
                    np.save(file, predictions_from_logits(self.task.problem_type, single))
                partial.rename(self._path(schedule))
        return {schedule: self.describe(schedule) for schedule in schedules}

    def limit_examples(self, schedules: Sequence[Schedule], seconds: float):
        """Validate from now on with as many examples, drawn at random, as some schedules need so long for.

        Where an interrupted call has left predictions, their number stays; a second call changes nothing.
        """
        if self.is_limited:
            return
        split = self.task.splits["validation"].shuffle(seed=0)
        kept = next(self.predictions.glob("*.npy"), None)
        if kept is not None:
            affordable = len(np.load(kept))
        else:
            first = split.select(range(min(64, len(split))))
            self.load()
            started = time.monotonic()
            predict_schedules(self.model, schedules, first, self.tokenizer)
            affordable = int(len(first) * seconds / max(time.monotonic() - started, 1e-9))
            affordable = min(max(affordable, len(first)), len(split))
        if affordable < len(split):
            logger.info("validating with %d of %d examples, to answer in time.", affordable, len(split))
        splits = DatasetDict({**self.task.splits, "validation": split.select(range(affordable))})
        self.task, self.is_limited = replace(self.task, splits=splits), True

    def load(self):
        """Load the weights, once.

        Raises:
            JournalError: They cannot be loaded.
        """
        if self.model is None:
            try:
                self.model = ClassformerForSequenceClassification.from_pretrained(self.folder, dtype=self.dtype)
            except (OSError, RuntimeError, SafetensorError) as error:
                raise JournalError(f"{self.folder} cannot be loaded ({error}); delete it to train it anew.") from error
            self.model.to(self.device)

    def describe(self, schedule: Schedule) -> dict[str, Any]:
        """Put what is known of a schedule into plain data."""
        predictions, full = self.load_predictions(schedule), self.load_predictions(self.full)
        return {**describe_validation(self.task, predictions, full), **self.look_up(schedule)}

    def look_up(self, schedule: Schedule) -> dict[str, Any]:
        """Give the latency of a schedule by the table, as plain data."""
        return {
            "latency_ratio": self.milliseconds[schedule] / self.milliseconds[self.full],
            "latency_milliseconds": self.milliseconds[schedule],
            "latency_source": "table",
        }

    def list_latencies(self, trials: Iterable[Trial]) -> dict[int, dict[str, Any]]:
        """Look the latencies of trials up, by number; those that agree with what the trials say are left out."""
        known = [trial for trial in trials if trial.is_ok and trial.schedule in self.milliseconds]
        latencies = {trial.number: self.look_up(trial.schedule) for trial in known}
        return {t.number: latencies[t.number] for t in known if t.measurement != t.measurement | latencies[t.number]}

    def load_predictions(self, schedule: Schedule) -> np.ndarray:
        """Read the predictions of a validated schedule, (N,) or (N, K)."""
        return np.load(self._path(schedule))

    def _path(self, schedule: Schedule) -> Path:
        return self.predictions / f"{schedule.key}.npy"


def check_supernet(study: Path):
    """Refuse to reuse what is no study with a supernet.

    Raises:
        JournalError: It has none.
    """
    if not (study / "supernet" / "supernet.json").exists():
        raise JournalError(
            f"{study} holds no supernet (supernet/supernet.json); --reuse takes the --output_dir of a finished search "
            "with --evaluation supernet."
        )


def check_study(study: Path, objective: FineTuneObjective):
    """Refuse to reuse a study of another checkpoint or dataset.

    Raises:
        JournalError: It is, or it has no supernet or no finished trial.
    """
    check_supernet(study)
    found, now = read_supernet(study / "supernet")["identity"], objective.identity()
    if changed := describe_changes(found, {name: now[name] for name in ("checkpoint", "dataset", FLAGS)}):
        raise JournalError(f"{study} is of something else: {', '.join(changed)}; --reuse needs the same.")
    journal = Journal(study / "trials.jsonl", {}, is_writer=False)
    if not journal.trials:
        raise JournalError(f"{study} has no finished trial to reuse; finish its search first.")
    if not journal.has_header:
        raise JournalError(f"{journal.path} has lost its first line, which says what was searched; search again.")
    if study.resolve() == objective.output.resolve():
        raise JournalError(f"--reuse and --output_dir are both {study}; give the new answer a folder of its own.")


def read_supernet(folder: Path) -> dict[str, Any]:
    """Read what study a supernet was trained for, and what that cost.

    Raises:
        JournalError: Its record is damaged.
    """
    path = folder / "supernet.json"
    try:
        record = json.loads(path.read_text())
        return {**record, "identity": record["identity"]}
    except (OSError, ValueError, KeyError) as error:
        raise JournalError(f"{path} cannot be read ({error!r}); delete {folder} to train it anew.") from error


def reuse_trials(study: Path, journal: Journal, objective: SupernetObjective, required: float) -> bool:
    """Carry the trials of an earlier study over to another target, with the latencies of this one.

    Scores do not depend on the machine, so they are taken over. Under another dtype they may differ: then the full
    model and the candidates that look best are validated anew, on as many examples as fit in `REUSE_SECONDS`.

    Returns:
        Whether the earlier study validated in the same dtype.
    """
    earlier_journal = Journal(study / "trials.jsonl", {}, is_writer=False)
    is_same_dtype = earlier_journal.found_identity["latency"]["dtype"] == str(objective.dtype)
    earlier = [trial for trial in earlier_journal.trials if trial.is_ok]
    earlier = [trial for trial in earlier if trial.schedule in objective.milliseconds]
    if is_same_dtype:
        shutil.copytree(study / "predictions", objective.predictions, dirs_exist_ok=True)
    else:
        earlier = _most_promising(earlier, objective, required)
        objective.limit_examples([trial.schedule for trial in earlier], REUSE_SECONDS)
        objective.predict([trial.schedule for trial in earlier])
    done = {trial.schedule for trial in journal.trials}
    for trial in earlier:
        if trial.schedule not in done:
            origin = "reference" if trial.schedule == objective.full else "reused"
            measurement = objective.describe(trial.schedule)
            journal.append(Trial(journal.next_number, trial.schedule, origin, "ok", measurement))
    return is_same_dtype


def _most_promising(trials: list[Trial], objective: SupernetObjective, required: float, number: int = 3) -> list[Trial]:
    """List the full model's trial, then the fastest ones on the new target that met the requirement."""
    reference = next(trial for trial in trials if trial.schedule == objective.full)
    feasible = [t for t in trials if t is not reference and t.score >= required * reference.score]
    feasible.sort(key=lambda trial: objective.milliseconds[trial.schedule])
    return [reference, *feasible[:number]]
