"""A folder in which the commands of the documents run as they are printed, only smaller.

Its `.venv/bin/python` is this file, which adds the flags of `SIZES`. Scripts run in forks of one process that has
imported everything, since imports take most of the time of a small command; where the environment names another Hub,
and for modules, in a process of their own.
"""

import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TRAINING = "--use_cpu --disable_tqdm True --num_train_epochs 1 --learning_rate 1e-3 --per_device_train_batch_size 16"
TEXTS = "--max_length 32 --max_train_samples 128 --max_validation_samples 64 --max_test_samples 64"
SHAPES = "--max_train_samples 16 --max_validation_samples 8 --max_test_samples 8"
SEARCH = "--max_trials 4 --num_winners 2 --rounds 2"
# what makes a job's work small; a verb or an experiment of the documents must have its line
SIZES = {
    "autoencoders": "",
    "benchmark": "--rounds 1",
    "classify": "",
    "compare-images": "--rounds 1",
    "peers": "",
    "schedules": "",
    "thesis_searches": "",
    "evaluate-avae": SHAPES,
    "evaluate": "",
    "explain-images": "--num_images 2",
    "export": "",
    "pretrain": f"{TRAINING} --block_size 32 --max_train_blocks 32 --max_validation_blocks 8 --max_steps 4",
    "publish": "",
    "render_results": "",
    "sharing": "",
    "search": f"{TRAINING} {TEXTS} {SEARCH}",
    "supernet": f"{TRAINING} {TEXTS}",
    "train-avae": f"{TRAINING} {SHAPES}",
    "train": f"{TRAINING} {TEXTS}",
    "multitask": f"{TRAINING} --max_length 32 --max_train_samples 32",
    "train-images": f"{TRAINING} --max_train_samples 32 --max_validation_samples 8",
}


def shrink(arguments: list[str]) -> list[str]:
    """Fill the placeholders of a command in, and add the flags that make it small."""
    from tests.documents import fill_in, find_jobs

    if not is_job(arguments):
        return arguments
    (job,) = find_jobs(" ".join(arguments[:3] if arguments[0] == "-m" else arguments[:1]))
    # every command with an ellipsis has a folder of its own
    filled = [f"runs/elided-{os.getpid()}" if value == "runs/elided" else value for value in fill_in(arguments)]
    return [*filled, *SIZES[job].split()]


def is_job(arguments: list[str]) -> bool:
    """Say whether Python's arguments name a verb, or a file of scripts/ or experiments/."""
    return arguments[:2] == ["-m", "redundancy_hf"] or Path(arguments[0]).parent.name in ("scripts", "experiments")


def ask_server(arguments: list[str]) -> int:
    """Let the server run a script with this process' streams, folder and environment; gives its exit code."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.environ["WORKBENCH"])
        job = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
        socket.send_fds(connection, [json.dumps(job).encode() + b"\n"], [0, 1, 2])
        return int(connection.recv(16))


def serve(address: str):
    """Fork for every job."""
    from classformer_hf.search import executors, target
    from tests.documents import load_job

    # no flag makes the latency table small, and workers may come late on a busy machine
    target.TABLE_ROUNDS, executors.CONNECT_SECONDS = 2, 120
    for name in SIZES:
        load_job(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        print("ready", flush=True)
        while True:
            connection, _ = server.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                connection.send(str(run_job(connection)).encode())
                os._exit(0)
            connection.close()


def run_job(connection: socket.socket) -> int:
    data, streams, *_ = socket.recv_fds(connection, 1 << 16, 3)
    while not data.endswith(b"\n"):
        data += connection.recv(1 << 16)
    job = json.loads(data)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.chdir(job["folder"])
    os.environ.clear()
    os.environ.update(job["environment"])
    is_verb = job["arguments"][0] == "-m"
    sys.argv = job["arguments"][1:] if is_verb else job["arguments"]
    sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))
    code: int | str | None = 0
    try:
        runpy.run_module("redundancy_hf", run_name="__main__") if is_verb else runpy.run_path(
            sys.argv[0], run_name="__main__"
        )
    except SystemExit as end:
        code = end.code
    except BaseException:
        code = traceback.format_exc()
    if isinstance(code, str):
        print(code, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    return 1 if isinstance(code, str) else code or 0


class Workbench:
    """A folder with the project's files, where the documents' programs are.

    Args:
        folder: Where; a new one.
        environment: Of the commands, such as the Hub.
    """

    def __init__(self, folder: Path, environment: dict[str, str]):
        self.folder, self.ran = folder, set()
        address = str(folder / "socket")
        own = {"WORKBENCH": address, "WORKBENCH_ENDPOINT": environment["HF_ENDPOINT"], "PYTHONPATH": str(ROOT)}
        self.environment = {**os.environ, **environment, **own}
        programs = folder / ".venv" / "bin"
        programs.mkdir(parents=True)
        self.environment["PATH"] = f"{programs}:{self.environment['PATH']}"
        self._write_programs(programs)
        for path in (ROOT / "scripts", ROOT / "experiments", ROOT / "tests", *ROOT.glob("*_hf")):
            (folder / path.name).symlink_to(path)
        # what a command may write
        for name in ("docs", "recipes", "results"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.png"))
        (folder / "docs" / "images").mkdir(exist_ok=True)
        for name in ("README.md", "Makefile", "setup.cfg", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, folder)
        (folder / ".venv" / ".installed").touch()
        self.server = subprocess.Popen(
            [sys.executable, __file__, "serve", address],
            env=self.environment,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.server.stdout.readline() == "ready\n"

    def _write_programs(self, programs: Path):
        ours = f'exec {sys.executable} -S {__file__} run "$@"'
        # what somebody types when asked
        login = '[ "$1 $2" = "auth login" ] && set -- "$@" --token "$LOGIN_TOKEN"'
        theirs = {name: Path(sys.executable).with_name(name) for name in ("hf", "dask")}
        here = '[ "$1" = scheduler ] && set -- "$@" --host 127.0.0.1 --port "$DASK_PORT" --no-dashboard'
        here += '; [ "$1" = worker ] && set -- "$@" --no-dashboard'
        # what is for latency counts as another machine
        here += '; case "$*" in *latency*) set -- "$@" --host 127.0.0.2;; esac'
        lines = {
            "python": ours,
            "redundancy-hf": f'exec {sys.executable} -S {__file__} run -m redundancy_hf "$@"',
            "hf": f'{login}; exec {theirs["hf"]} "$@"',
            "dask": f'{here}; exec {theirs["dask"]} "$@"',
        }
        for name, line in lines.items():
            (programs / name).write_text(f"#!/bin/sh\n{line}\n")
            (programs / name).chmod(0o755)

    def run(self, code: str, timeout_seconds: float = 600, **environment: str) -> subprocess.CompletedProcess:
        """Let bash run printed code, and end what it left in the background."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        code = code.replace("tcp://host:8786", f"tcp://127.0.0.1:{port}")
        return subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", f"trap 'kill $(jobs -p) 2> /dev/null || :' EXIT\n{code}"],
            cwd=self.folder,
            env={**self.environment, **environment, "DASK_PORT": str(port)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
        )

    def stop(self):
        """End the server and what it still runs."""
        os.killpg(self.server.pid, signal.SIGKILL)
        self.server.wait()


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "serve":
        serve(*rest)
    arguments = shrink(rest)
    if (is_job(arguments) or arguments[0].endswith(".py")) and os.environ["HF_ENDPOINT"] == os.environ[
        "WORKBENCH_ENDPOINT"
    ]:
        sys.exit(ask_server(arguments))
    os.execv(sys.executable, [sys.executable, *arguments])
