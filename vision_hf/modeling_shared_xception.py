"""Xception whose depthwise kernels are shared inside a layer (R. Bidart, thesis 2023, section 3.6).

Widths and strides follow the configuration; its presets rebuild the thesis author's networks for 32 x 32 images.
"""

from collections import OrderedDict

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_shared_conv import SharedConvConfig  # noqa: F401  an entry file names all that travels
from .configuration_shared_xception import SharedXceptionConfig
from .layers_codebook import CodebookConv2d  # noqa: F401
from .layers_shared_conv import SharedSeparableConv2d
from .modeling_shared_conv import (
    ConvNormAct,
    SharedConvBackbone,
    SharedConvForImageClassification,
    SharedConvModel,
    batch_norm,
)


class SeparableUnit(nn.Module):
    """A separable convolution and batch norm, with a ReLU in front ("pre"), behind ("post"), or none."""

    def __init__(
        self,
        config: SharedXceptionConfig,
        in_channels: int,
        out_channels: int,
        factors: tuple[int, int],
        activation: str = "none",
        stride: int = 1,
        name: str = "",
    ):
        super().__init__()
        self.activation = activation
        self.conv = SharedSeparableConv2d(
            in_channels,
            out_channels,
            kernel_size=3,
            stride=stride,
            padding=1,
            sharing_factor=factors[0],
            pointwise_factor=factors[1],
            grad_reduction=config.grad_reduction,
            name=name,
        )
        self.norm = batch_norm(config, out_channels)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.activation == "pre":
            hidden = torch.relu(hidden)
        hidden = self.norm(self.conv(hidden))
        return torch.relu(hidden) if self.activation == "post" else hidden


class XceptionBlock(GradientCheckpointingLayer):
    """Separable convolutions, max pooling where there is a stride, and a shortcut around them."""

    def __init__(
        self,
        config: SharedXceptionConfig,
        widths: list[int],
        stride: int,
        factors: tuple[int, int],
        name: str,
    ):
        super().__init__()
        self.units = nn.ModuleList(
            SeparableUnit(config, before, after, factors, "pre", name=f"{name}.units.{number}")
            for number, (before, after) in enumerate(zip(widths[:-1], widths[1:], strict=True))
        )
        self.pool = nn.MaxPool2d(3, stride, padding=1) if stride > 1 else nn.Identity()
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or widths[0] != widths[-1]:
            conv = nn.Conv2d(widths[0], widths[-1], 1, stride, bias=False)
            self.shortcut = nn.Sequential(OrderedDict(conv=conv, norm=batch_norm(config, widths[-1])))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H / stride, W / stride)."""
        residual = self.shortcut(hidden)
        for unit in self.units:
            hidden = unit(hidden)
        return self.pool(hidden) + residual


def block_widths(before: int, after: int, depth: int, grows_late: bool) -> list[int]:
    """List the channels around the convolutions of a block."""
    inner = before if grows_late else after
    return [before, *[inner] * (depth - 1), after]


class SharedXceptionModel(SharedConvModel):
    config: SharedXceptionConfig

    def build(self, config: SharedXceptionConfig):
        names, exits = config.name_stages(), list(config.exit_channels)
        widths = config.divide_channels([*config.stage_channels, *exits[-1:]])
        factors = list(zip(config.sharing_factors, config.pointwise_sharing_factors, strict=True))
        stages, channels = [], config.stem_channels[-1]
        for index, name in enumerate(names[: len(config.stage_channels)]):
            blocks = []
            for number in range(config.stage_blocks[index]):
                first = number == 0
                row = block_widths(
                    channels, widths[index], config.block_depths[index], first and config.grows_late[index]
                )
                stride = config.stage_strides[index] if first else 1
                blocks.append(XceptionBlock(config, row, stride, factors[index], f"{name}.{number}"))
                channels = widths[index]
            stages.append(nn.Sequential(*blocks))
        if exits:
            row = [channels, *(width * widths[-1] // exits[-1] for width in exits)]
            stages.append(
                nn.Sequential(
                    *(
                        SeparableUnit(config, before, after, factors[-1], "post", name=f"exit.{number}")
                        for number, (before, after) in enumerate(zip(row[:-1], row[1:], strict=True))
                    )
                )
            )
        return self.build_stem(config, factors[0]), stages, nn.Identity(), [config.stem_channels[-1], *widths]

    def build_stem(self, config: SharedXceptionConfig, factors: tuple[int, int]) -> nn.Module:
        """Build the first convolutions; the very first is dense and unshared."""
        layers: list[nn.Module] = []
        channels = config.num_channels
        for number, (width, stride) in enumerate(zip(config.stem_channels, config.stem_strides, strict=True)):
            if number > 0 and config.is_stem_separable:
                layers.append(SeparableUnit(config, channels, width, factors, "post", stride, f"stem.{number}"))
            else:
                layers.append(ConvNormAct(config, channels, width, 3, stride))
            channels = width
        return nn.Sequential(*layers)


class SharedXceptionForImageClassification(SharedConvForImageClassification):
    config: SharedXceptionConfig
    model_class = SharedXceptionModel


class SharedXceptionBackbone(SharedConvBackbone, SharedXceptionModel):
    config: SharedXceptionConfig


__all__ = ["SharedXceptionBackbone", "SharedXceptionForImageClassification", "SharedXceptionModel"]
