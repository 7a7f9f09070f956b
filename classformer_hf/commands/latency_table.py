r"""Time the layers of a model on this machine, so that the latency of every schedule can be predicted.

    redundancy-hf latency-table --model_name_or_path runs/full --latency_table latency_table.json

The table takes at most about three minutes. `--check 30` then times 30 schedules directly, twice. It says how far the
table is from the first direct times, and how far the two are from each other. `--busy 2` does all of it beside two
processes that multiply matrices without pause:

    redundancy-hf latency-table --model_name_or_path runs/full --latency_table latency_table.json \
        --check 30 --busy 2 --results_file runs/table_check_busy.json
"""

from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from redundancy_hf.command import parse_call, write_record
from redundancy_hf.data import load_task, tokenize
from redundancy_hf.limits import load_tokenizer
from redundancy_hf.task import TaskArguments
from redundancy_hf.timing import Target, busy_machine, measure_latency, sample_inputs

from .. import ClassformerForSequenceClassification
from ..checkpoints import load_from_encoder, reconfigure
from ..latency import LatencyTable, build_latency_table, compare_latencies
from ..search.space import Schedule, SearchSpace
from ..search.supernet import FlopsUniformSampler, mean_flops

NUM_INPUTS = 16
SHORTEST_TOKENS = 8
GOALS = {"mean_relative_error": 0.05, "kendall_tau": 0.98}
NOTE = (
    "Latencies are relative to the full model. Of two direct measurements, `direct` is the mean. The table "
    "is compared with it, and the second measurement with the first. Kendall's tau is over pairs whose latencies are "
    "more than 5 % apart. Load averages say what else the machine did."
)


def write_latency_table(
    model_name_or_path: str,
    latency_table: str = "latency_table.json",
    max_seconds: float = 150.0,
    check: int = 0,
    check_rounds: int = 12,
    results_file: str | None = None,
    busy: int = 0,
    seed: int = 0,
    target: Target = Target(rounds=30),
    task: TaskArguments = TaskArguments(),
) -> LatencyTable:
    """Time the layers of a model, and compare what they predict with direct measurements.

    Args:
        model_name_or_path: Encoder or Classformer whose shape is timed.
        latency_table: JSON file for the table.
        max_seconds: No further round starts after about so long.
        check: Schedules to measure directly as well.
        check_rounds: Timed rounds of the two direct measurements, in sum.
        results_file: JSON file for the comparison.
        busy: Processes that multiply matrices meanwhile.
        seed: Draws the schedules that are measured.
        target: Machine settings of the timing; its rounds go over the grid of lengths.
        task: Its `max_length` is the longest text that the table knows; a data set's lengths are those of the check.

    Raises:
        ValueError: A number is out of range, or the model cannot read so long texts.
    """
    if min(check, busy) < 0 or check_rounds < 2:
        raise ValueError(
            f"`check` and `busy` must be >= 0 and `check_rounds` >= 2, got {check}, {busy} and {check_rounds}."
        )
    model: Any = load_from_encoder(model_name_or_path)
    inputs = make_inputs(model_name_or_path, task) if check else []
    load_before = target.hardware["load_average"]
    with tqdm(total=1 + target.rounds, desc="table") as bar, busy_machine(busy):
        table = build_latency_table(model.config, task.max_length, target, max_seconds, bar.update)
    table.save(latency_table)
    print(f"{latency_table}: {table.rounds} rounds in {table.build_seconds:.0f} s")
    if check:
        lengths = [single["input_ids"].shape[1] for single in inputs]
        schedules = draw_schedules(model, lengths, check, seed)
        with busy_machine(busy):
            direct = measure_twice(model, schedules, inputs, check_rounds, target)
        record = compare_with_table(table, schedules, lengths, direct)
        print_check(record)
        write_record(
            results_file,
            note=NOTE,
            hardware=target.hardware,
            load_average_before=load_before,
            busy_processes=busy,
            check_rounds=check_rounds,
            table={"rounds": table.rounds, "build_seconds": table.build_seconds, "shape": table.shape},
            **record,
        )
    return table


