"""The plan of a long command: its stages, how long each takes, and one clock for what is left of all of them."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from accelerate import PartialState
from tqdm import tqdm
from transformers import TrainingArguments

LINE_SECONDS = 60.0
# of a stage, from which on its own pace says more than the estimate
SURE_SHARE = 0.05
# a shorter stage is not worth a line of its own
SHORT_SECONDS = 10.0
SEED_RESULTS = "train_results.json"
BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed} gone{postfix}"


@dataclass
class Stage:
    """A stage that runs; `first` is the share of its work that an earlier call has done."""

    name: str
    # units of its work, and of them those that are done, with those of an earlier call
    total: int
    done: int
    # of this call; `None` where nothing is known
    expected_seconds: float | None
    # share of a unit that has begun, and what else is to be shown
    part: float = 0.0
    note: str = ""
    first: float = field(init=False)

    def __post_init__(self):
        self.first, self.started = self.share, time.monotonic()

    @property
    def share(self) -> float:
        return min((self.done + self.part) / self.total, 1.0)

    @property
    def elapsed_seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def left_seconds(self) -> float | None:
        gained, left = self.share - self.first, 1 - self.share
        if gained > 0 and (gained >= SURE_SHARE or self.expected_seconds is None):
            return self.elapsed_seconds / gained * left
        return None if self.expected_seconds is None else self.expected_seconds * left / max(1 - self.first, 1e-9)

    @property
    def seconds_per_unit(self) -> float | None:
        gained = self.share - self.first
        return self.elapsed_seconds / (gained * self.total) if gained > 0 else None


class Plan:
    """What waits, what runs, and how long all of it takes; shown as bars or, where there are none, as a line a minute.

    Args:
        stages: Seconds of every stage, in their order; `None`: as long as one that has run.
        has_bars: Whether to draw bars, on a terminal.
        is_silent: Whether to show nothing, as in a worker.
    """

    def __init__(
        self, stages: Mapping[str, float | None] | None = None, has_bars: bool = False, is_silent: bool = False
    ):
        self.waiting, self.is_whole = dict(stages or {}), bool(stages)
        # bars that are written to a file only hide the lines
        self.has_bars, self.is_silent = has_bars and sys.stderr.isatty(), is_silent
        self.current: Stage | None = None
        # seconds of a unit, of every stage that has run
        self.pace: dict[str, float] = {}
        self.bar: tqdm | None = None
        self.last_line = time.monotonic()

    def __reduce__(self):
        return Plan, (None, False, True)

    def add(self, stages: Mapping[str, float]):
        """Put stages on the plan, with the seconds that each takes."""
        self.waiting |= stages
        self.is_whole = True

    def announce(self, note: str = ""):
        """Tell what waits, how long it takes, and what may come on top."""
        known = {name: seconds for name, seconds in self.waiting.items() if seconds is not None}
        if known:
            stages = ", ".join(f"{name} {shorten_seconds(seconds)}" for name, seconds in known.items())
            stages = f" ({stages})" if len(known) > 1 else ""
            self.say(f"plan: {describe_seconds(sum(known.values()))} if the machine stays as it is{stages}.{note}")

    def estimate(self, seconds: float):
        """Give every stage that waits the same time."""
        self.waiting = dict.fromkeys(self.waiting, seconds)

    def repeat(self, units: Mapping[str, int]):
        """Put stages that have run back, each with so many units of work."""
        self.waiting |= {name: self.pace[name] * number for name, number in units.items() if name in self.pace}

    @contextmanager
    def stage(self, name: str, total: int = 1, done: int = 0, lost: str = "") -> Iterator[None]:
        """Run a stage with so many units of work, some done by an earlier call; one that is not planned may run too.

        Raises:
            KeyboardInterrupt: Stopped by hand; says what is lost.
        """
        self.begin(name, total, done)
        try:
            with stoppable(lost):
                yield
        finally:
            self.end()

    def begin(self, name: str, total: int = 1, done: int = 0):
        """Begin a stage, and end the one that runs; arguments as in `stage`."""
        self.end()
        expected = self.waiting.pop(name, None)
        if name in self.pace:
            expected = self.pace[name] * (total - done)
        self.current = Stage(name, max(total, 1), done, expected)
        self.last_line = time.monotonic()
        if self.has_bars and not self._is_hidden:
            self.bar = tqdm(total=1.0, initial=self.current.share, desc=name, bar_format=BAR)
        elif expected is not None and expected >= SHORT_SECONDS:
            self.say(f"{name} begins | {self.left}")

    def end(self):
        """End the stage that runs."""
        if self.current is not None and self.current.seconds_per_unit is not None:
            self.pace[self.current.name] = self.current.seconds_per_unit
        self.current = None
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def update(self, number: int = 1, note: str = ""):
        """Count finished units of the stage that runs; arguments as in `report`."""
        if self.current is not None:
            self.current.done += number
        self.report(0.0, note)

    def report(self, part: float, note: str = "", is_resumed: bool = False):
        """Say how far a unit of the stage that runs has come, or, of a resumed one, how far an earlier call had."""
        stage = self.current
        if stage is not None:
            stage.part, stage.note = part, note
            if is_resumed:
                left, stage.first = 1 - stage.first, stage.share
                stage.expected_seconds = stage.expected_seconds and stage.expected_seconds * (1 - stage.first) / left
                stage.started = time.monotonic()
        self.show()

    def show(self):
        """Bring the bar up to date, or print a line if the last one is a minute old."""
        stage = self.current
        if stage is None:
            return
        if self.bar is not None:
            self.bar.set_postfix_str(", ".join(filter(None, [stage.note, self.left])), refresh=False)
            self.bar.update(stage.share - self.bar.n)
        elif time.monotonic() - self.last_line >= LINE_SECONDS:
            self.say(" | ".join(filter(None, [f"{stage.name}: {100 * stage.share:.0f} %", stage.note, self.left])))

    def say(self, text: str):
        """Print a line; a bar stays below it."""
        self.last_line = time.monotonic()
        if not self._is_hidden:
            tqdm.write(text)

    @property
    def left_seconds(self) -> float | None:
        """Seconds until everything is done; `None` where they cannot be known yet."""
        running = [] if self.current is None else [self.current]
        known = [*self.pace.values(), *(stage.seconds_per_unit for stage in running)]
        typical = next((seconds for seconds in reversed(known) if seconds), None)
        waiting = (typical if seconds is None else seconds for seconds in self.waiting.values())
        left = [*(stage.left_seconds for stage in running), *waiting]
        return None if None in left else sum(seconds for seconds in left if seconds is not None)

    @property
    def left(self) -> str:
        """How long everything takes from now on, in words; empty where that is not known."""
        seconds = self.left_seconds
        return "" if seconds is None else f"{describe_seconds(seconds)} left{' in all' * self.is_whole}"

    @property
    def _is_hidden(self) -> bool:
        return self.is_silent or not PartialState().is_main_process


def shorten_seconds(seconds: float) -> str:
    """Say a time in a list of times."""
    if seconds < 60:
        return f"{max(round(seconds), 1)} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def describe_seconds(seconds: float) -> str:
    """Say a time as a person would."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return "less than a minute"
    if minutes < 100:
        return f"about {minutes} minute{'s' * (minutes > 1)}"
    return f"about {seconds / 3600:.1f} hours"


@contextmanager
def stoppable(lost: str = "") -> Iterator[None]:
    """Run what goes on by the same command after a Ctrl-C, and say so, and what of it is lost."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(*(error.args or [describe_stop(lost)])) from None


def describe_stop(lost: str = "") -> str:
    """Say what becomes of a command that was stopped by hand."""
    return f"the same command goes on; {lost or 'nothing'} is lost"


def describe_lost_training(arguments: TrainingArguments) -> str:
    """Say what of a training is lost by a Ctrl-C."""
    strategy = getattr(arguments.save_strategy, "value", arguments.save_strategy)
    if strategy == "no":
        return "the training that ran (--save_strategy no keeps no checkpoints)"
    return f"what was trained since the last checkpoint (--save_strategy {strategy})"
