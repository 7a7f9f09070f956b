"""What does sharing save in the published networks: weights and operations (thesis sections 3.2, 3.6)?

    python experiments/counts.py --results_file results/vision_counts.json

EfficientNet-B0 shares depthwise kernels, as the thesis does; ResNet-50 the inputs of its 3x3 convolutions; the thesis
author's Xception for CIFAR its depthwise kernels, and both parts of its separable convolutions. Nothing is trained.
"""

from collections.abc import Sequence
from typing import Any

import torch
from frame import command_of, format_table, name_command, percent

import vision_hf
from redundancy_hf.command import write_record
from vision_hf.cost import count_expanded_parameters, count_flops
from vision_hf.explain import list_convolutions

NETWORKS: dict[str, Any] = {
    "EfficientNet-B0, depthwise": ("SharedEfficientNet", "b0", {"num_labels": 1000}, 224, False),
    "ResNet-50, inputs of 3x3": ("SharedResNet", "resnet-50", {"num_labels": 1000}, 224, False),
    "Xception (author-cifar), depthwise": ("SharedXception", "author-cifar", {"num_labels": 10}, 32, False),
    "Xception (author-cifar), both parts": ("SharedXception", "author-cifar", {"num_labels": 10}, 32, True),
}


def count(family: str, preset: str, settings: dict, size: int, is_both: bool, factor: int) -> dict[str, int]:
    """Build a network and count."""
    factors = {"sharing_factor": factor, "pointwise_sharing_factor": factor if is_both else 1}
    config = getattr(vision_hf, f"{family}Config").from_preset(preset, **settings, **factors)
    model = getattr(vision_hf, f"{family}ForImageClassification")(config)
    return {
        "sharing_factor": factor,
        "parameters": model.num_parameters(),
        "expanded_parameters": count_expanded_parameters(model),
        "spatial_parameters": sum(module.weight.numel() for module in list_convolutions(model).values()),
        "flops": count_flops(model, torch.zeros(1, 3, size, size)),
    }


def run(results_file: str, sharing_factors: Sequence[int] = (1, 2, 4, 8)) -> dict[str, Any]:
    """Count every network at every amount of sharing; gives the record.

    Args:
        results_file: JSON file for the counts.
        sharing_factors: Channels per kernel.
    """
    networks = {name: [count(*network, factor) for factor in sharing_factors] for name, network in NETWORKS.items()}
    return write_record(results_file, networks=networks)


def table(record: dict) -> str:
    """What sharing saves of published networks."""
    rows = []
    for name, counts in record["networks"].items():
        plain = counts[0]
        for row in counts:
            saved = 1 - row["parameters"] / plain["parameters"]
            cells = [f"{row['parameters']:,}", percent(saved), percent(row["spatial_parameters"] / row["parameters"])]
            rows.append([name, str(row["sharing_factor"]), *cells, f"{row['flops'] / plain['flops']:.2f}"])
    header = ["network, what shares", "s", "stored", "saved, %", "of which kernels larger than 1x1, %", "operations"]
    return format_table(header, rows, name_command(record))


main = command_of(run, __doc__, show=table)
