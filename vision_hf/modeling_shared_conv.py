"""What all shared convolutional networks have in common: outputs, heads, initialisation (thesis 2023, chapter 3).

A network is a stem, stages, and a head of convolutions (maybe none) before pooling. Letters: B images, C channels,
H x W positions, K classes.
"""

import math
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithPoolingAndNoAttention,
    ImageClassifierOutputWithNoAttention,
)
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_shared_conv import SharedConvConfig
from .layers_codebook import CodebookConv2d, use_codebooks
from .layers_shared_conv import SharedConv2d, SharedDepthwiseConv2d


def batch_norm(config: SharedConvConfig, channels: int) -> nn.BatchNorm2d:
    """Build a batch norm with the configuration's constants."""
    return nn.BatchNorm2d(channels, eps=config.batch_norm_eps, momentum=config.batch_norm_momentum)


def refuse_unknown(kwargs: dict[str, Any]):
    """Refuse arguments of a forward that neither it reads nor transformers passes to any model.

    Raises:
        TypeError: Names one.
    """
    unknown = [name for name in kwargs if name not in TransformersKwargs.__annotations__]
    if unknown:
        raise TypeError(f"forward() got an unexpected keyword argument {unknown[0]!r}")


def pad_keras(hidden: torch.Tensor, kernel_size: int) -> torch.Tensor:
    """Pad (B, C, H, W) as Keras' networks do before a stride of 2, whatever the size: one pixel less left and above."""
    before, behind = kernel_size // 2 - 1, kernel_size // 2
    return nn.functional.pad(hidden, (before, behind, before, behind))


