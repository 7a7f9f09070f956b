"""Pictures: kernels find their partners, Grad-CAM equals its formula, and every family can be drawn."""

from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from torch import nn

import vision_hf
from vision_hf.explain import (
    draw_grad_cam,
    draw_kernel_sheets,
    draw_weight_histograms,
    find_layer,
    grad_cam,
    kernels_of_layer,
    list_convolutions,
    match_kernels,
)
from vision_hf.priors import NearestBasisLoss, quantise

EFFICIENTNET = {
    "stem_channels": 8,
    "out_channels": [8],
    "kernel_sizes": [5],
    "strides": [1],
    "num_block_repeats": [2],
    "expand_ratios": [2],
    "head_channels": 16,
}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
FAMILIES = ["Xception", "EfficientNet", "ResNet"]


@pytest.fixture
def make(xception_settings):
    def build(family="Xception", **settings):
        own = {"Xception": xception_settings, "EfficientNet": EFFICIENTNET, "ResNet": RESNET}[family]
        config = getattr(vision_hf, f"Shared{family}Config")(**{**own, "num_labels": 3, "image_size": 12, **settings})
        return getattr(vision_hf, f"Shared{family}ForImageClassification")(config).eval()

    return build


def test_permuted_and_scaled_kernels_find_their_partners():
    reference = np.random.default_rng(0).normal(size=(6, 9))
    order = np.array([3, 1, 5, 0, 4, 2])
    partners, similarity = match_kernels(reference[order] * np.arange(1, 7)[:, None], reference)
    assert (order[partners] == np.arange(6)).all() and similarity == pytest.approx(1)
    with pytest.raises(ValueError, match="as many of one size"):
        match_kernels(reference[:5], reference)


@pytest.mark.parametrize("family", FAMILIES)
def test_sheets_show_the_applied_kernels(make, family):
    plain, shared = make(family), make(family, sharing_factor=4)
    first = kernels_of_layer(plain, 0)
    assert first.shape[1:] == (3, *first.shape[2:]) and np.array_equal(kernels_of_layer(plain, 0), first)
    second = [kernels_of_layer(model, 1) for model in (plain, shared)]
    assert second[0].shape == second[1].shape and second[0].shape[1] == 1
    kinds = [len(np.unique(kernels.reshape(len(kernels), -1), axis=0)) for kernels in second]
    assert kinds[0] == len(second[0]) and kinds[1] == len(second[1]) // 4, "duplicates are the sharing"


class TwoMaps(nn.Module):
    """A classifier whose Grad-CAM is known: pooled maps of a 1x1 convolution times a matrix."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)
        self.weight = nn.Parameter(torch.tensor([[1.0, -2.0], [0.5, 3.0]]))

    def forward(self, pixel_values):
        return SimpleNamespace(logits=self.conv(pixel_values).mean(dim=(2, 3)) @ self.weight.T)


def test_grad_cam_is_its_formula():
    model, images = TwoMaps(), torch.randn(2, 3, 5, 4)
    labels = torch.tensor([1, 0])
    heat, logits = grad_cam(model, images, labels, model.conv)
    maps = model.conv(images).detach()
    weights = model.weight.detach()[labels] / 20  # the gradient of a mean over 5 x 4 positions
    expected = (weights[:, :, None, None] * maps).sum(1).relu()
    torch.testing.assert_close(heat, expected / expected.amax(dim=(1, 2), keepdim=True))
    torch.testing.assert_close(logits, model(images).logits.detach())


@pytest.mark.parametrize("family", FAMILIES)
def test_grad_cam_is_of_one_image_and_leaves_the_model(make, family):
    model, images = make(family, sharing_factor=2), torch.randn(3, 3, 12, 12)
    layer, labels = find_layer(model), torch.tensor([0, 1, 2])
    together, _ = grad_cam(model, images, labels, layer)
    alone, _ = grad_cam(model, images[1:2], labels[1:2], layer)
    assert together.shape == (3, 12, 12) and together.min() >= 0 and together.max() <= 1
    torch.testing.assert_close(alone[0], together[1], atol=1e-4, rtol=1e-4)
    assert all(parameter.grad is None for parameter in model.parameters()) and not layer._forward_hooks


def test_third_layer_is_found_and_others_by_name(make):
    model = make("Xception")
    assert find_layer(model) is model.model.stages[0][0].units[0].conv, "depthwise and pointwise are one layer"
    assert find_layer(make("ResNet")) is not None
    assert find_layer(model, "model.stages.0") is model.model.stages[0]
    with pytest.raises(ValueError, match="no layer 'model.nothing'; its convolutions are model.stem.0.conv"):
        find_layer(model, "model.nothing")
    with pytest.raises(ValueError, match="fewer than three"):
        find_layer(TwoMaps())
    with pytest.raises(ValueError, match="whose output is a map"):
        grad_cam(model, torch.randn(1, 3, 12, 12), torch.tensor([0]), model.classifier)


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_are_written(make, family, tmp_path):
    models = {"plain": make(family), "shared": make(family, sharing_factor=2)}
    similarity = draw_kernel_sheets(models, 1, tmp_path / "kernels.png")
    assert similarity["plain"]["cosine"] == pytest.approx(1) and set(similarity) == {"plain", "shared"}
    assert similarity["shared"]["random"] < similarity["plain"]["random"] < 1, "fewer kinds fit less well"
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 16, 3), dtype=np.uint8))
    draw_grad_cam(models, [image], torch.randn(1, 3, 12, 12), [2], tmp_path / "grad_cam.png")
    bases = quantise(models["plain"], NearestBasisLoss(models["plain"], 4))
    draw_weight_histograms({"plain": (models["plain"], bases)}, tmp_path / "weights.png", num_layers=2)
    for name in ("kernels", "grad_cam", "weights"):
        with PIL.Image.open(tmp_path / f"{name}.png") as picture:
            assert min(picture.size) > 100 and len(picture.convert("RGB").getcolors(2**24)) > 10
    with pytest.raises(ValueError, match="no layer with a codebook"):
        draw_weight_histograms({"plain": (models["plain"], models["plain"])}, tmp_path / "no.png")


def test_models_of_another_width_cannot_be_compared(make, tmp_path):
    models = {"plain": make("Xception"), "narrow": make("Xception", stem_channels=[4, 8])}
    with pytest.raises(ValueError, match="as many of one size"):
        draw_kernel_sheets(models, 0, tmp_path / "no.png")
    assert not (tmp_path / "no.png").exists()


def test_1x1_convolutions_are_not_listed(make):
    names = list(list_convolutions(make("Xception")))
    assert names and not any("pointwise" in name or "shortcut" in name for name in names)
