"""Where trials run: in this process, in a pool of local processes, or on a Dask cluster.

All three are `concurrent.futures.Executor`s, and so may be any other that the search is given. Beside them a trial may
itself run in several processes (torchrun), of which the main one writes.
"""

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 15


class ExecutorError(ValueError):
    """An executor that cannot be had, or that takes no more work."""


@dataclass(frozen=True)
class Workers:
    """What runs the trials of a search.

    Attributes:
        executor: Of the trials; `None`: this process, one after the other.
        num_workers: Trials at a time.
        latency_executor: Of the latency measurements, a machine that trains nothing; `None`: this process, while
            nothing else runs.

    Raises:
        ValueError: Fewer than one worker, or several without an executor.
    """

    executor: Executor | None = None
    num_workers: int = 1
    latency_executor: Executor | None = None

    def __post_init__(self):
        if self.num_workers < 1:
            raise ValueError(f"at least 1 worker is needed, got {self.num_workers}.")
        if self.executor is None and self.num_workers > 1:
            raise ValueError(f"{self.num_workers} workers need an executor, such as LocalPool({self.num_workers}).")


@contextmanager
def open_workers(num_workers: int = 1, dask: str | None = None) -> Iterator[Workers]:
    """Start so many processes, or reach the workers of a Dask cluster; they are given up on exit.

    Args:
        num_workers: Of this machine; 1 is this process.
        dask: Address of a scheduler, whose workers are used instead.
    """
    if dask is None and num_workers == 1:
        yield Workers()
        return
    workers = Workers(LocalPool(num_workers), num_workers) if dask is None else connect_dask(dask)
    with workers.executor or InlineExecutor():
        yield workers


class InlineExecutor(Executor):
    """Runs everything at once, in the process that asks."""

    def submit(self, fn: Callable[..., Any], /, *args, **kwargs) -> Future:
        future: Future = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class LocalPool(Executor):
    """A pool of processes on this machine in which a dead worker is replaced.

    Each worker is a pool of its own, so that a death loses the one trial that it ran: in a common pool all futures fail
    with it. Workers are forked from a clean server process that has imported the package already; they share the cores,
    ignore Ctrl-C (the driver decides) and end with the process that started them, however that ends. Leaving the `with`
    block ends them at once.

    Raises:
        ValueError: Fewer than one worker.
    """

    def __init__(self, num_workers: int):
        if num_workers < 1:
            raise ValueError(f"`num_workers` must be at least 1, got {num_workers}.")
        self.num_workers = num_workers
        self._pools = [self._start_pool() for _ in range(num_workers)]
        self._open: list[list[Future]] = [[] for _ in range(num_workers)]

    def _start_pool(self) -> ProcessPoolExecutor:
        has_server = "forkserver" in multiprocessing.get_all_start_methods()
        context: Any = multiprocessing.get_context("forkserver" if has_server else "spawn")
        if has_server:
            context.set_forkserver_preload(["classformer_hf"])
        num_threads = max(1, (os.cpu_count() or 1) // self.num_workers)
        return ProcessPoolExecutor(1, context, _prepare_worker, (num_threads,))

    def submit(self, fn: Callable[..., Any], /, *args, **kwargs) -> Future:
        """Run a function in the worker that has least to do; one that died gets a successor."""
        self._open = [[future for future in futures if not future.done()] for futures in self._open]
        index = min(range(self.num_workers), key=lambda index: len(self._open[index]))
        try:
            future = self._pools[index].submit(fn, *args, **kwargs)
        except BrokenProcessPool:
            self._pools[index] = self._start_pool()
            future = self._pools[index].submit(fn, *args, **kwargs)
        self._open[index].append(future)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False):
        for pool in self._pools:
            pool.shutdown(wait, cancel_futures=cancel_futures)

    def __exit__(self, *exception):
        for pool in self._pools:
            # public from Python 3.14 on, as `kill_workers`
            processes = list((pool._processes or {}).values())
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.kill()


