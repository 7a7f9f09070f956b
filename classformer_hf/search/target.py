"""Latency for a search with a supernet: the table of the target, and direct measurement of the best candidates."""

import datetime
import hashlib
import itertools
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from redundancy_hf.timing import Latency, is_same_hardware, measure_latency

from ..checkpoints import reconfigure
from ..latency import LatencyTable, build_latency_table, count_steps, drift
from .journal import Journal, Trial
from .objective import FineTuneObjective
from .space import Schedule, SearchSpace

logger = logging.getLogger(__name__)

# stages of a search, as the screen calls them
TABLE, DIRECT = "build the latency table", "time the best candidates"
TABLE_ROUNDS, TABLE_SECONDS = 30, 150.0
# candidates that are timed directly, and untimed rounds before
NUM_REMEASURED, WARMUP = 10, 5


def prepare_table(
    objective: FineTuneObjective, space: SearchSpace, path: Path, given: str | None = None
) -> LatencyTable:
    """Load the latency table of the target, or build it on this machine.

    A table that another machine, dtype or number of threads has left at `path` moves to the folder `latency_tables`
    beside it, where it is found again.

    Args:
        objective: Says which model, device, dtype and number of threads.
        space: Says how long the inputs are.
        path: Where the table of this search is, or will be.
        given: A table from elsewhere: another machine's, or an earlier search's.

    Raises:
        ValueError: The table is damaged, of another model or too short.
    """
    longest = max(space.max_tokens, *objective.lengths)
    if given is not None:
        table = LatencyTable.load(given)
        table.check_fits(objective.config, longest)
        _put_table(table, path)
        return table
    for earlier in [*([path] if path.exists() else []), *sorted(path.with_name("latency_tables").glob("*.json"))]:
        table = LatencyTable.load(earlier)
        is_ours = table.describes_this_machine(objective.device, objective.dtype, objective.latency_threads)
        if is_ours and table.max_tokens >= longest:
            _put_table(table, path)
            return table
        logger.info("%s is of another machine, dtype, number of threads or length.", earlier)
    plan, total, started = objective.plan, count_steps(longest, TABLE_ROUNDS), time.monotonic()
    steps = itertools.count(1)
    with plan.stage(TABLE, lost="what was timed of it"):
        table = build_latency_table(
            objective.config,
            longest,
            objective.device,
            objective.dtype,
            objective.latency_threads,
            TABLE_ROUNDS,
            TABLE_SECONDS,
            # fewer rounds are made where they take too long
            lambda: plan.report(max(next(steps) / total, (time.monotonic() - started) / TABLE_SECONDS)),
        )
    _put_table(table, path)
    return table


def _put_table(table: LatencyTable, path: Path):
    """Write the table in use; one of something else that was there moves to `latency_tables`."""
    if path.exists() and (earlier := LatencyTable.load(path)) != table:
        known = json.dumps([{**earlier.hardware, "load_average": None}, earlier.max_tokens, earlier.created])
        digest = hashlib.sha256(known.encode()).hexdigest()[:8]
        earlier.save(path.with_name("latency_tables") / f"{digest}.json")
    table.save(path)


def retime_trials(journal: Journal, timing: Callable[[Schedule], dict[str, Any]], is_stale: Callable[[Trial], bool]):
    """Time the trials of a journal again that were timed on another machine; their scores stay.

    Args:
        journal: Of trials that were timed, not looked up.
        timing: Gives the latency of a schedule on the machine that counts now, as plain data.
        is_stale: Whether a trial's latency is of another one.
    """
    with journal.lock():
        stale = [trial for trial in journal.trials if trial.is_ok and is_stale(trial)]
        if stale:
            logger.info("%d trials were timed on another machine; they are timed again.", len(stale))
        journal.retime({trial.number: timing(trial.schedule) for trial in stale})


def was_timed_elsewhere(trial: Trial, hardware: Mapping[str, Any]) -> bool:
    """Whether a trial's latency is of other hardware or other libraries, or was predicted for them."""
    measured = trial.measurement
    is_predicted = measured.get("latency_source") == "table"
    return is_predicted or not is_same_hardware(measured.get("hardware", hardware), hardware)


def remeasure(
    objective: FineTuneObjective,
    table: LatencyTable,
    candidates: Sequence[Schedule],
    path: Path,
    seconds: float | None = None,
) -> dict[str, Any]:
    """Time the best candidates directly and compare with the table; takes what an earlier call has measured.

    Args:
        objective: Says on what inputs, device and threads.
        table: What predicted.
        candidates: At most ten or so.
        path: Where the record is kept.
        seconds: About how long it may take; fewer rounds, at least three, are timed then.

    Returns:
        The record: statistics per schedule, and the table's drift.
    """
    with suppress(FileNotFoundError, ValueError):  # absent, or cut off while it was written
        record = json.loads(path.read_text())
        is_here = is_same_hardware(record.get("hardware", {}), objective.hardware)
        if is_here and {schedule.key for schedule in candidates} <= set(record["latency"]):
            return record
    rounds, warmup = objective.latency_rounds, WARMUP
    if seconds is not None:
        milliseconds = table.predict_many([objective.full, *candidates], objective.lengths).sum()
        warmup = 1
        rounds = int(np.clip(1000 * seconds / (milliseconds * len(objective.lengths)) - warmup, 3, rounds))
    started = time.monotonic()
    with objective.plan.stage(DIRECT, rounds + warmup, lost="this timing"):
        latency = measure_directly(objective, candidates, rounds, warmup, objective.plan.update)
    # the table's own predictions know no buckets
    single = {schedule: value.ratio for schedule, value in latency.items() if not schedule.buckets}
    errors = drift(table, single, objective.lengths)
    record = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - started, 1),
        "hardware": objective.hardware,
        "latency": {schedule.key: vars(value) for schedule, value in latency.items()},
        "drift": errors,
    }
    path.write_text(json.dumps(record, indent=2) + "\n")
    return record


def measure_directly(
    objective: FineTuneObjective,
    schedules: Sequence[Schedule],
    rounds: int,
    warmup: int = WARMUP,
    on_round: Callable[[], Any] | None = None,
) -> dict[Schedule, Latency]:
    """Time schedules side by side on the dataset's lengths, relative to the full model.

    Args:
        objective: Says on what device, with how many threads, on which inputs.
        schedules: What to time.
        rounds: Timed passes over the inputs.
        warmup: Untimed passes before them.
        on_round: Called after every pass, outside the clocks.
    """
    full = objective.full
    with objective.ready_to_time() as (build, inputs):
        model = build(full)
        models = {schedule.key: reconfigure(model, **schedule.config) for schedule in [full, *schedules]}
        latency = measure_latency(models, inputs, full.key, rounds, warmup, on_round)
    return {schedule: latency[schedule.key] for schedule in [full, *schedules]}
