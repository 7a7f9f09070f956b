"""Count what sharing saves in the published networks: parameters, file size and operations (thesis sections 3.2, 3.6).

    python experiments/count_parameters.py --results_file results/vision_counts.json

EfficientNet-B0 shares depthwise kernels, as the thesis does; ResNet-50 the inputs of its 3x3 convolutions; the thesis
author's Xception for CIFAR its depthwise kernels, and both parts of its separable convolutions. Nothing is trained.
"""

from dataclasses import dataclass, field
from typing import Any

import torch

import vision_hf
from redundancy_hf.command import parse_arguments, run_command, write_record
from vision_hf.cost import count_expanded_parameters, count_flops
from vision_hf.explain import list_convolutions

NETWORKS: dict[str, Any] = {
    "EfficientNet-B0, depthwise": ("SharedEfficientNet", "b0", {"num_labels": 1000}, 224, False),
    "ResNet-50, inputs of 3x3": ("SharedResNet", "resnet-50", {"num_labels": 1000}, 224, False),
    "Xception (author-cifar), depthwise": ("SharedXception", "author-cifar", {"num_labels": 10}, 32, False),
    "Xception (author-cifar), both parts": ("SharedXception", "author-cifar", {"num_labels": 10}, 32, True),
}


@dataclass
class CountArguments:
    results_file: str = field(metadata={"help": "JSON file for the counts."})
    sharing_factors: list[int] = field(default_factory=lambda: [1, 2, 4, 8], metadata={"help": "Channels per kernel."})


def count(family: str, preset: str, settings: dict, size: int, is_both: bool, factor: int) -> dict:
    """Build a network and count."""
    factors = {"sharing_factor": factor, "pointwise_sharing_factor": factor if is_both else 1}
    config = getattr(vision_hf, f"{family}Config").from_preset(preset, **settings, **factors)
    model = getattr(vision_hf, f"{family}ForImageClassification")(config)
    spatial = sum(module.weight.numel() for module in list_convolutions(model).values())
    return {
        "sharing_factor": factor,
        "parameters": model.num_parameters(),
        "expanded_parameters": count_expanded_parameters(model),
        "spatial_parameters": spatial,
        "flops": count_flops(model, torch.zeros(1, 3, size, size)),
    }


def main():
    (arguments,) = parse_arguments((CountArguments,), __doc__)
    networks = {
        name: [count(*network, factor) for factor in arguments.sharing_factors] for name, network in NETWORKS.items()
    }
    write_record(arguments.results_file, networks=networks)
    for name, rows in networks.items():
        for row in rows:
            print(
                f"{name:36} s={row['sharing_factor']}  {row['parameters']:>12,} parameters  {row['flops']:>15,} flops"
            )


if __name__ == "__main__":
    run_command(main)
