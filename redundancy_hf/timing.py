"""What a model costs on this machine: its latency against another one, and its memory.

Latency follows Bidart 2023 (University of Waterloo), section 5.1.2: batch 1, on the dataset's own lengths. Times from
different moments do not compare on a shared machine, so models take turns input by input and a latency is a ratio
within one round.
"""

import ctypes
import functools
import math
import os
import platform
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from datasets import Dataset


INPUT_COLUMNS = ("input_ids", "attention_mask", "token_type_ids")
PASSING_FIELDS = ("load_average", "python")  # of the hardware, what may differ between timings on one machine
CLOCKS = ("thread_cpu", "process_cpu", "wall", "cuda_event")
# what a busy process runs; it ends by itself if this one is killed
BUSY = """
import time, torch
torch.set_num_threads(1)
matrix, end = torch.randn(512, 512), time.monotonic() + 600
print("ready", flush=True)
while time.monotonic() < end:
    matrix @ matrix
"""
# instruction sets that decide how fast a matrix product is, x86 first
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "sve", "bf16")


def sample_inputs(dataset: "Dataset", num_inputs: int = 16, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """Choose batch-1 inputs whose lengths are evenly spaced quantiles of a dataset's token lengths.

    Their mean cost then stands for the dataset's. Where there are fewer examples than inputs, examples repeat.

    Args:
        dataset: A tokenised split with a column `input_ids`, not padded.
        num_inputs: Number of quantiles, at (i + 0.5) / `num_inputs`.
        seed: Decides between examples of the same length.

    Returns:
        Inputs in order of length; each maps the columns among `INPUT_COLUMNS` to token ids or the like, (1, L).

    Raises:
        ValueError: The dataset is empty or not tokenised, or `num_inputs` is below 1.
    """
    if num_inputs < 1:
        raise ValueError(f"`num_inputs` must be >= 1, got {num_inputs}.")
    if "input_ids" not in dataset.column_names:
        raise ValueError(f"`dataset` has no column input_ids, only {dataset.column_names}; tokenise it first.")
    if len(dataset) == 0:
        raise ValueError("`dataset` is empty: there are no lengths to sample from.")
    lengths = np.array([len(token_ids) for token_ids in dataset["input_ids"]])
    shuffled = np.random.default_rng(seed).permutation(len(lengths))
    by_length = shuffled[np.argsort(lengths[shuffled], kind="stable")]
    chosen = by_length[((np.arange(num_inputs) + 0.5) / num_inputs * len(lengths)).astype(int)]
    columns = [name for name in INPUT_COLUMNS if name in dataset.column_names]
    rows = (dataset[int(index)] for index in chosen)
    return [{name: torch.as_tensor(row[name], dtype=torch.long).unsqueeze(0) for name in columns} for row in rows]


@dataclass(frozen=True)
class Target:
    """Where, and how, latency is measured: what is found to be fast is fast there.

    Its fields are flags of every command that measures.

    Raises:
        ValueError: `threads` or `rounds` is below 1.
    """

    device: str = field(default="cpu", metadata={"help": "Where the model runs: cpu, cuda, cuda:1, mps ..."})
    threads: int = field(
        default=1, metadata={"help": "CPU threads; above 1 times are wall time, which other processes disturb."}
    )
    dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32", metadata={"help": "Number format of the weights."}
    )
    rounds: int = field(default=20, metadata={"help": "Timed rounds; more rounds, narrower quartiles."})

    def __post_init__(self):
        for name in ("threads", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def hardware(self) -> dict[str, Any]:
        """The hardware that it is, as [`hardware_fingerprint`] says it."""
        return hardware_fingerprint(self.device, self.torch_dtype) | {"threads": self.threads}

    def place(self, model: Any) -> Any:
        """Put a model there, in evaluation mode."""
        return model.to(self.device, self.torch_dtype).eval()

    @contextmanager
    def use_threads(self) -> Iterator[None]:
        """Let torch work with the target's number of threads; on exit with as many as before."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


@dataclass(frozen=True)
class Latency:
    """How long one forward pass takes, relative to a reference model and in milliseconds.

    Attributes:
        ratio: Median over rounds of this model's time divided by the reference's in the same round; below 1 is faster.
        ratio_low: First quartile of that ratio.
        ratio_high: Third quartile of that ratio.
        wall_p50_ms: Median wall time of single passes.
        wall_p90_ms: 90th percentile of the wall time of single passes.
        cpu_p50_ms: Median processor time of single passes; `None` unless `clock` is one of the processor's.
        clock: What `ratio` is made of: "thread_cpu", "process_cpu", "wall" or "cuda_event".
        rounds: Number of ratios behind the median.
    """

    ratio: float
    ratio_low: float
    ratio_high: float
    wall_p50_ms: float
    wall_p90_ms: float
    cpu_p50_ms: float | None
    clock: str
    rounds: int


@dataclass(frozen=True)
class Times:
    """What [`time_in_turns`] measured, in milliseconds.

    Attributes:
        wall: Wall time of every call by name, (rounds, groups).
        ticks: Likewise by `clock`.
        clock: "thread_cpu", "process_cpu", "wall" or "cuda_event".
    """

    wall: dict[Any, np.ndarray]
    ticks: dict[Any, np.ndarray]
    clock: str

    def compare(self, reference: Any) -> dict[Any, Latency]:
        """Divide the mean over groups by the reference's in the same round."""
        base, is_cpu = self.ticks[reference].mean(axis=1), self.clock in ("thread_cpu", "process_cpu")
        latencies = {}
        for name, ticks in self.ticks.items():
            low, middle, high = np.percentile(ticks.mean(axis=1) / base, [25, 50, 75]).tolist()
            p50, p90 = np.percentile(self.wall[name], [50, 90]).tolist()
            cpu = float(np.median(ticks)) if is_cpu else None
            latencies[name] = Latency(middle, low, high, p50, p90, cpu, self.clock, len(ticks))
        return latencies


def time_in_turns(
    groups: Sequence[Mapping[Any, Callable[[], Any]]],
    rounds: int,
    warmup: int = 2,
    clock: str | None = None,
    device: str | torch.device = "cpu",
    on_round: Callable[[], Any] | None = None,
    seconds_per_turn: float = 0.0,
    deadline: float = math.inf,
) -> Times:
    """Time calls against each other: in every round all of a group take a turn, in an order drawn anew.

    Args:
        groups: Calls by the same names, one group after the other.
        rounds: Timed passes over all groups.
        warmup: Untimed ones before them.
        clock: By default the thread's processor time with one thread on a CPU, which other processes hardly disturb;
            wall time with several, whose work it would miss; a pair of events on a CUDA device. "process_cpu" is for
            runtimes that work in threads of their own.
        device: Where the calls work.
        on_round: Called after every round, untimed ones included, outside the clocks (a progress bar's `update`).
        seconds_per_turn: A call is repeated within its turn until about so long is up.
        deadline: By `time.monotonic()`; after the first, no timed round starts that would probably end later.

    Raises:
        ValueError: `rounds` is below 1, `warmup` negative or the clock unknown.
    """
    if clock not in (None, *CLOCKS):
        raise ValueError(f"`clock` must be one of {', '.join(CLOCKS)}, got {clock!r}.")
    if rounds < 1 or warmup < 0:
        raise ValueError(f"`rounds` must be >= 1 and `warmup` >= 0, got {rounds} and {warmup}.")
    device = torch.device(device)
    clock, names, generator = clock or _choose_clock(device), list(groups[0]), random.Random(0)
    repeats = {name: _count_repeats(groups[0][name], seconds_per_turn, device) for name in names}
    found = np.zeros((rounds, len(groups), len(names), 2))
    for index in range(-warmup, rounds):
        started = time.monotonic()
        for number, group in enumerate(groups):
            # a fixed order would give every call the caches that the same predecessor leaves
            for place in generator.sample(range(len(names)), len(names)):
                elapsed = _time_call(group[names[place]], repeats[names[place]], clock, device)
                if index >= 0:
                    found[index, number, place] = elapsed
        if on_round is not None:
            on_round()
        now = time.monotonic()
        if index >= 0 and 2 * now - started > deadline:
            found = found[: index + 1]
            break
    wall, ticks = ({name: found[:, :, place, kind] for place, name in enumerate(names)} for kind in (0, 1))
    return Times(wall, ticks, clock)


def measure_latency(
    models: Mapping[str, nn.Module],
    inputs: Sequence[Mapping[str, torch.Tensor]],
    reference: str,
    rounds: int = 20,
    warmup: int = 5,
    on_round: Callable[[], Any] | None = None,
    clock: str | None = None,
) -> dict[str, Latency]:
    """Measure models against each other, all of them on every input in every round; see [`time_in_turns`].

    Args:
        models: Models by name, all on one device; they are called in eval mode and get their mode back.
        inputs: Keyword arguments of single calls; moved to the models' device before any clock starts.
        reference: Name of the model that the others are divided by.
        rounds: Timed passes over all inputs.
        warmup: Untimed passes over all inputs before them.
        on_round: Like the clock as of [`time_in_turns`].
        clock: See there.

    Returns:
        A `Latency` per model, the reference included (its ratio is 1).

    Raises:
        ValueError: `reference` is not among `models`, there are no inputs, the models are on several devices, or as
            [`time_in_turns`] does.
    """
    if reference not in models:
        raise ValueError(f"`reference` must name one of the models {list(models)}, got {reference!r}.")
    if len(inputs) == 0:
        raise ValueError("`inputs` is empty: a latency needs at least one input.")
    device = _common_device(models)
    moved = [{name: tensor.to(device) for name, tensor in single.items()} for single in inputs]
    groups = [{name: functools.partial(model, **single) for name, model in models.items()} for single in moved]
    with ready_to_time(models, device):
        return time_in_turns(groups, rounds, warmup, clock, device, on_round).compare(reference)


def measure_pass_memory(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> int | None:
    """Measure the memory that a pass takes beside weights and inputs, at most, in bytes.

    On a CUDA device that is what torch allocates; on Linux by how much the process grows, in pages, so that small
    passes show less than they take. Elsewhere it is not measured.

    Args:
        model: Called in eval mode, without gradients.
        inputs: Keyword arguments of its call.

    Returns:
        Bytes, or `None`.
    """
    device = _common_device({"model": model})
    moved = {name: tensor.to(device) for name, tensor in inputs.items()}
    with ready_to_time({"model": model}, device):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            model(**moved)
            return torch.cuda.max_memory_allocated(device) - before
        clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
        if device.type != "cpu" or not os.access(clear, os.W_OK):
            return None
        # what earlier passes have freed must go back to the system, or this one would not need to ask for it
        with suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        clear.write_text("5")
        before = _read_kilobytes(status, "VmRSS")
        model(**moved)
        return 1024 * max(0, _read_kilobytes(status, "VmHWM") - before)


def _read_kilobytes(status: Path, name: str) -> int:
    return int(re.search(rf"^{name}:\s*(\d+) kB", status.read_text(), re.MULTILINE)[1])  # type: ignore[index]


def hardware_fingerprint(device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> dict[str, Any]:
    """Describe what a latency was measured on, without naming the machine or its user.

    Args:
        device: Where the models ran.
        dtype: The models' dtype; `None` stands for torch's default.

    Returns:
        A record that `json.dumps` accepts.
    """
    device = torch.device(device)
    cpu, flags = _read_cpu()
    usable_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load_average = [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None
    return {
        "cpu": cpu,
        "cpu_flags": [flag for flag in CPU_FLAGS if flag in flags],
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "usable_cores": usable_cores,
        "threads": torch.get_num_threads(),
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "dtype": str(dtype or torch.get_default_dtype()).removeprefix("torch."),
        "load_average": load_average,
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def is_same_hardware(found: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Say whether a record of `hardware_fingerprint` is of the machine and libraries of another one."""
    return all(found.get(name) == value for name, value in now.items() if name not in PASSING_FIELDS)


def _read_cpu() -> tuple[str, set[str]]:
    """Return the processor's name and the names of its instruction sets."""
    cpuinfo = Path("/proc/cpuinfo")  # Linux; elsewhere torch's own `cpu_capability` has to do
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.is_file() else []
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = found.get("model name") or platform.processor() or platform.machine()
    return name, set(found.get("flags", found.get("Features", "")).split())


def _common_device(models: Mapping[str, nn.Module]) -> torch.device:
    devices = {parameter.device for model in models.values() for parameter in model.parameters()}
    if len(devices) > 1:
        raise ValueError(f"all models must be on one device to be compared, got {sorted(map(str, devices))}.")
    return devices.pop() if devices else torch.device("cpu")


def _choose_clock(device: torch.device) -> str:
    if device.type == "cuda":
        return "cuda_event"
    # the thread's clock ticks every 15 ms on Windows, which is longer than a forward pass
    is_fine_grained = time.get_clock_info("thread_time").resolution < 1e-5
    return "thread_cpu" if device.type == "cpu" and torch.get_num_threads() == 1 and is_fine_grained else "wall"


@contextmanager
def ready_to_time(models: Mapping[str, nn.Module], device: torch.device) -> Iterator[None]:
    """Put the models in eval mode, record no gradients and make `device` current; undo all of it on exit."""
    was_training = {name: model.training for name, model in models.items()}
    try:
        for model in models.values():
            model.eval()
        with torch.inference_mode(), torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            yield
    finally:
        for name, model in models.items():
            model.train(was_training[name])


def _time_call(call: Callable[[], Any], repeats: int, clock: str, device: torch.device) -> tuple[float, float]:
    """Return the wall time and the time by `clock` of one of so many calls, in milliseconds."""
    read_cpu = time.process_time if clock == "process_cpu" else time.thread_time
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if clock == "cuda_event" else []
    wall_start, cpu_start = time.perf_counter(), read_cpu()
    for event in events[:1]:
        event.record()
    for _ in range(repeats):
        call()
    for event in events[1:]:
        event.record()
        event.synchronize()
    if device.type != "cpu" and not events:
        torch.accelerator.synchronize(device)
    cpu_ms, wall_ms = 1000 * (read_cpu() - cpu_start), 1000 * (time.perf_counter() - wall_start)
    clock_ms = events[0].elapsed_time(events[1]) if events else wall_ms if clock == "wall" else cpu_ms
    return wall_ms / repeats, clock_ms / repeats


def _count_repeats(call: Callable[[], Any], seconds: float, device: torch.device) -> int:
    """Say how often a call fits into so many seconds, at least once."""
    if not seconds:
        return 1
    call()
    return max(1, round(1000 * seconds / max(_time_call(call, 1, "wall", device)[0], 1e-3)))


@contextmanager
def busy_machine(num_processes: int) -> Iterator[None]:
    """Run processes that multiply matrices without pause; on exit none is left."""
    command = [sys.executable, "-c", BUSY]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(num_processes)]
    try:
        if not all(process.stdout.readline() for process in processes):  # type: ignore[union-attr]
            raise OSError("the busy processes did not start; try a smaller `--busy`.")
        yield
        if any(process.poll() is not None for process in processes):
            raise OSError("a busy process ended before the measurement; use fewer `--rounds`.")
    finally:
        for process in processes:
            process.kill()
            process.communicate()
