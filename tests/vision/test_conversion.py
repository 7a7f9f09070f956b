"""Conversion between plain, shared, transformers' and timm's networks: lossless where it must be."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    EfficientNetConfig,
    EfficientNetForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
)

import vision_hf
from vision_hf import expand_weights, share_weights
from vision_hf.conversion import (
    METHODS,
    balanced_groups,
    find_slots,
    fit_scaled,
    reestimate_batch_norm,
    scale_into_norm_behind,
    weight_error,
)
from vision_hf.layouts import from_timm, from_transformers, to_timm, to_transformers
from vision_hf.priors import NearestBasisLoss, quantise

SETTINGS = {
    "Xception": {
        "stem_channels": [8, 16],
        "stem_strides": [1, 1],
        "is_stem_separable": True,
        "stage_channels": [16, 32],
        "stage_strides": [2, 1],
        "stage_blocks": [1, 2],
        "block_depths": [3, 2],
        "grows_late": [False, False],
        "exit_channels": [48],
    },
    "EfficientNet": {
        "stem_channels": 16,
        "out_channels": [16, 24],
        "kernel_sizes": [3, 5],
        "strides": [1, 2],
        "num_block_repeats": [2, 2],
        "expand_ratios": [1, 4],
        "head_channels": 32,
        "padding_style": "same",
    },
    "ResNet": {"embedding_size": 16, "hidden_sizes": [32, 64], "depths": [2, 2]},
    "ResNet basic": {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [2, 2], "layer_type": "basic"},
}
each_family = pytest.mark.parametrize("family", SETTINGS)


def randomise_norms(model):
    """As after training: every statistic and every weight its own."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model


def make(family, **settings):
    name = family.split()[0]
    config = getattr(vision_hf, f"Shared{name}Config")(**{**SETTINGS[family], "num_labels": 5, **settings})
    model = getattr(vision_hf, f"Shared{name}ForImageClassification")(config)
    return randomise_norms(model).eval().double()


def logits(model, images=None):
    images = torch.linspace(-1, 1, 2 * 3 * 32 * 32, dtype=torch.double).view(2, 3, 32, 32) if images is None else images
    with torch.no_grad():
        return model(images.to(model.dtype)).logits


@each_family
def test_permuted_channels_change_no_output(family):
    model = make(family)
    expected = logits(model)
    slots = find_slots(model)
    permuted = [slot for slot in slots if slot.permuted is not None]
    assert permuted and len(slots) >= len(permuted)
    for slot in permuted:
        before = slot.conv.weight.clone()
        slot.permute(torch.randperm(len(slot.kernels())))
        assert not torch.equal(slot.conv.weight, before)
    torch.testing.assert_close(logits(model), expected, atol=1e-9, rtol=1e-9)


@each_family
def test_absorbed_factors_change_no_output(family):
    model = make(family)
    expected = logits(model)
    changed = 0
    for slot in find_slots(model):
        if slot.absorb_scale is None:
            continue
        scale = torch.empty(len(slot.kernels()), dtype=torch.double).uniform_(0.5, 2)
        if slot.is_signed:
            scale *= torch.randint(0, 2, scale.shape) * 2 - 1
        shape = [-1 if axis == slot.axis else 1 for axis in range(4)]
        with torch.no_grad():
            slot.conv.weight /= scale.view(shape)
        slot.absorb_scale(scale)
        changed += 1
    assert changed
    torch.testing.assert_close(logits(model), expected, atol=1e-8, rtol=1e-8)


def test_factor_0_leaves_what_batch_norm_gives_of_0():
    norm = randomise_norms(nn.BatchNorm2d(4)).eval()
    images = torch.randn(2, 4, 3, 3)
    scale = torch.tensor([0.0, -2.0, 0.5, 0.0])
    with torch.no_grad():
        expected = norm(images * scale[:, None, None])
        scale_into_norm_behind(norm, scale)
        torch.testing.assert_close(norm(images), expected, atol=1e-6, rtol=1e-5)


@each_family
@pytest.mark.parametrize("method", METHODS)
def test_sharing_what_is_shared_already_loses_nothing(family, method):
    shared = make(family, sharing_factor=2)
    plain = expand_weights(shared)
    again = share_weights(plain, 2, method)
    assert again.num_parameters() == shared.num_parameters() < plain.num_parameters()
    if method == "contiguous":  # groups of other channels: not lossless
        return
    torch.testing.assert_close(logits(again), logits(shared), atol=1e-5, rtol=1e-5)


