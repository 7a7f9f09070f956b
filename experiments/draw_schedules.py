r"""Draw what experiments/schedules.py found, all tasks of all records in one picture.

    python experiments/draw_schedules.py --records results/schedules_sst2.json results/schedules_mrpc.json \
        --last_layers docs/images/last_layers.png --constrained docs/images/constrained.png

A picture per option: --single, score by the layer that reduces (thesis figure 5.17); --last_layers, share of the full
model's score by the number of last layers that are reduced (figures 5.6 and 5.7); --constrained, score by time of the
schedules with one parameter (figure 5.12). Bars: a standard error of the score over test examples.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from frame import open_panels, read_record, save_figure
from rendering.schedules import iterate_tasks, largest_error, mean_score

from redundancy_hf.command import parse_arguments, run_command


@dataclass
class DrawArguments:
    records: list[str] = field(metadata={"help": "JSON files of experiments/schedules.py, of different tasks."})
    single: str | None = field(default=None, metadata={"help": "PNG file."})
    last_layers: str | None = field(default=None, metadata={"help": "PNG file."})
    last_layers_factor: int = field(default=4, metadata={"help": "The reduction that --last_layers shows."})
    constrained: str | None = field(default=None, metadata={"help": "PNG file."})


@dataclass(frozen=True)
class TaskResults:
    """What records say of one task."""

    name: str
    task: dict[str, Any]
    record: dict[str, Any]
    rows: list[dict[str, Any]]

    def select(self, family: str) -> list[dict[str, Any]]:
        """Give the rows of a family.

        Raises:
            ValueError: There are none.
        """
        found = [row for row in self.rows if row["family"] == family]
        if not found:
            raise ValueError(f"{self.name} has no schedules to draw; run the study with --families {family}.")
        return found

    def collect(self, family: str, factor: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Give the layers that a factor was tried at, scores and their standard errors, in percent.

        Raises:
            ValueError: The factor, or the family, was not run.
        """
        layers = sorted({row["layer"] for row in self.select(family) if row["factor"] == factor})
        if not layers:
            measured = ", ".join(map(str, self.factors))
            raise ValueError(f"{self.name} has no reductions by {factor}; --last_layers_factor can be {measured}.")
        variants = [{"family": family, "factor": factor, "layer": layer} for layer in layers]
        scores = [mean_score(self.rows, **variant) for variant in variants]
        errors = [largest_error(self.rows, **variant) for variant in variants]
        return np.array(layers), np.array(scores), np.array(errors)

    @property
    def factors(self) -> list[int]:
        return sorted({row["factor"] for row in self.select("single")})

    @property
    def full(self) -> float:
        score = mean_score(self.rows, family="full")
        assert score is not None  # every study has it
        return score

    @property
    def majority(self) -> float:
        return 100 * self.task["majority_score"]


def read_results(paths: list[str]) -> list[TaskResults]:
    """Read the records, in the order that is given.

    Raises:
        ValueError: A file is not a record of the study, or two have the same task.
    """
    results: list[TaskResults] = []
    for path in paths:
        for found in iterate_tasks({path: read_record(path, "experiments/schedules.py")}):
            if found[0] in {result.name for result in results}:
                raise ValueError(f"--records has {found[0]} twice; give one record of a task.")
            results.append(TaskResults(*found))
    return results


def draw_single(panel: Any, result: TaskResults):
    """Draw the score by the layer that reduces, a line per factor."""
    panel.axhline(result.full, color="black", label="no reduction")
    panel.axhline(result.majority, color="0.6", linestyle=":", label="majority class")
    for factor in result.factors:
        layers, scores, errors = result.collect("single", factor)
        panel.errorbar(layers + 1, scores, yerr=errors, marker="o", capsize=2, label=f"{factor}x")
    panel.set(xlabel="layer that reduces", ylabel=f"test {result.task['metric_name']}, %")
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.legend(fontsize=8, loc="lower right", framealpha=0.6)


def draw_constrained(panel: Any, result: TaskResults):
    """Draw score against time, each point named by its first layer."""
    times = (result.record["latency"] or {}).get(result.name)
    if not times:
        raise ValueError(f"{result.name} has no times; run the study with --rounds.")
    layers, scores, errors = result.collect("constrained", 2)
    points = [(None, result.full, largest_error(result.rows, family="full")), *zip(layers, scores, errors, strict=True)]
    schedules = {row["layer"]: row["schedule"] for row in result.rows if row["family"] in ("constrained", "full")}
    for layer, score, error in points:
        ratio = times[schedules[layer]]["ratio"]
        name = "full" if layer is None else f"k = {layer + 1}"
        panel.errorbar([ratio], [score], yerr=[error], marker="o", color="C0", capsize=2)
        panel.annotate(name, (ratio, score), (5, 5), textcoords="offset points", fontsize=8)
    panel.axhline(result.majority, color="0.6", linestyle=":")
    panel.margins(x=0.12)  # names stand to the right of their points
    panel.set(xlabel="time of a text, relative to the full model", ylabel=f"test {result.task['metric_name']}, %")


def draw_panels(results: list[TaskResults], draw: Callable[[Any, TaskResults], None], path: str):
    """Draw a panel per task."""
    figure, panels = open_panels(len(results), 3, (5.2, 4.2))
    for panel, result in zip(panels, results, strict=True):
        draw(panel, result)
        panel.set_title(f"{result.name.upper()} (n = {result.task['num_examples']['test']:,})")
        panel.grid(alpha=0.3)
    save_figure(figure, path)


def draw_last_layers(results: list[TaskResults], factor: int, path: str):
    """Draw the share of the full score by the number of last layers that are reduced, a line per task."""
    figure, (panel,) = open_panels(1, 1, (7, 4.6))
    for result in results:
        layers, scores, errors = result.collect("single", factor)
        line = panel.errorbar(
            len(result.rows[0]["gamma"]) - layers,
            100 * scores / result.full,
            yerr=100 * errors / result.full,
            marker="o",
            capsize=2,
            label=result.name.upper(),
        )
        share = 100 * result.majority / result.full
        panel.axhline(share, color=line[0].get_color(), linestyle=":", linewidth=0.8)
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
