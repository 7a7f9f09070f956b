"""Race the samplers on a table of every schedule: figure 5.4 of the thesis, and all samplers beyond.

Every run is told the unreduced model and has `--max_trials` evaluations from then on, without an initial set: one
random schedule for scikit-optimize and Optuna's process, nine random trials for TPE (Optuna's default of ten counts the
unreduced model). What is taken is proposed by none of them. A run has reached the optimum when its fastest
schedule that is good enough has 99 % of the speed-up of the table's best; a run that did not counts as more than
`--max_trials`; the binary search of section 5.2.5, which knows one schedule per first layer, ends early and keeps what
it has. An interrupted race goes on with the same command, and one with other `--samplers` joins what RESULTS_FILE holds
of the same tables.

Tables come from a parquet file:

    python experiments/samplers.py --benchmark results/bench_sst2.parquet --results_file results/race_sst2.json

or from a formula, 10 tables with other weights and deviations, which the seeds take in turn:

    python experiments/samplers.py --analytic 12 --results_file results/race_analytic12.json
"""

import functools
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from frame import command_of, format_table, name_command, open_panels, percent, save_figure
from tabular import (
    TabularBenchmark,
    analytic_benchmark,
    evaluations_to_reach,
    read_benchmark,
    run_race,
    summarise_evaluations,
)
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from redundancy_hf.command import describe_run, write_record
from redundancy_hf.timing import hardware_fingerprint

PROCESSES = ("thesis", "gp", "constrained")
LABELS = {
    "constrained": "constrained (ours)",
    "thesis": "scikit-optimize GP",
    "gp": "Optuna GP",
    "tpe": "TPE (Optuna)",
    "evolution": "evolution",
    "random": "random",
    "binary": "binary search (thesis)",
}
THESIS = ("thesis", "tpe", "random")
SHARES = (0.99, 0.95)


@dataclass(frozen=True)
class Tables:
    """What is raced on: one table of a file, or several by formula, which the seeds take in turn.

    Args:
        path: The file; or
        num_layers: of the formula.
        number: Of tables by formula.
        first: Seed of the first of them.
        num_examples: Behind a score by formula.
    """

    path: str = ""
    num_layers: int = 0
    number: int = 1
    first: int = 0
    num_examples: int = 0

    @property
    def source(self) -> str:
        """What tells one race's runs from another's."""
        if self.path:
            return f"{Path(self.path).stem}_{hashlib.sha256(Path(self.path).read_bytes()).hexdigest()[:8]}"
        seeds = f"{self.first}to{self.first + self.number - 1}"
        return f"analytic{self.num_layers}_examples{self.num_examples}_tables{seeds}"

    @functools.cache  # noqa: B019
    def load(self, index: int) -> TabularBenchmark:
        """Give one table."""
        if self.path:
            return read_benchmark(self.path)
        return analytic_benchmark(self.num_layers, num_examples=self.num_examples, seed=self.first + index)

    def describe(self, required: float) -> list[dict]:
        """Say of every table how large it is and how many schedules are as good as its optimum."""
        described = []
        for benchmark in map(self.load, range(self.number)):
            is_feasible, best = benchmark.performance >= required, benchmark.best_speedup(required)
            described.append(
                {
                    "name": benchmark.name,
                    "schedules": len(benchmark.performance),
                    "feasible": int(is_feasible.sum()),
                    "best_speedup": round(best, 4),
                    "within_1_percent": int((is_feasible & (1 / benchmark.latency >= SHARES[0] * best)).sum()),
                }
            )
        return described


def race(tables: Tables, max_trials: int, required: float, name: str, seed: int) -> dict:
    """Run one sampler once; a row of the runs file."""
    torch.set_num_threads(1)
    benchmark, started = tables.load(seed % tables.number), time.process_time()
    with threadpool_limits(1):
        curves = run_race(benchmark, name, required, max_trials, seed)
    return {
        **{"source": tables.source, "sampler": name, "seed": seed, "required": required, "max_trials": max_trials},
        "best_speedup": benchmark.best_speedup(required),
        "cpu_seconds": round(time.process_time() - started, 3),
        **{key: [round(value, 5) for value in values] for key, values in curves.items()},
    }


