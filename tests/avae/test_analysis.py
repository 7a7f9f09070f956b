"""The numbers and pictures: known angles give known numbers."""

import math

import numpy as np
import PIL.Image
import pytest
import torch
from scipy import stats

from avae_hf import analysis
from avae_hf.data import put_in_pose

from .conftest import build, draw_shapes


def test_concentration_of_known_angles():
    generator = np.random.default_rng(0)
    assert analysis.circular_concentration(np.full(5, 2.0)) == pytest.approx(1)
    assert analysis.circular_concentration(generator.uniform(-np.pi, np.pi, 5000)) < 0.05
    two_peaks = np.array([0.3, 0.3 + np.pi] * 10)
    assert analysis.circular_concentration(two_peaks) < 1e-6
    assert analysis.circular_concentration(two_peaks, order=2) == pytest.approx(1)


def test_orientations_are_what_the_true_and_the_found_angle_leave():
    pose = np.array([[0.5], [1.5], [-2.0], [3.0]])
    alpha = pose - np.array([[0.2], [0.2], [0.2], [-1.0]])
    labels = np.array([6, 6, 6, 9])
    found = analysis.measure_orientations(alpha + 2 * np.pi, pose, labels, [6, 9], num_bins=4)
    assert found["6"]["counts"] == [0, 0, 3, 0] and found["9"]["counts"] == [0, 1, 0, 0]
    assert found["6"]["concentration"] == pytest.approx(1)


def test_probes_tell_what_is_known_from_what_is_not():
    generator = np.random.default_rng(0)
    angles = generator.uniform(0, 2 * np.pi, 600)
    knows = np.stack([np.cos(angles), generator.normal(size=600), np.sin(angles)], 1)
    knows_not = generator.normal(size=(600, 3))
    assert analysis.probe_angle(knows, angles) > 0.99 > 0.1 > analysis.probe_angle(knows_not, angles)
    assert analysis.mutual_information(knows, angles) > 1 > 0.2 > analysis.mutual_information(knows_not, angles)


def test_curve_at_0_is_the_loss_itself(shapes):
    model = build([])
    rows = analysis.measure_curve(model, shapes, "rotation", [0.0, math.pi / 2], batch_size=3)
    assert rows[0]["loss"] == pytest.approx(model(shapes).loss.item(), rel=1e-4)
    turned = shapes.rot90(1, (2, 3))
    assert rows[1]["loss"] == pytest.approx(model(turned).loss.item(), rel=1e-3), "counterclockwise"
    searched = analysis.measure_curve(build(), shapes, "shear", [0.3])
    assert searched[0]["loss"] < analysis.measure_curve(model, shapes, "shear", [0.3])[0]["loss"]


class Call(torch.nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.register_parameter("device", torch.nn.Parameter(torch.zeros(1)))
        self.forward = function


def test_likelihood_of_a_linear_gaussian_model_is_the_exact_one():
    """p(x) of x = W z + b + noise is known; the posterior is only roughly right, and importance weights mend that."""
    model = build([], image_size=4, latent_dim=2, reconstruction_scale=4.0)
    generator = torch.Generator().manual_seed(0)
    weight, bias = 0.5 * torch.randn(16, 2, generator=generator), torch.rand(16, generator=generator)
    model.decoder = Call(lambda latent: (latent @ weight.T + bias).view(-1, 1, 4, 4))
    images = torch.rand(3, 1, 4, 4, generator=generator)
    covariance = weight @ weight.T + torch.eye(16) / 4
    precision = torch.linalg.inv(torch.eye(2) + 4 * weight.T @ weight)
    means = (images.flatten(1) - bias) @ (4 * weight @ precision)
    spread = precision.diagonal().mul(1.5).log()
    model.encoder = Call(lambda x: (means[[(images == x[0]).flatten(1).all(1).nonzero().item()]], spread[None]))
    found = analysis.estimate_log_likelihood(model, images, num_samples=4000, generator=generator)
    expected = stats.multivariate_normal(bias.numpy(), covariance.numpy()).logpdf(images.flatten(1).numpy())
    np.testing.assert_allclose(found, expected, atol=0.1)


def test_likelihood_over_angles_averages_and_refuses_other_poses(shapes):
    one = analysis.estimate_log_likelihood(build(), shapes[:1], 8, 12, torch.Generator().manual_seed(0))
    turned = put_in_pose(build().config, shapes[:1], torch.tensor([[math.pi / 2]]))
    other = analysis.estimate_log_likelihood(build(), turned, 8, 12, torch.Generator().manual_seed(0))
    assert one == pytest.approx(other, abs=1.0), "a uniform prior of the angle does not care how an input is turned"
    with pytest.raises(ValueError, match="over 2D rotations only, the model has \\['translation'\\]"):
        analysis.estimate_log_likelihood(build(["translation"]), shapes)
    with pytest.raises(ValueError, match="the scaled loss is none"):
        analysis.estimate_log_likelihood(build([], likelihood="bernoulli", reconstruction_scale=2.0), shapes)


def test_consistency_is_0_for_a_perfect_search(shapes, monkeypatch):
    model = build()
    assert analysis.measure_consistency(model, shapes, [0.0]) == pytest.approx(0, abs=1e-6)
    monkeypatch.setattr(model, "align", lambda images: torch.randn(images.shape))
    assert 1.5 < analysis.measure_consistency(model, shapes, [0.5, 1.0]) < 2.5


def test_robustness_counts_with_and_without_align(shapes, monkeypatch):
    labels = torch.tensor([0, 0, 1, 1])
    classifier = analysis.fit_upright_classifier(shapes, labels)
    model = build()
    monkeypatch.setattr(model, "align", lambda images: shapes)
    rows = analysis.measure_robustness(model, classifier, shapes, labels, [0.0, 2.0])
    assert rows[0] == {"value": 0.0, "turned": 1.0, "aligned": 1.0} and rows[1]["aligned"] == 1.0


@pytest.mark.parametrize("dims", [2, 3])
def test_pictures_show_all_rows(tmp_path, dims):
    shapes = draw_shapes(2, dims)
    models = {"plain": build([], dims), "affine": build(["rotation"], dims)}
    analysis.draw_reconstructions(models, shapes, [0.0, 1.0], tmp_path / "reconstructions.png")
    found = {"1": analysis.measure_orientations(*[np.zeros((5, 1))] * 2, np.zeros(5), [0])}
    analysis.draw_orientations({"epoch 1": found["1"], "epoch 3": found["1"]}, tmp_path / "orientations.png")
    analysis.draw_curves({"rotation": {"VAE": [(0, 1.0), (90, 2.0)]}}, ("degrees", "loss"), tmp_path / "curves.png")
    for name in ("reconstructions", "orientations", "curves"):
        pixels = np.asarray(PIL.Image.open(tmp_path / f"{name}.png").convert("L"))
        assert pixels.std() > 10, name
