"""Pictures of what a network learned: sheets of kernels and Grad-CAM (R. Bidart, thesis 2023, figures 3.4 to 3.6).

Grad-CAM: R. Selvaraju et al., ICCV 2017. Works on any image classifier of the three families, shared or not, however it
was loaded. Letters: B images, C channels, H x W positions, N kernels, k kernel size.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from redundancy_hf.pictures import open_grid

MAX_KERNELS = 64


def list_convolutions(model: nn.Module) -> dict[str, Any]:
    """List the convolutions with kernels larger than 1x1, in order of the network; 1x1 ones only mix channels."""
    return {
        name: module
        for name, module in model.named_modules()
        if hasattr(module, "in_channels") and hasattr(module, "groups") and math.prod(module.kernel_size) > 1
    }


def expanded_weight(convolution: Any) -> torch.Tensor:
    """Give the weight of a convolution as it is applied, (C_out, C_in / groups, k, k)."""
    expand = getattr(convolution, "expanded_weight", None)
    return (convolution.weight if expand is None else expand()).detach().float()


def match_kernels(kernels: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, float]:
    """Pair kernels, (N, F), with as many of a reference, so that the sum of their cosine similarities is largest.

    Returns:
        For every reference kernel the row of its partner, (N,), and the mean similarity of the pairs.

    Raises:
        ValueError: The shapes differ.
    """
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics.pairwise import cosine_similarity

    if kernels.shape != reference.shape:
        raise ValueError(f"kernels can be matched with as many of one size, got {kernels.shape} and {reference.shape}.")
    similarity = cosine_similarity(reference, kernels)
    rows, partners = linear_sum_assignment(similarity, maximize=True)
    return partners, float(similarity[rows, partners].mean())


def kernels_of_layer(model: nn.Module, layer: int) -> np.ndarray:
    """Give the kernels that a sheet shows.

    Of layer 0, the first convolution, they are images, (N, C_in, k, k). Layer 1 is the first one behind it that can
    share weights, expanded, (N, 1, k, k); of a dense one they are those of its first outputs.

    Raises:
        ValueError: There is no such layer.
    """
    convolutions = list(list_convolutions(model).values())
    if layer == 1:
        convolutions = [module for module in convolutions[1:] if hasattr(module, "expanded_weight")]
    if not convolutions:
        raise ValueError(f"{type(model).__name__} has no convolution whose kernels could be shown as layer {layer}.")
    weight = expanded_weight(convolutions[0])
    if layer == 1:
        weight = weight.flatten(0, 1)[:, None]
    return weight[:MAX_KERNELS].cpu().numpy()


def draw_kernel_sheets(models: dict[str, nn.Module], layer: int, path: str | Path) -> dict[str, dict[str, float]]:
    """Draw one sheet of kernels per model, each kernel where its most similar one of the first model is.

    Args:
        models: By name; all have that layer in one size.
        layer: 0 or 1, see [`kernels_of_layer`].
        path: PNG to write.

    Returns:
        By name, the mean `"cosine"` similarity to the first model's kernels, and that of `"random"` ones, matched the
        same way, of which as many are equal.

    Raises:
        ValueError: A model has no such layer, or one of another size.
    """
    sheets = {name: kernels_of_layer(model, layer) for name, model in models.items()}
    reference = _flatten(next(iter(sheets.values())))
    similarity = {}
    with open_grid(path, 1, len(sheets), 3.4, 4.1) as (figure, axes):
        figure.get_layout_engine().set(w_pad=0.2)
        for axis, (name, kernels) in zip(axes[0], sheets.items(), strict=True):
            partners, cosine = match_kernels(_flatten(kernels), reference)
            similarity[name] = {"cosine": cosine, "random": _similarity_by_chance(_flatten(kernels), reference)}
            axis.imshow(_tile(kernels[partners]), cmap="gray", interpolation="nearest")
            axis.set_title(f"{name}\ncosine {cosine:.2f}, random {similarity[name]['random']:.2f}", fontsize=10)
            axis.axis("off")
        figure.suptitle(f"Kernels of the first layer{' that can share' * (layer > 0)}", fontsize=11)
    return similarity


def _flatten(kernels: np.ndarray) -> np.ndarray:
    return kernels.reshape(len(kernels), -1)


def _similarity_by_chance(kernels: np.ndarray, reference: np.ndarray, draws: int = 20) -> float:
    """Match normal random kernels with a reference; as many are equal as there are equal ones among the kernels."""
    num_kinds = len(np.unique(kernels, axis=0))
    generator = np.random.default_rng(0)
    kinds = [generator.standard_normal((num_kinds, kernels.shape[1])) for _ in range(draws)]
    return float(np.mean([match_kernels(np.resize(kind, kernels.shape), reference)[1] for kind in kinds]))


def _tile(kernels: np.ndarray) -> np.ndarray:
    """Lay kernels, (N, C, k, k), out in a square, each scaled to its own range."""
    lowest = kernels.min(axis=(1, 2, 3), keepdims=True)
    span = np.maximum(kernels.max(axis=(1, 2, 3), keepdims=True) - lowest, 1e-12)
    pixels = ((kernels - lowest) / span).transpose(0, 2, 3, 1)
    columns = math.ceil(math.sqrt(len(pixels)))
    rows = math.ceil(len(pixels) / columns)
    # white between them, and where there are none
    framed = np.ones((rows * columns, pixels.shape[1] + 1, pixels.shape[2] + 1, 3))
    framed[: len(pixels), :-1, :-1] = pixels
    sheet = framed.reshape(rows, columns, *framed.shape[1:]).swapaxes(1, 2)
    return sheet.reshape(rows * framed.shape[1], -1, 3)[:-1, :-1]


def find_layer(model: nn.Module, name: str | None = None) -> nn.Module:
    """Find the layer that Grad-CAM looks at: by default the third convolutional one, as in the thesis.

    A separable convolution counts as one layer, whose output is that of its pointwise part.

    Raises:
        ValueError: There is no such module, or there are fewer than three convolutional layers.
    """
    modules = dict(model.named_modules())
    if name is None:
        convolutions = list(list_convolutions(model))
        if len(convolutions) < 3:
            raise ValueError("the network has fewer than three convolutional layers; name a layer.")
        name = convolutions[2]
        parent = name.rpartition(".")[0]
        if hasattr(modules[parent], "pointwise"):
            name = parent
    if name not in modules or name == "":
        known = ", ".join(list(list_convolutions(model))[:3])
        raise ValueError(f"the network has no layer {name!r}; its convolutions are {known}, ...")
    return modules[name]


def grad_cam(
    model: Any, pixel_values: torch.Tensor, labels: torch.Tensor, layer: nn.Module
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute where a layer's output speaks for a class: ReLU(sum over channels of mean gradient * output).

    Args:
        model: An image classifier; it is used, and left, in evaluation mode.
        pixel_values: Images, (B, 3, H, W).
        labels: The class to explain of every image, (B,).
        layer: A module inside the model with an output (B, C, h, w).

    Returns:
        Maps, (B, H, W), from 0 to 1 in each image, all 0 where nothing speaks for the class; and the logits, (B, K).

    Raises:
        ValueError: The layer's output is no map of features.
    """
    captured: list[torch.Tensor] = []
    handle = layer.register_forward_hook(lambda module, inputs, output: captured.append(output))
    model.eval()
    try:
        with torch.enable_grad():
            logits = model(pixel_values=pixel_values.detach().requires_grad_()).logits
    finally:
        handle.remove()
    if not captured or not isinstance(captured[0], torch.Tensor) or captured[0].ndim != 4:
        raise ValueError("Grad-CAM needs a layer whose output is a map, (B, C, h, w); name a convolution or a stage.")
    maps = captured[0]
    (gradients,) = torch.autograd.grad(logits.gather(1, labels[:, None]).sum(), maps)
    weights = gradients.mean(dim=(2, 3), keepdim=True)
    heat = F.relu((weights * maps).sum(dim=1, keepdim=True)).detach()
    heat = F.interpolate(heat, size=pixel_values.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    return heat / heat.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12), logits.detach()