def run_all(tables: Tables, max_trials: int, wanted: list[tuple], jobs: int, path: Path) -> list[dict]:
    """Run what the runs file lacks of (requirement, sampler, seed); gives their rows in order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue  # torn by an interruption; that run is repeated
        if row["source"] == tables.source and row["max_trials"] == max_trials:
            rows[row["required"], row["sampler"], row["seed"]] = row
    missing = [key for key in wanted if key not in rows]
    calls = (joblib.delayed(race)(tables, max_trials, *key) for key in missing)
    finished = joblib.Parallel(jobs, return_as="generator_unordered")(calls)
    with path.open("a") as file:
        if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            file.write("\n")
        for row in tqdm(finished, total=len(wanted), initial=len(wanted) - len(missing), desc="race", unit="run"):
            rows[row["required"], row["sampler"], row["seed"]] = row
            file.write(json.dumps(row) + "\n")
            file.flush()
    return [rows[key] for key in wanted]


def summarise(rows: list[dict], max_trials: int, num_tables: int) -> dict:
    """Reduce one sampler's runs under one requirement."""
    tables = [row["seed"] % num_tables for row in rows]
    reach = {}
    for share in SHARES:
        counts = [evaluations_to_reach(row["speedup"], row["best_speedup"], share) for row in rows]
        reach[f"evaluations_to_{share:.0%}"] = summarise_evaluations(counts, max_trials, tables)
    shares = np.array([np.divide(row["speedup"], row["best_speedup"]) for row in rows])
    curves = {"reward": np.array([row["reward"] for row in rows]), "share_of_best_speedup": shares}
    quartiles = {
        name: dict(
            zip(("low", "median", "high"), np.percentile(values, [25, 50, 75], axis=0).round(4).tolist(), strict=True)
        )
        for name, values in curves.items()
    }
    cpu_ms = 1000 * np.median([row["cpu_seconds"] for row in rows]) / max_trials
    reached = (shares >= SHARES[0]).mean(axis=0).round(4).tolist()
    return {**reach, **quartiles, "share_reached": reached, "cpu_ms_per_evaluation": round(float(cpu_ms), 1)}


def join_earlier(content: dict, path: Path) -> dict:
    """Keep the samplers that a record of the same tables has and this one lacks."""
    earlier = json.loads(path.read_text()) if path.is_file() else {"required": {}}
    tables, earlier_tables = (
        {required: result["tables"] for required, result in one["required"].items()} for one in (content, earlier)
    )
    if tables != earlier_tables or earlier["max_trials"] != content["max_trials"]:
        return content
    is_joined = False
    for required, result in content["required"].items():
        samplers = {**earlier["required"][required]["samplers"], **result["samplers"]}
        is_joined = is_joined or len(samplers) > len(result["samplers"])
        result["samplers"] = {name: samplers[name] for name in LABELS if name in samplers}
    if is_joined:
        # those of the runs whose samplers stand here, the first as the record's own
        earlier_runs = [earlier["arguments"], *earlier.get("joined", [])]
        new = [] if content["arguments"] in earlier_runs else [content["arguments"]]
        content |= {"arguments": earlier_runs[0], "joined": [*earlier_runs[1:], *new]}
    return content


def list_rows(record: dict) -> Iterator[tuple[str, str, dict, list[str]]]:
    """Give requirement, sampler, its summary, and its evaluations until it is near the optimum with their interval."""
    for required, result in record["required"].items():
        for name, summary in result["samplers"].items():
            reach = summary[f"evaluations_to_{SHARES[0]:.0%}"]
            numbers = ["more" if reach[key] is None else f"{reach[key]:.0f}" for key in ("median", "low", "high")]
            yield required, name, summary, numbers