@each_family
@pytest.mark.parametrize("method", METHODS)
def test_sharing_computes_with_the_mean_of_its_groups(family, method):
    plain = make(family)
    before = copy.deepcopy(plain.state_dict())
    shared = share_weights(plain, 4, method)
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())
    assert shared.config.sharing_factors[0] == 4 and not shared.training
    assert torch.isfinite(logits(shared)).all()
    assert (logits(shared) - logits(plain)).abs().max() > 1e-3


@each_family
@pytest.mark.parametrize("method", METHODS)
def test_precision_does_not_matter(family, method):
    # in single precision the kernels could be views of the weights that are being permuted
    plain = make(family)
    single = copy.deepcopy(plain).float()
    torch.testing.assert_close(
        logits(share_weights(single, 2, method)).double(), logits(share_weights(plain, 2, method)), atol=1e-3, rtol=1e-3
    )
    assert weight_error(single, 2, method) == pytest.approx(weight_error(plain, 2, method), abs=1e-4)


@each_family
def test_similar_kernels_lie_together(family):
    plain = make(family)
    errors = {method: weight_error(plain, 2, method) for method in METHODS}
    assert errors["kmeans_scaled"] < errors["kmeans"] < min(errors["tile"], errors["contiguous"])
    assert weight_error(plain, 1, "tile") == 0
    assert weight_error(expand_weights(make(family, sharing_factor=2)), 2, "kmeans_scaled") < 1e-3


def test_weight_error_of_opposite_kernels():
    # two kernels k and -k in one group: their mean is 0, their line fits
    members = torch.tensor([[[1.0, 2.0], [-1.0, -2.0]]])
    centres, factors = fit_scaled(members, is_signed=True)
    torch.testing.assert_close(factors[..., None] * centres[:, None], members)
    torch.testing.assert_close(factors.square().mean(1), torch.ones(1))
    centres, factors = fit_scaled(members, is_signed=False)
    assert (factors >= 0).all()


