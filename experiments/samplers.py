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
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import joblib
import numpy as np
import torch
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from classformer_hf.search.benchmark import TabularBenchmark, analytic_benchmark, read_benchmark
from classformer_hf.search.race import evaluations_to_reach, run_race, summarise_evaluations
from redundancy_hf.command import describe_run, format_record, parse_arguments, run_command
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


@dataclass
class RaceArguments:
    benchmark: str = field(default="", metadata={"help": "Parquet table of one dataset."})
    analytic: int = field(default=0, metadata={"help": "Instead: number of layers of tables by formula, 6 or 12."})
    analytic_tables: int = field(default=10, metadata={"help": "Number of those tables; the seeds take turns."})
    analytic_seed: int = field(default=0, metadata={"help": "Of the first of those tables; the next ones count up."})
    analytic_examples: int = field(
        default=0, metadata={"help": "Examples behind a score, whose binomial error is added; 0 adds none."}
    )
    required_performance: list[float] = field(
        default_factory=lambda: [0.97], metadata={"help": "Shares of the full model's score that are asked."}
    )
    samplers: list[str] = field(default_factory=lambda: list(LABELS), metadata={"help": f"Of {sorted(LABELS)}."})
    max_trials: int = field(default=50, metadata={"help": "Evaluations after the unreduced model's."})
    seeds: int = field(default=200, metadata={"help": "Runs of each sampler that is no Gaussian process."})
    process_seeds: int = field(default=30, metadata={"help": "Runs of each Gaussian process."})
    jobs: int = field(default=1, metadata={"help": "Processes that race side by side."})
    output_dir: str = field(default="", metadata={"help": "Keeps finished runs; runs/race/<table> by default."})
    results_file: str = field(default="", metadata={"help": "JSON file for the result; none by default."})
    figure: str = field(default="", metadata={"help": "PNG file for the curves; none by default."})

    def __post_init__(self):
        if bool(self.benchmark) == bool(self.analytic):
            raise ValueError("give either `--benchmark FILE.parquet` or `--analytic 12`.")
        if unknown := sorted(set(self.samplers) - set(LABELS)):
            raise ValueError(f"unknown samplers {unknown}; choose among {sorted(LABELS)}.")
        if min(self.max_trials, self.seeds, self.process_seeds, self.jobs, self.analytic_tables) < 1:
            raise ValueError("trials, seeds, tables and jobs must be >= 1.")

    @property
    def num_tables(self) -> int:
        return 1 if self.benchmark else self.analytic_tables

    @property
    def source(self) -> str:
        """What tells one race's runs from another's."""
        if self.benchmark:
            content = Path(self.benchmark).read_bytes()
            return f"{Path(self.benchmark).stem}_{hashlib.sha256(content).hexdigest()[:8]}"
        tables = f"{self.analytic_seed}to{self.analytic_seed + self.analytic_tables - 1}"
        return f"analytic{self.analytic}_examples{self.analytic_examples}_tables{tables}"

    def load(self, seed: int) -> TabularBenchmark:
        """Give the table that a seed searches."""
        if self.benchmark:
            return _read(self.benchmark)
        return _build(self.analytic, self.analytic_examples, self.analytic_seed + seed % self.analytic_tables)


@functools.cache
def _read(path: str) -> TabularBenchmark:
    return read_benchmark(path)


@functools.cache
def _build(num_layers: int, num_examples: int, seed: int) -> TabularBenchmark:
    return analytic_benchmark(num_layers, num_examples=num_examples, seed=seed)


def race(arguments: RaceArguments, required: float, name: str, seed: int) -> dict:
    """Run one sampler once; a row of the runs file."""
    torch.set_num_threads(1)
    benchmark, started = arguments.load(seed), time.process_time()
    with threadpool_limits(1):
        curves = run_race(benchmark, name, required, arguments.max_trials, seed)
    return {
        **{"sampler": name, "seed": seed, "required": required, "max_trials": arguments.max_trials},
        "best_speedup": benchmark.best_speedup(required),
        "cpu_seconds": round(time.process_time() - started, 3),
        **{key: [round(value, 5) for value in values] for key, values in curves.items()},
    }


def list_races(arguments: RaceArguments) -> Iterator[tuple[float, str, int]]:
    for required in arguments.required_performance:
        for name in arguments.samplers:
            count = arguments.process_seeds if name in PROCESSES else arguments.seeds
            yield from ((required, name, seed) for seed in range(count))


def run_all(arguments: RaceArguments) -> list[dict]:
    """Run what the runs file lacks; returns the rows of this race in order."""
    path = Path(arguments.output_dir or f"runs/race/{arguments.source}") / "runs.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue  # torn by an interruption; that run is repeated
        if row["source"] == arguments.source and row["max_trials"] == arguments.max_trials:
            rows[row["required"], row["sampler"], row["seed"]] = row
    wanted = list(list_races(arguments))
    missing = [key for key in wanted if key not in rows]
    calls = (joblib.delayed(race)(arguments, *key) for key in missing)
    finished = joblib.Parallel(arguments.jobs, return_as="generator_unordered")(calls)
    with path.open("a") as file:
        if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            file.write("\n")
        for row in tqdm(finished, total=len(wanted), initial=len(wanted) - len(missing), desc="race", unit="run"):
            rows[row["required"], row["sampler"], row["seed"]] = row = {"source": arguments.source, **row}
            file.write(json.dumps(row) + "\n")
            file.flush()
    return [rows[key] for key in wanted]


