"""Weight sharing inside convolutions for Hugging Face: fewer stored kernels, and sometimes fewer operations."""

from .layers_shared_conv import SharedConv2d, SharedDepthwiseConv2d, SharedSeparableConv2d

__all__ = ["SharedConv2d", "SharedDepthwiseConv2d", "SharedSeparableConv2d"]
