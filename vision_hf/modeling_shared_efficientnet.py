"""EfficientNet whose depthwise kernels are shared inside a layer (R. Bidart, thesis 2023, section 3.6.3).

Tan and Le (ICML 2019). Blocks are skipped per example (Huang et al., ECCV 2016), and every constant is in the
configuration, so that checkpoints trained with TensorFlow and with PyTorch both fit.
"""

from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_shared_conv import SharedConvConfig  # noqa: F401  an entry file names all that travels
from .configuration_shared_efficientnet import SharedEfficientNetConfig
from .layers_codebook import CodebookConv2d  # noqa: F401
from .layers_shared_conv import SharedConv2d, SharedDepthwiseConv2d
from .modeling_shared_conv import (
    ConvNormAct,
    SharedConvBackbone,
    SharedConvForImageClassification,
    SharedConvModel,
    batch_norm,
    pad_strided,
)


def drop_path(hidden: torch.Tensor, rate: float) -> torch.Tensor:
    """Set the branch of some examples to 0 and scale the others up, so that the mean stays."""
    kept = torch.rand(hidden.shape[0], 1, 1, 1, device=hidden.device) >= rate
    return hidden * kept.to(hidden.dtype) / (1 - rate)


class SqueezeExcite(nn.Module):
    """Scale channels by a function of their means (Hu et al., CVPR 2018)."""

    def __init__(self, channels: int, squeezed: int, activation: str):
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)
        self.act = ACT2FN[activation]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        means = hidden.mean(dim=(2, 3), keepdim=True)
        return hidden * torch.sigmoid(self.expand(self.act(self.reduce(means))))


class MBConvBlock(GradientCheckpointingLayer):
    """Expand, depthwise convolution, squeeze and excite, project; a shortcut where the shape stays."""

    def __init__(
        self,
        config: SharedEfficientNetConfig,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        expand_ratio: int,
        factors: tuple[int, int],
        drop_rate: float,
        padding_style: str,
        name: str,
    ):
        super().__init__()
        width = in_channels * expand_ratio
        shared: dict[str, Any] = {"sharing_factor": factors[1], "grad_reduction": config.grad_reduction}
        self.act = ACT2FN[config.hidden_act]
        self.is_expanding = expand_ratio != 1
        if self.is_expanding:
            self.expand = SharedConv2d(in_channels, width, 1, name=f"{name}.expand", **shared)
            self.expand_norm = batch_norm(config, width)
        self.stride, self.padding_style = stride, padding_style if stride > 1 else "symmetric"
        self.depthwise = SharedDepthwiseConv2d(
            width,
            kernel_size,
            stride,
            padding=kernel_size // 2 if self.padding_style == "symmetric" else 0,
            sharing_factor=factors[0],
            grad_reduction=config.grad_reduction,
            name=f"{name}.depthwise",
        )
        self.depthwise_norm = batch_norm(config, width)
        squeezed = max(1, int(in_channels * config.squeeze_expansion_ratio))
        self.squeeze_excite = SqueezeExcite(width, squeezed, config.hidden_act)
        self.project = SharedConv2d(width, out_channels, 1, name=f"{name}.project", **shared)
        self.project_norm = batch_norm(config, out_channels)
        self.has_shortcut = stride == 1 and in_channels == out_channels
        self.drop_rate = drop_rate

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H / stride, W / stride)."""
        residual = hidden
        if self.is_expanding:
            hidden = self.act(self.expand_norm(self.expand(hidden)))
        hidden = pad_strided(hidden, self.padding_style, self.depthwise.kernel_size[0], self.stride)
        hidden = self.act(self.depthwise_norm(self.depthwise(hidden)))
        hidden = self.project_norm(self.project(self.squeeze_excite(hidden)))
        if not self.has_shortcut:
            return hidden
        if self.training and self.drop_rate > 0:
            hidden = drop_path(hidden, self.drop_rate)
        return hidden + residual


class SharedEfficientNetModel(SharedConvModel):
    config: SharedEfficientNetConfig

    def build(self, config: SharedEfficientNetConfig):
        stem_channels = channels = config.scale_width(config.stem_channels)
        widths = config.divide_channels([config.scale_width(width) for width in config.out_channels])
        repeats = [config.scale_depth(blocks) for blocks in config.num_block_repeats]
        stages, num_blocks = [], 0
        for index, name in enumerate(config.name_stages()):
            blocks = []
            for number in range(repeats[index]):
                is_symmetric = num_blocks in (config.symmetric_blocks or [])
                blocks.append(
                    MBConvBlock(
                        config,
                        channels,
                        widths[index],
                        config.kernel_sizes[index],
                        config.strides[index] if number == 0 else 1,
                        config.expand_ratios[index],
                        (config.sharing_factors[index], config.pointwise_sharing_factors[index]),
                        config.drop_path_rate * num_blocks / sum(repeats),
                        "symmetric" if is_symmetric else config.padding_style,
                        f"{name}.{number}",
                    )
                )
                channels, num_blocks = widths[index], num_blocks + 1
            stages.append(nn.Sequential(*blocks))
        style: dict[str, Any] = {"activation": config.hidden_act, "padding_style": config.padding_style}
        stem = ConvNormAct(config, config.num_channels, stem_channels, 3, config.stem_stride, **style)
        head = ConvNormAct(config, channels, config.scale_width(config.head_channels), 1, **style)
        return stem, stages, head, [stem_channels, *widths]


class SharedEfficientNetForImageClassification(SharedConvForImageClassification):
    config: SharedEfficientNetConfig
    model_class = SharedEfficientNetModel


class SharedEfficientNetBackbone(SharedConvBackbone, SharedEfficientNetModel):
    config: SharedEfficientNetConfig


__all__ = ["SharedEfficientNetBackbone", "SharedEfficientNetForImageClassification", "SharedEfficientNetModel"]
