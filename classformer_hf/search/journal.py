"""The journal of a search: `trials.jsonl`, append-only, one JSON object per line, written through to the disk.

The first line says what was searched (so that another dataset cannot be resumed by mistake), every other line is a
finished trial, or another latency of an earlier one, as of another machine. A crash can only tear the last line, which
is then dropped. One process at a time writes: it leaves its host and pid in `driver.json` beside the journal.
"""

import json
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from redundancy_hf.command import describe_changes

from .space import Schedule

logger = logging.getLogger(__name__)

# entries of a trial's measurement that are of one machine
TIMED = ("latency", "latency_ratio", "stock_latency_ratio", "latency_milliseconds", "latency_source", "hardware")


class JournalError(ValueError):
    """A journal that cannot be used: damaged, of another study, in use, or not writable."""


@dataclass(frozen=True)
class Trial:
    """One evaluated schedule.

    Attributes:
        number: Position in the search, from 0 and in order of completion; the unreduced model comes first.
        schedule: The canonical schedule.
        origin: What proposed it: reference, seeded, random, model or binary.
        status: "ok" or "failed".
        measurement: What the objective returned, as plain data: `score` and `latency_ratio` at least; empty if failed.
        error: Why it failed.
        seconds: Wall time of the evaluation.
        time: When it ended, UTC, ISO 8601.
        retries: How often it was started again because a worker died.
    """

    number: int
    schedule: Schedule
    origin: str
    status: str
    measurement: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    seconds: float = 0.0
    time: str = ""
    retries: int = 0

    @property
    def is_ok(self) -> bool:
        return self.status == "ok"

    @property
    def score(self) -> float:
        return self.measurement["score"]

    @property
    def latency_ratio(self) -> float:
        return self.measurement["latency_ratio"]

    @property
    def latency_quartiles(self) -> tuple[float, float] | None:
        """Of the relative latency; `None` where it comes from a table."""
        candidate = self.measurement.get("latency", {}).get("candidate")
        return None if candidate is None else (candidate["ratio_low"], candidate["ratio_high"])

    @property
    def latency_source(self) -> str | None:
        """Whether latency was measured ("direct") or predicted ("table"); `None` where that is not recorded."""
        return "direct" if self.latency_quartiles else self.measurement.get("latency_source")

    @property
    def speedup_against_stock(self) -> float | None:
        """How many times as fast as plain RoBERTa it is; `None` where that was not timed."""
        stock = self.measurement.get("stock_latency_ratio")
        return None if stock is None else stock / self.latency_ratio

    @property
    def speedup_against_stock_range(self) -> tuple[float, float] | None:
        """Range of `speedup_against_stock` over the quartiles of both times; `None` where one has none.

        From the lower quartile of plain RoBERTa's time by the upper one of the trial's, to the reverse: wider than the
        quartiles of the quotient, whose rounds are not kept.
        """
        stock, quartiles = self.measurement.get("latency", {}).get("stock"), self.latency_quartiles
        return stock and quartiles and (stock["ratio_low"] / quartiles[1], stock["ratio_high"] / quartiles[0])

    def to_row(self) -> dict[str, Any]:
        return {"type": "trial", "key": self.schedule.key, **asdict(self), "schedule": self.schedule.config}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "Trial":
        values = {name: row[name] for name in cls.__dataclass_fields__ if name in row}
        values["schedule"] = Schedule.from_config(row["schedule"])
        return cls(**values)


