"""Running trials on executors: retries of those whose worker died, and latency measured apart from training."""

import datetime
import logging
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass, field
from typing import Any

from .executors import ExecutorError, InlineExecutor, Workers, attempt, is_worker_lost
from .journal import Trial
from .space import Schedule

logger = logging.getLogger(__name__)

Objective = Callable[[Schedule], dict[str, Any]]


@dataclass
class Run:
    """A trial on its way: first the objective, then the timing, if there is one."""

    schedule: Schedule
    origin: str
    step: int = 0
    measurement: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    seconds: float = 0.0
    retries: int = 0

    def take(self, measurement: dict[str, Any], error: str | None, seconds: float):
        self.measurement |= measurement
        self.seconds += seconds
        self.error = error

    def to_trial(self, number: int) -> Trial:
        if self.error is not None:
            logger.warning("trial %d (%s) failed: %s", number, self.schedule.key, self.error)
        return Trial(
            number=number,
            schedule=self.schedule,
            origin=self.origin,
            status="ok" if self.error is None else "failed",
            measurement=self.measurement if self.error is None else {},
            error=self.error,
            seconds=round(self.seconds, 3),
            time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            retries=self.retries,
        )


class TrialRunner:
    """Runs trials and hands them back as they finish.

    Args:
        objective: Evaluates a schedule.
        workers: Where it runs.
        timing: Measures a schedule after the objective, where that succeeded; its entries join the measurement.
        max_retries: How often a trial is started again whose worker died, before it counts as failed.

    Raises:
        ValueError: Negative retries.
    """

    def __init__(
        self,
        objective: Objective,
        workers: Workers = Workers(),
        timing: Objective | None = None,
        max_retries: int = 2,
    ):
        if max_retries < 0:
            raise ValueError(f"`max_retries` must not be negative, got {max_retries}.")
        self.steps: list[tuple[Objective, Executor | None]] = [(objective, workers.executor or InlineExecutor())]
        if timing is not None:
            self.steps.append((timing, workers.latency_executor))
        self.num_workers, self.max_retries = workers.num_workers, max_retries
        self.running: dict[Future, Run] = {}
        self.untimed: list[Run] = []  # wait until nothing runs

    @property
    def schedules(self) -> list[Schedule]:
        """What was started and has not been handed back."""
        return [run.schedule for run in [*self.running.values(), *self.untimed]]

    @property
    def has_room(self) -> bool:
        """Whether another trial may start.

        None does before all that is known was handed back; while one waits to be timed here, the others are only
        finished. A latency worker gets a queue no longer than the number of workers, because proposals that know little
        of the others are poor ones.
        """
        if self.untimed or any(future.done() for future in self.running):
            return False
        num_first = sum(run.step == 0 for run in self.running.values())
        return num_first < self.num_workers and len(self.running) < 2 * self.num_workers

    def start(self, schedule: Schedule, origin: str):
        """Start a trial.

        Raises:
            ExecutorError: The executor takes no more work.
        """
        self._submit(Run(schedule, origin))

    def wait(self) -> Run:
        """Wait until one of the started trials is finished, well or badly.

        Raises:
            ExecutorError: The executor takes no more work.
        """
        while self.running:
            done, _ = wait(self.running, return_when=FIRST_COMPLETED)
            future = next(future for future in self.running if future in done)
            run = self.running.pop(future)
            if self._is_finished(run, future):
                return run
        run = self.untimed.pop(0)
        run.take(*attempt(self.steps[run.step][0], run.schedule))
        return run

    def abandon(self) -> list[Run]:
        """Cancel what has not started, forget what runs, and hand back what has finished."""
        running, self.running, self.untimed = self.running, {}, []
        finished = []
        for future, run in running.items():
            is_done = not future.cancel() and future.done() and future.exception() is None
            if is_done and run.step == len(self.steps) - 1:
                run.take(*future.result())
                finished.append(run)
        return finished

    def _submit(self, run: Run):
        function, executor = self.steps[run.step]
        if executor is None:
            self.untimed.append(run)
            return
        try:
            self.running[executor.submit(attempt, function, run.schedule)] = run
        except RuntimeError as error:
            raise ExecutorError(
                f"{type(executor).__name__} takes no more work ({type(error).__name__}: {error}); finished trials are "
                "safe, run the same command again."
            ) from error

    def _is_finished(self, run: Run, future: Future) -> bool:
        """Take what came of a future; start the next step or the next attempt, if there is one."""
        try:
            run.take(*future.result())
        except Exception as error:
            cause = f"{type(error).__name__}: {error}"
            if is_worker_lost(error) and run.retries < self.max_retries:
                run.retries += 1
                logger.warning("%s: its worker died (%s); retry %d.", run.schedule.key, cause, run.retries)
                self._submit(run)
                return False
            # an error that is no death: the work cannot be sent to a worker, or its result not back
            run.error = f"its worker died {run.retries + 1} times; {cause}" if is_worker_lost(error) else cause
        if run.error is not None or run.step == len(self.steps) - 1:
            return True
        run.step += 1
        self._submit(run)
        return False
