"""What the configurations of all shared convolutional networks have in common (R. Bidart, thesis 2023, chapter 3)."""

# transformers answers with the first folder's code where two of one name have the same configuration file
# digest of the code that travels with this file: 51752939923f629a

import dataclasses
from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin


def auto_map_of(name: str) -> dict[str, str]:
    """Name what the Auto classes find in a saved folder: `"xception"` is in `modeling_shared_xception.py`."""
    prefix = "Shared" + {"xception": "Xception", "efficientnet": "EfficientNet", "resnet": "ResNet"}[name]
    return {
        "AutoConfig": f"configuration_shared_{name}.{prefix}Config",
        "AutoModel": f"modeling_shared_{name}.{prefix}Model",
        "AutoModelForImageClassification": f"modeling_shared_{name}.{prefix}ForImageClassification",
        "AutoBackbone": f"modeling_shared_{name}.{prefix}Backbone",
    }


@strict
class SharedConvConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""
    Common part of [`SharedXceptionConfig`], [`SharedEfficientNetConfig`] and [`SharedResNetConfig`].

    Args:
        num_channels (`int`, *optional*, defaults to 3):
            Channels of the input images.
        image_size (`int`, *optional*, defaults to 32):
            Height and width, in pixels, that the network is meant for; others work too.
        sharing_factor (`int` or `list[int]`, *optional*, defaults to 1):
            Channels that use one kernel, s: one number, or one per stage. 1 shares nothing, which is the plain
            network. It must divide the channels of every layer that it applies to.
        pointwise_sharing_factor (`int` or `list[int]`, *optional*, defaults to 1):
            The same for 1x1 convolutions, which the thesis leaves unshared.
        channel_divisor (`int` or `list[int]`, *optional*, defaults to 1):
            Removes channels instead: the width of a stage is divided by it (the comparison of thesis figure 3.7).
        unshared_stages (`list[str]`, *optional*):
            Stages, by name, to which a factor given as one number does not apply.
        grad_reduction (`str`, *optional*, defaults to `"mean"`):
            What a shared weight gets of its positions' gradients: their `"mean"` (thesis section 3.2) or their `"sum"`
            (the author's code).
        batch_norm_eps (`float`, *optional*, defaults to 1e-5):
            Added to the variance.
        batch_norm_momentum (`float`, *optional*, defaults to 0.1):
            Weight of the newest batch in the running statistics, as PyTorch counts it.
        dropout_rate (`float`, *optional*, defaults to 0.0):
            Dropout before the classifier.
        codebooks (`dict[str, dict]`, *optional*):
            Convolutions, by name, that store a codebook and indices instead of weights: `{"size": 16, "unit":
            "weight"}`. Learned sharing (thesis sections 3.4 and 3.5) writes it.

    Raises:
        StrictDataclassClassValidationError: A list has not one number per stage, a number is below 1, or an option or
            a stage is unknown. A factor that does not divide a layer's channels is found when the model is built.
    """

    family: ClassVar[str]
    presets: ClassVar[dict[str, dict]] = {}

    num_channels: int = 3
    image_size: int = 32
    sharing_factor: int | list[int] = 1
    pointwise_sharing_factor: int | list[int] = 1
    channel_divisor: int | list[int] = 1
    unshared_stages: list[str] | None = None
    grad_reduction: str = "mean"
    batch_norm_eps: float = 1e-5
    batch_norm_momentum: float = 0.1
    dropout_rate: float | int = 0.0
    codebooks: dict[str, dict] | None = None

    def __post_init__(self, **kwargs):
        self.stage_names = ["stem", *self.name_stages()]
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        # save_pretrained names only the class it saves; a folder must open with every head
        kwargs.setdefault("auto_map", auto_map_of(self.family))
        super().__post_init__(**kwargs)

    def name_stages(self) -> list[str]:
        """List the stages behind the stem, in order."""
        raise NotImplementedError

    @classmethod
    def from_preset(cls, preset: str, **overrides):
        """Build a published architecture; `overrides` replace its settings.

        Raises:
            ValueError: There is no such preset.
            TypeError: There is no such setting.
        """
        if preset not in cls.presets:
            raise ValueError(f"{cls.__name__} has the presets {sorted(cls.presets)}, got {preset!r}.")
        known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        unknown = sorted(overrides.keys() - known - {"num_labels", "attn_implementation"})
        if unknown:
            raise TypeError(f"{cls.__name__} has no setting {unknown[0]!r}; check the spelling.")
        return cls(**{**cls.presets[preset], **overrides})

    @property
    def sharing_factors(self) -> list[int]:
        """Sharing factor of every stage."""
        return self._per_stage(self.sharing_factor, self.unshared_stages)

    @property
    def pointwise_sharing_factors(self) -> list[int]:
        """Sharing factor of every stage's 1x1 convolutions."""
        return self._per_stage(self.pointwise_sharing_factor, self.unshared_stages)

    def divide_channels(self, widths: list[int]) -> list[int]:
        """Divide the width of every stage by its `channel_divisor`.

        Raises:
            ValueError: A width does not divide.
        """
        divisors = self._per_stage(self.channel_divisor)
        for stage, width, divisor in zip(self.name_stages(), widths, divisors, strict=True):
            if width % divisor:
                raise ValueError(f"{stage}: a channel divisor must divide the {width} channels, got {divisor}.")
        return [width // divisor for width, divisor in zip(widths, divisors, strict=True)]

    def _per_stage(self, factor: int | list[int], exceptions: list[str] | None = None) -> list[int]:
        if isinstance(factor, list):
            return factor
        return [1 if name in (exceptions or []) else factor for name in self.name_stages()]

    def check_options(self, **options: tuple[str, ...]):
        """Refuse a setting that is none of its options."""
        for name, allowed in options.items():
            if getattr(self, name) not in allowed:
                known = " or ".join(f'"{option}"' for option in allowed)
                raise ValueError(f"`{name}` must be {known}, got {getattr(self, name)!r}.")

    def check_lengths(self, *names: str):
        """Refuse lists without one value for each stage but an exit."""
        stages = [name for name in self.name_stages() if name != "exit"]
        for name in names:
            if len(getattr(self, name)) != len(stages):
                raise ValueError(f"`{name}` needs one value for each of {stages}, got {getattr(self, name)}.")

    def validate_factors(self):
        for name in ("sharing_factor", "pointwise_sharing_factor", "channel_divisor"):
            factor, stages = getattr(self, name), self.name_stages()
            factors = factor if isinstance(factor, list) else [factor]
            if isinstance(factor, list) and len(factor) != len(stages):
                raise ValueError(f"`{name}` needs one number, or one for each of {stages}, got {factor}.")
            if any(isinstance(value, bool) or value < 1 for value in factors):
                raise ValueError(f"`{name}` must be at least 1, got {factor}; 1 changes nothing.")

    def validate_options(self):
        self.check_options(grad_reduction=("mean", "sum"))
        unknown = sorted(set(self.unshared_stages or []) - set(self.name_stages()))
        if unknown:
            raise ValueError(f"`unshared_stages` has {unknown}; the stages are {self.name_stages()}.")
        if not 0 <= self.dropout_rate < 1:
            raise ValueError(f"`dropout_rate` must be in [0, 1), got {self.dropout_rate}.")


__all__ = ["SharedConvConfig"]