def pad_same(hidden: torch.Tensor, kernel_size: int, stride: int) -> torch.Tensor:
    """Pad (B, C, H, W) as TensorFlow does for "same": what does not divide evenly goes right and below."""
    needed = [max((-(-size // stride) - 1) * stride + kernel_size - size, 0) for size in hidden.shape[-2:]]
    top, left = needed[0] // 2, needed[1] // 2
    return nn.functional.pad(hidden, (left, needed[1] - left, top, needed[0] - top))


def pad_strided(hidden: torch.Tensor, style: str, kernel_size: int, stride: int) -> torch.Tensor:
    """Pad (B, C, H, W) in one of the configuration's styles; a symmetric convolution pads by itself."""
    if style == "symmetric":
        return hidden
    return pad_keras(hidden, kernel_size) if style == "keras" else pad_same(hidden, kernel_size, stride)


class ConvNormAct(nn.Module):
    """A plain, never shared convolution, batch norm and activation."""

    def __init__(
        self,
        config: SharedConvConfig,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        activation: str = "relu",
        padding_style: str = "symmetric",
    ):
        super().__init__()
        self.kernel_size, self.stride = kernel_size, stride
        self.padding_style = padding_style if stride > 1 else "symmetric"
        padding = kernel_size // 2 if self.padding_style == "symmetric" else 0
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False)
        self.norm = batch_norm(config, out_channels)
        self.act = ACT2FN[activation]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = pad_strided(hidden, self.padding_style, self.kernel_size, self.stride)
        return self.act(self.norm(self.conv(hidden)))


class SharedConvPreTrainedModel(PreTrainedModel):
    config: SharedConvConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    # of one family or another
    _no_split_modules = ["MBConvBlock", "ResNetBlock", "XceptionBlock"]

    def __init__(self, config: SharedConvConfig):
        # from_pretrained(folder, sharing_factor=...) sets attributes without running the validators
        config.validate()
        super().__init__(config)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Draw as EfficientNet's authors do; the deviation of a kernel does not depend on the sharing factor."""
        layer: Any = module
        if isinstance(module, (nn.Conv2d, SharedConv2d, SharedDepthwiseConv2d, CodebookConv2d)):
            fan_out = math.prod(layer.kernel_size) * layer.out_channels // layer.groups
            is_quantised = isinstance(module, CodebookConv2d)
            init.normal_(layer.codebook if is_quantised else layer.weight, std=math.sqrt(2 / fan_out))
            if is_quantised:
                init.copy_(layer.indices, torch.randint_like(layer.indices, len(layer.codebook)))
            if layer.bias is not None:
                init.zeros_(layer.bias)
        elif isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.out_features)
            init.uniform_(module.weight, -bound, bound)
            init.zeros_(module.bias)
        else:
            super()._init_weights(module)


class SharedConvModel(SharedConvPreTrainedModel):
    """Images to features; a subclass says in `build` what the network is made of."""

    has_head = True

    def __init__(self, config: SharedConvConfig):
        super().__init__(config)
        self.stem, stages, head, self.stage_channels = self.build(config)
        self.stages = nn.ModuleList(stages)
        self.head = head if self.has_head else nn.Identity()
        self.num_features: Any = self.stage_channels
        # a backbone has no head
        codebooks = config.codebooks or {}
        present = {k: v for k, v in codebooks.items() if self.has_head or not k.startswith("head.")}
        use_codebooks(self, present)
        self.post_init()

    def build(self, config: Any) -> tuple[nn.Module, list[nn.Module], nn.Module, list[int]]:
        """Give stem, stages, head, and the output channels of the stem and every stage."""
        raise NotImplementedError

    def features(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """Compute the outputs of the stem and of every stage, each (B, C, H, W)."""
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.config.num_channels:
            raise ValueError(
                f"`pixel_values` must be (batch, {self.config.num_channels}, height, width), got "
                f"{tuple(pixel_values.shape)}; the folder's image processor makes them."
            )
        hidden_states = [self.stem(pixel_values.to(self.dtype))]
        for stage in self.stages:
            hidden_states.append(stage(hidden_states[-1]))
        return hidden_states

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, output_hidden_states: bool | None = None, **kwargs
    ) -> BaseModelOutputWithPoolingAndNoAttention:
        """Compute features.

        Args:
            pixel_values: Images, (B, num_channels, H, W).
            output_hidden_states: Whether to give the outputs of the stem and every stage too.

        Returns:
            The last features, (B, C, H', W'), their mean over positions, (B, C), and maybe the hidden states.

        Raises:
            ValueError: The images have another shape.
            TypeError: An argument is unknown.
        """
        refuse_unknown(kwargs)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        hidden_states = self.features(pixel_values)
        last = self.head(hidden_states[-1])
        return BaseModelOutputWithPoolingAndNoAttention(
            last_hidden_state=last,
            pooler_output=last.mean(dim=(2, 3)),
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
        )


class SharedConvForImageClassification(SharedConvPreTrainedModel):
    """A network with a linear classifier on its pooled features."""

    model_class: type[SharedConvModel]
    accepts_loss_kwargs = False

    def __init__(self, config: SharedConvConfig):
        super().__init__(config)
        self.num_labels: int = config.num_labels  # type: ignore[assignment]
        self.model = self.model_class(config)
        self.dropout = nn.Dropout(config.dropout_rate)
        self.classifier = nn.Linear(self.pooled_channels(), self.num_labels)
        self.post_init()

    def pooled_channels(self) -> int:
        """Count the features that the classifier reads."""
        head = self.model.head
        return head.conv.out_channels if isinstance(head, ConvNormAct) else self.model.stage_channels[-1]

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> ImageClassifierOutputWithNoAttention:
        """Classify images.

        Args:
            pixel_values: Images, (B, num_channels, H, W).
            labels: Class ids, (B,), for the loss.
            output_hidden_states: Whether to give the outputs of the stem and every stage too.

        Returns:
            Logits, (B, K), the loss if there are labels, and maybe the hidden states.

        Raises:
            ValueError: The images have another shape.
            TypeError: An argument is unknown.
        """
        refuse_unknown(kwargs)
        outputs = self.model(pixel_values, output_hidden_states=output_hidden_states, return_dict=True)
        logits = self.classifier(self.dropout(outputs.pooler_output))
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


class SharedConvBackbone(BackboneMixin, SharedConvModel):
    """The feature maps of chosen stages, for detection and segmentation models."""

    has_attentions = False
    has_head = False
    # a classifier's folder opens as a backbone
    _keys_to_ignore_on_load_unexpected = [r"^(model\.)?head\.", r"^classifier\."]

    def __init__(self, config: SharedConvConfig):
        super().__init__(config)
        self.num_features = self.stage_channels

    @can_return_tuple
    @filter_output_hidden_states
    def forward(  # type: ignore[override]
        self, pixel_values: torch.Tensor, output_hidden_states: bool | None = None, **kwargs
    ) -> BackboneOutput:
        """Compute the outputs of the stages in `config.out_features`, each (B, C, H, W).

        Raises:
            TypeError: An argument is unknown.
        """
        refuse_unknown(kwargs)
        hidden_states = self.features(pixel_values)
        by_name = dict(zip(self.stage_names, hidden_states, strict=True))
        return BackboneOutput(
            feature_maps=tuple(by_name[name] for name in self.out_features),
            hidden_states=tuple(hidden_states),
        )
