"""Learned sharing: the losses against their formulas, hard assignment, and the compressed folder."""

import math

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageClassification

import vision_hf
from vision_hf.layers_codebook import CodebookConv2d
from vision_hf.priors import MixturePrior, NearestBasisLoss, ReseedBases, find_convolutions, nearest, quantise

XCEPTION = {
    "stem_channels": [8, 8],
    "stem_strides": [1, 1],
    "stage_channels": [16],
    "stage_strides": [2],
    "stage_blocks": [1],
    "block_depths": [2],
    "grows_late": [False],
    "exit_channels": [],
}


def make(family="Xception", **settings):
    if family == "EfficientNet":
        shape = {"stem_channels": 8, "out_channels": [8], "kernel_sizes": [5], "strides": [1], "head_channels": 16}
        shape |= {"num_block_repeats": [1], "expand_ratios": [2]}
    else:
        shape = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    shape = XCEPTION if family == "Xception" else shape
    config = getattr(vision_hf, f"Shared{family}Config")(**{**shape, "num_labels": 3, **settings})
    return getattr(vision_hf, f"Shared{family}ForImageClassification")(config)


def convolution_weights(model, unit="weight"):
    return [module.weight for module in find_convolutions(model, unit).values()]


def test_the_first_convolution_is_left_alone():
    names = list(find_convolutions(make(), "weight"))
    assert "stem.0.conv" not in names and "stem.1.conv" in names
    kernels = find_convolutions(make(), "kernel")
    assert kernels and all(module.kernel_size == (3, 3) for module in kernels.values())


@pytest.mark.parametrize("p", [1, 2])
def test_nearest_basis_loss_of_weights_is_equation_3_5(p):
    model = make()
    loss = NearestBasisLoss(model, num_bases=4, scope="network", p=p, tau=0.5)
    weights = torch.cat([weight.flatten() for weight in convolution_weights(model)])
    expected = 0.5 * ((weights[:, None] - loss.values[0].T).abs().min(1).values ** p).sum()
    torch.testing.assert_close(loss(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("p", [1, 2])
def test_nearest_basis_loss_of_kernels_is_equation_3_6(p):
    model = make()
    loss = NearestBasisLoss(model, num_bases=3, unit="kernel", scope="network", p=p, tau=2.0)
    kernels = torch.cat([weight.reshape(-1, 9) for weight in convolution_weights(model, "kernel")])
    distances = torch.stack([(kernels - basis).norm(dim=1) for basis in loss.values[0]])
    torch.testing.assert_close(loss(), 2.0 * (distances.min(0).values ** p).sum(), rtol=1e-4, atol=1e-5)


def test_only_the_nearest_basis_pulls():
    model = make()
    loss = NearestBasisLoss(model, num_bases=4, scope="network", p=2, tau=1.0)
    with torch.no_grad():
        loss.values[0].copy_(torch.tensor([[-100.0], [0.1], [100.0], [200.0]]))
    loss().backward()
    gradient = loss.values[0].grad.flatten()
    assert gradient[1] != 0 and torch.equal(gradient[[0, 2, 3]], torch.zeros(3))
    weight = convolution_weights(model)[0]
    torch.testing.assert_close(weight.grad, 2 * (weight.detach() - 0.1))


def test_bases_without_members_are_put_elsewhere():
    model = make()
    loss = NearestBasisLoss(model, num_bases=4, scope="network")
    with torch.no_grad():
        loss.values[0][0] = 100.0
    ReseedBases(loss).on_epoch_end(None, None, None)
    assert loss.values[0].abs().max() < 10
    assert len(loss.assign(0).unique()) == 4


def test_cap_sends_the_farthest_to_their_next_nearest():
    rows = torch.tensor([[0.0], [0.1], [0.2], [0.3], [5.0]])
    bases = torch.tensor([[0.0], [1.0], [5.0]])
    assert nearest(rows, bases).tolist() == [0, 0, 0, 0, 2]
    assert nearest(rows, bases, max_share=0.4).tolist() == [0, 0, 1, 1, 2]
    assert torch.bincount(nearest(torch.randn(300, 4), torch.randn(3, 4), max_share=1 / 3)).tolist() == [100] * 3


def mixture_density(prior, weights):
    means, scales = prior.bases(0)[:, 0], prior.log_scales[0].exp()
    kind = torch.distributions.Normal if prior.kind == "gaussian" else torch.distributions.Laplace
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=prior.log_mixing(0)), kind(means, scales)
    )
    return mixture.log_prob(weights)


