r"""Draw the thesis' searches of several tasks, score against time, one panel per task (thesis figures 5.9 and 5.10).

    python experiments/draw_searches.py --records results/thesis_sst2_99.json results/thesis_mrpc_99.json \
        --figure docs/images/searches.png

Every record holds all trials of its task, and *_95.json beside it the search for 95 %, of fewer trials; what each found
is marked. The last panel averages over the tasks: geometric mean of the time, mean of the share that is kept on the
validation split and, where *_95_test.json and *_99_test.json lie beside, on the test split.
"""

import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from frame import add_legend, open_panels, read_record, save_figure
from rendering.thesis_searches import geometric_mean

from redundancy_hf.command import parse_arguments, run_command

REQUIREMENTS = {0.99: "C2", 0.95: "C3"}
LEGEND_HEIGHT = 0.5


@dataclass
class DrawArguments:
    records: list[str] = field(metadata={"help": "JSON files of the searches for 99 %%, a panel each."})
    figure: str = field(metadata={"help": "PNG file."})


def name_record(path: str, required: float) -> Path:
    """Name the record of the same task for another requirement."""
    return Path(path.replace("_99.json", f"_{100 * required:.0f}.json"))


def read_search(path: str | Path, required: float) -> dict[str, Any]:
    """Read the record of a search.

    Raises:
        ValueError: It is none, or of another requirement.
    """
    record = read_record(path, "redundancy-hf search")
    found = record["summary"]["required_performance"]
    if found != required:
        raise ValueError(f"{path} is a search for {found:.0%}, not for {required:.0%} as its name says.")
    return record


def read_test(path: Path) -> list[dict[str, Any]]:
    """Read what was scored on a test split: the full model and what was found.

    Raises:
        ValueError: These are not the two models.
    """
    models = read_record(path, "redundancy-hf evaluate")["models"]
    if len(models) != 2:
        raise ValueError(f"{path} has {len(models)} models instead of the full one and the one that was found.")
    return models


def draw_task(panel: Any, path: str):
    """Draw all trials of a task."""
    record = read_search(path, 0.99)
    data = record["summary"]
    for label, marker, color, is_from_model in (
        ("initial set", "^", "0.6", False),
        ("Gaussian process", "o", "C0", True),
    ):
        trials = [trial for trial in record["trials"] if trial["status"] == "ok"]
        points = [trial for trial in trials if (trial["origin"] == "model") == is_from_model]
        panel.plot(
            [trial["latency_ratio"] for trial in points],
            [100 * trial["score"] for trial in points],
            marker,
            color=color,
            label=label,
        )
    for required, color in REQUIREMENTS.items():
        found = read_search(name_record(path, required), required)["summary"]
        floor = 100 * required * data["full_score"]
        panel.axhline(floor, color=color, linestyle="--", linewidth=0.8, label=f"{required:.0%} of the full score")
        panel.plot(
            found["latency_ratio"], 100 * found["score"], "*", color=color, markersize=13, label=f"for {required:.0%}"
        )
    panel.axhline(100 * data["majority_score"], color="black", linestyle=":", linewidth=0.8, label="majority class")
    panel.set(
        title=f"{data['dataset'].upper()} (n = {data['num_validation_examples']})",
        xlabel="time of a text, relative to the full model",
        ylabel=f"validation {data['metric_name']}, %",
    )


def draw_average(panel: Any, paths: list[str]):
    """Draw time and share of the full score, averaged over the tasks."""
    panel.plot(1, 100, "s", color="black", label="full model")
    for required, color in REQUIREMENTS.items():
        records = [name_record(path, required) for path in paths]
        found = [read_search(path, required)["summary"] for path in records]
        time = geometric_mean([data["latency_ratio"] for data in found])
        kept = statistics.mean(data["performance"] for data in found)
        panel.plot(time, 100 * kept, "*", color=color, markersize=13, label=f"for {required:.0%}, validation")
        tests = [path.with_name(f"{path.stem}_test.json") for path in records]
        if all(path.exists() for path in tests):
            models = [read_test(path) for path in tests]
            kept = statistics.mean(last["score"] / full["score"] for full, last in models)
            panel.plot(time, 100 * kept, "P", color=color, markersize=9, label=f"for {required:.0%}, test")
    panel.set(
        title=f"mean of {len(paths)} tasks", xlabel="time, relative to the full model", ylabel="% of the full score"
    )


def main():
    (arguments,) = parse_arguments((DrawArguments,), __doc__)
    others = [path for path in arguments.records if not path.endswith("_99.json")]
    if others:
        raise ValueError(
            f"--records takes files named TASK_99.json, with TASK_95.json beside; got {', '.join(others)}."
        )
    names = [read_search(path, 0.99)["summary"]["dataset"] for path in arguments.records]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"--records has {', '.join(twice)} twice; give one record of a task.")
    figure, (*tasks, average) = open_panels(len(arguments.records) + 1, 4, (4.2, 3.7), LEGEND_HEIGHT)
    for panel, path in zip(tasks, arguments.records, strict=True):
        draw_task(panel, path)
    draw_average(average, arguments.records)
    for panel in (*tasks, average):
        panel.grid(alpha=0.3)
    average.legend(fontsize=8)
    add_legend(figure, tasks, columns=5)
    save_figure(figure, arguments.figure, LEGEND_HEIGHT)


if __name__ == "__main__":
    run_command(main)
