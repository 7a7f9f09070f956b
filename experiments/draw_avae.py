"""Draw records of experiments/study_avae.py (thesis figures 4.4, 4.6 to 4.8 and 4.10 to 4.13).

    python experiments/draw_avae.py --records results/avae_mnist.json --figures_dir docs/images

Every record gives the pictures that it has numbers for: loss over angles, error over latent size, losses by epoch, and
orientations of the digits 1, 6 and 9 at three epochs. Of several seeds the curves show the mean.
"""

import json
import math
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from avae_hf import analysis
from redundancy_hf.command import parse_arguments, run_command

Curves = dict[str, list[tuple[float, float]]]


@dataclass
class DrawArguments:
    records: list[str] = field(metadata={"help": "JSON files of experiments/study_avae.py."})
    figures_dir: str = field(default="docs/images", metadata={"help": "Folder for the PNG files."})


def mean_curve(curves: list[list[tuple[float, float]]]) -> list[tuple[float, float]]:
    """Average curves over the same points."""
    return [(points[0][0], float(np.mean([y for _, y in points]))) for points in zip(*curves, strict=True)]


def collect_angles(rows: list[dict], transform: str) -> Curves:
    """Give loss over degrees, by model; the upright one also as it searches."""
    found = defaultdict(list)
    for row in rows:
        for key, suffix in (("curves", ""), ("curves_searched", ", searched")):
            for name, points in row.get(key, {}).items():
                if name.partition(",")[0] == transform:
                    to_degrees = math.degrees if transform == "rotation" else lambda v: math.degrees(math.atan(v))
                    label = f"{row['variant']}{suffix}{' with shear' if ',' in name else ''}"
                    found[label].append([(to_degrees(point["value"]), point["loss"]) for point in points])
    return {label: mean_curve(curves) for label, curves in found.items()}


def collect_sizes(rows: list[dict]) -> Curves:
    """Give squared error over latent size, by kind of inputs."""
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        kind, _, size = row["variant"].partition(", ")
        if size.isdigit():
            found[kind][int(size)].append(row["test"]["squared_error"])
    return {kind: [(size, float(np.mean(of[size]))) for size in sorted(of)] for kind, of in found.items()}


def collect_epochs(rows: list[dict]) -> dict[str, Curves]:
    """Give training loss by epoch, one panel per kind of poses."""
    found: dict[str, dict[str, list]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        poses, _, model = row["variant"].rpartition(", ")
        points = [(entry["epoch"], entry["loss"]) for entry in row["history"] if "loss" in entry]
        found[poses][model].append(points)
    return {
        poses: {model: mean_curve(curves) for model, curves in of.items()} for poses, of in found.items() if len(of) > 1
    }


def draw_record(path: Path, folder: Path) -> list[Path]:
    """Draw what a record has numbers for; give the files."""
    rows, drawn = json.loads(path.read_text())["rows"], []

    def draw(name: str, curves: dict[str, Curves], labels: tuple[str, str], marker: str = "o"):
        if curves and all(curves.values()):
            drawn.append(folder / f"{path.stem}_{name}.png")
            analysis.draw_curves(curves, labels, drawn[-1], marker)

    angles = {transform: collect_angles(rows, transform) for transform in ("rotation", "shear")}
    draw("angles", angles, ("degrees", "loss"))
    sizes = collect_sizes(rows)
    draw("sizes", {"test inputs": sizes} if sizes else {}, ("latent size", "squared error"))
    draw("epochs", collect_epochs(rows), ("epoch", "training loss"), "")
    for row in rows:
        if "orientations" in row and row["seed"] == min(other["seed"] for other in rows):
            name = row["variant"].replace(", ", "_").replace(" ", "_")
            drawn.append(folder / f"{path.stem}_orientations_{name}.png")
            epochs = {f"epoch {epoch}": found for epoch, found in row["orientations"].items()}
            analysis.draw_orientations(epochs, drawn[-1])
    return drawn


def main():
    (arguments,) = parse_arguments((DrawArguments,), __doc__)
    Path(arguments.figures_dir).mkdir(parents=True, exist_ok=True)
    for record in arguments.records:
        for path in draw_record(Path(record), Path(arguments.figures_dir)):
            print(f"wrote {path}")


if __name__ == "__main__":
    run_command(main)