@pytest.mark.parametrize("directions", ["none", "signed", "positive"])
def test_balanced_groups_find_the_groups(directions):
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(6, 9))
    members = np.repeat(centres, 4, axis=0) + 0.01 * generator.normal(size=(24, 9))
    if directions != "none":
        scale = generator.uniform(0.5, 2, size=(24, 1))
        members = members * (scale * generator.choice([-1, 1], size=(24, 1)) if directions == "signed" else scale)
    order = generator.permutation(24)
    groups = balanced_groups(members[order].astype(np.float32), 4, directions)
    assert groups.shape == (6, 4) and sorted(groups.ravel()) == list(range(24))
    assert all(len({order[row] // 4 for row in group}) == 1 for group in groups)


@each_family
@pytest.mark.parametrize("settings", [{"sharing_factor": 2}, {"sharing_factor": 4, "pointwise_sharing_factor": 2}])
def test_expansion_is_exact(family, settings):
    shared = make(family, **settings)
    plain = expand_weights(shared)
    assert type(plain) is type(shared) and set(plain.config.sharing_factors) == {1}
    torch.testing.assert_close(logits(plain), logits(shared), rtol=0, atol=1e-10)


@pytest.mark.parametrize("share_dim", ["out", "both"])
def test_expansion_of_repeated_filters_is_exact(share_dim):
    position = "before" if share_dim == "out" else "after"
    shared = make("ResNet basic", sharing_factor=4, share_dim=share_dim, batch_norm_position=position)
    torch.testing.assert_close(logits(expand_weights(shared)), logits(shared), rtol=0, atol=1e-10)


TRANSFORMERS = {
    "EfficientNet": lambda: EfficientNetForImageClassification(
        EfficientNetConfig(width_coefficient=1.1, depth_coefficient=1.2, hidden_dim=1408, num_labels=7)
    ),
    "ResNet": lambda: ResNetForImageClassification(
        ResNetConfig(embedding_size=16, hidden_sizes=[32, 64], depths=[1, 2], num_labels=7)
    ),
    "ResNet basic": lambda: ResNetForImageClassification(
        ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 2], layer_type="basic", num_labels=7)
    ),
}


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_transformers_round_trip_is_lossless(family):
    theirs = randomise_norms(TRANSFORMERS[family]()).eval()
    ours = from_transformers(theirs)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(logits(ours, images), logits(theirs, images), atol=1e-4, rtol=1e-4)
    back = to_transformers(ours)
    assert type(back) is type(theirs)
    state = back.state_dict()
    assert set(state) == set(theirs.state_dict())
    for name, value in theirs.state_dict().items():
        assert torch.equal(state[name], value), name


def test_shared_network_becomes_transformers_own(tmp_path):
    shared = make("EfficientNet", sharing_factor=4, stem_channels=32, head_channels=1280).float()
    to_transformers(shared).save_pretrained(tmp_path)
    plain = EfficientNetForImageClassification.from_pretrained(tmp_path).eval()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(logits(plain, images), logits(shared, images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [64, 72, 75])
@pytest.mark.parametrize("padding", [[], [4]])
def test_padding_of_transformers_is_kept_at_every_size(size, padding):
    theirs = randomise_norms(
        EfficientNetForImageClassification(
            EfficientNetConfig(
                width_coefficient=0.25,
                depth_coefficient=1.0,
                hidden_dim=320,
                num_block_repeats=[1] * 7,
                depthwise_padding=padding,
                num_labels=5,
                image_size=size,
            )
        ).eval()
    )
    images = torch.randn(2, 3, size, size)
    ours = from_transformers(theirs)
    torch.testing.assert_close(logits(ours, images), logits(theirs, images), atol=1e-5, rtol=1e-4)
    back = to_transformers(ours)
    assert list(back.config.depthwise_padding) == padding
    torch.testing.assert_close(logits(back, images), logits(theirs, images), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [64, 70, 76])
def test_padding_of_tensorflow_is_kept_at_the_size_of_the_image(size):
    settings = {"stem_channels": 32, "head_channels": 1280, "strides": [2, 2], "image_size": size}
    ours = make("EfficientNet", **settings).float()
    images = torch.randn(2, 3, size, size)
    theirs = to_transformers(ours)
    torch.testing.assert_close(logits(theirs, images), logits(ours, images), atol=1e-4, rtol=1e-4)


def test_what_transformers_cannot_compute_is_refused():
    with pytest.raises(ValueError, match="`batch_norm_eps=1e-5`, got 'imagenet' and 0.1"):
        to_transformers(make("ResNet", batch_norm_eps=0.1))
    settings = {"stem_channels": 32, "head_channels": 1280}
    with pytest.raises(ValueError, match="'padding_style': 'same', 'image_size': 65"):
        to_transformers(make("EfficientNet", image_size=65, **settings))
    with pytest.raises(ValueError, match="classifiers, got SharedResNetModel"):
        to_timm(make("ResNet").model)


@each_family
def test_codebooks_expand(family):
    model = make(family)
    quantised = quantise(model, NearestBasisLoss(model, 4))
    plain = expand_weights(quantised)
    assert plain.config.codebooks is None and set(plain.state_dict()) == set(model.state_dict())
    torch.testing.assert_close(logits(plain), logits(quantised))
    with pytest.raises(ValueError, match="expand it first"):
        share_weights(quantised, 2)


def test_folder_with_codebooks_opens_as_a_backbone(tmp_path):
    model = make("EfficientNet").float()
    quantise(model, NearestBasisLoss(model, 4)).save_pretrained(tmp_path)
    backbone = vision_hf.SharedEfficientNetBackbone.from_pretrained(tmp_path).eval()
    assert backbone(torch.randn(1, 3, 32, 32)).feature_maps[-1].shape == (1, 24, 8, 8)


def test_weight_error_counts_the_layers_that_share():
    plain = make("Xception", unshared_stages=["stage1"])
    error = weight_error(plain, 2, "tile")
    assert error == pytest.approx(weight_error(make("Xception"), [1, 2, 2], "tile"), rel=0.2)
    shared = {name for name, module in share_weights(plain, 2, "tile").named_modules() if _is_tied(module)}
    squares = residual = 0.0
    layers = dict(plain.named_modules())
    for name in shared:
        weight = layers[name].weight.detach()
        mean = weight.view(2, -1, *weight.shape[1:]).mean(0)
        squares += weight.square().sum().item()
        residual += (weight - mean.repeat(2, 1, 1, 1)).square().sum().item()
    assert error == pytest.approx((residual / squares) ** 0.5, rel=1e-5)


def _is_tied(module):
    return getattr(module, "num_ties", 1) > 1


def test_transformers_folder_becomes_shared(tmp_path):
    theirs = randomise_norms(TRANSFORMERS["ResNet basic"]()).eval()
    theirs.save_pretrained(tmp_path)
    shared = share_weights(ResNetForImageClassification.from_pretrained(tmp_path), 2)
    assert shared.config.model_type == "shared_resnet" and shared.num_parameters() < theirs.num_parameters()


# what timm 1.0 calls the tensors
TIMM_NAMES = {
    "EfficientNet": {
        "conv_stem.weight",
        "bn1.running_var",
        "blocks.0.0.conv_dw.weight",
        "blocks.0.0.bn1.weight",
        "blocks.0.0.se.conv_reduce.bias",
        "blocks.0.1.conv_pw.weight",
        "blocks.0.1.bn2.bias",
        "blocks.1.0.conv_pw.weight",
        "blocks.1.0.bn2.running_mean",
        "blocks.1.1.se.conv_expand.weight",
        "blocks.1.1.conv_pwl.weight",
        "blocks.1.1.bn3.weight",
        "conv_head.weight",
        "bn2.weight",
        "classifier.bias",
    },
    "ResNet": {
        "conv1.weight",
        "bn1.weight",
        "layer1.0.conv1.weight",
        "layer1.0.bn3.bias",
        "layer1.0.downsample.0.weight",
        "layer2.0.downsample.1.running_var",
        "layer2.1.conv2.weight",
        "fc.weight",
    },
}


@pytest.mark.parametrize("family", TIMM_NAMES)
def test_timm_round_trip_is_lossless(family):
    plain = make(family)
    state = to_timm(plain)
    assert TIMM_NAMES[family] <= set(state) and len(state) == len(plain.state_dict())
    back = from_timm(state, plain.config)
    assert all(torch.equal(value, back.state_dict()[name]) for name, value in plain.state_dict().items())
    without_counters = {name: value for name, value in state.items() if "num_batches" not in name}
    torch.testing.assert_close(logits(from_timm(without_counters, plain.config).double()), logits(plain))


def test_batch_norm_is_estimated_anew():
    model = make("EfficientNet", drop_path_rate=0.5).float()
    images = torch.randn(64, 3, 16, 16)
    norm = model.model.stem.norm
    with torch.no_grad():
        hidden = model.model.stem.conv(nn.functional.pad(images, (0, 1, 0, 1)))
    reestimate_batch_norm(model, images.split(16))
    torch.testing.assert_close(norm.running_mean, hidden.mean((0, 2, 3)), atol=1e-5, rtol=1e-4)
    assert not model.training and norm.momentum == model.config.batch_norm_momentum
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    reestimate_batch_norm(model, images.split(16))
    # nothing random takes part, and nothing of the old statistics stays
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-5)


def remove_key(state, key):
    return {name: value for name, value in state.items() if name != key}


BAD = {
    "unknown method": (lambda: share_weights(make("Xception"), 2, "mean"), "`method` must be one of"),
    "shared already": (lambda: share_weights(make("Xception", sharing_factor=2), 2), "expand it first"),
    "factor 3": (lambda: share_weights(make("EfficientNet"), 3), "stage1.0.depthwise: .* got 3"),
    "filters": (lambda: share_weights(make("ResNet", share_dim="out"), 2), '`share_dim="in"`'),
    "text model": (lambda: share_weights(nn_with_config(), 2), "can be converted, got Module"),
    "expand another": (lambda: expand_weights(nn_with_config()), "only shared networks can be expanded"),
    "xception to transformers": (lambda: to_transformers(make("Xception")), "no plain counterpart"),
    "symmetric": (lambda: to_transformers(make("EfficientNet")), "pads like TensorFlow"),
    "small stem": (lambda: to_transformers(make("ResNet", stem_type="cifar")), '`stem_type="imagenet"`'),
    "xception from timm": (lambda: from_timm({}, make("Xception").config), "timm's layout is known for"),
    "missing tensor": (
        lambda: from_timm(remove_key(to_timm(make("ResNet")), "fc.weight"), make("ResNet").config),
        "missing \\['fc.weight'\\]",
    ),
    "other labels": (
        lambda: from_timm(to_timm(make("ResNet")), make("ResNet", num_labels=9).config),
        "other shapes \\['fc.weight', 'fc.bias'\\]",
    ),
    "no batch": (lambda: reestimate_batch_norm(make("ResNet"), []), "at least one batch"),
    "stride elsewhere": (
        lambda: from_transformers(ResNetForImageClassification(ResNetConfig(downsample_in_bottleneck=True))),
        "`downsample_in_bottleneck` must be False",
    ),
}


def nn_with_config():
    module = nn.Module()
    module.config = vision_hf.SharedXceptionConfig()
    module.config.model_type = "bert"
    return module


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_converted_is_one_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