def draw_grad_cam(
    models: dict[str, Any],
    images: list[Any],
    pixel_values: torch.Tensor,
    labels: list[int],
    path: str | Path,
    layer_name: str | None = None,
):
    """Draw images in rows, and beside each the Grad-CAM of its correct class by every model.

    The images are Pillow's, `pixel_values`, (B, 3, H, W), the same for the models, and `labels` the correct classes.

    Raises:
        ValueError: A model has no such layer, see [`find_layer`].
    """
    with open_grid(path, len(images), len(models) + 1, 1.5, 1.65) as (_, axes):
        for axis in axes.flat:
            axis.axis("off")
        names = next(iter(models.values())).config.id2label
        for row, image in enumerate(images):
            axes[row, 0].imshow(image.convert("RGB"))
            axes[row, 0].set_title(names[labels[row]], fontsize=8)
        for column, (name, model) in enumerate(models.items(), start=1):
            heat, logits = grad_cam(model, pixel_values, torch.tensor(labels), find_layer(model, layer_name))
            for row, image in enumerate(images):
                axis, predicted = axes[row, column], int(logits[row].argmax())
                axis.imshow(image.convert("L").resize(heat.shape[:0:-1]), cmap="gray")
                axis.imshow(heat[row].numpy(), cmap="jet", alpha=0.5, vmin=0, vmax=1)
                verdict = "right" if predicted == labels[row] else model.config.id2label[predicted]
                axis.set_title(f"{name}: {verdict}" if row == 0 else verdict, fontsize=8)


def draw_weight_histograms(networks: dict[str, tuple[nn.Module, nn.Module]], path: str | Path, num_layers: int = 4):
    """Draw the weights of some layers, a row per network, and where the entries of their codebooks are (figure 3.8).

    Networks stand by name, each with the same one quantised by `vision_hf.priors.quantise`.

    Raises:
        ValueError: A quantised network has no codebook of single weights.
    """
    with open_grid(path, len(networks), num_layers, 3.2, 2.4) as (figure, axes):
        for row, (title, (network, quantised)) in zip(axes, networks.items(), strict=True):
            layers = {n: m for n, m in quantised.named_modules() if getattr(m, "codebook", torch.empty(0, 0)).ndim == 1}
            if not layers:
                raise ValueError(f"{title} has no layer with a codebook of single weights.")
            names = list(layers)
            for axis, number in zip(row, np.linspace(0, len(names) - 1, num_layers).round().astype(int), strict=True):
                name = names[number]
                axis.hist(expanded_weight(network.get_submodule(name)).flatten().numpy(), bins=200, color="tab:blue")
                entries = layers[name].codebook.detach().numpy()
                axis.plot(entries, np.zeros_like(entries), "|", color="tab:red", markersize=12, markeredgewidth=1.5)
                axis.set_title(name.removeprefix("model."), fontsize=8)
                axis.tick_params(labelsize=7)
            row[0].set_ylabel(f"{title}\nweights", fontsize=9)
        figure.suptitle("Weights of four layers; red: what quantising puts them on", fontsize=11)
