r"""Draw score against time of every method that experiments/peers.py compared, one panel per dataset.

    python experiments/draw_peers.py --records results/peers_sst2.json results/peers_mrpc.json \
        --figure docs/images/peers.png

Grey: the front, on which no other point is both faster and better. Bars: a standard error of the score. Hollow:
schedules on fewer layers than the model has.
"""

from dataclasses import dataclass, field
from typing import Any

from frame import add_legend, open_panels, read_record, save_figure
from rendering.performance import count_layers, name_point

from redundancy_hf.command import parse_arguments, run_command

LEGEND_HEIGHT = 0.9
MARKERS = "osv^<>DPXd*h"


@dataclass
class DrawArguments:
    records: list[str] = field(metadata={"help": "JSON files of experiments/peers.py, a panel each."})
    figure: str = field(metadata={"help": "PNG file."})


def draw_panel(panel: Any, record: dict, methods: list[str]):
    """Draw one dataset."""
    front = sorted((point for point in record["points"] if point["is_on_front"]), key=lambda point: point["ratio"])
    panel.step(
        [point["ratio"] for point in front],
        [point["test_score"] for point in front],
        where="post",
        color="0.75",
        linewidth=5,
        zorder=0,
    )
    num_layers = count_layers(record)
    for index, method in enumerate(methods):
        points = [point for point in record["points"] if name_point(point, num_layers) == method]
        is_ours = method.startswith("classformer")
        panel.errorbar(
            [point["ratio"] for point in points],
            [point["test_score"] for point in points],
            yerr=[point["test_standard_error"] for point in points],
            linestyle="none",
            marker=MARKERS[index % len(MARKERS)],
            markersize=11 if is_ours else 6,
            color="black" if method == "full" else "C3" if is_ours else f"C{(index % 9) + (index % 9 >= 3)}",
            markerfacecolor="white" if method.endswith("fewer layers") else None,
            elinewidth=0.6,
            label=method,
            zorder=3 if is_ours else 2,
        )
    panel.axhline(record["majority_score"], color="0.6", linestyle=":", linewidth=1)
    scores = [point["test_score"] for point in record["points"]]
    panel.set_ylim(max(record["majority_score"], min(scores)) - 0.03, max(scores) + 0.03)
    panel.set(
        title=f"{record['dataset'].upper()} (n = {record['num_examples']['test']})",
        xlabel="time of a text, relative to the full model",
        ylabel=f"test {record['metric_name']}",
    )
    panel.grid(alpha=0.3)


def main():
    (arguments,) = parse_arguments((DrawArguments,), __doc__)
    records = [read_record(path, "experiments/peers.py") for path in arguments.records]
    methods = list(
        dict.fromkeys(name_point(point, count_layers(record)) for record in records for point in record["points"])
    )
    figure, panels = open_panels(len(records), 3, (5.2, 4.4), LEGEND_HEIGHT)
    for panel, record in zip(panels, records, strict=True):
        draw_panel(panel, record, methods)
    add_legend(figure, panels, columns=3 * min(len(records), 3), font_size=8)
    save_figure(figure, arguments.figure, LEGEND_HEIGHT)


if __name__ == "__main__":
    run_command(main)
