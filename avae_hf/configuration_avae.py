"""Configuration of the affine variational autoencoder (R. Bidart, thesis 2023, chapter 4)."""

# transformers answers with the first folder's code where two of one name have the same configuration file
# digest of the code that travels with this file: fb70ce9458fc5304

import copy
import math
from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

# the order of the pose numbers
TRANSFORMS = ("rotation", "translation", "scale", "shear")
SEARCH_SETTINGS = (
    "search",
    "include_identity",
    "num_restarts",
    "num_kept",
    "num_steps",
    "search_learning_rate",
    "num_angles",
    "num_rotations",
    "num_basins",
    "num_refinements",
    "search_dtype",
)


@strict
class AVAEConfig(PreTrainedConfig):
    r"""
    Configuration of an [`AVAEModel`].

    Args:
        spatial_dims (`int`, *optional*, defaults to 2):
            2 for images, 3 for voxels.
        image_size (`int`, *optional*, defaults to 40):
            Side of the square or cube, in pixels or voxels: a multiple of 4 in 2D, of 8 in 3D. Leave room for what is
            turned: corners that leave the image are lost.
        in_channels (`int`, *optional*, defaults to 1):
            Channels of the input.
        latent_dim (`int`, *optional*, defaults to 6):
            Numbers that describe the shape. Those of the pose come on top.
        transforms (`list[str]`, *optional*, defaults to `["rotation"]`):
            What a pose consists of, any of `"rotation"`, `"translation"`, `"scale"` (of every axis) and `"shear"`.
            An empty list gives a plain variational autoencoder.
        encoder_channels (`list[int]`, *optional*):
            Output channels of the encoder's four convolutions; by default the author's, `[32, 32, 64, 16]` in 2D and
            `[16, 16, 32, 8]` in 3D.
        decoder_channels (`list[int]`, *optional*):
            Output channels of the decoder's first three transposed convolutions; by default `[32, 16, 16]`.
        likelihood (`str`, *optional*, defaults to `"gaussian"`):
            `"gaussian"`: half the squared error, which is a variance of 1. `"bernoulli"`: cross-entropy; the input
            must be in [0, 1].
        output_activation (`str`, *optional*, defaults to `"sigmoid"`):
            `"sigmoid"` for inputs in [0, 1], `"identity"` for inputs that were normalised by mean and deviation.
        background (`float`, *optional*, defaults to 0.0):
            Value of empty space, which fills what a transform brings in from outside the image.
        reconstruction_scale (`float`, *optional*, defaults to 1.0):
            Weight of the reconstruction against the divergence. 2 is a Gaussian with the variance 1/2, which the
            author's code has.
        learned_variance (`bool`, *optional*, defaults to `True`):
            Whether the encoder gives the variance of the posterior; otherwise it is 1, as in the author's 3D network.
        sample_latent (`bool`, *optional*, defaults to `True`):
            Whether training draws the latent from the posterior. The author's published numbers come from its mean.
        search (`str`, *optional*, defaults to `"fast"`):
            `"fast"`, or `"direct"`, the thesis' method of section 4.1.5.
        include_identity (`bool`, *optional*, defaults to `True`):
            Whether the identity is among the poses that a search compares, so that none ends worse than without one.
        max_translation (`float`, *optional*, defaults to 0.2):
            Largest translation that starts are drawn with, in half sides of the image.
        max_log_scale (`float`, *optional*, defaults to 0.25):
            The same for the logarithm of a scale.
        max_shear (`float`, *optional*, defaults to 0.5):
            The same for a shear, the tangent of its angle.
        num_restarts (`int`, *optional*, defaults to 32):
            Direct search: random starts.
        num_kept (`int`, *optional*, defaults to 8):
            Direct search: the best starts, which are improved.
        num_steps (`int`, *optional*, defaults to 20):
            Direct search: steps of Adam.
        search_learning_rate (`float`, *optional*, defaults to 0.03):
            Direct search: learning rate of Adam.
        num_angles (`int`, *optional*, defaults to 12):
            Fast search: angles that all images try in 2D, and starts that all inputs try without a rotation.
        num_rotations (`int`, *optional*, defaults to 24):
            Fast search in 3D: random rotations that all inputs try beside the 24 of the cube.
        num_basins (`int`, *optional*):
            Fast search: local minima that are refined; by default 2 of a 2D rotation alone and 4 of anything else.
        num_refinements (`int`, *optional*, defaults to 3):
            Fast search of a 2D rotation: rounds of parabolas. With anything else the quasi-Newton search makes so many
            steps per pose number, but at least three times as many.
        search_dtype (`str`, *optional*, defaults to `"float32"`):
            `"bfloat16"` ranks the first candidates of the fast search in half precision.
        train_search (`dict`, *optional*, defaults to `{"num_basins": 1, "num_refinements": 1, "num_rotations": 0}`):
            Settings of the search that are others in training mode, where it runs at every step and a pose need not be
            exact.

    Raises:
        StrictDataclassClassValidationError: A setting is out of range or unknown.
    """

    model_type = "avae"
    auto_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_avae.AVAEConfig",
        "AutoModel": "modeling_avae.AVAEModel",
    }

    spatial_dims: int = 2
    image_size: int = 40
    in_channels: int = 1
    latent_dim: int = 6
    transforms: list[str] | tuple[str, ...] = ("rotation",)
    encoder_channels: list[int] | tuple[int, ...] | None = None
    decoder_channels: list[int] | tuple[int, ...] | None = None
    likelihood: str = "gaussian"
    output_activation: str = "sigmoid"
    background: float | int = 0.0
    reconstruction_scale: float | int = 1.0
    learned_variance: bool = True
    sample_latent: bool = True
    search: str = "fast"
    include_identity: bool = True
    max_translation: float | int = 0.2
    max_log_scale: float | int = 0.25
    max_shear: float | int = 0.5
    num_restarts: int = 32
    num_kept: int = 8
    num_steps: int = 20
    search_learning_rate: float | int = 0.03
    num_angles: int = 12
    num_rotations: int = 24
    num_basins: int | None = None
    num_refinements: int = 3
    search_dtype: str = "float32"
    train_search: dict | None = None

    def __post_init__(self, **kwargs):
        if self.encoder_channels is None:
            self.encoder_channels = [32, 32, 64, 16] if self.spatial_dims == 2 else [16, 16, 32, 8]
        if self.decoder_channels is None:
            self.decoder_channels = [32, 16, 16]
        if self.train_search is None:
            self.train_search = {"num_basins": 1, "num_refinements": 1, "num_rotations": 0}
        for name in ("transforms", "encoder_channels", "decoder_channels"):
            setattr(self, name, list(getattr(self, name)))
        # a folder must open without this package, whichever class saved it
        kwargs.setdefault("auto_map", dict(self.auto_classes))
        super().__post_init__(**kwargs)

    @property
    def is_angle_only(self) -> bool:
        """Whether a pose is a 2D rotation, which has a search of its own."""
        return self.spatial_dims == 2 and self.transforms == ["rotation"]

    @property
    def reduction(self) -> int:
        """What the encoder divides the side by."""
        return 4 if self.spatial_dims == 2 else 8

    @property
    def pose_sizes(self) -> dict[str, int]:
        """Pose numbers of every transform, in their order."""
        dims = self.spatial_dims
        turns = dims * (dims - 1) // 2
        sizes = {"rotation": turns, "translation": dims, "scale": dims, "shear": turns}
        return {name: sizes[name] for name in TRANSFORMS if name in self.transforms}

    @property
    def pose_dim(self) -> int:
        """Numbers of a pose, P."""
        return sum(self.pose_sizes.values())

    def validate_architecture(self):
        if self.spatial_dims not in (2, 3):
            raise ValueError(f"`spatial_dims` must be 2 or 3, got {self.spatial_dims}.")
        if self.image_size < 1 or self.image_size % self.reduction:
            raise ValueError(
                f"`image_size` must be a multiple of {self.reduction} in {self.spatial_dims}D, got {self.image_size}; "
                "the image processor pads smaller inputs."
            )
        for name, length in (("encoder_channels", 4), ("decoder_channels", 3)):
            channels = getattr(self, name)
            if len(channels) != length or min(channels) < 1:
                raise ValueError(f"`{name}` needs {length} numbers of at least 1, got {channels}.")
        self._check_minimum(1, "in_channels", "latent_dim")

    def validate_transforms(self):
        unknown = [name for name in self.transforms if name not in TRANSFORMS]
        if unknown or len(set(self.transforms)) != len(self.transforms):
            raise ValueError(f"`transforms` must be different ones of {TRANSFORMS}, got {self.transforms}.")

    def validate_likelihood(self):
        self._check_options(likelihood=("gaussian", "bernoulli"), output_activation=("sigmoid", "identity"))
        if self.likelihood == "bernoulli" and self.output_activation != "sigmoid":
            raise ValueError('the Bernoulli likelihood needs probabilities: use `output_activation="sigmoid"`.')
        if not (0 < self.reconstruction_scale < math.inf):
            raise ValueError(f"`reconstruction_scale` must be above 0, got {self.reconstruction_scale}.")

    def validate_search(self):
        self._check_options(search=("fast", "direct"), search_dtype=("float32", "bfloat16"))
        self._check_minimum(1, "num_restarts", "num_kept", "num_basins", "num_refinements")
        self._check_minimum(0, "num_steps", "num_rotations", "max_translation", "max_log_scale", "max_shear")
        # to see local minima
        self._check_minimum(4, "num_angles")
        if self.num_kept > self.num_restarts:
            raise ValueError(f"`num_kept` {self.num_kept} must not be above `num_restarts` {self.num_restarts}.")
        if self.search_learning_rate <= 0:
            raise ValueError(f"`search_learning_rate` must be above 0, got {self.search_learning_rate}.")
        unknown = sorted(set(self.train_search or {}) - set(SEARCH_SETTINGS))
        if unknown:
            raise ValueError(f"`train_search` has {unknown}; the search has {SEARCH_SETTINGS}.")
        if self.train_search:
            self.for_training().validate_search()

    def _check_minimum(self, lowest: int, *names: str):
        for name in names:
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise ValueError(f"`{name}` must be at least {lowest}, got {value}.")

    def _check_options(self, **options: tuple[str, str]):
        for name, (first, second) in options.items():
            if getattr(self, name) not in (first, second):
                raise ValueError(f'`{name}` must be "{first}" or "{second}", got {getattr(self, name)!r}.')

    def for_training(self) -> "AVAEConfig":
        """Give the configuration with the settings of the search that training has."""
        config = copy.copy(self)
        for name, value in (self.train_search or {}).items():
            setattr(config, name, value)
        config.train_search = {}
        return config


__all__ = ["TRANSFORMS", "AVAEConfig"]