def run(
    benchmark: str = "",
    analytic: int = 0,
    analytic_tables: int = 10,
    analytic_seed: int = 0,
    analytic_examples: int = 0,
    required_performance: Sequence[float] = (0.97,),
    samplers: Sequence[str] = tuple(LABELS),
    max_trials: int = 50,
    seeds: int = 200,
    process_seeds: int = 30,
    jobs: int = 1,
    output_dir: str = "",
    results_file: str | None = None,
    figure: str | None = None,
) -> dict[str, Any]:
    """Run what is missing of a race, and summarise it.

    Args:
        benchmark: Parquet table of one dataset.
        analytic: Instead: number of layers of tables by formula, 6 or 12.
        analytic_tables: Number of those tables; the seeds take turns.
        analytic_seed: Of the first of those tables; the next ones count up.
        analytic_examples: Examples behind a score, whose binomial error is added; 0 adds none.
        required_performance: Shares of the full model's score that are asked.
        samplers: Those that race.
        max_trials: Evaluations after the unreduced model's.
        seeds: Runs of each sampler that is no Gaussian process.
        process_seeds: Runs of each Gaussian process.
        jobs: Processes that race side by side.
        output_dir: Keeps finished runs; runs/race/<table> by default.
        results_file: JSON file for the result.
        figure: PNG file for the curves.
    """
    if bool(benchmark) == bool(analytic):
        raise ValueError("give either `--benchmark FILE.parquet` or `--analytic 12`.")
    if unknown := sorted(set(samplers) - set(LABELS)):
        raise ValueError(f"unknown samplers {unknown}; choose among {sorted(LABELS)}.")
    if min(max_trials, seeds, process_seeds, jobs, analytic_tables) < 1:
        raise ValueError("trials, seeds, tables and jobs must be >= 1.")
    formula = {"number": analytic_tables, "first": analytic_seed, "num_examples": analytic_examples}
    tables = Tables(benchmark) if benchmark else Tables(num_layers=analytic, **formula)
    wanted = [
        (required, name, seed)
        for required in required_performance
        for name in samplers
        for seed in range(process_seeds if name in PROCESSES else seeds)
    ]
    rows = run_all(tables, max_trials, wanted, jobs, Path(output_dir or f"runs/race/{tables.source}") / "runs.jsonl")
    results: dict[str, Any] = {}
    for (required, name), own in groupby(rows, lambda row: (row["required"], row["sampler"])):
        result = results.setdefault(str(required), {"tables": tables.describe(required), "samplers": {}})
        result["samplers"][name] = summarise(list(own), max_trials, tables.number)
    record = {
        **describe_run(),
        "note": " ".join(__doc__.split("\n\n")[1].split()),
        "table": tables.load(0).name,
        "is_analytic": bool(analytic),
        "hardware": hardware_fingerprint(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "max_trials": max_trials,
        "required": results,
    }
    if results_file:
        record = write_record(results_file, **join_earlier(record, Path(results_file)))
    if figure:
        draw_curves(record, figure)
    return record


def draw_curves(record: dict, path: str):
    """Draw one row per requirement: the thesis' figure, all samplers, and the share of runs that got there."""
    columns = (
        ("reward", THESIS, "best reward (eq. 5.4), as in figure 5.4"),
        ("share_of_best_speedup", tuple(LABELS), "speed-up / best possible speed-up"),
        ("share_reached", tuple(LABELS), f"share of runs at {SHARES[0]:.0%} of the optimum"),
    )
    picture, panels = open_panels(3 * len(record["required"]), 3, (5, 4.4))
    jobs = [(required, result, *column) for required, result in record["required"].items() for column in columns]
    evaluations = np.arange(1, record["max_trials"] + 1)
    for panel, (required, result, key, names, label) in zip(panels, jobs, strict=True):
        for index, name in enumerate(LABELS):
            if name not in names or name not in result["samplers"]:
                continue
            curve, color = result["samplers"][name][key], f"C{index}"
            if isinstance(curve, dict):
                band = {"step": "post", "color": color, "alpha": 0.12, "lw": 0}
                panel.fill_between(evaluations, curve["low"], curve["high"], **band)
                curve = curve["median"]
            panel.step(evaluations, curve, where="post", color=color, label=LABELS[name], linewidth=1.8)
        panel.set(xlabel="evaluations after the unreduced model", ylabel=label, xlim=(1, record["max_trials"]))
        panel.set_title(f"at least {float(required):.0%} of the full model")
        panel.grid(alpha=0.3)
        if key != "share_reached":  # its curves, the middle panel's, go through every corner
            panel.legend(fontsize=8, loc="lower right")
        else:
            panel.set_ylim(-0.03, 1.03)
    picture.suptitle(f"{record['table']}: medians, bands are quartiles over runs", fontsize=11)
    save_figure(picture, path)


def table(record: dict) -> str:
    """Evaluations to 99 % of the optimum, by sampler and requirement."""
    rows = []
    for required, name, summary, (median, low, high) in list_rows(record):
        reach, reward = summary[f"evaluations_to_{SHARES[0]:.0%}"], summary["reward"]["median"]
        rewards = [f"{reward[min(9, len(reward) - 1)]:.3f}", f"{reward[-1]:.3f}"]
        about = [f"{percent(float(required), 0)} %", name, f"{median} [{low}, {high}]"]
        rows.append([*about, percent(reach["reached"], 0), reach["runs"], *rewards])
    header = ["keep", "sampler", "evaluations to 99 % of the optimum", "runs there, %", "runs", "reward at 10"]
    first = next(iter(record["required"].values()))
    note = (
        f"{record['table']}: {first['tables'][0]['schedules']} schedules; median and 95 % interval over runs, `more` "
        f"is more than {record['max_trials']}; reward of equation 5.4, median. {name_command(record)}"
    )
    return format_table([*header, "at the end"], rows, note)


main = command_of(run, __doc__, show=table)
