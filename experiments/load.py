"""Check that the latency ratio orders schedules the same way on a quiet and on a busy machine.

Five schedules of a MiniLM-sized Classformer, whose FLOPs are at least 15 % apart, are measured twice: by themselves,
and beside processes that multiply matrices without pause. The ratio by processor time has to keep its order; the ratio
of wall times stands beside it to show the difference. A few minutes:

    python experiments/load.py --results_file results/latency_under_load.json
"""

import os
from typing import Any

import torch
from frame import command_of, format_table, name_command, ratio
from tuning import take_turns

from classformer_hf import ClassformerConfig, ClassformerForSequenceClassification
from classformer_hf.flops import count_flops
from redundancy_hf.command import write_record
from redundancy_hf.timing import busy_machine, hardware_fingerprint

NUM_TOKENS = 128
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


def build_models() -> tuple[dict[str, ClassformerForSequenceClassification], dict[str, int]]:
    """Return the models, and their FLOPs, at least `SMALLEST_GAP_RATIO` apart, in falling order."""
    configs = {name: ClassformerConfig(**MINILM, gamma=gamma) for name, gamma in SCHEDULES.items()}
    flops = {name: count_flops(config, NUM_TOKENS) for name, config in configs.items()}
    counts = list(flops.values())
    if any(less > (1 - SMALLEST_GAP_RATIO) * more for more, less in zip(counts, counts[1:], strict=False)):
        raise ValueError(f"the schedules' FLOPs must fall by {SMALLEST_GAP_RATIO:.0%} each, got {flops}.")
    return {name: ClassformerForSequenceClassification(config) for name, config in configs.items()}, flops


def measure(models: dict[str, ClassformerForSequenceClassification], rounds: int, what: str) -> dict:
    """Measure all models and return a record with both orders, fastest first."""
    input_ids = torch.randint(MINILM["vocab_size"] // 2, MINILM["vocab_size"], (1, NUM_TOKENS))
    inputs = [{"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}]
    load_before = os.getloadavg()
    rows = take_turns(models, inputs, "full", rounds, warmup=5, what=what)
    for row in rows.values():
        row["wall_ratio"] = row["wall_p50_ms"] / rows["full"]["wall_p50_ms"]
    return {
        "load_average_before": [round(load, 2) for load in load_before],
        "load_average_after": [round(load, 2) for load in os.getloadavg()],
        "order_by_cpu_time": sorted(rows, key=lambda name: rows[name]["ratio"]),
        "order_by_wall_time": sorted(rows, key=lambda name: rows[name]["wall_ratio"]),
        "latencies": rows,
    }


def run(
    rounds: int = 30, busy_processes: int = 2, results_file: str = "results/latency_under_load.json"
) -> dict[str, Any] | None:
    """Measure by themselves and beside busy processes.

    Args:
        rounds: Timed rounds per measurement.
        busy_processes: Processes that multiply matrices in the second part.
        results_file: JSON file for the result.

    Raises:
        ValueError: The order by processor time changes under load.
    """
    if rounds < 1 or busy_processes < 1:
        raise ValueError("`rounds` and `busy_processes` must be >= 1.")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    models, flops = build_models()
    quiet = measure(models, rounds, "quiet")
    with busy_machine(busy_processes):
        busy = measure(models, rounds, f"beside {busy_processes} busy processes")
    is_kept = {clock: quiet[f"order_by_{clock}_time"] == busy[f"order_by_{clock}_time"] for clock in ("cpu", "wall")}
    record = write_record(
        results_file,
        note=NOTE,
        hardware=hardware_fingerprint(),
        sequence_length_tokens=NUM_TOKENS,
        busy_processes=busy_processes,
        schedules={name: {"gamma": SCHEDULES[name], "flops": flops[name]} for name in flops},
        quiet=quiet,
        busy=busy,
        is_cpu_order_kept=is_kept["cpu"],
        is_wall_order_kept=is_kept["wall"],
    )
    if not is_kept["cpu"]:
        raise ValueError(f"the order by processor time was {quiet['order_by_cpu_time']}, and differs under load.")
    return record


def table(record: dict) -> str:
    """Relative latency of five schedules, alone and beside busy processes."""
    rows = []
    for name, quiet in record["quiet"]["latencies"].items():
        busy = record["busy"]["latencies"][name]
        walls = [f"{busy['wall_ratio']:.3f}", f"{quiet['wall_p50_ms']:.0f}", f"{busy['wall_p50_ms']:.0f}"]
        rows.append([name, ratio(quiet, digits=3), ratio(busy, digits=3), *walls])
    header = ["schedule", "ratio before", "ratio, two busy processes", "by wall clock", "before, ms", "busy, ms"]
    loads = [f"{record[state]['load_average_before'][0]:.1f}" for state in ("quiet", "busy")]
    note = (
        f"{record['sequence_length_tokens']} tokens, batch 1, one thread, {record['hardware']['device_name']}; "
        f"ratios of processor time, median and quartiles of {record['quiet']['latencies']['full']['rounds']} rounds; "
        f"load average before: {loads[0]} and {loads[1]}. Order kept by processor time: {record['is_cpu_order_kept']}, "
        f"by wall clock: {record['is_wall_order_kept']}. {name_command(record)}"
    )
    return format_table(header, rows, note)


main = command_of(run, __doc__, show=table)
