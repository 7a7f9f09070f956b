"""Images and voxels for the affine variational autoencoder: one size, values from 0 to 1, room around to turn."""

import inspect
from typing import Any

import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import to_numpy_array

# of red, green and blue in the brightness of a pixel (ITU-R BT.601), as Pillow has them
LUMINANCE = (0.299, 0.587, 0.114)
# what Pillow calls images of so many channels
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


class AVAEImageProcessor(BaseImageProcessor):
    r"""
    Scales inputs to [0, 1] and pads them with 0 to a square or cube, in the middle.

    Args:
        image_size (`int`, *optional*, defaults to 40):
            Side of the result.
        spatial_dims (`int`, *optional*, defaults to 2):
            2 for images, 3 for voxels.
        num_channels (`int`, *optional*, defaults to 1):
            Channels of the result; colour becomes brightness where it is 1.
        object_size (`int`, *optional*):
            Resize an input, before it is padded, so that its longest side has so many pixels or voxels. An input that
            has the size of the result is taken as it is.
        do_rescale (`bool`, *optional*):
            Whether whole numbers are multiplied by `rescale_factor`; by default in 2D only, since voxels are 0 or 1.
        rescale_factor (`float`, *optional*, defaults to 1/255):
            What they are multiplied by. Floating-point numbers stay as they are.
        do_normalize (`bool`, *optional*, defaults to `False`):
            Whether to subtract `image_mean` and to divide by `image_std`, last of all.
        image_mean (`float`, *optional*, defaults to 0.1307):
            Mean, by default MNIST's.
        image_std (`float`, *optional*, defaults to 0.3081):
            Standard deviation, by default MNIST's.
    """

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        image_size: int = 40,
        spatial_dims: int = 2,
        num_channels: int = 1,
        object_size: int | None = None,
        do_rescale: bool | None = None,
        rescale_factor: float = 1 / 255,
        do_normalize: bool = False,
        image_mean: float = 0.1307,
        image_std: float = 0.3081,
    ):
        super().__init__()
        if object_size is not None and not 1 <= object_size <= image_size:
            raise ValueError(f"`object_size` must be from 1 to `image_size` {image_size}, got {object_size}.")
        self.image_size, self.spatial_dims, self.num_channels = image_size, spatial_dims, num_channels
        self.object_size = object_size
        self.do_rescale = spatial_dims == 2 if do_rescale is None else do_rescale
        self.rescale_factor = rescale_factor
        self.do_normalize, self.image_mean, self.image_std = do_normalize, image_mean, image_std

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs):
        """Build one from what a folder says, which may be more than the arguments of the class and is kept."""
        return_unused_kwargs = kwargs.pop("return_unused_kwargs", False)
        values = image_processor_dict | {name: kwargs.pop(name) for name in SETTINGS if name in kwargs}
        processor = cls(**{name: values.pop(name) for name in SETTINGS if name in values})
        for name, value in values.items():
            setattr(processor, name, value)
        return (processor, kwargs) if return_unused_kwargs else processor

    def preprocess(
        self, images: Any, return_tensors: Any = None, input_data_format: str | None = None, **settings
    ) -> BatchFeature:
        """Process one input or a list.

        Args:
            images: Pillow images, or arrays or tensors: (H, W), (H, W, C) or (C, H, W) in 2D, (D, H, W), (C, D, H, W)
                or (D, H, W, C) in 3D; one, a list, or a batch (B, C, ...). `True` is 1.
            return_tensors: "pt" for one tensor.
            input_data_format: "channels_first" or "channels_last"; by default where a number of channels stands, first
                in doubt.
            **settings: Arguments of the class, for this call only.

        Returns:
            "pixel_values", (B, C, ...).

        Raises:
            TypeError: A setting is unknown.
            ValueError: An input has another shape, other channels, more pixels than the result, or NaN.
        """
        if settings:
            return self.with_settings(**settings).preprocess(images, return_tensors, input_data_format)
        if input_data_format not in (None, "channels_first", "channels_last"):
            raise ValueError(
                f'`input_data_format` must be "channels_first" or "channels_last", got {input_data_format!r}.'
            )
        pixels = [self._process(image, input_data_format) for image in self._list_inputs(images)]
        if not pixels:
            raise ValueError("there is no input to process: the list is empty.")
        # a list of arrays is what other processors give without `return_tensors`
        values: Any = torch.stack(pixels) if return_tensors == "pt" else [image.numpy() for image in pixels]
        return BatchFeature({"pixel_values": values}, return_tensors)

    def with_settings(self, **settings: Any) -> "AVAEImageProcessor":
        """Give a processor of which only these settings are others."""
        unknown = sorted(settings.keys() - set(SETTINGS))
        if unknown:
            known = ("return_tensors", "input_data_format", *SETTINGS)
            raise TypeError(f"the processor has no argument {unknown[0]!r}; it takes {', '.join(known)}.")
        return type(self)(**{**{name: getattr(self, name) for name in SETTINGS}, **settings})

    def _list_inputs(self, images: Any) -> list:
        if isinstance(images, (list, tuple)):
            return list(images)
        if hasattr(images, "ndim") and images.ndim >= self.spatial_dims + 2:
            return list(images)
        return [images]

    def _process(self, image: Any, input_data_format: str | None) -> torch.Tensor:
        if hasattr(image, "convert") and image.mode in ("1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr"):
            image = image.convert(MODES.get(self.num_channels, "RGB"))
        elif hasattr(image, "convert") and image.mode.startswith("I"):
            # 16 bits, which Pillow would clip at 255
            image = to_numpy_array(image) / 65535.0
        values = torch.from_numpy(to_numpy_array(image).copy())
        values = self._put_channels_first(values, input_data_format)
        is_whole = not values.is_floating_point() and values.dtype != torch.bool
        values = values.float()
        if not values.isfinite().all():
            raise ValueError("an input has values that are not finite (NaN or infinite); clean the data first.")
        if is_whole and self.do_rescale:
            values = values * self.rescale_factor
        is_padded = set(values.shape[1:]) == {self.image_size}
        if self.object_size is not None and not is_padded and max(values.shape[1:]) != self.object_size:
            values = self._resize(values)
        values = self._pad(values)
        return (values - self.image_mean) / self.image_std if self.do_normalize else values

    def _put_channels_first(self, values: torch.Tensor, input_data_format: str | None) -> torch.Tensor:
        shape, channels = tuple(values.shape), (1, 3, self.num_channels)
        if values.ndim == self.spatial_dims:
            values = values[None]
        elif values.ndim == self.spatial_dims + 1:
            # whose own number stands there, before that of a grey or a coloured image
            is_last = shape[0] != self.num_channels and (shape[-1] == self.num_channels or shape[0] not in channels)
            if input_data_format is not None:
                is_last = input_data_format == "channels_last"
            values = values.movedim(-1, 0) if is_last else values
        if values.ndim != self.spatial_dims + 1 or values.shape[0] not in channels:
            raise ValueError(
                f"an input must have {self.spatial_dims} dimensions and maybe one of {self.num_channels} channels, got "
                f"the shape {shape}."
            )
        if values.shape[0] == 3 and self.num_channels == 1:
            weights = values.new_tensor(LUMINANCE, dtype=torch.float32)
            brightness = torch.tensordot(weights, values.float(), 1)[None]
            values = brightness if values.is_floating_point() else brightness.round().to(values.dtype)
        if values.shape[0] != self.num_channels:
            raise ValueError(f"the model takes {self.num_channels} channels, got an input of the shape {shape}.")
        return values

    def _resize(self, values: torch.Tensor) -> torch.Tensor:
        ratio = (self.object_size or 0) / max(values.shape[1:])
        size = [max(1, round(side * ratio)) for side in values.shape[1:]]
        if self.spatial_dims == 3:
            # the share of a voxel that is filled
            return torch.nn.functional.adaptive_avg_pool3d(values[None], size)[0]  # type: ignore[arg-type]
        return torch.nn.functional.interpolate(values[None], size, mode="bilinear", antialias=True)[0]

    def _pad(self, values: torch.Tensor) -> torch.Tensor:
        room = [self.image_size - side for side in values.shape[1:]]
        if min(room) < 0:
            raise ValueError(
                f"an input of {tuple(values.shape[1:])} does not fit into {self.image_size}; set `object_size`, which "
                "makes it smaller."
            )
        padding = [side for space in reversed(room) for side in (space // 2, space - space // 2)]
        return torch.nn.functional.pad(values, padding)


# arguments of the class
SETTINGS = tuple(inspect.signature(AVAEImageProcessor).parameters)

__all__ = ["AVAEImageProcessor"]