def summarise(rows: list[dict], max_trials: int, num_tables: int) -> dict:
    """Reduce one sampler's runs under one requirement."""
    tables = [row["seed"] % num_tables for row in rows]
    reach = {
        f"evaluations_to_{share:.0%}": summarise_evaluations(
            [evaluations_to_reach(row["speedup"], row["best_speedup"], share) for row in rows], max_trials, tables
        )
        for share in SHARES
    }
    shares = np.array([np.divide(row["speedup"], row["best_speedup"]) for row in rows])
    curves = {"reward": np.array([row["reward"] for row in rows]), "share_of_best_speedup": shares}
    quartiles = {
        name: {
            quartile: np.percentile(values, percent, axis=0).round(4).tolist()
            for quartile, percent in (("low", 25), ("median", 50), ("high", 75))
        }
        for name, values in curves.items()
    }
    cpu_ms = 1000 * np.median([row["cpu_seconds"] for row in rows]) / max_trials
    reached = (shares >= SHARES[0]).mean(axis=0).round(4).tolist()
    return {**reach, **quartiles, "share_reached": reached, "cpu_ms_per_evaluation": round(float(cpu_ms), 1)}


def describe_tables(arguments: RaceArguments, required: float) -> list[dict]:
    """Say of every table how large it is and how many schedules are as good as its optimum."""
    described = []
    for seed in range(arguments.num_tables):
        benchmark = arguments.load(seed)
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


def draw(results: dict, max_trials: int, title: str, path: str):
    """Draw one row per requirement: the thesis' figure, all samplers, and the share of runs that got there."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = (
        ("reward", THESIS, "best reward (eq. 5.4), as in figure 5.4"),
        ("share_of_best_speedup", tuple(LABELS), "speed-up / best possible speed-up"),
        ("share_reached", tuple(LABELS), f"share of runs at {SHARES[0]:.0%} of the optimum"),
    )
    figure, panels = plt.subplots(len(results), 3, figsize=(15, 4.4 * len(results)), squeeze=False)
    evaluations = np.arange(1, max_trials + 1)
    for (required, result), row in zip(results.items(), panels, strict=True):
        for (key, names, label), panel in zip(columns, row, strict=True):
            for index, name in enumerate(LABELS):
                if name not in names or name not in result["samplers"]:
                    continue
                curve, color = result["samplers"][name][key], f"C{index}"
                if isinstance(curve, dict):
                    panel.fill_between(
                        evaluations, curve["low"], curve["high"], step="post", color=color, alpha=0.12, lw=0
                    )
                    curve = curve["median"]
                panel.step(evaluations, curve, where="post", color=color, label=LABELS[name], linewidth=1.8)
            panel.set(xlabel="evaluations after the unreduced model", ylabel=label, xlim=(1, max_trials))
            panel.set_title(f"at least {float(required):.0%} of the full model")
            panel.grid(alpha=0.3)
            if key != "share_reached":  # its curves, the middle panel's, go through every corner
                panel.legend(fontsize=8, loc="lower right")
        row[2].set_ylim(-0.03, 1.03)
    figure.suptitle(f"{title}: medians, bands are quartiles over runs", fontsize=11)
    figure.tight_layout()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def print_table(results: dict, max_trials: int):
    for required, result in results.items():
        print(f"\nat least {float(required):.0%} of the full model: evaluations to {SHARES[0]:.0%} of the optimum")
        for name, summary in result["samplers"].items():
            reach = summary[f"evaluations_to_{SHARES[0]:.0%}"]
            numbers = [f"> {max_trials}" if reach[k] is None else f"{reach[k]:.0f}" for k in ("median", "low", "high")]
            print(
                f"{LABELS[name]:20} median {numbers[0]:>5} [{numbers[1]}, {numbers[2]}], "
                f"{reach['reached']:.0%} of {reach['runs']} runs got there"
            )


def join_earlier(content: dict, path: Path | None) -> dict:
    """Keep the samplers that a record of the same tables has and this one lacks."""
    if path is None or not path.exists():
        return content
    earlier = json.loads(path.read_text())
    tables = {required: result["tables"] for required, result in earlier["required"].items()}
    if earlier["max_trials"] != content["max_trials"] or tables != {
        required: result["tables"] for required, result in content["required"].items()
    }:
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


def main():
    (arguments,) = parse_arguments((RaceArguments,), __doc__)
    rows = run_all(arguments)
    results = {}
    for required in arguments.required_performance:
        samplers = {
            name: summarise(
                [r for r in rows if (r["sampler"], r["required"]) == (name, required)],
                arguments.max_trials,
                arguments.num_tables,
            )
            for name in arguments.samplers
        }
        results[str(required)] = {"tables": describe_tables(arguments, required), "samplers": samplers}
    title = arguments.load(0).name
    content = {
        **describe_run(),
        "note": " ".join(__doc__.split("\n\n")[1].split()),
        "table": title,
        "is_analytic": bool(arguments.analytic),
        "hardware": hardware_fingerprint(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "max_trials": arguments.max_trials,
        "required": results,
    }
    content = join_earlier(content, Path(arguments.results_file) if arguments.results_file else None)
    results = content["required"]
    print_table(results, arguments.max_trials)
    if arguments.results_file:
        Path(arguments.results_file).parent.mkdir(parents=True, exist_ok=True)
        Path(arguments.results_file).write_text(format_record(content) + "\n")
    if arguments.figure:
        draw(results, arguments.max_trials, title, arguments.figure)


if __name__ == "__main__":
    run_command(main)
