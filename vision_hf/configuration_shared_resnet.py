"""Configuration of ResNet with shared filters (R. Bidart, thesis 2023, figure 3.7; He et al., CVPR 2016)."""

from huggingface_hub.dataclasses import strict

from .configuration_shared_conv import SharedConvConfig


@strict
class SharedResNetConfig(SharedConvConfig):
    r"""
    Configuration of a [`SharedResNetModel`]; see [`SharedConvConfig`] for what all families share. Sharing dense
    convolutions saves operations, not only weights.

    `SharedResNetConfig.from_preset(name, **overrides)` builds `"resnet-18"` and `"resnet-50"` (ImageNet's stem) and
    `"resnet-18-cifar"` (3x3 stem without pooling); the defaults are ResNet-50.

    Args:
        embedding_size (`int`, *optional*, defaults to 64):
            Outputs of the first convolution; it is never shared and never narrowed.
        hidden_sizes (`list[int]`, *optional*, defaults to `[256, 512, 1024, 2048]`):
            Output channels of every stage.
        depths (`list[int]`, *optional*, defaults to `[3, 4, 6, 3]`):
            Residual blocks per stage.
        layer_type (`str`, *optional*, defaults to `"bottleneck"`):
            `"basic"` (3x3, 3x3) or `"bottleneck"` (1x1, 3x3 with the stride, 1x1).
        stem_type (`str`, *optional*, defaults to `"imagenet"`):
            `"imagenet"` (7x7 with stride 2, max pooling) or `"cifar"` (3x3).
        share_dim (`str`, *optional*, defaults to `"in"`):
            What shares weights: `"in"`put channels, `"out"`put filters (the author's code: the network is then no
            richer than a narrower one), or `"both"`. `sharing_factor` applies to 3x3 convolutions.
        share_shortcut (`bool`, *optional*, defaults to `False`):
            Whether `pointwise_sharing_factor` applies to the 1x1 convolutions of shortcuts too.
        batch_norm_position (`str`, *optional*, defaults to `"after"`):
            For shared output filters: batch norm of all channels `"after"` the repetition, or of the stored ones
            `"before"` it (the author's code).
    """

    model_type = "shared_resnet"
    family = "resnet"
    presets = {
        "resnet-18": {"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]},
        "resnet-50": {},
        "resnet-18-cifar": {
            "layer_type": "basic",
            "depths": [2, 2, 2, 2],
            "hidden_sizes": [64, 128, 256, 512],
            "stem_type": "cifar",
            "image_size": 32,
        },
    }

    image_size: int = 224
    embedding_size: int = 64
    hidden_sizes: list[int] | tuple[int, ...] = (256, 512, 1024, 2048)
    depths: list[int] | tuple[int, ...] = (3, 4, 6, 3)
    layer_type: str = "bottleneck"
    stem_type: str = "imagenet"
    share_dim: str = "in"
    share_shortcut: bool = False
    batch_norm_position: str = "after"

    def name_stages(self) -> list[str]:
        return [f"stage{number}" for number in range(1, len(self.hidden_sizes) + 1)]

    def validate_architecture(self):
        self.check_lengths("depths")
        self.check_options(
            layer_type=("basic", "bottleneck"),
            stem_type=("imagenet", "cifar"),
            share_dim=("in", "out", "both"),
            batch_norm_position=("after", "before"),
        )
        if self.batch_norm_position == "before" and self.share_dim != "out":
            raise ValueError('`batch_norm_position="before"` the repetition needs `share_dim="out"`.')


__all__ = ["SharedResNetConfig"]
