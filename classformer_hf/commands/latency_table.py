r"""Time the layers of a model on this machine, so that the latency of every schedule can be predicted.

    redundancy-hf latency-table --model_name_or_path runs/full --latency_table latency_table.json

The table takes at most about three minutes. `--check 30` then measures 30 schedules directly as well, twice, and says
how far the table is from the first measurements and these from each other. `--busy 2` does all of it beside processes
that multiply matrices without pause:

    redundancy-hf latency-table --model_name_or_path runs/full --latency_table latency_table.json \
        --check 30 --busy 2 --results_file results/latency_table_check_busy.json
"""

import os
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from redundancy_hf.command import parse_arguments, write_record
from redundancy_hf.data import load_task, tokenize
from redundancy_hf.limits import load_tokenizer
from redundancy_hf.task import TaskArguments
from redundancy_hf.timing import busy_machine, hardware_fingerprint, measure_latency, sample_inputs

from .. import ClassformerForSequenceClassification
from ..checkpoints import load_from_encoder, reconfigure
from ..latency import LatencyTable, build_latency_table, compare_latencies, count_steps
from ..search.space import Schedule, SearchSpace
from ..search.supernet import FlopsUniformSampler, mean_flops

NUM_INPUTS = 16
SHORTEST_TOKENS = 8
NUM_BLOCKS = 4
GOALS = {"mean_relative_error": 0.05, "kendall_tau": 0.98}
NOTE = (
    "Latencies are relative to the full model. Two direct measurements took turns in blocks of rounds; `direct` is "
    "their mean. The table is compared with it, and the second measurement with the first. Kendall's tau is over pairs "
    "whose latencies are more than 5 % apart. Load averages say what else the machine did."
)


@dataclass
class TableArguments:
    model_name_or_path: str = field(metadata={"help": "Encoder or Classformer whose shape is timed."})
    latency_table: str = field(default="latency_table.json", metadata={"help": "JSON file for the table."})
    threads: int = field(default=1, metadata={"help": "CPU threads; above 1 the clock is wall time."})
    device: str = field(default="cpu", metadata={"help": "cpu, cuda, cuda:1, mps ..."})
    dtype: Literal["float32", "bfloat16", "float16"] = field(default="float32", metadata={"help": "Number format."})
    rounds: int = field(default=30, metadata={"help": "Timed rounds over the grid."})
    max_seconds: float = field(default=150.0, metadata={"help": "No further round starts after about so long."})
    check: int = field(default=0, metadata={"help": "Schedules to measure directly as well."})
    check_rounds: int = field(default=12, metadata={"help": "Timed rounds over them, in two measurements together."})
    results_file: str | None = field(default=None, metadata={"help": "JSON file for the comparison."})
    busy: int = field(default=0, metadata={"help": "Processes that multiply matrices meanwhile."})
    seed: int = field(default=0, metadata={"help": "Draws the schedules that are measured."})

    def __post_init__(self):
        if min(self.threads, self.rounds) < 1 or min(self.check, self.busy) < 0:
            raise ValueError(
                "`--threads` and `--rounds` must be >= 1, `--check` and `--busy` >= 0, got "
                f"{self.threads}, {self.rounds}, {self.check} and {self.busy}."
            )
        if self.check_rounds < NUM_BLOCKS:
            raise ValueError(f"`--check_rounds` must be >= {NUM_BLOCKS}, got {self.check_rounds}.")


def make_inputs(arguments: TableArguments, task_arguments: TaskArguments) -> list[dict[str, torch.Tensor]]:
    """Take the lengths of a data set's validation split, or evenly spaced ones where none is named."""
    if task_arguments.dataset_name is not None:
        task = load_task(task_arguments).without_test()
        tokenizer = load_tokenizer(arguments.model_name_or_path)
        return sample_inputs(tokenize(task, tokenizer, task_arguments.max_length).splits["validation"], NUM_INPUTS)
    longest = task_arguments.max_length
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


