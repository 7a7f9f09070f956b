"""The search on several workers and under faults: dead workers, dead drivers, second drivers."""

import functools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

from classformer_hf.search import (
    ExecutorError,
    Hooks,
    Journal,
    JournalError,
    JournalLock,
    LocalPool,
    Schedule,
    SearchSpace,
    TrialRunner,
    Workers,
    connect_dask,
    executors,
    run_search,
)
from classformer_hf.search.samplers import GaussianProcessSampler, Sampler

IDENTITY = {"dataset": "formula"}
SPACE = SearchSpace(3, 16, (1, 2, 4), (0, 2))


def formula(schedule: Schedule) -> dict:
    """Early reductions cost most; no two schedules are alike."""
    steps = [(3 - layer) * np.log2(factor) for layer, factor in enumerate(schedule.gamma)]
    return {"score": float(0.9 - 0.01 * sum(steps)), "latency_ratio": float(1 / (1 + sum(steps) - schedule.eta / 100))}


class ShuffledSampler(Sampler):
    """Goes through the whole space in an order of its own, and notes how many proposals were pending."""

    def __init__(self, space: SearchSpace, seed: int = 0):
        super().__init__(space, seed)
        self.order = space.enumerate()
        random.Random(seed).shuffle(self.order)
        self.num_pending: list[int] = []

    def propose(self):
        self.num_pending.append(len(self.pending))
        left = [schedule for schedule in self.order if schedule not in self.taken]
        return (left[0], "random") if left else None


class Dying:
    """An objective that takes some of its workers with it; the deaths are counted in files."""

    def __init__(self, folder: Path, num_deaths: dict[Schedule, int], seconds: float = 0.0):
        self.folder, self.num_deaths, self.seconds = folder, num_deaths, seconds

    def __call__(self, schedule: Schedule) -> dict:
        time.sleep(self.seconds)
        with open(self.folder / schedule.key, "a") as file:
            file.write("started\n")
        if len((self.folder / schedule.key).read_text().splitlines()) <= self.num_deaths.get(schedule, 0):
            os.kill(os.getpid(), signal.SIGKILL)
        return {**formula(schedule), "pid": os.getpid()}


def wait_for_end(pids: set[int]):
    deadline = time.monotonic() + 20
    while any(psutil.pid_exists(pid) for pid in pids):
        assert time.monotonic() < deadline, "workers outlive their driver"
        time.sleep(0.05)


def timing(schedule: Schedule) -> dict:
    return {"timed_by": os.getpid()}


def search(path: Path, objective=formula, max_trials=100, sampler=None, timing=None, hooks=None, **workers):
    runner, sampler = TrialRunner(objective, Workers(**workers), timing), sampler or ShuffledSampler(SPACE)
    return run_search(SPACE, runner, sampler, Journal(path, IDENTITY), 0.95, max_trials, hooks or Hooks())


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """The search without faults or workers."""
    return search(tmp_path_factory.mktemp("sequential") / "trials.jsonl")


def check_complete(result, everything):
    keys = [trial.schedule.key for trial in result.trials]
    assert sorted(keys) == sorted(trial.schedule.key for trial in everything.trials), "every key once"
    assert [trial.number for trial in result.trials] == list(range(len(keys)))
    assert result.best.schedule == everything.best.schedule
    assert result.reference.number == 0


@pytest.mark.parametrize("num_workers", [1, 3])
def test_threads_find_what_one_process_finds(tmp_path, everything, num_workers):
    sampler = ShuffledSampler(SPACE, seed=5)
    with ThreadPoolExecutor(num_workers) as pool:
        result = search(tmp_path / "trials.jsonl", sampler=sampler, executor=pool, num_workers=num_workers)
    check_complete(result, everything)
    assert Journal(tmp_path / "trials.jsonl", IDENTITY).trials == result.trials
    assert max(sampler.num_pending) == num_workers - 1