def _prepare_worker(num_threads: int):
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    num_threads = min(num_threads, torch.get_num_threads())
    os.environ["OMP_NUM_THREADS"] = str(num_threads)
    torch.set_num_threads(num_threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    # a worker waits for work on a pipe that it holds open itself, so it would never notice
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def connect_dask(address: str) -> Workers:
    """Connect to a Dask cluster.

    A worker started with `--resources "latency=1"` is for latency alone, and the other workers of its host are left
    idle. Give each worker one thread (`--nthreads 1`): a trial is one task.

    When a worker dies, Dask itself repeats its task `distributed.scheduler.allowed-failures` times (3) before anyone
    hears of it. So that the search counts and records it, start the scheduler with the environment variable
    `DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES=0`.

    Args:
        address: The scheduler's, such as `tcp://host:8786`.

    Raises:
        ExecutorError: The package `distributed` is missing, no scheduler answers, or no worker is for trials.
    """
    try:
        import dask
        from distributed import Client
    except ImportError as error:
        raise ExecutorError(
            "a Dask cluster needs the package `distributed`; install the extra: pip install 'redundancy-hf[cluster]'."
        ) from error
    try:
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ExecutorError(
            f"no Dask scheduler answers at {address} ({type(error).__name__}); start one with `dask scheduler` and "
            "give the address that it prints, such as tcp://host:8786."
        ) from error
    if repeats := client.run_on_scheduler(dask.config.get, "distributed.scheduler.allowed-failures"):
        logger.warning(
            "warning: when a worker dies, Dask repeats its trial %d times before the search hears of it; start the "
            "scheduler with DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES=0.",
            repeats,
        )
    trainers, latency_hosts = _wait_for_workers(client)
    if not trainers:
        client.close()
        raise ExecutorError(
            f"none of the workers at {address} is for trials ({len(latency_hosts)} hosts are for latency); start at "
            f"least one with `dask worker {address} --nthreads 1`, on a host without a worker for latency."
        )
    if not latency_hosts:
        return Workers(DaskExecutor(client), len(trainers))
    # by host, because a worker that is restarted has another address
    hosts = sorted({worker["host"] for worker in trainers})
    timer = DaskExecutor(client, resources={"latency": 1})
    return Workers(DaskExecutor(client, workers=hosts), len(trainers), timer)


def _wait_for_workers(client: Any) -> tuple[list[dict], set[str]]:
    """Give the workers that are for trials and the hosts that are for latency, as soon as one is for trials."""
    deadline = time.monotonic() + CONNECT_SECONDS
    while True:
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        latency_hosts = {worker["host"] for worker in workers if worker["resources"].get("latency")}
        trainers = [worker for worker in workers if worker["host"] not in latency_hosts]
        # one that was started just before takes some seconds to come
        if trainers or time.monotonic() > deadline:
            return trainers, latency_hosts
        time.sleep(0.2)


class DaskExecutor(Executor):
    """A Dask client's own executor, which notices that its scheduler is gone."""

    def __init__(self, client: Any, **settings):
        self.client = client
        # each submission is a task of its own: a pure one would be answered with the failure of an earlier one
        self.executor = client.get_executor(pure=False, **settings)

    def submit(self, fn: Callable[..., Any], /, *args, **kwargs) -> Future:
        """Run a function on the cluster.

        Raises:
            RuntimeError: The scheduler is gone; the client would take the task and never answer.
        """
        if self.client.status in ("closing", "closed"):
            raise RuntimeError("the connection to the scheduler is lost")
        return self.executor.submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False):
        self.executor.shutdown(wait and not cancel_futures)


def is_worker_lost(error: BaseException) -> bool:
    """Whether an error means that the worker is gone, not that the work failed."""
    # Dask's own (KilledWorker, CommClosedError, ...) are known by where they come from: Dask may not be installed
    is_dask = type(error).__module__.partition(".")[0] == "distributed"
    return is_dask or isinstance(error, BrokenExecutor | CancelledError | OSError | EOFError)


def attempt(function: Callable[[Any], dict[str, Any]], argument: Any) -> tuple[dict[str, Any], str | None, float]:
    """Call a function once, in the worker, and make plain data of what comes of it.

    Returns:
        The result (empty if it failed), the error, and the seconds that it took.
    """
    started = time.monotonic()
    measurement, error = {}, None
    try:
        measurement = function(argument)
    except Exception as exception:  # any failure of a trial is data: NaN loss, out of memory, ...
        error = f"{type(exception).__name__}: {exception}"
    return measurement, error, time.monotonic() - started


def on_main_process(function: Callable[[], Any]) -> Any:
    """Run something in the main process; every process goes on with what it returned or raised."""
    result, error = None, None
    if PartialState().is_main_process:
        try:
            result = function()
        except Exception as exception:  # the other processes wait for an answer
            error = exception
    result, error = broadcast_object_list([result, error])
    if error is not None:
        raise error
    return result
