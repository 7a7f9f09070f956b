"""What shared convolutions cost: forward and training time against the plain convolutions that they stand for."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from redundancy_hf.timing import time_in_turns


def measure_ratios(
    calls: Mapping[str, Callable[[], Any]], reference: str, rounds: int = 30, seconds_per_call: float = 0.02
) -> dict[str, dict[str, float]]:
    """Time functions against each other: all take a turn in every round, in an order drawn anew.

    Args:
        calls: Functions by name.
        reference: Name of the one that the others are divided by.
        rounds: Number of ratios behind the median.
        seconds_per_call: A function is repeated within its turn until about so long is up.

    Returns:
        By name, processor time relative to the reference in the same round: median and quartiles over rounds.
    """
    times = time_in_turns([calls], rounds, 1, "process_cpu", seconds_per_turn=seconds_per_call)
    found = times.compare(reference)
    return {name: {"ratio": one.ratio, "low": one.ratio_low, "high": one.ratio_high} for name, one in found.items()}


def forward_call(layer: nn.Module, images: torch.Tensor) -> Callable[[], Any]:
    """Give a function that runs a layer without gradients, in evaluation mode."""
    layer.eval()

    def call():
        with torch.no_grad():
            layer(images)

    return call


def training_call(layer: nn.Module, images: torch.Tensor) -> Callable[[], Any]:
    """Give a function that runs a layer forward and backward, to its weights and its input."""
    layer.train()
    images = images.clone().requires_grad_()
    with torch.no_grad():
        upstream = torch.randn_like(layer(images))
    wanted = [images, *layer.parameters()]

    def call():
        torch.autograd.grad(layer(images), wanted, upstream)

    return call


def count_flops(model: nn.Module, images: torch.Tensor) -> int:
    """Count floating point operations of one evaluation, two per multiply-add, as torch counts them."""
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(images)
    return counter.get_total_flops()


def count_expanded_parameters(model: nn.Module) -> int:
    """Count the weights that a network applies: shared ones as often as they are used; indices of a codebook not."""
    total = sum(parameter.numel() for parameter in model.parameters())
    for module in model.modules():
        expand: Any = getattr(module, "expanded_weight", None)
        if expand is not None:
            stored: Any = getattr(module, "weight", None)
            stored = getattr(module, "codebook", None) if stored is None else stored
            total += expand().numel() - stored.numel()
    return total
