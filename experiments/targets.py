r"""Time the winner for every target on every target: does a schedule that was found for one fit another?

Example, with the output folders of searches of one task for several targets (section 5.2.4 of the thesis asks the same
of a CPU and a GPU):

    python experiments/targets.py --folders runs/imdb runs/imdb-2threads runs/imdb-bf16 \
        --results_file results/cross_imdb.json

A target is what a search was told: device, dtype, number of threads, lengths of the texts. All winners are timed side
by side, on every target in turn, relative to the full model there.
"""

import json
from pathlib import Path
from typing import Any

import torch
from frame import command_of, format_table, interval, name_command, percent
from tuning import take_turns

from classformer_hf import ClassformerForSequenceClassification
from classformer_hf.checkpoints import reconfigure
from classformer_hf.search import Schedule
from redundancy_hf.command import write_record
from redundancy_hf.timing import hardware_fingerprint

NOTE = (
    "`ratio[a][b]` is the latency of the winner for target a, timed on target b, relative to the full model on b: "
    "median over rounds in which all winners took turns on every input; `low` and `high` are the quartiles. "
    "`answer_seconds` is what the search took between the latency table and the fine-tuning of its winners."
)


def read_target(folder: Path) -> dict[str, Any]:
    """Read what a search was for, and its winner.

    Raises:
        ValueError: The folder holds no finished search whose winner was timed on this machine.
    """
    try:
        data = json.loads((folder / "best" / "search.json").read_text())
        target = {
            "name": folder.name,
            "winner": Schedule.from_config(data).key,
            **{name: data[name] for name in ("performance", "is_reused", "answer_seconds")},
            "lengths": data["timed_lengths"],
            **{name: data["hardware"][name] for name in ("device", "dtype", "threads")},
        }
    except (OSError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder} holds no finished search (best/search.json): {error!r}.") from error
    if data["latency_source"] != "direct":
        raise ValueError(f"the winner of {folder} was not timed on this machine, so its target cannot be timed here.")
    return target


def measure_on(target: dict[str, Any], model: Any, winners: dict[str, str], rounds: int) -> dict[str, dict]:
    """Time all winners on one target, relative to the full model there."""
    model = model.to(target["device"], getattr(torch, target["dtype"]))
    models = {"full": reconfigure(model, **Schedule((1,) * model.config.num_hidden_layers).config)}
    models |= {name: reconfigure(model, **Schedule.from_key(key).config) for name, key in winners.items()}
    inputs = [torch.full((1, length), 5) for length in target["lengths"]]
    inputs = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in inputs]
    torch.set_num_threads(target["threads"])
    found = take_turns(models, inputs, "full", rounds, warmup=5, what=target["name"])
    return {
        name: {key.removeprefix("ratio_"): found[name][key] for key in ("ratio", "ratio_low", "ratio_high")}
        for name in winners
    }


def run(folders: list[str], rounds: int = 20, results_file: str | None = None) -> dict[str, Any] | None:
    """Time all winners on all targets.

    Args:
        folders: Output folders of searches, two or more.
        rounds: Timed rounds on each target.
        results_file: JSON file for the matrix.
    """
    if len(folders) < 2:
        raise ValueError(f"give the output folders of two or more searches with --folders, got {folders}.")
    targets = [read_target(Path(folder)) for folder in folders]
    winners = {target["name"]: target["winner"] for target in targets}
    if len(winners) < len(targets):
        raise ValueError(f"the folders need different names, got {[target['name'] for target in targets]}.")
    model = ClassformerForSequenceClassification.from_pretrained(Path(folders[0]) / "best")
    measured = {target["name"]: measure_on(target, model, winners, rounds) for target in targets}
    ratios = {name: {other: measured[other][name] for other in winners} for name in winners}
    hardware = hardware_fingerprint()
    record = write_record(results_file, note=NOTE, hardware=hardware, rounds=rounds, targets=targets, ratios=ratios)
    return record


def table(record: dict) -> str:
    """Speed-up of the winner for one target, timed on another."""
    rows = []
    for target in record["targets"]:
        ratios = record["ratios"][target["name"]].values()
        speedups = [interval(*(1 / one[key] for key in ("ratio", "high", "low"))) for one in ratios]
        seconds = f"{target['answer_seconds']:.0f}" if target["is_reused"] else "trained"
        texts = f"{min(target['lengths'])} to {max(target['lengths'])}"
        about = [f"{target['threads']}, {target['dtype']}, {texts}", f"`{target['winner']}`"]
        rows.append([target["name"], *about, percent(target["performance"]), seconds, *speedups])
    note = (
        f"Speed-up over the full model on that target, median and quartiles of {record['rounds']} rounds in which all "
        "winners took turns. Tokens: of the texts that are timed. Kept: of the full model's score on the validation "
        "split. Answered: seconds from the latency table to the candidates, before their fine-tuning; trained: the "
        "search whose weights the others reuse. "
        f"{record['hardware']['device_name']}. {name_command(record)}"
    )
    header = ["winner for", "threads, dtype, tokens", "schedule", "kept, %", "answered, s"]
    return format_table([*header, *(f"timed on {name}" for name in record["ratios"])], rows, note)


main = command_of(run, __doc__, show=table)
