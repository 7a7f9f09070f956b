r"""Draw the studies of sharing: accuracy by what is left of the weights or channels (thesis figures 3.3 and 3.7).

    python experiments/draw_sharing.py --records results/sharing_xception.json results/sharing_resnet.json \
        --figure docs/images/sharing.png
"""

from dataclasses import dataclass, field
from typing import Any

from frame import open_panels, read_record, save_figure

from redundancy_hf.command import parse_arguments, run_command


@dataclass
class DrawArguments:
    records: list[str] = field(metadata={"help": "JSON files of experiments/study_sharing.py, a panel each."})
    figure: str = field(metadata={"help": "PNG file."})


def group_rows(rows: list[dict]) -> dict[str, dict[int, list[float]]]:
    """Collect test accuracies by kind of sharing and factor; the plain network belongs to every kind."""
    kinds: dict[str, dict[int, list[float]]] = {}
    plain = [row["test_accuracy"] for row in rows if row["variant"] == "plain"]
    for row in rows:
        kind, _, factor = row["variant"].partition(", s=")
        if factor:
            kinds.setdefault(kind, {1: plain}).setdefault(int(factor), []).append(row["test_accuracy"])
    return kinds


def draw_panel(panel: Any, record: dict):
    """Draw one study: every training as a dot, their mean as a line."""
    for index, (kind, factors) in enumerate(group_rows(record["rows"]).items()):
        places = [str(factor) for factor in sorted(factors)]
        means = [100 * sum(factors[int(place)]) / len(factors[int(place)]) for place in places]
        panel.plot(places, means, color=f"C{index}", label=kind)
        for place in places:
            values = [100 * value for value in factors[int(place)]]
            panel.plot([place] * len(values), values, "o", color=f"C{index}", markersize=4)
    panel.set_xticks(range(4), ["100 %", "50 %", "25 %", "12.5 %"])
    panel.set(title=record["settings"]["study"], xlabel="left of what is shared or removed", ylabel="test accuracy, %")
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8, loc="lower left")


def main():
    (arguments,) = parse_arguments((DrawArguments,), __doc__)
    figure, panels = open_panels(len(arguments.records), 3, (4.6, 3.8))
    for panel, path in zip(panels, arguments.records, strict=True):
        draw_panel(panel, read_record(path, "experiments/study_sharing.py"))
    save_figure(figure, arguments.figure)


if __name__ == "__main__":
    run_command(main)
