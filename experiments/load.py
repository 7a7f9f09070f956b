"""Check that the latency ratio orders schedules the same way on a quiet and on a busy machine.

Five schedules of a MiniLM-sized Classformer, whose FLOPs are at least 15 % apart, are measured twice: by themselves,
and beside processes that multiply matrices without pause. The ratio by processor time has to keep its order, or the
exit code is 1; the ratio of wall times stands beside it to show the difference. A few minutes:

    python experiments/load.py --results_file results/latency_under_load.json
"""

import os
from dataclasses import asdict, dataclass, field

import torch
from tqdm import tqdm

from classformer_hf import ClassformerConfig, ClassformerForSequenceClassification
from classformer_hf.flops import count_flops
from redundancy_hf.command import parse_arguments, run_command, write_record
from redundancy_hf.timing import busy_machine, hardware_fingerprint, measure_latency

NUM_TOKENS = 128
WARMUP = 5
MINILM = {
    "vocab_size": 30522,
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}
# the first one is the reference
SCHEDULES = {
    "full": [1, 1, 1, 1, 1, 1],
    "2x in layer 4": [1, 1, 1, 2, 1, 1],
    "2x in layer 2": [1, 2, 1, 1, 1, 1],
    "2x in layer 1": [2, 1, 1, 1, 1, 1],
    "4x in layer 2": [1, 4, 1, 1, 1, 1],
}
SMALLEST_GAP_RATIO = 0.15


NOTE = (
    "quiet: this script runs nothing beside the measurement, load averages say what else the machine did; "
    "ratio: median over rounds of the processor time relative to full; wall_ratio: ratio of the median wall times."
)


@dataclass
class LoadArguments:
    rounds: int = field(default=30, metadata={"help": "Timed rounds per measurement."})
    busy_processes: int = field(default=2, metadata={"help": "Processes that multiply matrices in the second part."})
    results_file: str = field(default="results/latency_under_load.json", metadata={"help": "JSON file for the result."})


def build_models() -> tuple[dict[str, ClassformerForSequenceClassification], dict[str, int]]:
    """Return the models, and their FLOPs, at least `SMALLEST_GAP_RATIO` apart, in falling order."""
    models, flops = {}, {}
    for name, gamma in SCHEDULES.items():
        config = ClassformerConfig(**MINILM, gamma=gamma)
        models[name] = ClassformerForSequenceClassification(config)
        flops[name] = count_flops(config, NUM_TOKENS)
    counts = list(flops.values())
    if any(less > (1 - SMALLEST_GAP_RATIO) * more for more, less in zip(counts, counts[1:], strict=False)):
        raise ValueError(f"the schedules' FLOPs must fall by {SMALLEST_GAP_RATIO:.0%} each, got {flops}.")
    return models, flops


def measure(models: dict[str, ClassformerForSequenceClassification], rounds: int, description: str) -> dict:
    """Measure all models and return a record with both orders, fastest first."""
    input_ids = torch.randint(MINILM["vocab_size"] // 2, MINILM["vocab_size"], (1, NUM_TOKENS))
    inputs = [{"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}]
    load_before = os.getloadavg()
    reference = next(iter(models))
    with tqdm(total=WARMUP + rounds, desc=description, unit="round") as progress:
        latencies = measure_latency(models, inputs, reference, rounds, WARMUP, on_round=progress.update)
    rows = {
        name: asdict(latency) | {"wall_ratio": latency.wall_p50_ms / latencies[reference].wall_p50_ms}
        for name, latency in latencies.items()
    }
    return {
        "load_average_before": [round(load, 2) for load in load_before],
        "load_average_after": [round(load, 2) for load in os.getloadavg()],
        "order_by_cpu_time": sorted(rows, key=lambda name: rows[name]["ratio"]),
        "order_by_wall_time": sorted(rows, key=lambda name: rows[name]["wall_ratio"]),
        "latencies": rows,
    }


def print_comparison(flops: dict[str, int], quiet: dict, busy: dict) -> None:
    print(f"\n{'':15}        by processor time      by wall time           wall p50 ms")
    print(f"{'schedule':15} GFLOPs   quiet    busy         quiet    busy          quiet    busy")
    for name, count in flops.items():
        left, right = quiet["latencies"][name], busy["latencies"][name]
        by_cpu = f"{left['ratio']:6.3f}  {right['ratio']:6.3f}"
        by_wall = f"{left['wall_ratio']:6.3f}  {right['wall_ratio']:6.3f}"
        wall_ms = f"{left['wall_p50_ms']:6.1f}  {right['wall_p50_ms']:6.1f}"
        print(f"{name:15} {count / 1e9:6.3f}  {by_cpu}        {by_wall}         {wall_ms}")
    for clock in ("cpu", "wall"):
        for state, record in (("quiet", quiet), ("busy", busy)):
            print(f"order by {clock:4} time, {state:5}: {' < '.join(record[f'order_by_{clock}_time'])}")


def main() -> int:
    (arguments,) = parse_arguments((LoadArguments,), __doc__)
    if arguments.rounds < 1 or arguments.busy_processes < 1:
        raise ValueError("`--rounds` and `--busy_processes` must be >= 1.")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    models, flops = build_models()
    hardware = hardware_fingerprint()
    quiet = measure(models, arguments.rounds, "quiet")
    with busy_machine(arguments.busy_processes):
        busy = measure(models, arguments.rounds, f"beside {arguments.busy_processes} busy processes")
    print_comparison(flops, quiet, busy)
    is_kept = quiet["order_by_cpu_time"] == busy["order_by_cpu_time"]
    print(f"the order by processor time {'is the same' if is_kept else 'DIFFERS'} under load")
    write_record(
        arguments.results_file,
        note=NOTE,
        hardware=hardware,
        sequence_length_tokens=NUM_TOKENS,
        busy_processes=arguments.busy_processes,
        schedules={name: {"gamma": SCHEDULES[name], "flops": flops[name]} for name in flops},
        quiet=quiet,
        busy=busy,
        is_cpu_order_kept=is_kept,
        is_wall_order_kept=quiet["order_by_wall_time"] == busy["order_by_wall_time"],
    )
    return 0 if is_kept else 1


if __name__ == "__main__":
    run_command(main)