def make_inputs(model_name_or_path: str, arguments: TaskArguments) -> list[dict[str, torch.Tensor]]:
    """Take the lengths of a data set's validation split, or evenly spaced ones where none is named."""
    if arguments.dataset_name is not None:
        task = load_task(arguments).without_test()
        tokenizer = load_tokenizer(model_name_or_path)
        return sample_inputs(tokenize(task, tokenizer, arguments.max_length).splits["validation"], NUM_INPUTS)
    longest = arguments.max_length
    lengths = np.linspace(min(SHORTEST_TOKENS, longest), longest, NUM_INPUTS).round().astype(int)
    inputs = [torch.full((1, int(length)), 5) for length in lengths]
    return [{"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)} for input_ids in inputs]


def draw_schedules(model: ClassformerForSequenceClassification, lengths: list[int], count: int, seed: int) -> list:
    """Draw different schedules, spread evenly in operations; the full one is not among them."""
    config = model.config
    space = SearchSpace(config.num_hidden_layers, max(lengths), cls_only=config.last_layer_cls_only, max_reduction=16)
    known = [schedule for schedule in space.enumerate() if schedule != space.full]
    if len(known) < count:
        raise ValueError(f"`--check` must be at most {len(known)}, the number of schedules, got {count}.")
    flops, log2_lengths = mean_flops(config, known, lengths), space.log2_lengths(known, lengths)
    sampler, generator = FlopsUniformSampler(known, flops, log2_lengths), np.random.default_rng(seed)
    drawn: dict[Schedule, None] = {}
    while len(drawn) < count:
        drawn[sampler.sample(generator)] = None
    return sorted(drawn, reverse=True)


def measure_twice(model: Any, schedules: list[Schedule], inputs: list, rounds: int, target: Target) -> np.ndarray:
    """Measure schedules relative to the full model, and a second time; gives ratios, (2, S)."""
    model, full = target.place(model), Schedule((1,) * model.config.num_hidden_layers)
    models = {schedule.key: reconfigure(model, **schedule.config) for schedule in [full, *schedules]}
    with target.use_threads(), tqdm(total=2 * (rounds // 2 + 1), desc="direct", unit="round") as bar:
        found = [measure_latency(models, inputs, full.key, rounds // 2, 1, bar.update) for _ in range(2)]
    return np.array([[latencies[schedule.key].ratio for schedule in schedules] for latencies in found])


def compare_with_table(
    table: LatencyTable, schedules: list[Schedule], lengths: list[int], direct: np.ndarray
) -> dict[str, Any]:
    """Compare the table with direct measurements, (2, S), and these with each other; returns a record for JSON."""
    predicted, mean = table.predict_ratios(schedules, lengths), direct.mean(axis=0)
    columns = {"predicted": predicted, "direct": mean, "direct_first": direct[0], "direct_second": direct[1]}
    agreement = compare_latencies(predicted, mean)
    return {
        "lengths_tokens": lengths,
        "goals": GOALS,
        "table_against_direct": agreement,
        "direct_against_direct": compare_latencies(direct[1], direct[0]),
        "is_goal_met": agreement["mean_relative_error"] <= GOALS["mean_relative_error"]
        and (agreement["kendall_tau"] or 0) >= GOALS["kendall_tau"],
        "schedules": [
            {"schedule": schedule.key, **{name: round(float(values[i]), 4) for name, values in columns.items()}}
            for i, schedule in enumerate(schedules)
        ],
    }


def print_check(record: dict[str, Any]) -> None:
    print(f"\n{'schedule':28} predicted  direct  again")
    for row in record["schedules"]:
        print(
            f"{row['schedule']:28} {row['predicted']:9.3f}  {row['direct_first']:6.3f}  {row['direct_second']:6.3f}"
            f"  {row['predicted'] / row['direct'] - 1:+6.1%}"
        )
    for name in ("table_against_direct", "direct_against_direct"):
        figures = record[name]
        tau = "-" if figures["kendall_tau"] is None else f"{figures['kendall_tau']:.3f}"
        print(
            f"{name:21}: mean error {figures['mean_relative_error']:.1%}, largest {figures['max_relative_error']:.1%}, "
            f"Kendall's tau {tau} over {figures['num_pairs']} pairs"
        )


def main() -> None:
    write_latency_table(**parse_call(write_latency_table, __doc__))
