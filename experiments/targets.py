r"""Time the winner for every target on every target: does a schedule that was found for one fit another?

Example, with the output folders of searches of one task for several targets (section 5.2.4 of the thesis asks the same
of a CPU and a GPU):

    python experiments/targets.py --folders runs/imdb runs/imdb-2threads runs/imdb-bf16 \
        --results_file results/cross_imdb.json

A target is what a search was told: device, dtype, number of threads, lengths of the texts. All winners are timed side
by side, on every target in turn, relative to the full model there.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from classformer_hf import ClassformerForSequenceClassification
from classformer_hf.checkpoints import reconfigure
from classformer_hf.search import Schedule
from redundancy_hf.command import parse_arguments, run_command, write_record
from redundancy_hf.timing import hardware_fingerprint, measure_latency

NOTE = (
    "`ratio[a][b]` is the latency of the winner for target a, timed on target b, relative to the full model on b: "
    "median over rounds in which all winners took turns on every input; `low` and `high` are the quartiles. "
    "`answer_seconds` is what the search took between the latency table and the fine-tuning of its winners."
)


@dataclass
class CrossArguments:
    folders: list[str] = field(metadata={"help": "Output folders of searches, two or more."})
    rounds: int = field(default=20, metadata={"help": "Timed rounds on each target."})
    results_file: str | None = field(default=None, metadata={"help": "JSON file for the matrix."})


def read_target(folder: Path) -> dict[str, Any]:
    """Read what a search was for, and its winner.

    Raises:
        ValueError: The folder holds no finished search whose winner was timed on this machine.
    """
    try:
        data = json.loads((folder / "best" / "search.json").read_text())
        target = {
            "name": folder.name,
            "winner": Schedule.from_config(data),
            **{name: data[name] for name in ("performance", "is_reused", "answer_seconds")},
            "lengths": data["timed_lengths"],
            **{name: data["hardware"][name] for name in ("device", "dtype", "threads")},
        }
    except (OSError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder} holds no finished search (best/search.json): {error!r}.") from error
    if data["latency_source"] != "direct":
        raise ValueError(f"the winner of {folder} was not timed on this machine, so its target cannot be timed here.")
    return target


def measure_on(target: dict[str, Any], model: Any, winners: dict[str, Schedule], rounds: int, bar: tqdm) -> dict:
    """Time all winners on one target; returns their `Latency` by name."""
    model = model.to(target["device"], getattr(torch, target["dtype"]))
    full = Schedule((1,) * model.config.num_hidden_layers)
    models = {name: reconfigure(model, **schedule.config) for name, schedule in {"full": full, **winners}.items()}
    inputs = [torch.full((1, length), 5) for length in target["lengths"]]
    inputs = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in inputs]
    torch.set_num_threads(target["threads"])
    return measure_latency(models, inputs, "full", rounds, on_round=bar.update)


def main():
    (arguments,) = parse_arguments((CrossArguments,), __doc__)
    transformers_logging.disable_progress_bar()
    if len(arguments.folders) < 2:
        raise ValueError(f"give the output folders of two or more searches with --folders, got {arguments.folders}.")
    targets = [read_target(Path(folder)) for folder in arguments.folders]
    winners = {target["name"]: target["winner"] for target in targets}
    if len(winners) < len(targets):
        raise ValueError(f"the folders need different names, got {[target['name'] for target in targets]}.")
    model = ClassformerForSequenceClassification.from_pretrained(Path(arguments.folders[0]) / "best")
    ratios: dict[str, dict[str, Any]] = {name: {} for name in winners}
    with tqdm(total=len(targets) * (arguments.rounds + 5), desc="targets", unit="round") as bar:
        for target in targets:
            measured = measure_on(target, model, winners, arguments.rounds, bar)
            for name in winners:
                latency = measured[name]
                ratios[name][target["name"]] = {
                    "ratio": latency.ratio,
                    "low": latency.ratio_low,
                    "high": latency.ratio_high,
                }
    width = max(len(name) for name in winners)
    print("speed-up over the full model of the winner for (row), timed on (column)")
    print(" " * width, *(f"{name:>{max(width, 6)}}" for name in winners))
    for name, row in ratios.items():
        print(f"{name:<{width}}", *(f"{1 / row[other]['ratio']:>{max(width, 6)}.2f}" for other in winners))
    write_record(
        arguments.results_file,
        note=NOTE,
        hardware=hardware_fingerprint(),
        rounds=arguments.rounds,
        targets=[{**target, "winner": target["winner"].key} for target in targets],
        ratios=ratios,
    )


if __name__ == "__main__":
    run_command(main)
