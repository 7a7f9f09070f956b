"""ResNet whose dense convolutions share filters or input channels (R. Bidart, thesis 2023, figure 3.7).

He et al. (CVPR 2016), the stride of a bottleneck on its 3x3 convolution. Sharing dense convolutions is beyond the
thesis' definition of a layer, and saves operations as well as weights.
"""

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_shared_conv import SharedConvConfig  # noqa: F401  an entry file names all that travels
from .configuration_shared_resnet import SharedResNetConfig
from .layers_codebook import CodebookConv2d  # noqa: F401
from .layers_shared_conv import SharedConv2d
from .modeling_shared_conv import (
    ConvNormAct,
    SharedConvBackbone,
    SharedConvForImageClassification,
    SharedConvModel,
    batch_norm,
)


class SharedConvNorm(nn.Module):
    """A shared convolution and batch norm, of all output channels or of the stored ones before they are repeated."""

    def __init__(
        self,
        config: SharedResNetConfig,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        factor: int,
        name: str,
    ):
        super().__init__()
        self.repeats = factor if config.batch_norm_position == "before" else 1
        if out_channels % self.repeats:
            raise ValueError(f"{name}: a sharing factor must divide the {out_channels} output channels, got {factor}.")
        self.conv = SharedConv2d(
            in_channels,
            out_channels // self.repeats,
            kernel_size,
            stride,
            padding=kernel_size // 2,
            sharing_factor=1 if self.repeats > 1 else factor,
            share_dim=config.share_dim,
            grad_reduction=config.grad_reduction,
            name=name,
        )
        self.conv.num_ties *= self.repeats
        self.norm = batch_norm(config, out_channels // self.repeats)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.conv(hidden))
        return hidden if self.repeats == 1 else hidden.repeat(1, self.repeats, 1, 1)


class ResNetBlock(GradientCheckpointingLayer):
    """Two 3x3 convolutions (basic), or 1x1, 3x3, 1x1 (bottleneck), and a shortcut around them."""

    def __init__(
        self,
        config: SharedResNetConfig,
        in_channels: int,
        out_channels: int,
        stride: int,
        factors: tuple[int, int],
        name: str,
    ):
        super().__init__()
        if config.layer_type == "bottleneck" and out_channels % 4:
            raise ValueError(f"{name}: a bottleneck is a quarter as wide, which {out_channels} channels do not give.")
        # kernel size, output channels, stride
        if config.layer_type == "basic":
            plan = [(3, out_channels, stride), (3, out_channels, 1)]
        else:
            plan = [(1, out_channels // 4, 1), (3, out_channels // 4, stride), (1, out_channels, 1)]
        layers, channels = [], in_channels
        for number, (kernel_size, width, step) in enumerate(plan):
            factor = factors[0] if kernel_size == 3 else factors[1]
            layers.append(SharedConvNorm(config, channels, width, kernel_size, step, factor, f"{name}.layers.{number}"))
            channels = width
        self.layers = nn.ModuleList(layers)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_channels != out_channels:
            factor = factors[1] if config.share_shortcut else 1
            self.shortcut = SharedConvNorm(config, in_channels, out_channels, 1, stride, factor, f"{name}.shortcut")

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H / stride, W / stride)."""
        residual = self.shortcut(hidden)
        for layer in self.layers[:-1]:
            hidden = torch.relu(layer(hidden))
        return torch.relu(self.layers[-1](hidden) + residual)


class SharedResNetModel(SharedConvModel):
    config: SharedResNetConfig

    def build(self, config: SharedResNetConfig):
        widths = config.divide_channels(list(config.hidden_sizes))
        channels, stages = config.embedding_size, []
        for index, name in enumerate(config.name_stages()):
            factors = (config.sharing_factors[index], config.pointwise_sharing_factors[index])
            blocks = []
            for number in range(config.depths[index]):
                stride = 2 if number == 0 and index > 0 else 1
                blocks.append(ResNetBlock(config, channels, widths[index], stride, factors, f"{name}.{number}"))
                channels = widths[index]
            stages.append(nn.Sequential(*blocks))
        if config.stem_type == "cifar":
            stem = nn.Sequential(ConvNormAct(config, config.num_channels, config.embedding_size, 3))
        else:
            first = ConvNormAct(config, config.num_channels, config.embedding_size, 7, 2)
            stem = nn.Sequential(first, nn.MaxPool2d(3, 2, padding=1))
        return stem, stages, nn.Identity(), [config.embedding_size, *widths]


class SharedResNetForImageClassification(SharedConvForImageClassification):
    config: SharedResNetConfig
    model_class = SharedResNetModel


class SharedResNetBackbone(SharedConvBackbone, SharedResNetModel):
    config: SharedResNetConfig


__all__ = ["SharedResNetBackbone", "SharedResNetForImageClassification", "SharedResNetModel"]
