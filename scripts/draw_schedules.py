r"""Draw what scripts/study_schedules.py found, all tasks of all records in one picture.

    python scripts/draw_schedules.py --records results/schedules.json --single docs/images/single_reductions.png \
        --last_layers docs/images/last_layers.png --constrained docs/images/constrained.png

A picture per option: --single, score by the layer that reduces (thesis figure 5.17); --last_layers, share of the full
model's score by the number of last layers that are reduced (figures 5.6 and 5.7); --constrained, score by time of the
schedules with one parameter (figure 5.12). Bars: a standard error of the score over test examples.
"""

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rendering.figures import open_panels, save_figure

from classformer_hf.command import parse_arguments, run_command


@dataclass
class DrawArguments:
    records: list[str] = field(metadata={"help": "JSON files of scripts/study_schedules.py."})
    single: str | None = field(default=None, metadata={"help": "PNG file."})
    last_layers: str | None = field(default=None, metadata={"help": "PNG file."})
    last_layers_factor: int = field(default=4, metadata={"help": "The reduction that --last_layers shows."})
    constrained: str | None = field(default=None, metadata={"help": "PNG file."})


@dataclass(frozen=True)
class TaskResults:
    """All of one task."""

    name: str
    task: dict[str, Any]
    latency: dict[str, Any]
    rows: list[dict[str, Any]]

    def select(self, family: str, factor: int | None = None) -> dict[int | None, list[dict[str, Any]]]:
        """Give the rows of a family by the layer that reduces first."""
        points: dict[int | None, list[dict[str, Any]]] = {}
        for row in self.rows:
            if row["family"] == family and factor in (None, row["factor"]):
                points.setdefault(row["layer"], []).append(row)
        return points

    @property
    def full(self) -> float:
        return mean_score(self.select("full")[None])


def mean_score(rows: list[dict[str, Any]]) -> float:
    return statistics.mean(row["test_score"] for row in rows)


def largest_error(rows: list[dict[str, Any]]) -> float:
    return max(row["test_standard_error"] for row in rows)


def read_results(paths: list[str]) -> list[TaskResults]:
    results = []
    for record in (json.loads(Path(path).read_text()) for path in paths):
        for name, task in record["datasets"].items():
            rows = [row for row in record["rows"] if row["dataset"] == name]
            results.append(TaskResults(name, task, (record["latency"] or {}).get(name, {}), rows))
    return results


def draw_single(panel: Any, result: TaskResults):
    """Draw the score by the layer that reduces, a line per factor."""
    panel.axhline(result.full, color="black", label="no reduction")
    panel.axhline(result.task["majority_score"], color="0.6", linestyle=":", label="majority class")
    for factor in sorted({row["factor"] for row in result.rows if row["family"] == "single"}):
        points = result.select("single", factor)
        panel.errorbar(
            [int(layer or 0) + 1 for layer in points],
            [mean_score(rows) for rows in points.values()],
            yerr=[largest_error(rows) for rows in points.values()],
            marker="o",
            capsize=2,
            label=f"{factor}x",
        )
    panel.set(xlabel="layer that reduces", ylabel=f"test {result.task['metric_name']}")
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.legend(fontsize=8, loc="lower right", framealpha=0.6)


def draw_constrained(panel: Any, result: TaskResults):
    """Draw score against time, each point named by its first layer."""
    if not result.latency:
        raise ValueError(f"{result.name} has no times; run the study with --latency_rounds.")
    if not result.select("constrained"):
        raise ValueError(f"{result.name} has no schedules to draw; run the study with --families constrained.")
    points = result.select("constrained") | result.select("full")
    for layer, rows in points.items():
        ratio = result.latency[rows[0]["schedule"]]["ratio"]
        name = "full" if layer is None else f"k = {layer + 1}"
        panel.errorbar([ratio], [mean_score(rows)], yerr=[largest_error(rows)], marker="o", color="C0", capsize=2)
        panel.annotate(name, (ratio, mean_score(rows)), (5, 5), textcoords="offset points", fontsize=8)
    panel.axhline(result.task["majority_score"], color="0.6", linestyle=":")
    panel.set(xlabel="time of a text, relative to the full model", ylabel=f"test {result.task['metric_name']}")


def draw_panels(results: list[TaskResults], draw: Callable[[Any, TaskResults], None], path: str):
    """Draw a panel per task."""
    figure, panels = open_panels(len(results), 3, (5.2, 4.2))
    for panel, result in zip(panels, results, strict=True):
        draw(panel, result)
        panel.set_title(f"{result.name.upper()} (n = {result.task['num_examples']['test']})")
        panel.grid(alpha=0.3)
    save_figure(figure, path)


def draw_last_layers(results: list[TaskResults], factor: int, path: str):
    """Draw the share of the full score by the number of last layers that are reduced, a line per task."""
    figure, (panel,) = open_panels(1, 1, (7, 4.6))
    for result in results:
        points = result.select("single", factor)
        num_layers = len(result.rows[0]["gamma"])
        line = panel.errorbar(
            [num_layers - int(layer or 0) for layer in points],
            [100 * mean_score(rows) / result.full for rows in points.values()],
            yerr=[100 * largest_error(rows) / result.full for rows in points.values()],
            marker="o",
            capsize=2,
            label=result.name.upper(),
        )
        majority = 100 * result.task["majority_score"] / result.full
        panel.axhline(majority, color=line[0].get_color(), linestyle=":", linewidth=0.8)
    panel.set(xlabel=f"last layers whose length is reduced by {factor}", ylabel="% of the full model's test score")
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
    save_figure(figure, path)


def main():
    (arguments,) = parse_arguments((DrawArguments,), __doc__)
    if arguments.single is arguments.last_layers is arguments.constrained is None:
        raise ValueError("nothing to draw: give --single, --last_layers or --constrained.")
    results = read_results(arguments.records)
    if arguments.single:
        draw_panels(results, draw_single, arguments.single)
    if arguments.last_layers:
        draw_last_layers(results, arguments.last_layers_factor, arguments.last_layers)
    if arguments.constrained:
        draw_panels(results, draw_constrained, arguments.constrained)


if __name__ == "__main__":
    run_command(main)
