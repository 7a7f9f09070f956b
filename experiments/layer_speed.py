"""What does a shared convolution cost in time, layer by layer, against a plain one?

    python experiments/layer_speed.py --results_file results/layer_speed.json

Depthwise layers have the shapes of EfficientNet-B0 at 224 pixels, dense 3x3 layers those of ResNet-50, separable ones
those of the Xceptions for CIFAR. All variants of a shape take turns in every round, on one thread; ratios are to the
plain convolution in the same round, and the control, a plain convolution as well, shows how far 1.00 is from 1.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pandas as pd
import torch
from frame import command_of, format_table, interval, name_command
from scipy.stats import gmean
from torch import nn
from tqdm import tqdm

from redundancy_hf.command import write_record
from redundancy_hf.timing import hardware_fingerprint
from vision_hf.cost import forward_call, measure_ratios, training_call
from vision_hf.layers_shared_conv import SharedConv2d, SharedDepthwiseConv2d, SharedSeparableConv2d

# channels, kernel size, stride, height and width of the input
SHAPES = {
    "depthwise": [
        *((32, 3, 1, 112), (96, 3, 2, 112), (144, 3, 1, 56), (144, 5, 2, 56), (240, 5, 1, 28), (240, 3, 2, 28)),
        *((480, 3, 1, 14), (480, 5, 1, 14), (672, 5, 1, 14), (672, 5, 2, 14), (1152, 5, 1, 7), (1152, 3, 1, 7)),
    ],
    "dense": [
        *((64, 3, 1, 56), (128, 3, 2, 56), (128, 3, 1, 28), (256, 3, 2, 28), (256, 3, 1, 14), (512, 3, 2, 14)),
        (512, 3, 1, 7),
    ],
    "separable": [(256, 3, 1, 16), (512, 3, 1, 16), (512, 3, 1, 8), (728, 3, 1, 8)],
}
MODES: dict[str, Callable] = {"forward": forward_call, "forward and backward": training_call}


def plain_layer(kind: str, channels: int, kernel: int, stride: int) -> nn.Module:
    geometry: dict[str, Any] = {"stride": stride, "padding": kernel // 2, "bias": False}
    if kind == "dense":
        return nn.Conv2d(channels, channels, kernel, **geometry)
    depthwise = nn.Conv2d(channels, channels, kernel, groups=channels, **geometry)
    return depthwise if kind == "depthwise" else nn.Sequential(depthwise, nn.Conv2d(channels, channels, 1, bias=False))


def shared_layers(kind: str, channels: int, kernel: int, stride: int, factor: int) -> Iterator[tuple[str, nn.Module]]:
    geometry: dict[str, Any] = {"stride": stride, "padding": kernel // 2, "sharing_factor": factor}
    if kind == "depthwise":
        yield f"shared, s={factor}", SharedDepthwiseConv2d(channels, kernel, **geometry)
    elif kind == "dense":
        for dim in ("in", "out", "both"):
            yield f"{dim}, s={factor}", SharedConv2d(channels, channels, kernel, share_dim=dim, **geometry)
    else:
        yield f"depthwise, s={factor}", SharedSeparableConv2d(channels, channels, kernel, **geometry)
        both = SharedSeparableConv2d(channels, channels, kernel, pointwise_factor=factor, **geometry)
        yield f"collapsed, s={factor}", both


def run(
    sharing_factors: Sequence[int] = (2, 4),
    batch_size: int = 4,
    rounds: int = 30,
    seconds_per_call: float = 0.02,
    results_file: str | None = None,
) -> dict[str, Any]:
    """Time every kind of layer in every shape; gives the record.

    Args:
        sharing_factors: Channels per weight.
        batch_size: Images at a time.
        rounds: Rounds per shape.
        seconds_per_call: Length of a turn.
        results_file: JSON file for the ratios.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cells = [(kind, shape, mode) for kind, shapes in SHAPES.items() for shape in shapes for mode in MODES]
    rows = []
    for kind, shape, mode in tqdm(cells, desc="shapes", unit="shape"):
        layers = {name: plain_layer(kind, *shape[:3]) for name in ("plain", "control")}
        for factor in sharing_factors:
            layers |= shared_layers(kind, *shape[:3], factor)
        images = torch.randn(batch_size, shape[0], shape[3], shape[3])
        calls = {name: MODES[mode](layer, images) for name, layer in layers.items()}
        row = {"kind": kind, "mode": mode}
        row |= dict(zip(("channels", "kernel_size", "stride", "image_size"), shape, strict=True))
        rows.append({**row, "ratios": measure_ratios(calls, "plain", rounds, seconds_per_call)})
    about = {"hardware": hardware_fingerprint(), "batch_size": batch_size, "rounds": rounds}
    return write_record(results_file, **about, summary=summarise(rows), shapes=rows)


def summarise(rows: list[dict]) -> list[dict]:
    """Give the geometric mean over shapes of every variant's median ratio."""
    ratios = pd.DataFrame(
        {"kind": row["kind"], "mode": row["mode"], "variant": variant, "ratio": ratio["ratio"]}
        for row in rows
        for variant, ratio in row["ratios"].items()
    )
    groups = ratios.groupby(["kind", "mode", "variant"], sort=False)["ratio"]
    return groups.agg(geomean=gmean, smallest="min", largest="max").reset_index().to_dict("records")


def table(record: dict) -> str:
    """Time of shared layers against plain ones, by kind."""
    rows = [
        [row["kind"], row["mode"], row["variant"], interval(row["geomean"], row["smallest"], row["largest"])]
        for row in record["summary"]
        if row["variant"] != "plain"
    ]
    note = (
        f"Processor time relative to a plain convolution in the same round, median of {record['rounds']} rounds per "
        f"shape; geometric mean over the shapes of EfficientNet-B0, ResNet-50 and Xception, [smallest, largest]; batch "
        f"{record['batch_size']}, {record['hardware']['device_name']}, {record['hardware']['threads']} thread. "
        f"`control` is a second plain convolution. {name_command(record)}"
    )
    return format_table(["layer", "mode", "variant", "time"], rows, note)


main = command_of(run, __doc__, show=table)