class Journal:
    """An append-only file of trials.

    Args:
        path: The file; it and its folder are created when the first line is written.
        identity: What must be equal for a resumed search: checkpoint, dataset, space, recipe, ...
        is_writer: Whether this process writes; of several processes one does, the others only keep what was tried.

    Raises:
        JournalError: A line before the last is damaged, or the file belongs to another study.
    """

    def __init__(self, path: str | Path, identity: dict[str, Any], is_writer: bool = True):
        self.path = Path(path)
        self.is_writer = is_writer
        self.identity = json.loads(json.dumps(identity))
        self.read()

    def read(self):
        """Read the file again; a torn last line stays until the next one is written.

        Raises:
            JournalError: A line before the last is damaged, or the file belongs to another study.
        """
        self.trials: list[Trial] = []
        self.has_header = False
        # what the file says; equal to `identity` as far as that goes
        self.found_identity: dict[str, Any] = {}
        content = self.path.read_bytes() if self.path.exists() else b""
        *lines, torn = content.split(b"\n")
        if torn and self.is_writer:
            logger.warning("%s ends in the middle of a line; that unfinished trial will be repeated.", self.path)
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                if row["type"] == "study":
                    self._check_identity(row["identity"])
                    self.has_header, self.found_identity = True, row["identity"]
                elif row["type"] == "latency":
                    self._replace_latency({row["number"]: row["measurement"]})
                else:
                    self.trials.append(Trial.from_row(row))
            except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
                raise JournalError(
                    f"{self.path} line {number} cannot be read ({error}); repair or delete that line, "
                    "the others are intact."
                ) from error

    def _check_identity(self, found: dict[str, Any]):
        check_identity(f"{self.path} belongs to another study", self.identity, found)

    @property
    def next_number(self) -> int:
        """The number of the next trial; unique even where a damaged line was deleted."""
        return 1 + max((trial.number for trial in self.trials), default=-1)

    def append(self, trial: Trial):
        """Write a finished trial through to the disk.

        Raises:
            JournalError: The disk is full or the file cannot be written.
        """
        if self.is_writer:
            self._write([trial.to_row()])
        self.trials.append(trial)

    def retime(self, latencies: Mapping[int, Mapping[str, Any]]):
        """Note other latencies of finished trials, which from now on replace what was measured before.

        Raises:
            JournalError: The disk is full or the file cannot be written.
        """
        if self.is_writer and latencies:
            self._write([{"type": "latency", "number": n, "measurement": one} for n, one in latencies.items()])
        self._replace_latency(latencies)

    def _replace_latency(self, latencies: Mapping[int, Mapping[str, Any]]):
        for index, trial in enumerate(self.trials):
            if trial.number in latencies:
                kept = {name: value for name, value in trial.measurement.items() if name not in TIMED}
                self.trials[index] = replace(trial, measurement={**kept, **latencies[trial.number]})

    def _write(self, rows: list[dict[str, Any]]):
        if not self.has_header:
            rows.insert(0, {"type": "study", "identity": self.identity})
        text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._drop_torn_line()
            with open(self.path, "ab") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            # the next line must not be glued to what did get written
            with suppress(OSError):
                self._drop_torn_line()
            raise JournalError(
                f"cannot write {self.path} ({error.strerror}); earlier trials are safe, free some space and run the "
                "same command again."
            ) from error
        self.has_header = True

    def _drop_torn_line(self):
        content = self.path.read_bytes() if self.path.is_file() else b""
        num_whole_bytes = content.rfind(b"\n") + 1
        if num_whole_bytes < len(content):
            os.truncate(self.path, num_whole_bytes)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only driver of this folder, and read what an earlier one has left.

        Raises:
            JournalError: Another process drives a search there, or the folder cannot be written.
        """
        if not self.is_writer:
            yield
            return
        with JournalLock(self.path.parent / "driver.json"):
            self.read()
            yield


def check_identity(complaint: str, expected: dict[str, Any], found: dict[str, Any]):
    """Refuse what an earlier study left if its identity differs from this one's.

    Raises:
        JournalError: It differs; only what does is named.
    """
    if changed := describe_changes(found, expected):
        raise JournalError(
            f"{complaint}: {', '.join(changed)}; use another --output_dir, or the old settings to resume."
        )


class JournalLock:
    """Refuses a second driver: a file with the host, the pid and the start time of the process that holds it.

    The file of a process that no longer lives is taken over, unless it lived on another host, where nobody can look. A
    process that holds it already may enter again.

    Raises:
        JournalError: On entering: another process holds it, or it cannot be written.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.is_held = False
        self.mine = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}

    def __enter__(self) -> "JournalLock":
        self.is_held = self._read(self.path) == self.mine
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            while not self.is_held and not self._create():
                self._remove_dead()
        except OSError as error:
            raise JournalError(f"cannot write {self.path} ({error.strerror}); free some space.") from error
        return self

    def __exit__(self, *exception):
        if not self.is_held and self._read(self.path) == self.mine:
            self.path.unlink(missing_ok=True)

    def _create(self) -> bool:
        try:
            descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(json.dumps(self.mine))
        except OSError:
            self.path.unlink()
            raise
        return True

    def _read(self, path: Path) -> dict[str, Any] | None:
        with suppress(FileNotFoundError, ValueError):
            return json.loads(path.read_text())
        return None

    def _remove_dead(self):
        holder = self._read(self.path)
        if holder is None:
            # gone again, about to be written, or left by a process that died before it could write
            time.sleep(0.5)
            holder = self._read(self.path)
        if holder is not None:
            self._refuse_living(holder)
        # moved away and looked at again: in between a third process may have taken it over
        moved = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        with suppress(FileNotFoundError):
            self.path.rename(moved)
            if self._read(moved) != holder:
                moved.rename(self.path)
            moved.unlink(missing_ok=True)

    def _refuse_living(self, holder: dict[str, Any]):
        who = f"process {holder.get('pid')} on {holder.get('host')} is already searching in {self.path.parent}"
        if holder.get("host") != self.mine["host"]:
            raise JournalError(f"{who}, as far as can be seen from {self.mine['host']}; if not, delete {self.path}.")
        started = _started(holder["pid"])
        # a start time moves a little when the clock is set; that of a later process with this pid is far away
        if started is not None and abs(started - holder["started"]) < 60:
            raise JournalError(f"{who}; wait for it, stop it, or use another --output_dir.")


def _started(pid: int) -> float | None:
    """Tell when a process began, which tells it from a later one with its pid; `None` if it is dead."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None
