"""Convolutions whose weights are entries of a small codebook (R. Bidart, thesis 2023, sections 3.4 and 3.5).

A layer stores J entries, single weights or whole kernels, and which entry each of its weights or kernels is.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


class CodebookConv2d(nn.Module):
    """Convolution with weight = codebook[indices].

    Args:
        geometry: Of the convolution: in_channels, out_channels, kernel_size, stride, padding, dilation, groups.
        bias: Whether there is a bias per output channel.
        num_entries: Size of the codebook, J, at most 32,767.
        unit: "weight": entries are numbers, indices (out, in / groups, k, k); "kernel": entries are kernels (k, k),
            indices (out, in / groups).

    Raises:
        ValueError: The unit is unknown or the codebook has no or too many entries.
    """

    def __init__(self, geometry: dict[str, Any], bias: bool, num_entries: int, unit: str):
        super().__init__()
        if unit not in ("weight", "kernel"):
            raise ValueError(f'`unit` must be "weight" or "kernel", got {unit!r}.')
        if not 1 <= num_entries <= 32767:
            raise ValueError(f"a codebook has 1 to 32767 entries, got {num_entries}.")
        self.geometry = {name: tuple(v) if isinstance(v, list) else v for name, v in geometry.items()}
        self.in_channels, self.out_channels = geometry["in_channels"], geometry["out_channels"]
        self.kernel_size, self.groups = tuple(geometry["kernel_size"]), geometry["groups"]
        channels = (self.out_channels, self.in_channels // self.groups)
        entry, index = ((), (*channels, *self.kernel_size)) if unit == "weight" else (self.kernel_size, channels)
        self.codebook = nn.Parameter(torch.zeros(num_entries, *entry))
        dtype = torch.uint8 if num_entries <= 256 else torch.int16
        self.register_buffer("indices", torch.zeros(index, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(self.out_channels)) if bias else None

    def expanded_weight(self) -> torch.Tensor:
        """Give the weight of the plain convolution, (out, in / groups, k, k)."""
        return self.codebook[self.indices.long()]  # type: ignore[operator]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Convolve (B, C_in, H, W)."""
        geometry = self.geometry
        options = (geometry["stride"], geometry["padding"], geometry["dilation"], self.groups)
        return F.conv2d(hidden, self.expanded_weight(), self.bias, *options)


def use_codebooks(model: nn.Module, codebooks: dict[str, dict[str, Any]]):
    """Replace convolutions, by name, by ones with a codebook of so many entries: `{"size": 16, "unit": "weight"}`.

    Raises:
        ValueError: There is no such convolution, or it shares weights already.
    """
    for name, options in codebooks.items():
        parent_name, _, child = name.rpartition(".")
        try:
            parent, conv = model.get_submodule(parent_name), model.get_submodule(name)
        except AttributeError as error:
            raise ValueError(f"`codebooks` names the convolution {name!r}, which the model does not have.") from error
        if getattr(conv, "num_ties", 1) != 1 or not hasattr(conv, "kernel_size"):
            raise ValueError(f"{name} is no convolution that could have a codebook: it shares weights already.")
        if set(options) != {"size", "unit"}:
            raise ValueError(f'a codebook has a "size" and a "unit", got {options} for {name!r}.')
        setattr(
            parent, child, CodebookConv2d(geometry_of(conv), conv.bias is not None, options["size"], options["unit"])
        )


def geometry_of(conv: Any) -> dict[str, Any]:
    """List what the convolution is but its weights."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    return {name: getattr(conv, name) for name in names}
