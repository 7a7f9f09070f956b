"""Convolutions that store one kernel for several channels (R. Bidart, thesis 2023, sections 3.1 and 3.2).

A sharing factor s divides d channels into d/s stored kernels in tile order: channel c uses kernel c mod d/s. Sharing
depthwise kernels is the thesis'; sharing dense and pointwise convolutions, and collapsing a separable convolution whose
two parts are shared, are ours. Letters: B inputs, C channels, H x W positions, k kernel size, s sharing factor.
"""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

GRAD_REDUCTIONS = ("mean", "sum")
SHARE_DIMS = ("in", "out", "both")


def sum_groups(hidden: torch.Tensor, factor: int) -> torch.Tensor:
    """Add the channels that share weights: (B, C, H, W) to (B, C / factor, H, W), in tile order."""
    if factor == 1:
        return hidden
    # three ways to the same sum; each is the fastest where it stands, by up to ten times
    if factor == 2:
        first, second = hidden.chunk(2, dim=1)
        return first + second
    if hidden.is_contiguous(memory_format=torch.channels_last):
        return hidden.permute(0, 2, 3, 1).unflatten(-1, (factor, -1)).sum(dim=3).permute(0, 3, 1, 2)
    return hidden.unflatten(1, (factor, -1)).sum(dim=1)


def _check_factor(owner: str, what: str, channels: int, factor: int):
    if factor < 1 or channels % factor:
        raise ValueError(
            f"{owner}: a sharing factor must be at least 1 and divide the {channels} {what} channels, got {factor}."
        )


