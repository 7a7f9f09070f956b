"""Shared convolutions against the plain ones they stand for."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vision_hf.layers_shared_conv import SharedConv2d, SharedDepthwiseConv2d, SharedSeparableConv2d

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
GEOMETRY = [
    {"kernel_size": 3, "stride": 1, "padding": 1},
    {"kernel_size": 5, "stride": 2, "padding": 2, "bias": True},
    {"kernel_size": (1, 3), "padding": "same", "dilation": 2},
    {"kernel_size": 1},
]
LAYERS = [
    *((SharedDepthwiseConv2d, (8,), {"sharing_factor": s}) for s in (1, 2, 4, 8)),
    *((SharedConv2d, (8, 12), {"sharing_factor": s, "share_dim": d}) for s in (1, 2, 4) for d in ("in", "out", "both")),
]
# (depthwise, pointwise)
FACTORS = [(1, 1), (2, 1), (1, 2), (2, 2), (4, 2), (2, 4), (4, 4), (2, 3), (6, 4), (12, 12)]


def build(layer_class, shape, seed=0, **options):
    torch.manual_seed(seed)
    return layer_class(*shape, **options)


def expanded_gradient(layer, gradient):
    """What flows to the stored weight when `gradient` flows to every position that it fills."""
    stored = layer.weight.detach().clone().requires_grad_()
    twin = copy.deepcopy(layer)
    twin.grad_reduction = "sum"
    twin.weight = nn.Parameter(stored.detach().clone())
    (total,) = torch.autograd.grad(twin.expanded_weight(), twin.weight, gradient)
    return total / layer.num_ties if layer.grad_reduction == "mean" else total


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("grad_reduction", ["mean", "sum"])
@pytest.mark.parametrize("geometry", GEOMETRY)
@pytest.mark.parametrize(("layer_class", "shape", "sharing"), LAYERS)
def test_layer_equals_its_expansion(layer_class, shape, sharing, geometry, grad_reduction, dtype):
    layer = build(layer_class, shape, grad_reduction=grad_reduction, **sharing, **geometry).to(dtype)
    plain = layer.expand()
    assert type(plain) is nn.Conv2d
    hidden = torch.randn(2, shape[0], 7, 6, dtype=dtype, requires_grad=True)
    output, expected = layer(hidden), plain(hidden)
    upstream = torch.randn_like(expected)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(output, expected, atol=tolerance, rtol=tolerance)
    ours = torch.autograd.grad(output, [hidden, *layer.parameters()], upstream)
    theirs = torch.autograd.grad(expected, [hidden, *plain.parameters()], upstream)
    torch.testing.assert_close(ours[0], theirs[0], atol=10 * tolerance, rtol=tolerance)
    torch.testing.assert_close(ours[1], expanded_gradient(layer, theirs[1]), atol=100 * tolerance, rtol=tolerance)
    for mine, other in zip(ours[2:], theirs[2:], strict=True):
        torch.testing.assert_close(mine, other, atol=100 * tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("grad_reduction", ["mean", "sum"])
@pytest.mark.parametrize(("sharing_factor", "pointwise_factor"), FACTORS)
def test_separable_equals_its_expansion(sharing_factor, pointwise_factor, grad_reduction, dtype):
    factors = {"sharing_factor": sharing_factor, "pointwise_factor": pointwise_factor}
    layer = build(
        SharedSeparableConv2d, (12, 10, 3), padding=1, stride=2, bias=True, grad_reduction=grad_reduction, **factors
    ).to(dtype)
    plain = layer.expand()
    hidden = torch.randn(2, 12, 7, 6, dtype=dtype, requires_grad=True)
    output, expected = layer(hidden), plain(hidden)
    upstream = torch.randn_like(expected)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(output, expected, atol=tolerance, rtol=tolerance)
    weights = [layer.depthwise.weight, layer.pointwise.weight, layer.pointwise.bias]
    ours = torch.autograd.grad(output, [hidden, *weights], upstream)
    theirs = torch.autograd.grad(expected, [hidden, plain[0].weight, plain[1].weight, plain[1].bias], upstream)
    wanted = [
        theirs[0],
        expanded_gradient(layer.depthwise, theirs[1]),
        expanded_gradient(layer.pointwise, theirs[2]),
        theirs[3],
    ]
    for mine, other in zip(ours, wanted, strict=True):
        torch.testing.assert_close(mine, other, atol=100 * tolerance, rtol=tolerance)


def test_separable_collapses_where_both_parts_are_shared(monkeypatch):
    channels = []
    convolve = nn.functional.conv2d
    monkeypatch.setattr(
        "vision_hf.layers_shared_conv.F.conv2d",
        lambda hidden, *rest, **more: channels.append(hidden.shape[1]) or convolve(hidden, *rest, **more),
    )
    for factors, expected in [((4, 4), [3, 3]), ((4, 2), [6, 6]), ((2, 4), [6, 3]), ((1, 4), [12, 3])]:
        channels.clear()
        build(SharedSeparableConv2d, (12, 10, 3), sharing_factor=factors[0], pointwise_factor=factors[1])(
            torch.randn(1, 12, 5, 5)
        )
        assert channels == expected


def test_tile_order_is_the_author_s():
    layer = build(SharedDepthwiseConv2d, (6, 1), sharing_factor=2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1))
    assert layer(torch.ones(1, 6, 1, 1)).flatten().tolist() == [1, 2, 3, 1, 2, 3]


@pytest.mark.parametrize(("layer_class", "shape", "sharing"), LAYERS)
def test_every_kernel_is_stored_once(layer_class, shape, sharing):
    layer = build(layer_class, (*shape, 3), **sharing)
    state = layer.state_dict()
    assert list(state) == ["weight"]
    assert state["weight"].numel() == layer.expanded_weight().numel() // layer.num_ties
    assert state["weight"].untyped_storage().nbytes() == 4 * state["weight"].numel()


def test_kept_weight_is_never_stale():
    layer = build(SharedDepthwiseConv2d, (8, 3), sharing_factor=2).eval()
    hidden = torch.randn(1, 8, 5, 5)

    @torch.no_grad()
    def check():
        layer(hidden)
        torch.testing.assert_close(layer(hidden), layer.expand()(hidden))

    check()
    assert layer._cached is not None
    with torch.no_grad():
        layer.weight.mul_(2)
    check()
    layer.load_state_dict({"weight": torch.randn(4, 1, 3, 3)})
    check()
    twin = copy.deepcopy(layer)
    assert twin._cached is None and pickle.loads(pickle.dumps(layer))._cached is None
    layer.double()
    hidden = hidden.double()
    check()
    layer.train()
    layer.weight.data.mul_(3)
    layer.eval()
    check()
    layer.weight.data = torch.randn(4, 1, 3, 3, dtype=torch.float64)
    check()
    with torch.inference_mode():
        layer(hidden)
    assert layer(hidden).requires_grad, "after inference mode, gradients flow again"


def test_kept_weight_is_no_other_tensor_s():
    layer = build(SharedDepthwiseConv2d, (8, 3), sharing_factor=2).eval()
    hidden = torch.randn(1, 8, 5, 5)
    with torch.no_grad():
        for _ in range(20):  # a freed tensor's address is soon used again
            layer(hidden)
            layer.weight.data = torch.randn(4, 1, 3, 3)
            layer.weight.data = torch.randn(4, 1, 3, 3)
            torch.testing.assert_close(layer(hidden), layer.expand()(hidden))
            weight = torch.randn(4, 1, 3, 3)
            output = torch.func.functional_call(layer, {"weight": weight}, (hidden,))
            torch.testing.assert_close(output, F.conv2d(hidden, weight.repeat(2, 1, 1, 1), groups=8))
        weights = torch.randn(3, 4, 1, 3, 3)
        several = torch.vmap(lambda weight: torch.func.functional_call(layer, {"weight": weight}, (hidden,)))(weights)
    assert several.shape == (3, 1, 8, 3, 3)


def test_mean_divides_the_step_of_plain_gradient_descent_by_the_factor():
    steps = {}
    for reduction in ("mean", "sum"):
        layer = build(SharedDepthwiseConv2d, (8, 3), sharing_factor=4, grad_reduction=reduction)
        before = layer.weight.detach().clone()
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        torch.manual_seed(1)
        layer(torch.randn(2, 8, 5, 5)).square().sum().backward()
        optimizer.step()
        steps[reduction] = layer.weight.detach() - before
    torch.testing.assert_close(4 * steps["mean"], steps["sum"])


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_averaging_changes_no_bit_of_the_weight(factor):
    layer = build(SharedDepthwiseConv2d, (64, 5), sharing_factor=factor)
    assert torch.equal(layer.stored_weight(), layer.weight)
    layer.half()
    assert torch.equal(layer.stored_weight(), layer.weight)


def test_initial_spread_does_not_depend_on_the_factor():
    spreads = [build(SharedDepthwiseConv2d, (4096, 3), sharing_factor=s).weight.std().item() for s in (1, 4, 16)]
    assert max(spreads) / min(spreads) < 1.1
    spreads = [build(SharedConv2d, (256, 256, 3), sharing_factor=s).weight.std().item() for s in (1, 4, 16)]
    assert max(spreads) / min(spreads) < 1.1


@pytest.mark.parametrize("layer_class", [SharedDepthwiseConv2d, SharedConv2d, SharedSeparableConv2d])
def test_layer_compiles_and_exports(layer_class):
    shape = (8, 3) if layer_class is SharedDepthwiseConv2d else (8, 8, 3)
    layer = build(layer_class, shape, sharing_factor=2).eval()
    hidden = torch.randn(2, 8, 6, 6)
    program = torch.export.export(layer, (hidden,))
    torch.testing.assert_close(program.module()(hidden), layer(hidden))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SharedDepthwiseConv2d(10, 3, sharing_factor=4, name="stages.1.conv"), "stages.1.conv.*10 depthwise"),
        (lambda: SharedDepthwiseConv2d(8, 3, sharing_factor=0), "at least 1 and divide the 8"),
        (lambda: SharedConv2d(10, 8, 3, sharing_factor=4), "divide the 10 input channels, got 4"),
        (lambda: SharedConv2d(8, 10, 3, sharing_factor=4, share_dim="both"), "divide the 10 output channels"),
        (lambda: SharedConv2d(8, 8, 3, share_dim="channels"), "`share_dim` must be one of"),
        (lambda: SharedDepthwiseConv2d(8, 3, grad_reduction="max"), "`grad_reduction` must be one of"),
        (
            lambda: SharedSeparableConv2d(8, 9, 3, pointwise_factor=3, name="b.sep"),
            "b.sep.pointwise.*divide the 8 input",
        ),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