def test_dead_workers_are_replaced_and_counted(tmp_path, everything):
    once, always = [trial.schedule for trial in everything.trials[4:6]]
    assert everything.best.schedule != always
    objective = Dying(tmp_path, {once: 1, always: 99}, seconds=0.01)
    with LocalPool(2) as pool:
        result = search(tmp_path / "trials.jsonl", objective, executor=pool, num_workers=2)
        workers = {trial.measurement["pid"] for trial in result.trials if trial.is_ok}
        assert pool.submit(sum, [1, 2]).result() == 3
    check_complete(result, everything)
    assert len(workers) > 2 and os.getpid() not in workers
    trials = {trial.schedule: trial for trial in Journal(tmp_path / "trials.jsonl", IDENTITY).trials}
    assert trials[once].is_ok and trials[once].retries == 1
    assert trials[always].error.startswith("its worker died 3 times; BrokenProcessPool")
    assert trials[always].retries == 2 and not trials[always].is_ok
    assert all(trial.retries == 0 for trial in trials.values() if trial.schedule not in (once, always))
    wait_for_end(workers)


def test_objective_that_cannot_be_sent_is_one_sentence(tmp_path):
    with LocalPool(1) as pool, pytest.raises(JournalError, match="unreduced model was not evaluated .*pickle"):
        search(tmp_path / "trials.jsonl", lambda schedule: {}, executor=pool)


def test_executor_that_takes_no_more_work_is_one_sentence(tmp_path):
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    with pytest.raises(ExecutorError, match="ThreadPoolExecutor takes no more work .*finished trials are safe"):
        search(tmp_path / "trials.jsonl", executor=pool)


@pytest.mark.parametrize(("settings", "message"), [({"num_workers": 0}, "1 worker"), ({"num_workers": 2}, "executor")])
def test_impossible_workers_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        search(tmp_path / "trials.jsonl", **settings)


def test_sampler_that_repeats_itself_is_refused(tmp_path):
    class Stubborn(ShuffledSampler):
        def propose(self):
            return self.order[0], "random"

    with pytest.raises(ValueError, match="Stubborn proposes .* again"):
        search(tmp_path / "trials.jsonl", sampler=Stubborn(SPACE))


class Watch:
    """Notes when which step ran in which thread."""

    def __init__(self):
        self.intervals: list[tuple[str, float, float, str]] = []

    def step(self, name: str, seconds: float):
        def run(schedule: Schedule) -> dict:
            started = time.monotonic()
            time.sleep(seconds)
            self.intervals.append((name, started, time.monotonic(), threading.current_thread().name))
            return formula(schedule) if name == "train" else {"timed": schedule.key}

        return run

    def overlap(self) -> bool:
        trained = [interval for interval in self.intervals if interval[0] == "train"]
        timed = [interval for interval in self.intervals if interval[0] == "time"]
        return any(start < end and begin < stop for _, start, stop, _ in timed for _, begin, end, _ in trained)


@pytest.mark.parametrize("num_workers", [None, 1, 3])
def test_latency_is_never_measured_beside_a_training(tmp_path, everything, num_workers):
    watch = Watch()
    with ThreadPoolExecutor(num_workers or 1) as pool:
        settings = {} if num_workers is None else {"executor": pool, "num_workers": num_workers}
        result = search(
            tmp_path / "trials.jsonl", watch.step("train", 0.01), timing=watch.step("time", 0.003), **settings
        )
    check_complete(result, everything)
    assert all(trial.measurement["timed"] == trial.schedule.key for trial in result.trials)
    assert not watch.overlap()


def test_latency_worker_times_while_others_train(tmp_path, everything):
    watch = Watch()
    with ThreadPoolExecutor(2, "trainer") as pool, ThreadPoolExecutor(1, "timer") as timer:
        result = search(
            tmp_path / "trials.jsonl",
            watch.step("train", 0.01),
            timing=watch.step("time", 0.01),
            executor=pool,
            num_workers=2,
            latency_executor=timer,
        )
    check_complete(result, everything)
    assert {(name, thread.partition("_")[0]) for name, _, _, thread in watch.intervals} == {
        ("train", "trainer"),
        ("time", "timer"),
    }
    assert watch.overlap(), "nobody waits"


