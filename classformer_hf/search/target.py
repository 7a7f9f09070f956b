"""Latency on the target of a search: the table, the trials, and the best candidates timed side by side."""

import copy
import dataclasses
import datetime
import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from redundancy_hf.plan import Plan
from redundancy_hf.timing import Latency, Target, is_same_hardware, measure_latency, sample_inputs

from ..checkpoints import reconfigure
from ..flops import count_flops
from ..latency import LatencyTable, build_latency_table, drift
from ..modeling_classformer import ClassformerForSequenceClassification
from .executors import on_main_process
from .journal import Journal, Trial
from .space import Schedule

logger = logging.getLogger(__name__)

# stages of a search, as the screen calls them
TABLE, DIRECT = "build the latency table", "time the best candidates"
TABLE_ROUNDS, TABLE_SECONDS = 30, 150.0
# candidates that are timed directly, and untimed rounds before
NUM_REMEASURED, WARMUP = 10, 5


class LatencyMeter:
    """Times schedules of one classifier on a target, with batch 1; time does not depend on the weights.

    Args:
        full: The unreduced schedule.
        load_config: Gives the configuration of the unreduced classifier; called once it is needed.
        inputs: Texts whose lengths stand for the dataset's.
        target: Device, threads, number format, and rounds of a timing.
        plan: Shows how far a timing has come.
    """

    def __init__(
        self,
        full: Schedule,
        load_config: Callable[[], Any],
        inputs: Sequence[Mapping[str, torch.Tensor]],
        target: Target,
        plan: Plan,
    ):
        self.full, self.load_config, self.inputs, self.target, self.plan = full, load_config, inputs, target, plan

    @cached_property
    def config(self) -> Any:
        """The configuration of the unreduced classifier."""
        return self.load_config()

    @property
    def lengths(self) -> list[int]:
        """Token lengths of the inputs."""
        return [row["input_ids"].shape[1] for row in self.inputs]

    def use_lengths(self, lengths: Sequence[int]):
        """Measure on texts of these token lengths instead."""
        self.inputs = sample_inputs(Dataset.from_dict({"input_ids": [[5] * length for length in lengths]}))

    def build(self, schedule: Schedule, cls_only: bool = True) -> Any:
        """Build a model of a schedule, with random weights, on the target."""
        config = copy.deepcopy(self.config)
        config.update({**schedule.config, "last_layer_cls_only": cls_only})
        return self.target.place(ClassformerForSequenceClassification(config))

    def measure(self, schedule: Schedule) -> dict[str, Any]:
        """Time a schedule interleaved with two unreduced models of the same size.

        They are `full`, which computes only position 0 in the last layer, and `stock`, which is plain RoBERTa.

        Returns:
            `latency_ratio` (to `full`), `stock_latency_ratio` (of `stock` to `full`), `latency` (statistics of all
            three), `flops_ratio`, `hardware`, ...
        """
        return on_main_process(lambda: self._measure(schedule))

    def _measure(self, schedule: Schedule) -> dict[str, Any]:
        with self.target.use_threads():
            models = {"candidate": self.build(schedule), "full": self.build(self.full)}
            models["stock"] = self.build(self.full, cls_only=False)
            latency = measure_latency(models, self.inputs, "full", self.target.rounds, on_round=self.plan.show)
        flops = {name: sum(count_flops(models[name].config, n) for n in self.lengths) for name in models}
        return {
            "latency_ratio": latency["candidate"].ratio,
            "stock_latency_ratio": latency["stock"].ratio,
            "latency_milliseconds": latency["candidate"].wall_p50_ms,
            "latency": {name: vars(value) for name, value in latency.items()},
            "flops_ratio": flops["candidate"] / flops["full"],
            "hardware": self.target.hardware,
        }

    def compare(
        self,
        schedules: Sequence[Schedule],
        rounds: int,
        warmup: int = WARMUP,
        on_round: Callable[[], Any] | None = None,
    ) -> dict[Schedule, Latency]:
        """Time schedules side by side, and the full model with them, which they are a share of."""
        with self.target.use_threads():
            model = self.build(self.full)
            models = {schedule.key: reconfigure(model, **schedule.config) for schedule in [self.full, *schedules]}
            latency = measure_latency(models, self.inputs, self.full.key, rounds, warmup, on_round)
        return {schedule: latency[schedule.key] for schedule in [self.full, *schedules]}


