"""Configuration of Xception with shared kernels (R. Bidart, thesis 2023, section 3.6; F. Chollet, CVPR 2017)."""

from huggingface_hub.dataclasses import strict

from .configuration_shared_conv import SharedConvConfig

PRESETS: dict[str, dict] = {
    "author-cifar": {"unshared_stages": ["stage1", "stage2", "exit"]},
    "author-vs": {
        "stem_channels": [32, 128],
        "stem_strides": [1, 2],
        "stage_channels": [256, 256, 256],
        "stage_strides": [1, 2, 2],
        "stage_blocks": [1, 1, 1],
        "block_depths": [3, 3, 3],
        "grows_late": [False, False, False],
        "exit_channels": [],
    },
    "full-728": {
        "is_stem_separable": True,
        "stage_channels": [128, 256, 728, 728, 1024],
        "stage_strides": [2, 2, 1, 1, 2],
        "stage_blocks": [1, 1, 1, 8, 1],
        "block_depths": [2, 2, 2, 3, 2],
        "grows_late": [False, False, False, False, True],
        "exit_channels": [1536, 2048],
    },
}


@strict
class SharedXceptionConfig(SharedConvConfig):
    r"""
    Configuration of a [`SharedXceptionModel`]; see [`SharedConvConfig`] for what all families share.

    `SharedXceptionConfig.from_preset(name, **overrides)` builds `"author-cifar"` (the thesis author's network for
    32 x 32 images, 7.65 M parameters; its int `channel_divisor` spares the first stage and the exit, as he did),
    `"author-vs"` (his very small one, 0.79 M) and `"full-728"` (full widths, second convolution separable as thesis
    section 3.6.2 has it, 20.8 M). The defaults are `"author-cifar"` with all stages shared.

    Args:
        stem_channels (`list[int]`, *optional*, defaults to `[32, 64]`):
            Outputs of the first convolutions, 3x3. The first one is never shared.
        stem_strides (`list[int]`, *optional*, defaults to `[1, 1]`):
            Their strides.
        is_stem_separable (`bool`, *optional*, defaults to `False`):
            Whether the stem's later convolutions are separable; they then share as the first stage does.
        stage_channels (`list[int]`, *optional*, defaults to `[128, 512, 512, 512, 1024]`):
            Output channels of every stage; a stage is a run of blocks, of which the first changes size and width.
        stage_strides (`list[int]`, *optional*, defaults to `[1, 2, 1, 2, 2]`):
            Stride of the first block of every stage.
        stage_blocks (`list[int]`, *optional*, defaults to `[1, 1, 2, 2, 1]`):
            Residual blocks per stage.
        block_depths (`list[int]`, *optional*, defaults to `[2, 2, 3, 3, 2]`):
            Separable convolutions in a block of the stage.
        grows_late (`list[bool]`, *optional*, defaults to `[False, False, False, False, True]`):
            Whether the last instead of the first convolution of the stage's first block changes the width.
        exit_channels (`list[int]`, *optional*, defaults to `[1536, 512]`):
            Separable convolutions behind the last stage, together the stage `"exit"`; may be empty.

    Example:

    ```python
    >>> from vision_hf import SharedXceptionConfig, SharedXceptionForImageClassification

    >>> config = SharedXceptionConfig.from_preset("author-vs", sharing_factor=4, num_labels=10)
    >>> SharedXceptionForImageClassification(config).num_parameters()
    772554
    ```"""

    model_type = "shared_xception"
    family = "xception"
    presets = PRESETS

    stem_channels: list[int] | tuple[int, ...] = (32, 64)
    stem_strides: list[int] | tuple[int, ...] = (1, 1)
    is_stem_separable: bool = False
    stage_channels: list[int] | tuple[int, ...] = (128, 512, 512, 512, 1024)
    stage_strides: list[int] | tuple[int, ...] = (1, 2, 1, 2, 2)
    stage_blocks: list[int] | tuple[int, ...] = (1, 1, 2, 2, 1)
    block_depths: list[int] | tuple[int, ...] = (2, 2, 3, 3, 2)
    grows_late: list[bool] | tuple[bool, ...] = (False, False, False, False, True)
    exit_channels: list[int] | tuple[int, ...] = (1536, 512)

    def name_stages(self) -> list[str]:
        names = [f"stage{number}" for number in range(1, len(self.stage_channels) + 1)]
        return [*names, "exit"] if self.exit_channels else names

    @classmethod
    def from_preset(cls, preset: str, **overrides):
        divisor = overrides.get("channel_divisor", 1)
        if preset == "author-cifar" and isinstance(divisor, int):
            stages = super().from_preset(preset, **{**overrides, "channel_divisor": 1}).name_stages()
            overrides["channel_divisor"] = [1 if name in ("stage1", "exit") else divisor for name in stages]
        return super().from_preset(preset, **overrides)

    def validate_architecture(self):
        if not self.stem_channels or len(self.stem_channels) != len(self.stem_strides):
            raise ValueError(
                "`stem_channels` and `stem_strides` need one value per convolution of the stem, got "
                f"{self.stem_channels} and {self.stem_strides}."
            )
        self.check_lengths("stage_channels", "stage_strides", "stage_blocks", "block_depths", "grows_late")


__all__ = ["SharedXceptionConfig"]
