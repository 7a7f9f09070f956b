"""The journal of a search: `trials.jsonl`, append-only, one JSON object per line, written through to the disk.

The first line says what was searched (so that another dataset cannot be resumed by mistake), every other line is a
finished trial. A crash can only tear the last line, which is then dropped.
"""

import json
import logging
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .space import Schedule

logger = logging.getLogger(__name__)


class JournalError(ValueError):
    """A journal that cannot be used: damaged, of another study, or not writable."""


@dataclass(frozen=True)
class Trial:
    """One evaluated schedule.

    Attributes:
        number: Position in the search, from 0; 0 is the unreduced model.
        schedule: The canonical schedule.
        origin: What proposed it: reference, seeded, random, model or binary.
        status: "ok" or "failed".
        measurement: What the objective returned, as plain data: `score` and `latency_ratio` at least; empty if failed.
        error: Why it failed.
        seconds: Wall time of the evaluation.
        time: When it ended, UTC, ISO 8601.
    """

    number: int
    schedule: Schedule
    origin: str
    status: str
    measurement: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    seconds: float = 0.0
    time: str = ""

    @property
    def is_ok(self) -> bool:
        return self.status == "ok"

    @property
    def score(self) -> float:
        return self.measurement["score"]

    @property
    def latency_ratio(self) -> float:
        return self.measurement["latency_ratio"]

    def to_row(self) -> dict[str, Any]:
        return {"type": "trial", "key": self.schedule.key, **asdict(self)}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "Trial":
        values = {name: row[name] for name in cls.__dataclass_fields__ if name in row}
        values["schedule"] = Schedule(tuple(row["schedule"]["gamma"]), row["schedule"]["eta"])
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
        self.trials: list[Trial] = []
        self.has_header = False
        if self.path.exists():
            self._read()

    def _read(self):
        for number, line in enumerate(self._read_whole_lines(), start=1):
            try:
                row = json.loads(line)
                if row["type"] == "study":
                    self._check_identity(row["identity"])
                    self.has_header = True
                else:
                    self.trials.append(Trial.from_row(row))
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise JournalError(
                    f"{self.path} line {number} cannot be read ({error}); repair or delete that line, "
                    "the others are intact."
                ) from error

    def _read_whole_lines(self) -> list[str]:
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content and self.is_writer:
            logger.warning("%s ends in the middle of a line; that unfinished trial will be repeated.", self.path)
            with open(self.path, "r+b") as file:
                file.truncate(len(whole))
        return whole.decode().splitlines()

    def _check_identity(self, found: dict[str, Any]):
        for name, expected in self.identity.items():
            if found.get(name) != expected:
                raise JournalError(
                    f"{self.path} belongs to another study: its {name} is {found.get(name)!r}, now it is {expected!r}; "
                    "use another --output_dir, or the old settings to resume."
                )

    def append(self, trial: Trial):
        """Write a finished trial through to the disk.

        Raises:
            JournalError: The disk is full or the file cannot be written.
        """
        if self.is_writer:
            self._write(trial)
        self.trials.append(trial)

    def _write(self, trial: Trial):
        rows = [trial.to_row()]
        if not self.has_header:
            rows.insert(0, {"type": "study", "identity": self.identity})
        text = "".join(json.dumps(row) + "\n" for row in rows)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise JournalError(
                f"cannot write {self.path} ({error.strerror}); earlier trials are safe, free some space and run the "
                "same command again."
            ) from error
        self.has_header = True