def prepare_table(meter: LatencyMeter, max_tokens: int, path: Path, given: str | None = None) -> LatencyTable:
    """Load the latency table of the target, or build it on this machine.

    A table that another machine, dtype or number of threads has left at `path` moves to the folder `latency_tables`
    beside it, where it is found again.

    Args:
        meter: Says which model and which target.
        max_tokens: Longest text of the data.
        path: Where the table of this search is, or will be.
        given: A table from elsewhere: another machine's, or an earlier search's.

    Raises:
        ValueError: The table is damaged, of another model or too short.
    """
    longest = max(max_tokens, *meter.lengths)
    if given is not None:
        table = LatencyTable.load(given)
        table.check_fits(meter.config, longest)
        _put_table(table, path)
        return table
    for earlier in [*([path] if path.exists() else []), *sorted(path.with_name("latency_tables").glob("*.json"))]:
        table = LatencyTable.load(earlier)
        if table.describes_this_machine(meter.target) and table.max_tokens >= longest:
            _put_table(table, path)
            return table
        logger.info("%s is of another machine, dtype, number of threads or length.", earlier)
    with meter.plan.stage(TABLE, 1 + TABLE_ROUNDS, lost="what was timed of it"):
        target = dataclasses.replace(meter.target, rounds=TABLE_ROUNDS)
        table = build_latency_table(meter.config, longest, target, TABLE_SECONDS, meter.plan.update)
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
    """Time the trials of a journal again that were timed on another machine; their scores stay."""
    with journal.lock():
        stale = [trial for trial in journal.trials if trial.is_ok and is_stale(trial)]
        if stale:
            logger.info("%d trials were timed on another machine; they are timed again.", len(stale))
        journal.retime({trial.number: timing(trial.schedule) for trial in stale})


def was_timed_elsewhere(trial: Trial, hardware: Mapping[str, Any]) -> bool:
    """Whether a trial's latency is of other hardware or other libraries, or was predicted for them."""
    is_predicted = trial.measurement.get("latency_source") == "table"
    return is_predicted or not is_same_hardware(trial.measurement.get("hardware", hardware), hardware)


def remeasure(
    meter: LatencyMeter,
    table: LatencyTable,
    candidates: Sequence[Schedule],
    path: Path,
    seconds: float | None = None,
) -> dict[str, Any]:
    """Time the best candidates directly and compare with the table; takes what an earlier call has measured.

    Args:
        meter: Times.
        table: What predicted.
        candidates: At most ten or so.
        path: Where the record is kept.
        seconds: About how long it may take; fewer rounds, at least three, are timed then.

    Returns:
        The record: statistics per schedule, and the table's drift.
    """
    hardware = meter.target.hardware
    with suppress(FileNotFoundError, ValueError):  # absent, or cut off while it was written
        record = json.loads(path.read_text())
        is_here = is_same_hardware(record.get("hardware", {}), hardware)
        if is_here and {schedule.key for schedule in candidates} <= set(record["latency"]):
            return record
    rounds, warmup = meter.target.rounds, WARMUP
    if seconds is not None:
        milliseconds = table.predict_many([meter.full, *candidates], meter.lengths).sum()
        warmup = 1
        rounds = int(np.clip(1000 * seconds / (milliseconds * len(meter.inputs)) - warmup, 3, rounds))
    started = time.monotonic()
    with meter.plan.stage(DIRECT, rounds + warmup, lost="this timing"):
        latency = meter.compare(candidates, rounds, warmup, meter.plan.update)
    # the table's own predictions know no buckets
    single = {schedule: value.ratio for schedule, value in latency.items() if not schedule.buckets}
    record = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - started, 1),
        "hardware": hardware,
        "latency": {schedule.key: vars(value) for schedule, value in latency.items()},
        "drift": drift(table, single, meter.lengths),
    }
    path.write_text(json.dumps(record, indent=2) + "\n")
    return record