class _SharedConv(nn.Module):
    """What the shared convolutions have in common: geometry, initialisation, and how gradients are reduced.

    Args:
        num_ties: How many positions of the expanded weight each stored number fills.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int],
        padding: int | tuple[int, int] | str,
        dilation: int | tuple[int, int],
        bias: bool,
        weight_shape: tuple[int, int],
        groups: int,
        num_ties: int,
        grad_reduction: str,
    ):
        super().__init__()
        if grad_reduction not in GRAD_REDUCTIONS:
            raise ValueError(f"`grad_reduction` must be one of {GRAD_REDUCTIONS}, got {grad_reduction!r}.")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size: Any = (kernel_size, kernel_size) if isinstance(kernel_size, int) else tuple(kernel_size)
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.num_ties, self.grad_reduction = num_ties, grad_reduction
        self.weight = nn.Parameter(torch.empty(*weight_shape, *self.kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self):
        """Draw as `nn.Conv2d` draws the expanded weight, whatever the sharing factor."""
        bound = 1 / math.sqrt(self.in_channels // self.groups * math.prod(self.kernel_size))
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def stored_weight(self) -> torch.Tensor:
        """Give the stored weight; what flows back to it is averaged over the tied positions, or summed."""
        if self.num_ties == 1 or self.grad_reduction == "sum" or not torch.is_grad_enabled():
            return self.weight
        # the identity, exactly, and a gradient times 1 / num_ties, in one fast operation
        return torch.lerp(self.weight.detach(), self.weight, 1 / self.num_ties)

    def expanded_weight(self) -> torch.Tensor:
        """Give the weight of the plain convolution, (out, in / groups, k, k)."""
        raise NotImplementedError

    def expand(self) -> nn.Conv2d:
        """Build the plain convolution that computes the same."""
        geometry: Any = (self.kernel_size, self.stride, self.padding, self.dilation, self.groups, self.bias is not None)
        plain = nn.Conv2d(self.in_channels, self.out_channels, *geometry).to(self.weight)
        own = {} if self.bias is None else {"bias": self.bias}
        plain.load_state_dict({"weight": self.expanded_weight(), **own})
        return plain.train(self.training)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, stored={tuple(self.weight.shape)}, grad_reduction={self.grad_reduction!r}"
        )


class SharedDepthwiseConv2d(_SharedConv):
    """Depthwise convolution in which `sharing_factor` channels use one kernel (thesis section 3.2).

    Channel c uses kernel c mod (channels / s). It computes as much as a plain depthwise convolution and stores 1/s of
    its kernels. Without gradients, in evaluation mode, the expanded weight is kept between calls; after a change
    through `weight.data`, which PyTorch does not record, call `eval()` again.

    Args:
        channels: Input and output channels, C.
        kernel_size, stride, padding, dilation, bias: As of [`torch.nn.Conv2d`]; a bias is not shared.
        sharing_factor: Channels per kernel, s; stored are (C / s, 1, k, k).
        grad_reduction: "mean": a kernel gets the mean of its channels' gradients (thesis section 3.2); "sum": their
            sum, as the author's code and plain automatic differentiation have it.
        name: Of the layer, for errors.

    Raises:
        ValueError: The factor does not divide the channels, or the reduction is unknown.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        bias: bool = False,
        sharing_factor: int = 1,
        grad_reduction: str = "mean",
        name: str = "SharedDepthwiseConv2d",
    ):
        _check_factor(name, "depthwise", channels, sharing_factor)
        super().__init__(
            in_channels=channels,
            out_channels=channels,
            kernel_size=kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            bias=bias,
            weight_shape=(channels // sharing_factor, 1),
            groups=channels,
            num_ties=sharing_factor,
            grad_reduction=grad_reduction,
        )
        self.sharing_factor = sharing_factor
        self._cached: tuple[Any, torch.Tensor, torch.Tensor] | None = None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Convolve (B, C, H, W)."""
        weight = self._expanded_for_forward()
        return F.conv2d(hidden, weight, self.bias, self.stride, self.padding, self.dilation, self.in_channels)

    def expanded_weight(self) -> torch.Tensor:
        stored = self.stored_weight()
        return stored if self.sharing_factor == 1 else torch.cat((stored,) * self.sharing_factor)

    def _expanded_for_forward(self) -> torch.Tensor:
        weight = self.weight
        is_cacheable = not (
            self.sharing_factor == 1
            or self.training
            or torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or torch.jit.is_tracing()
            or weight.is_inference()  # such a tensor does not say when it changes
            or not isinstance(weight, nn.Parameter)  # put there by torch.func, for one call
        )
        if not is_cacheable:
            return self.expanded_weight()
        key = (weight._version, weight.data_ptr(), weight.device, weight.dtype)
        if self._cached is None or self._cached[0] != key:
            # with the stored weight, so that no other tensor gets its address
            self._cached = (key, self.expanded_weight(), weight.detach())
        return self._cached[1]

    # writing to `weight.data` leaves no trace that a key could show, so whatever may have done it drops the cache
    def train(self, mode: bool = True):
        self._cached = None
        return super().train(mode)

    def _apply(self, *args, **kwargs):
        self._cached = None
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args, **kwargs):
        self._cached = None
        return super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cached": None}


class SharedConv2d(_SharedConv):
    """Dense or pointwise convolution that shares weights among input channels, output filters, or both. Ours.

    Sharing among inputs adds the channels that share before a convolution of C_in / s channels; sharing among outputs
    repeats what C_out / s filters give. Both are exact, and cost 1/s of the operations (1/s^2 together).

    Args:
        in_channels, out_channels: C_in and C_out.
        kernel_size, stride, padding, dilation, bias: As of [`torch.nn.Conv2d`]; a bias is not shared.
        sharing_factor: Channels (or filters) per stored weight, s.
        share_dim: "in": stored are (C_out, C_in / s, k, k); "out": (C_out / s, C_in, k, k), so outputs are repeated and
            a network of such layers is no richer than a narrower one; "both": (C_out / s, C_in / s, k, k).
        grad_reduction: "mean" or "sum" over the positions that a stored weight fills.
        name: Of the layer, for errors.

    Raises:
        ValueError: The factor does not divide the channels, or an option is unknown.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        bias: bool = False,
        sharing_factor: int = 1,
        share_dim: str = "in",
        grad_reduction: str = "mean",
        name: str = "SharedConv2d",
    ):
        if share_dim not in SHARE_DIMS:
            raise ValueError(f"{name}: `share_dim` must be one of {SHARE_DIMS}, got {share_dim!r}.")
        in_factor = 1 if share_dim == "out" else sharing_factor
        out_factor = 1 if share_dim == "in" else sharing_factor
        _check_factor(name, "input", in_channels, in_factor)
        _check_factor(name, "output", out_channels, out_factor)
        super().__init__(
            in_channels=in_channels,
            out_channels=out_channels,
            kernel_size=kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            bias=bias,
            weight_shape=(out_channels // out_factor, in_channels // in_factor),
            groups=1,
            num_ties=in_factor * out_factor,
            grad_reduction=grad_reduction,
        )
        self.in_factor, self.out_factor = in_factor, out_factor

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Convolve (B, C_in, H, W)."""
        hidden = sum_groups(hidden, self.in_factor)
        bias = self.bias if self.out_factor == 1 else None
        hidden = F.conv2d(hidden, self.stored_weight(), bias, self.stride, self.padding, self.dilation)
        if self.out_factor > 1:
            hidden = hidden.repeat(1, self.out_factor, 1, 1)
            if self.bias is not None:
                hidden = hidden + self.bias[:, None, None]
        return hidden

    def expanded_weight(self) -> torch.Tensor:
        return self.stored_weight().repeat(self.out_factor, self.in_factor, 1, 1)


class SharedSeparableConv2d(nn.Module):
    """Depthwise convolution and a pointwise one right behind it, each with its own sharing factor.

    Where both are shared, channels with the same kernel and the same pointwise column are added first, and the layer
    runs on the sums: sum_j P(k * x_j) = P(k * sum_j x_j). This is exact and costs 1/s of the operations; collapsing is
    ours.

    Args:
        in_channels, out_channels: Of both together.
        kernel_size, stride, padding, dilation: Of the depthwise convolution, as of [`torch.nn.Conv2d`].
        bias: Whether to add a bias per output channel.
        sharing_factor: Channels per depthwise kernel.
        pointwise_factor: Input channels per pointwise weight; 1, the thesis', shares none.
        grad_reduction: "mean" or "sum" over the positions that a stored weight fills.
        name: Of the layer, for errors.

    Raises:
        ValueError: A factor does not divide the channels, or the reduction is unknown.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        bias: bool = False,
        sharing_factor: int = 1,
        pointwise_factor: int = 1,
        grad_reduction: str = "mean",
        name: str = "SharedSeparableConv2d",
    ):
        super().__init__()
        self.depthwise = SharedDepthwiseConv2d(
            in_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            sharing_factor=sharing_factor,
            grad_reduction=grad_reduction,
            name=f"{name}.depthwise",
        )
        self.pointwise = SharedConv2d(
            in_channels,
            out_channels,
            1,
            bias=bias,
            sharing_factor=pointwise_factor,
            grad_reduction=grad_reduction,
            name=f"{name}.pointwise",
        )
        # the channels c, c + period, c + 2 period, ... share kernel and column
        self.period = math.lcm(in_channels // sharing_factor, in_channels // pointwise_factor)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Convolve (B, C_in, H, W)."""
        depthwise, pointwise, period = self.depthwise, self.pointwise, self.period
        if period == depthwise.in_channels:
            return pointwise(depthwise(hidden))
        hidden = sum_groups(hidden, depthwise.in_channels // period)
        kernels = depthwise.stored_weight()
        kernels = kernels.repeat(period // len(kernels), 1, 1, 1)
        hidden = F.conv2d(hidden, kernels, None, depthwise.stride, depthwise.padding, depthwise.dilation, groups=period)
        columns = pointwise.stored_weight()
        return F.conv2d(sum_groups(hidden, period // columns.shape[1]), columns, pointwise.bias)

    def expand(self) -> nn.Sequential:
        """Build the plain depthwise and pointwise convolutions that compute the same."""
        return nn.Sequential(self.depthwise.expand(), self.pointwise.expand())
