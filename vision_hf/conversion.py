"""From trained plain networks to shared ones.

Sharing a trained network is ours (the thesis trains from scratch). Channels are put into groups, each group gets one
kernel, and the order that the stored kernels need is reached by permuting channels, which neighbouring layers absorb
without loss. Where a kernel may also be scaled per channel, batch norm or the next 1x1 convolution absorbs the scale.
Running statistics must be estimated anew afterwards: `reestimate_batch_norm`.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedModel

from .expansion import is_ours
from .layers_shared_conv import SharedDepthwiseConv2d
from .layouts import from_transformers
from .modeling_shared_efficientnet import MBConvBlock
from .modeling_shared_resnet import ResNetBlock
from .modeling_shared_xception import XceptionBlock

METHODS = ("contiguous", "tile", "kmeans", "kmeans_scaled")


@dataclass
class Slot:
    """A layer that can share, and what its surroundings absorb without changing the network's output.

    Attributes:
        name: Of the layer.
        conv: Plain for now.
        axis: Of its weight that shares: 0 for depthwise kernels, 1 for the inputs of dense convolutions.
        permuted: Tensors and their axes that follow when the channels are put in another order; `None` where a
            shortcut fixes the order.
        absorb_scale: Takes the factors, (C,), that the kernels lose; `None` where nothing can.
        is_signed: Whether the factors may be negative.
    """

    name: str
    conv: Any
    axis: int
    permuted: list[tuple[torch.Tensor, int]] | None
    absorb_scale: Callable[[torch.Tensor], None] | None
    is_signed: bool = True

    def kernels(self) -> torch.Tensor:
        """Give one row per channel that shares, (C, F); a copy, because `permute` changes the weight in place."""
        return self.conv.weight.detach().transpose(0, self.axis).flatten(1).clone()

    @torch.no_grad()
    def permute(self, order: torch.Tensor):
        """Put the channels in another order, here and wherever they are read or written."""
        for tensor, axis in [(self.conv.weight, self.axis), *(self.permuted or [])]:
            tensor.copy_(tensor.index_select(axis, order))


def norm_tensors(norm: nn.BatchNorm2d) -> list[tuple[torch.Tensor, int]]:
    """List the tensors of a batch norm that go with the channels."""
    return [(t, 0) for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var) if t is not None]


@torch.no_grad()
def scale_into_norm_behind(norm: Any, scale: torch.Tensor):
    """Change a batch norm so that it gives of x what it gave of `scale` * x; exactly, with any sign, and with 0."""
    is_dead = scale.abs() < 1e-8
    safe = torch.where(is_dead, torch.ones_like(scale), scale)
    deviation = (norm.running_var + norm.eps).sqrt()
    constant = norm.bias - norm.weight * norm.running_mean / deviation
    norm.running_mean /= safe
    norm.running_var /= safe.square()
    norm.weight *= safe * (norm.running_var + norm.eps).sqrt() / deviation
    norm.weight[is_dead] = 0
    norm.bias[is_dead] = constant[is_dead]


def find_slots(model: Any) -> list[Slot]:
    """List the layers of a plain network that `sharing_factor` applies to."""
    slots: list[Slot] = []
    for name, module in model.named_modules():
        if isinstance(module, MBConvBlock):
            slots.append(_mbconv_slot(name, module, model))
        elif isinstance(module, XceptionBlock):
            slots += _xception_slots(name, module)
        elif isinstance(module, ResNetBlock):
            slots += _resnet_slots(name, module)
    for name, module in model.named_modules():
        # separable convolutions outside of blocks: nothing is known of their surroundings
        if isinstance(module, SharedDepthwiseConv2d) and not any(module is slot.conv for slot in slots):
            slots.append(Slot(name, module, 0, None, None))
    return slots


def _mbconv_slot(name: str, block: Any, model: Any) -> Slot:
    squeeze = block.squeeze_excite
    behind = [*norm_tensors(block.depthwise_norm), (squeeze.reduce.weight, 1), (squeeze.expand.weight, 0)]
    behind += [(squeeze.expand.bias, 0), (block.project.weight, 1)]
    base = model.base_model
    in_front: list[tuple[torch.Tensor, int]] | None = None
    if block.is_expanding:
        in_front = [(block.expand.weight, 0), *norm_tensors(block.expand_norm)]
    elif block is base.stages[0][0] and not block.has_shortcut:
        in_front = [(base.stem.conv.weight, 0), *norm_tensors(base.stem.norm)]
    permuted = None if in_front is None else in_front + behind
    return Slot(
        f"{name}.depthwise", block.depthwise, 0, permuted, lambda s: scale_into_norm_behind(block.depthwise_norm, s)
    )


def _xception_slots(name: str, block: Any) -> list[Slot]:
    slots = []
    for number, unit in enumerate(block.units):
        pointwise = unit.conv.pointwise

        @torch.no_grad()
        def absorb(scale: torch.Tensor, pointwise=pointwise):
            pointwise.weight *= scale[:, None, None]

        permuted = None
        if number > 0:  # the first one reads what the shortcut reads
            before = block.units[number - 1]
            permuted = [(before.conv.pointwise.weight, 0), *norm_tensors(before.norm), (pointwise.weight, 1)]
        slots.append(Slot(f"{name}.units.{number}.conv.depthwise", unit.conv.depthwise, 0, permuted, absorb))
    return slots


def _resnet_slots(name: str, block: Any) -> list[Slot]:
    slots = []
    for number, layer in enumerate(block.layers):
        if layer.conv.kernel_size != (3, 3):
            continue
        permuted, absorb = None, None
        if number > 0:
            before = block.layers[number - 1]
            permuted = [(before.conv.weight, 0), *norm_tensors(before.norm)]

            @torch.no_grad()
            def absorb(scale: torch.Tensor, norm=before.norm):
                # positive, so that they pass the ReLU behind it
                norm.weight *= scale
                norm.bias *= scale

        slots.append(Slot(f"{name}.layers.{number}.conv", layer.conv, 1, permuted, absorb, is_signed=False))
    return slots


def balanced_groups(
    kernels: np.ndarray, size: int, directions: str = "none", seed: int = 0, iterations: int = 10
) -> np.ndarray:
    """Cluster kernels, (C, F), into groups of one size: k-means that solves an assignment problem.

    Where `directions` is "none", a group is near a point; where it is "signed" or "positive", near a line or half-line
    through 0, so that its members differ by a factor.

    Returns:
        Rows of every group, (C / size, size).
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist
    from sklearn.cluster import KMeans
    from sklearn.preprocessing import normalize

    num_groups = len(kernels) // size
    points = kernels.astype(np.float64)
    if directions != "none":
        points = normalize(points)
        if directions == "signed":
            points = points * np.where(points[np.arange(len(points)), np.abs(points).argmax(1)] < 0, -1, 1)[:, None]
    centres = KMeans(num_groups, n_init=1, random_state=seed).fit(points).cluster_centers_
    groups = np.arange(len(kernels)).reshape(num_groups, size)
    for _ in range(iterations):
        if directions == "none":
            cost = cdist(kernels, centres, "sqeuclidean")
        else:
            fit = kernels @ normalize(centres).T
            cost = -np.square(fit if directions == "signed" else np.maximum(fit, 0))
        _, columns = linear_sum_assignment(np.repeat(cost, size, axis=1))
        assigned = np.argsort(columns // size, kind="stable").reshape(num_groups, size)
        if np.array_equal(assigned, groups):
            break
        groups = assigned
        members = kernels[groups]  # (G, size, F)
        centres = members.mean(1) if directions == "none" else np.linalg.svd(members, full_matrices=False)[2][:, 0]
        if directions == "positive":
            centres = centres * np.where((members @ centres[:, :, None]).sum((1, 2)) < 0, -1, 1)[:, None]
    return groups


def fit_scaled(members: torch.Tensor, is_signed: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit w_c = a_c k to the kernels of every group, (G, S, F), by its first singular vector.

    Returns:
        Kernels k, (G, F), and factors a_c, (G, S), whose root mean square is 1; unless signed, none is below 0.
    """
    direction = torch.linalg.svd(members, full_matrices=False)[2][:, 0]  # (G, F)
    factors = torch.einsum("gsf,gf->gs", members, direction)
    flip = torch.where(factors.sum(1) < 0, -1.0, 1.0)[:, None]
    direction, factors = direction * flip, factors * flip
    if not is_signed:
        factors = factors.clamp(min=0)
    size = factors.square().mean(1, keepdim=True).sqrt().clamp(min=1e-12)
    return direction * size, factors / size


def share_weights(
    model: PreTrainedModel,
    sharing_factor: int | list[int],
    method: str = "kmeans_scaled",
    seed: int = 0,
    progress: bool = False,
) -> PreTrainedModel:
    """Turn a trained plain network into a shared one.

    Depthwise kernels (Xception, EfficientNet) or the inputs of 3x3 convolutions (ResNet) are shared. Running statistics
    no longer fit afterwards: call `reestimate_batch_norm`.

    Args:
        model: One of ours that shares nothing, or an EfficientNet or ResNet classifier of transformers. It stays as
            it is.
        sharing_factor: Channels per kernel: one number, or one per stage.
        method: "contiguous": neighbouring channels get their mean kernel; "tile": channels c, c + C/s, ... do, without
            any permutation; "kmeans": similar kernels do, in groups of one size; "kmeans_scaled": kernels that are
            similar up to a factor do, and the surroundings absorb the factor. Where a shortcut fixes the order of the
            channels, the groups are those of "tile".
        seed: Of the clustering.
        progress: Whether to show a progress bar.

    Returns:
        A shared network of our family, in evaluation mode.

    Raises:
        ValueError: The model shares already or is of another kind, the method is unknown, or the factor does not divide
            a layer's channels.
    """
    if method not in METHODS:
        raise ValueError(f"`method` must be one of {METHODS}, got {method!r}.")
    plain: Any = copy.deepcopy(model) if is_ours(model) else from_transformers(model)
    config = copy.deepcopy(plain.config)
    if {*config.sharing_factors, *config.pointwise_sharing_factors} != {1} or config.codebooks:
        raise ValueError("the model shares weights already; expand it first by `expand_weights`.")
    if getattr(config, "share_dim", "in") != "in":
        raise ValueError('a trained ResNet can share inputs: set `share_dim="in"` in its configuration.')
    config.sharing_factor = sharing_factor
    shared: Any = type(plain)(config).to(plain.device, dtype=plain.dtype).eval()
    stored: dict[str, tuple[Slot, int]] = {}
    slots = list_shared_slots(plain, shared)
    for slot, factor in tqdm(slots, desc="layers", disable=not progress):
        _share_slot(slot, factor, method, seed)
        stored[f"{slot.name}.weight"] = slot, slot.conv.weight.shape[slot.axis] // factor
    state = plain.state_dict()
    # only now, because later layers may have permuted this one
    for name, (slot, num_groups) in stored.items():
        state[name] = slot.conv.weight.narrow(slot.axis, 0, num_groups)
    shared.load_state_dict(state)
    return shared


def list_shared_slots(plain: Any, shared: Any) -> list[tuple[Slot, int]]:
    """List the layers that a shared network shares, with their factors, in the plain network that it comes from."""
    layers = dict(shared.named_modules())
    slots = [(slot, layers[slot.name].weight.shape[slot.axis]) for slot in find_slots(plain)]
    factors = [(slot, slot.conv.weight.shape[slot.axis] // number) for slot, number in slots]
    return [(slot, factor) for slot, factor in factors if factor > 1]


@torch.no_grad()
def _share_slot(slot: Slot, factor: int, method: str, seed: int):
    """Group the channels of one layer, let the surroundings absorb order and factors, and make kernels equal."""
    kernels = slot.kernels().float()
    num_groups = len(kernels) // factor
    is_scaled = method == "kmeans_scaled" and slot.absorb_scale is not None
    if slot.permuted is None or method == "tile":
        groups = np.arange(len(kernels)).reshape(factor, num_groups).T
    elif method == "contiguous":
        groups = np.arange(len(kernels)).reshape(num_groups, factor)
    else:
        directions = ("signed" if slot.is_signed else "positive") if is_scaled else "none"
        groups = balanced_groups(kernels.cpu().numpy(), factor, directions, seed)
    # tile order: place j * G + g holds member j of group g
    order = torch.from_numpy(np.ascontiguousarray(groups.T).reshape(-1)).to(kernels.device)
    if slot.permuted is not None:
        slot.permute(order)
    members = kernels[order].view(factor, num_groups, -1).transpose(0, 1)  # (G, S, F)
    if is_scaled and slot.absorb_scale is not None:
        centres, factors = fit_scaled(members, slot.is_signed)
        slot.absorb_scale(factors.T.reshape(-1).to(slot.conv.weight.dtype))
    else:
        centres = members.mean(1)
    weight = slot.conv.weight.transpose(0, slot.axis)
    weight.copy_(centres.repeat(factor, 1).view(weight.shape))


def weight_error(plain: PreTrainedModel, sharing_factor: int | list[int], method: str, seed: int = 0) -> float:
    """Measure how far the shared kernels are from the trained ones, relative to these, over all layers that share.

    Arguments are those of [`share_weights`].
    """
    squares = residual = 0.0
    config: Any = copy.deepcopy(plain.config)
    config.sharing_factor = sharing_factor
    for slot, factor in list_shared_slots(copy.deepcopy(plain), type(plain)(config)):
        kernels = slot.kernels().float()
        scales: list[torch.Tensor] = []
        if slot.absorb_scale is not None:
            slot.absorb_scale = scales.append
        order_before = torch.arange(len(kernels), dtype=kernels.dtype)
        if slot.permuted is not None:
            slot.permuted = [(order_before, 0)]
        _share_slot(slot, factor, method, seed)
        expanded = slot.kernels().float()
        if scales:
            expanded = expanded * scales[0][:, None]
        original = kernels[order_before.long()]
        squares += original.square().sum().item()
        residual += (original - expanded).square().sum().item()
    return (residual / squares) ** 0.5 if squares else 0.0


@torch.no_grad()
def reestimate_batch_norm(model: nn.Module, batches: Iterable[torch.Tensor]):
    """Replace the running statistics of all batch norms, in place, by the mean over batches of images, (B, 3, H, W).

    About 1,200 images are enough.

    Raises:
        ValueError: There is no batch.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta, was_training, count = [norm.momentum for norm in norms], model.training, 0
    model.eval()
    device = next(model.parameters()).device
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
        norm.train()
    try:
        for batch in batches:
            model(batch.to(device))
            count += 1
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.train(was_training)
    if not count:
        raise ValueError("batch norm needs at least one batch of images to estimate its statistics from.")
