"""Configuration of EfficientNet with shared kernels (R. Bidart, thesis 2023, section 3.6.3; Tan and Le, ICML 2019)."""

import math

from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN

from .configuration_shared_conv import SharedConvConfig

# width, depth, pixels, dropout of Tan and Le
SCALES = {
    "b0": (1.0, 1.0, 224, 0.2),
    "b1": (1.0, 1.1, 240, 0.2),
    "b2": (1.1, 1.2, 260, 0.3),
    "b3": (1.2, 1.4, 300, 0.3),
    "b4": (1.4, 1.8, 380, 0.4),
    "b5": (1.6, 2.2, 456, 0.4),
    "b6": (1.8, 2.6, 528, 0.5),
    "b7": (2.0, 3.1, 600, 0.5),
}


@strict
class SharedEfficientNetConfig(SharedConvConfig):
    r"""
    Configuration of a [`SharedEfficientNetModel`]; see [`SharedConvConfig`] for what all families share.

    `SharedEfficientNetConfig.from_preset("b0", sharing_factor=4)` builds B0 to B7; the defaults are B0.

    Args:
        width_coefficient (`float`, *optional*, defaults to 1.0):
            Multiplies every width, which is then rounded to a multiple of `depth_divisor`.
        depth_coefficient (`float`, *optional*, defaults to 1.0):
            Multiplies the blocks of every stage, rounded up.
        depth_divisor (`int`, *optional*, defaults to 8):
            A unit of width.
        stem_channels (`int`, *optional*, defaults to 32):
            Outputs of the first convolution, before scaling. It is never shared.
        stem_stride (`int`, *optional*, defaults to 2):
            Its stride.
        kernel_sizes, out_channels, strides, num_block_repeats, expand_ratios (`list[int]`, *optional*):
            One value per stage; the defaults are B0's.
        squeeze_expansion_ratio (`float`, *optional*, defaults to 0.25):
            Width of squeeze-and-excitation, relative to the channels that enter the block.
        head_channels (`int`, *optional*, defaults to 1280):
            Outputs of the last 1x1 convolution, before scaling.
        hidden_act (`str`, *optional*, defaults to `"silu"`):
            Activation.
        padding_style (`str`, *optional*, defaults to `"symmetric"`):
            Padding of convolutions with a stride: `"symmetric"`, as timm's own models are trained; `"same"`, as
            TensorFlow pads, by the size of the image: an odd pixel goes right and below (timm's `tf_` models); or
            `"keras"`, one pixel less left and above whatever the size (google/efficientnet-* and transformers).
        symmetric_blocks (`list[int]`, *optional*):
            Blocks, counted from 0 over all stages, that pad symmetrically all the same: transformers'
            `depthwise_padding`, which makes `"keras"` equal `"same"` at one size of the image.
        drop_path_rate (`float`, *optional*, defaults to 0.2):
            Share of examples for which the last block is skipped in training; it rises linearly from 0.
    """

    model_type = "shared_efficientnet"
    family = "efficientnet"
    presets = {
        name: {"width_coefficient": width, "depth_coefficient": depth, "image_size": pixels, "dropout_rate": dropout}
        for name, (width, depth, pixels, dropout) in SCALES.items()
    }

    image_size: int = 224
    dropout_rate: float | int = 0.2
    width_coefficient: float | int = 1.0
    depth_coefficient: float | int = 1.0
    depth_divisor: int = 8
    stem_channels: int = 32
    stem_stride: int = 2
    kernel_sizes: list[int] | tuple[int, ...] = (3, 3, 5, 3, 5, 5, 3)
    out_channels: list[int] | tuple[int, ...] = (16, 24, 40, 80, 112, 192, 320)
    strides: list[int] | tuple[int, ...] = (1, 2, 2, 2, 1, 2, 1)
    num_block_repeats: list[int] | tuple[int, ...] = (1, 2, 2, 3, 3, 4, 1)
    expand_ratios: list[int] | tuple[int, ...] = (1, 6, 6, 6, 6, 6, 6)
    squeeze_expansion_ratio: float = 0.25
    head_channels: int = 1280
    hidden_act: str = "silu"
    padding_style: str = "symmetric"
    symmetric_blocks: list[int] | None = None
    drop_path_rate: float | int = 0.2

    def name_stages(self) -> list[str]:
        return [f"stage{number}" for number in range(1, len(self.out_channels) + 1)]

    def scale_width(self, channels: int) -> int:
        """Scale a width and round it to a unit, never by more than a tenth down."""
        scaled, unit = channels * self.width_coefficient, self.depth_divisor
        rounded = max(unit, int(scaled + unit / 2) // unit * unit)
        return rounded if rounded >= 0.9 * scaled else rounded + unit

    def scale_depth(self, blocks: int) -> int:
        """Scale the number of blocks."""
        return math.ceil(blocks * self.depth_coefficient)

    def validate_architecture(self):
        lists = ("kernel_sizes", "strides", "num_block_repeats", "expand_ratios")
        self.check_lengths(*lists)
        for name in lists:
            if min(getattr(self, name)) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"`hidden_act` must be an activation of transformers, got {self.hidden_act!r}.")
        self.check_options(padding_style=("symmetric", "same", "keras"))
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"`drop_path_rate` must be in [0, 1), got {self.drop_path_rate}.")


__all__ = ["SharedEfficientNetConfig"]