@pytest.mark.parametrize("kind", ["gaussian", "laplace"])
@pytest.mark.parametrize("zero_weight", [0.0, 0.9])
def test_mixture_prior_is_equations_3_1_to_3_4(kind, zero_weight):
    model = make()
    prior = MixturePrior(model, 5, kind=kind, scope="network", tau=0.25, zero_weight=zero_weight)
    nn.init.normal_(prior.mixing_logits)
    weights = torch.cat([weight.flatten() for weight in convolution_weights(model)])
    expected = -0.25 * (mixture_density(prior, weights).sum() + prior.log_hyper_prior())
    torch.testing.assert_close(prior(), expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(prior.log_mixing(0).exp().sum(), torch.tensor(1.0))
    if zero_weight:
        assert prior.bases(0)[0] == 0 and prior.log_mixing(0)[0].exp().item() == pytest.approx(zero_weight)


@pytest.mark.parametrize("kind", ["gaussian", "laplace"])
def test_hyper_prior_keeps_scales_from_vanishing(kind):
    prior = MixturePrior(make(), 3, kind=kind, precision_prior=(2.0, 0.5))
    power = 2 if kind == "gaussian" else 1
    densities = []
    for log_scale in (-20.0, math.log((0.5 / 1.0) ** (1 / power)), 20.0):
        nn.init.constant_(prior.log_scales, log_scale)
        densities.append(prior.log_hyper_prior().item())
    assert densities[1] > densities[0] and densities[1] > densities[2]
    # the density of the Gamma distribution, up to its constant
    precision = torch.tensor([0.7, 3.0])
    gamma = torch.distributions.Gamma(2.0, 0.5)
    values = []
    for value in precision:
        nn.init.constant_(prior.log_scales, -value.log().item() / power)
        values.append(prior.log_hyper_prior() / prior.log_scales.numel())
    torch.testing.assert_close(values[1] - values[0], gamma.log_prob(precision)[1] - gamma.log_prob(precision)[0])


@pytest.mark.parametrize(("mixing", "is_trained"), [("fixed", False), ("trained", True), ("dirichlet", True)])
def test_mixing_is_fixed_or_trained(mixing, is_trained):
    prior = MixturePrior(make(), 3, mixing=mixing)
    prior().backward()
    assert (prior.mixing_logits.grad is not None) == is_trained
    assert prior.means.grad.abs().sum() > 0 and prior.log_scales.grad.abs().sum() > 0


REGULARISERS = {
    "weights": lambda model: NearestBasisLoss(model, 4),
    "kernels": lambda model: NearestBasisLoss(model, 4, unit="kernel"),
    "one codebook": lambda model: NearestBasisLoss(model, 8, scope="network"),
    "capped": lambda model: NearestBasisLoss(model, 4, max_share=0.3),
    "mixture": lambda model: MixturePrior(model, 4, kind="laplace", zero_weight=0.5),
}


@pytest.mark.parametrize("build", REGULARISERS.values(), ids=REGULARISERS.keys())
@pytest.mark.parametrize("family", ["Xception", "EfficientNet", "ResNet"])
def test_quantised_network_has_the_bases_as_weights_and_comes_back(build, family, tmp_path):
    model = make(family).eval()
    before = [weight.clone() for weight in convolution_weights(model)]
    regulariser = build(model)
    quantised = quantise(model, regulariser)
    assert all(torch.equal(a, b) for a, b in zip(before, convolution_weights(model), strict=True))
    layers = {name: m for name, m in quantised.base_model.named_modules() if isinstance(m, CodebookConv2d)}
    assert set(layers) == {name for group in regulariser.groups for name in group}
    for group, names in enumerate(regulariser.groups):
        rows, chosen = regulariser.rows(group), regulariser.assign(group)
        width = rows.shape[1]
        expanded = torch.cat([layers[name].expanded_weight().reshape(-1, width) for name in names])
        torch.testing.assert_close(expanded, regulariser.bases(group)[chosen])
    quantised.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(again(images).logits, quantised(images).logits)
    assert {layer.indices.dtype for layer in layers.values()} == {torch.uint8}


def test_compressed_folder_is_small(tmp_path):
    model = make("ResNet", hidden_sizes=[32, 64])
    model.save_pretrained(tmp_path / "plain")
    quantise(model, NearestBasisLoss(model, 16)).save_pretrained(tmp_path / "small")
    sizes = {name: (tmp_path / name / "model.safetensors").stat().st_size for name in ("plain", "small")}
    assert sizes["small"] < 0.4 * sizes["plain"]


def test_quantised_network_can_be_trained_on():
    model = make()
    quantised = quantise(model, NearestBasisLoss(model, 4))
    quantised(torch.randn(2, 3, 16, 16), labels=torch.tensor([0, 1])).loss.backward()
    for name, parameter in quantised.named_parameters():
        assert parameter.grad is not None, name


BAD = {
    "shared already": (lambda: NearestBasisLoss(make(sharing_factor=2)), "shares weights already"),
    "unit": (lambda: NearestBasisLoss(make(), unit="filter"), "`unit` must be one of"),
    "scope": (lambda: NearestBasisLoss(make(), scope="block"), "`scope` must be one of"),
    "p": (lambda: NearestBasisLoss(make(), p=3), "`p` must be 1 or 2, got 3"),
    "one basis": (lambda: NearestBasisLoss(make(), 1), "at least 2, got 1"),
    "tau": (lambda: MixturePrior(make(), tau=-1), "`tau` must not be negative"),
    "cap": (lambda: NearestBasisLoss(make(), 4, max_share=0.1), "from 1 / num_bases = 0.25 to 1, got 0.1"),
    "kind": (lambda: MixturePrior(make(), kind="cauchy"), '"gaussian" or "laplace"'),
    "mixing": (lambda: MixturePrior(make(), mixing="none"), '"fixed", "trained" or "dirichlet"'),
    "zero": (lambda: MixturePrior(make(), zero_weight=1.0), "`zero_weight` must be in"),
    "precision": (lambda: MixturePrior(make(), precision_prior=(0, 1)), "a shape and a rate above 0"),
    "components": (lambda: MixturePrior(make(), 1), "`num_components` must be at least 2"),
    "unknown layer": (lambda: make(codebooks={"stem.9": {"size": 2, "unit": "weight"}}), "does not have"),
    "no convolution": (lambda: make(codebooks={"stem.0.norm": {"size": 2, "unit": "weight"}}), "is no convolution"),
    "codebook unit": (lambda: make(codebooks={"stem.1.conv": {"size": 2, "unit": "row"}}), '"weight" or "kernel"'),
    "codebook size": (lambda: make(codebooks={"stem.1.conv": {"size": 0, "unit": "weight"}}), "1 to 32767 entries"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD.keys())
def test_bad_option_is_one_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