def measure_twice(arguments: TableArguments, model: Any, schedules: list[Schedule], inputs: list) -> np.ndarray:
    """Measure schedules relative to the full model in blocks of rounds; every other one is the second measurement.

    Returns:
        Ratios, (2, S).
    """
    model = model.to(arguments.device, getattr(torch, arguments.dtype))
    full = Schedule((1,) * model.config.num_hidden_layers)
    models = {schedule.key: reconfigure(model, **schedule.config) for schedule in [full, *schedules]}
    rounds = arguments.check_rounds // NUM_BLOCKS
    ratios = np.zeros((NUM_BLOCKS, len(schedules)))
    with tqdm(total=NUM_BLOCKS * rounds + 1, desc="direct", unit="round") as progress:
        for block in range(NUM_BLOCKS):
            with busy_machine(arguments.busy):
                latencies = measure_latency(models, inputs, full.key, rounds, int(block == 0), progress.update)
            ratios[block] = [latencies[schedule.key].ratio for schedule in schedules]
    return np.stack([ratios[0::2].mean(axis=0), ratios[1::2].mean(axis=0)])


def check_table(arguments: TableArguments, table: LatencyTable, model: Any, inputs: list) -> dict[str, Any]:
    """Compare the table with direct measurements, and these with each other; returns a record for JSON."""
    lengths = [single["input_ids"].shape[1] for single in inputs]
    schedules = draw_schedules(model, lengths, arguments.check, arguments.seed)
    direct = measure_twice(arguments, model, schedules, inputs)
    predicted = table.predict_ratios(schedules, lengths)
    rows = [
        {
            "schedule": schedule.key,
            "predicted": round(float(predicted[i]), 4),
            "direct": round(float(direct[:, i].mean()), 4),
            "direct_first": round(float(direct[0, i]), 4),
            "direct_second": round(float(direct[1, i]), 4),
        }
        for i, schedule in enumerate(schedules)
    ]
    table_agreement = compare_latencies(predicted, direct.mean(axis=0))
    return {
        "lengths_tokens": lengths,
        "goals": GOALS,
        "table_against_direct": table_agreement,
        "direct_against_direct": compare_latencies(direct[1], direct[0]),
        "is_goal_met": table_agreement["mean_relative_error"] <= GOALS["mean_relative_error"]
        and (table_agreement["kendall_tau"] or 0) >= GOALS["kendall_tau"],
        "schedules": rows,
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
    arguments, task_arguments = parse_arguments((TableArguments, TaskArguments), __doc__)
    model: Any = load_from_encoder(arguments.model_name_or_path)
    max_tokens = task_arguments.max_length
    inputs = make_inputs(arguments, task_arguments) if arguments.check else []
    dtype, load_before = getattr(torch, arguments.dtype), os.getloadavg()
    torch.set_num_threads(arguments.threads)
    steps = count_steps(max_tokens, arguments.rounds)
    with tqdm(total=steps, desc="table") as progress, busy_machine(arguments.busy):
        table = build_latency_table(
            model.config,
            max_tokens,
            arguments.device,
            dtype,
            arguments.threads,
            arguments.rounds,
            arguments.max_seconds,
            on_step=progress.update,
        )
    table.save(arguments.latency_table)
    print(f"{arguments.latency_table}: {table.rounds} rounds in {table.build_seconds:.0f} s")
    if not arguments.check:
        return
    record = check_table(arguments, table, model, inputs)
    print_check(record)
    write_record(
        arguments.results_file,
        note=NOTE,
        hardware=hardware_fingerprint(arguments.device, dtype),
        load_average_before=[round(load, 2) for load in load_before],
        busy_processes=arguments.busy,
        check_rounds=arguments.check_rounds,
        table={"rounds": table.rounds, "build_seconds": table.build_seconds, "shape": table.shape},
        **record,
    )