def test_failed_timing_is_a_failed_trial(tmp_path):
    def failing(schedule):
        if schedule != SPACE.full:
            raise OSError("the clock broke")
        return {}

    result = search(tmp_path / "trials.jsonl", timing=failing, max_trials=3)
    assert [trial.error for trial in result.trials] == [None] + ["OSError: the clock broke"] * 2


def test_interrupt_keeps_what_is_finished(tmp_path):
    started = threading.Event()

    def objective(schedule):
        if schedule == SPACE.full:
            return formula(schedule)
        if not started.is_set():
            started.set()
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
        return formula(schedule)

    with ThreadPoolExecutor(2) as pool:
        result = search(tmp_path / "trials.jsonl", objective, executor=pool, num_workers=2)
    assert result.interrupted and 2 <= len(result.trials) < len(SPACE.enumerate())
    assert Journal(tmp_path / "trials.jsonl", IDENTITY).trials == result.trials


def test_abandoned_runs_hand_back_what_is_finished():
    first, second, *_ = SPACE.enumerate()
    is_free = threading.Event()

    def objective(schedule):
        if schedule == second:
            is_free.wait(10)
        return formula(schedule)

    with ThreadPoolExecutor(2) as pool:
        runner = TrialRunner(objective, Workers(pool, 2))
        runner.start(first, "random")
        runner.start(second, "random")
        while not any(future.done() for future in runner.running):
            time.sleep(0.01)
        assert [run.schedule for run in runner.abandon()] == [first]
        assert not runner.schedules and not runner.abandon()
        is_free.set()


def test_time_budget_finishes_what_runs(tmp_path):
    answers = iter([False, False, True])
    with ThreadPoolExecutor(2) as pool:
        result = search(
            tmp_path / "trials.jsonl", executor=pool, num_workers=2, hooks=Hooks(is_time_up=lambda: next(answers))
        )
    assert len(result.trials) == 3


class TornJournal(Journal):
    """Writes half of a line and dies."""

    def _write(self, rows):
        if len(self.trials) == self.dies_at:
            with open(self.path, "ab") as file:
                file.write(json.dumps(rows[0]).encode()[:40])
            os.kill(os.getpid(), signal.SIGKILL)
        super()._write(rows)


