"""Time shared convolutions against plain ones, layer by layer, with a second plain convolution as control.

    python experiments/benchmark_vision.py --results_file results/benchmark_vision.json

Depthwise layers have the shapes of EfficientNet-B0 at 224 pixels, dense 3x3 layers those of ResNet-50, separable ones
those of the Xceptions for CIFAR. All variants of a shape take turns in every round, on one thread; ratios are to the
plain convolution in the same round, and the control, a plain convolution as well, shows how far 1.00 is from 1.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from redundancy_hf.command import parse_arguments, run_command, write_record
from redundancy_hf.timing import hardware_fingerprint
from vision_hf.cost import forward_call, measure_ratios, training_call
from vision_hf.layers_shared_conv import SharedConv2d, SharedDepthwiseConv2d, SharedSeparableConv2d

# channels, kernel size, stride, height and width of the input
DEPTHWISE = [
    *((32, 3, 1, 112), (96, 3, 2, 112), (144, 3, 1, 56), (144, 5, 2, 56), (240, 5, 1, 28), (240, 3, 2, 28)),
    *((480, 3, 1, 14), (480, 5, 1, 14), (672, 5, 1, 14), (672, 5, 2, 14), (1152, 5, 1, 7), (1152, 3, 1, 7)),
]
DENSE = [
    (64, 3, 1, 56),
    (128, 3, 2, 56),
    (128, 3, 1, 28),
    (256, 3, 2, 28),
    (256, 3, 1, 14),
    (512, 3, 2, 14),
    (512, 3, 1, 7),
]
SEPARABLE = [(256, 3, 1, 16), (512, 3, 1, 16), (512, 3, 1, 8), (728, 3, 1, 8)]


@dataclass
class BenchmarkArguments:
    sharing_factors: list[int] = field(default_factory=lambda: [2, 4], metadata={"help": "Channels per weight."})
    batch_size: int = field(default=4, metadata={"help": "Images at a time."})
    rounds: int = field(default=30, metadata={"help": "Rounds per shape."})
    seconds_per_call: float = field(default=0.02, metadata={"help": "Length of a turn."})
    results_file: str | None = field(default=None, metadata={"help": "JSON file for the ratios."})


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


def build_layers(kind: str, shape: tuple[int, int, int, int], factors: list[int]) -> dict[str, nn.Module]:
    layers = {"plain": plain_layer(kind, *shape[:3]), "control": plain_layer(kind, *shape[:3])}
    for factor in factors:
        layers |= shared_layers(kind, *shape[:3], factor)
    return layers


def main():
    (arguments,) = parse_arguments((BenchmarkArguments,), __doc__)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    modes: dict[str, Callable] = {"forward": forward_call, "forward and backward": training_call}
    shapes = {"depthwise": DEPTHWISE, "dense": DENSE, "separable": SEPARABLE}
    rows = []
    with tqdm(total=len(modes) * sum(map(len, shapes.values())), desc="shapes", unit="shape") as bar:
        for kind, listed in shapes.items():
            for shape in listed:
                images = torch.randn(arguments.batch_size, shape[0], shape[3], shape[3])
                for mode, make_call in modes.items():
                    layers = build_layers(kind, shape, arguments.sharing_factors)
                    calls = {name: make_call(layer, images) for name, layer in layers.items()}
                    ratios = measure_ratios(calls, "plain", arguments.rounds, arguments.seconds_per_call)
                    names = ("channels", "kernel_size", "stride", "image_size")
                    row = {"kind": kind, "mode": mode, **dict(zip(names, shape, strict=True))}
                    rows.append({**row, "ratios": {name: vars(ratio) for name, ratio in ratios.items()}})
                    bar.update()
    summary = summarise(rows)
    for entry in summary:
        print(f"{entry['kind']:10} {entry['mode']:20} {entry['variant']:16} {entry['geomean']:.3f}")
    write_record(
        arguments.results_file,
        hardware=hardware_fingerprint(),
        batch_size=arguments.batch_size,
        rounds=arguments.rounds,
        summary=summary,
        shapes=rows,
    )


def summarise(rows: list[dict]) -> list[dict]:
    """Give the geometric mean over shapes of every variant's median ratio."""
    ratios: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        for variant, ratio in row["ratios"].items():
            ratios.setdefault((row["kind"], row["mode"], variant), []).append(ratio["ratio"])
    return [
        {
            "kind": kind,
            "mode": mode,
            "variant": variant,
            "geomean": float(np.exp(np.mean(np.log(values)))),
            "smallest": min(values),
            "largest": max(values),
        }
        for (kind, mode, variant), values in ratios.items()
    ]


if __name__ == "__main__":
    run_command(main)