def fork(function) -> int:
    """Run a function in a fork of this process, which has imported everything."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
        finally:
            os._exit(0)
    return pid


def drive(path: Path, num_workers: int, told: int, dies_at: int | None):
    """Search in a process that is to be killed; say which trials are finished."""
    journal = TornJournal(path, IDENTITY)
    journal.dies_at = dies_at

    def slow(schedule):
        time.sleep(0.004)
        return formula(schedule)

    def tell(result):
        os.write(told, f"{result.trials[-1].schedule.key}\n".encode())

    with ThreadPoolExecutor(num_workers) as pool:
        runner = TrialRunner(slow, Workers(pool, num_workers))
        run_search(SPACE, runner, ShuffledSampler(SPACE), journal, 0.95, hooks=Hooks(lambda *_: tell))


def kill_at_random(folder: Path, everything, num_kills: int):
    """Kill drivers of one study after the other until it has happened so many times."""
    generator = random.Random(num_kills)
    kills, torn, study, before = 0, 0, 0, []
    while kills < num_kills or before:
        path = folder / str(study) / "trials.jsonl"
        dies_at = len(before) + generator.randrange(1, 5) if generator.random() < 0.3 and kills < num_kills else None
        reader, writer = os.pipe()
        pid = fork(functools.partial(drive, path, generator.choice((1, 2, 3)), writer, dies_at))
        os.close(writer)
        if dies_at is None and kills < num_kills:
            time.sleep(generator.uniform(0, 0.09))
            os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        with os.fdopen(reader) as file:
            told = file.read().split()
        killed = os.WIFSIGNALED(status)
        kills += killed
        torn += killed and dies_at is not None
        trials = Journal(path, IDENTITY).trials
        assert trials[: len(before)] == before, "what was finished stays as it was"
        assert set(told) <= {trial.schedule.key for trial in trials}, "what was said to be finished is written"
        before = trials
        if not killed:
            check_complete(search(path, lambda schedule: pytest.fail("evaluated again")), everything)
            study, before = study + 1, []
    assert study > 0 and torn > 0


def test_a_few_kills_of_the_driver(tmp_path, everything):
    kill_at_random(tmp_path, everything, num_kills=6)


@pytest.mark.slow
def test_50_kills_of_the_driver(tmp_path, everything):
    kill_at_random(tmp_path, everything, num_kills=50)


@pytest.mark.slow
def test_killed_process_model_proposes_what_an_uninterrupted_one_does(tmp_path):
    """A Gaussian process with a budget below the space: after every kill it must propose as if it had gone on."""

    def run(path, **kwargs):
        sampler = GaussianProcessSampler(SPACE, 14, "none", seed=3)
        return search(path, max_trials=14, sampler=sampler, **kwargs)

    def die(result):
        if len(result.trials) % 3 == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    whole, path = run(tmp_path / "whole.jsonl"), tmp_path / "killed.jsonl"
    assert sum(trial.origin == "model" for trial in whole.trials) > 5
    kills = 0
    while os.WIFSIGNALED(os.waitpid(fork(lambda: run(path, hooks=Hooks(lambda *_: die))), 0)[1]):
        kills += 1
    assert kills == 4
    result = run(path)
    assert [trial.schedule for trial in result.trials] == [trial.schedule for trial in whole.trials]
    assert result.best.schedule == whole.best.schedule


@pytest.mark.parametrize("num_workers", [1, 3])
def test_killed_driver_resumes_with_other_workers(tmp_path, everything, num_workers):
    path = tmp_path / "trials.jsonl"
    reader, writer = os.pipe()
    pid = fork(lambda: drive(path, 2, writer, dies_at=9))
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    os.close(reader), os.close(writer)
    assert len(Journal(path, IDENTITY).trials) == 9
    with ThreadPoolExecutor(num_workers) as pool:
        settings = {"executor": pool, "num_workers": num_workers} if num_workers > 1 else {}
        check_complete(search(path, **settings), everything)


@pytest.mark.slow
def test_workers_end_with_a_killed_driver(tmp_path):
    code = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_executors import *
        if __name__ == "__main__":
            with LocalPool(2) as pool:
                search(
                    Path({str(tmp_path / "trials.jsonl")!r}),
                    Dying(Path({str(tmp_path)!r}), {{}}, seconds=1),
                    executor=pool,
                    num_workers=2,
                    hooks=Hooks(
                        lambda *_: lambda result: print(result.trials[-1].measurement["pid"], flush=True)
                    ),
                )
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    workers: set[int] = set()
    while len(workers) < 2 and (line := process.stdout.readline()):
        workers.add(int(line))
    process.kill()
    process.wait()
    process.stdout.close()
    assert len(workers) == 2
    wait_for_end(workers)
    assert len(Journal(tmp_path / "trials.jsonl", IDENTITY).trials) >= 2


def test_second_driver_is_refused_until_the_first_is_dead(tmp_path):
    reader, writer = os.pipe()

    def hold():
        with JournalLock(tmp_path / "driver.json"):
            os.write(writer, b"held")
            time.sleep(60)

    pid = fork(hold)
    assert os.read(reader, 4) == b"held"
    os.close(reader), os.close(writer)
    try:
        with pytest.raises(JournalError, match=f"process {pid} on {socket.gethostname()} is already searching"):
            search(tmp_path / "trials.jsonl")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert (tmp_path / "driver.json").exists()
    assert len(search(tmp_path / "trials.jsonl", max_trials=2).trials) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["trials.jsonl"]


@pytest.mark.parametrize("holder", ["", '{"pid": 1', "reused pid"])
def test_remains_of_a_dead_driver_are_taken_over(tmp_path, holder):
    if holder == "reused pid":
        holder = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "started": time.time() - 10**6})
    (tmp_path / "driver.json").write_text(holder)
    with JournalLock(tmp_path / "driver.json"):
        assert json.loads((tmp_path / "driver.json").read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_driver_of_another_host_is_refused(tmp_path):
    (tmp_path / "driver.json").write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": 0.0}))
    with pytest.raises(JournalError, match="process 1 on elsewhere .*; if not, delete .*driver.json"):
        search(tmp_path / "trials.jsonl")
    assert (tmp_path / "driver.json").exists()


def test_missing_dask_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ExecutorError, match=r"pip install 'redundancy-hf\[cluster\]'"):
        connect_dask("tcp://127.0.0.1:1")


def test_unreachable_scheduler_is_one_sentence(monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr(executors, "CONNECT_SECONDS", 0.2)
    with pytest.raises(ExecutorError, match="no Dask scheduler answers at tcp://127.0.0.1:1 "):
        connect_dask("tcp://127.0.0.1:1")


def test_workers_that_come_late_are_waited_for(monkeypatch):
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(executors, "CONNECT_SECONDS", 1)
    settings = {"processes": False, "dashboard_address": None, "protocol": "tcp://", "threads_per_worker": 1}
    with distributed.LocalCluster(n_workers=0, **settings) as cluster:
        with pytest.raises(ExecutorError, match="none of the workers at .* is for trials .* start at least one"):
            connect_dask(cluster.scheduler_address)
        monkeypatch.setattr(executors, "CONNECT_SECONDS", 30)
        threading.Timer(0.5, cluster.scale, [1]).start()
        workers = connect_dask(cluster.scheduler_address)
        assert (workers.latency_executor, workers.num_workers) == (None, 1)
        workers.executor.client.close()


def test_lost_scheduler_is_one_sentence(tmp_path):
    class Client:
        status = "closed"

        def get_executor(self, **settings):
            return ThreadPoolExecutor(1)

    with pytest.raises(ExecutorError, match="connection to the scheduler is lost"):
        search(tmp_path / "trials.jsonl", executor=executors.DaskExecutor(Client()))


@pytest.fixture
def dask_cluster(tmp_path):
    """A scheduler with two workers, and one for latency on what counts as another host."""
    pytest.importorskip("distributed")
    root = Path(__file__).parents[2]
    environment = os.environ | {
        "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0",
        "PYTHONPATH": str(root),
        "OMP_NUM_THREADS": "1",
    }
    processes = []

    def start(*arguments: str):
        log = open(tmp_path / f"{len(processes)}.log", "w")  # noqa: SIM115
        command = [sys.executable, "-m", "dask", *arguments]
        processes.append(subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=log, stderr=log))

    try:
        start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", "scheduler.json")
        file, deadline = tmp_path / "scheduler.json", time.monotonic() + 120
        while not (file.exists() and file.read_text().endswith("}")) and time.monotonic() < deadline:
            time.sleep(0.1)
        address = json.loads(file.read_text())["address"]
        common = ("worker", address, "--no-nanny", "--nthreads", "1", "--no-dashboard", "--host")
        start(*common, "127.0.0.1")
        start(*common, "127.0.0.1")
        start(*common, "127.0.0.2", "--resources", "latency=1")
        from distributed import Client

        with Client(address, timeout=60, set_as_default=False) as client:
            client.wait_for_workers(3, timeout=120)
        yield address
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_dask_cluster_loses_a_worker(tmp_path, everything, dask_cluster):
    workers = connect_dask(dask_cluster)
    assert workers.num_workers == 2
    once = everything.trials[7].schedule
    result = search(
        tmp_path / "trials.jsonl",
        Dying(tmp_path, {once: 1}, seconds=0.05),
        timing=timing,
        **vars(workers),
    )
    check_complete(result, everything)
    assert all(trial.is_ok for trial in result.trials)
    assert [trial.schedule for trial in result.trials if trial.retries] == [once]
    trainers = {trial.measurement["pid"] for trial in result.trials}
    assert len(trainers) == 2
    (timer,) = {trial.measurement["timed_by"] for trial in result.trials}
    assert timer not in trainers
