"""What an autoencoder has learned about pose: numbers and pictures (R. Bidart, thesis 2023, figures 4.4 to 4.13).

Functions that measure take a model in evaluation mode and upright inputs, and give plain numbers, so that a record of
them can be drawn again without the model. Letters: N inputs, B of them, C channels, P pose numbers, S samples.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from redundancy_hf.pictures import open_grid

from .configuration_avae import TRANSFORMS, AVAEConfig
from .data import put_in_pose
from .layers_avae import affine_matrix, invert_affine, warp
from .pose_search_avae import negative_elbo


def pose_of(config: AVAEConfig, number: int, **values: float | torch.Tensor) -> torch.Tensor:
    """Build poses, (number, P), from values by transform, e.g. `rotation=0.5`; the others are the identity.

    Raises:
        TypeError: There is no such transform.
    """
    unknown = sorted(values.keys() - set(TRANSFORMS))
    if unknown:
        raise TypeError(f"a pose has no {unknown[0]!r}; the transforms are {TRANSFORMS}.")
    parts = []
    for name, size in config.pose_sizes.items():
        parts.append(torch.as_tensor(values.get(name, 0.0)).float().reshape(-1, 1).expand(number, size))
    return torch.cat(parts, 1)


def put_alike(model: Any, images: torch.Tensor, **values: float) -> torch.Tensor:
    """Put upright inputs in one pose, as of [`pose_of`], with the background and the dimensions of a model."""
    own = model.config
    config = AVAEConfig(spatial_dims=own.spatial_dims, transforms=list(values), background=own.background)
    return put_in_pose(config, images, pose_of(config, len(images), **values)).to(model.device)


@torch.no_grad()
def measure_curve(
    model: Any, images: torch.Tensor, transform: str, values: Sequence[float], batch_size: int = 128
) -> list[dict[str, float]]:
    """Measure loss and squared error of inputs that are all transformed alike (figures 4.4 and 4.6).

    The transform is "rotation", in radians, or "shear", the tangent of an angle; all of its numbers are equal. A model
    whose configuration has transforms searches.

    Returns:
        For every value: "value", mean "loss" and mean "squared_error".
    """
    rows = []
    for value in values:
        losses, errors = [], []
        for batch in images.split(batch_size):
            posed = put_alike(model, batch, **{transform: value})
            outputs = model(posed)
            losses.append(outputs.reconstruction_loss + outputs.divergence)
            errors.append((outputs.reconstruction - posed).square().flatten(1).sum(1))
        loss, error = torch.cat(losses).mean().item(), torch.cat(errors).mean().item()
        rows.append({"value": float(value), "loss": loss, "squared_error": error})
    return rows


def circular_concentration(angles: np.ndarray, order: int = 1) -> float:
    """Compute the mean resultant length: 1 where all angles are equal, about 1 / sqrt(N) for random ones.

    Args:
        angles: In radians; without any it is 0.
        order: 2 counts angles that are half a turn apart as equal.
    """
    return float(np.abs(np.exp(1j * order * np.asarray(angles)).mean())) if len(angles) else 0.0


def measure_orientations(
    alpha: np.ndarray, pose: np.ndarray, labels: np.ndarray, classes: Sequence[int], num_bins: int = 20
) -> dict[str, dict]:
    """Say in which orientation each class is encoded: what a 2D input's own angle and the model's leave (figure 4.12).

    The first number of `alpha`, (N, P), which the model found, and of the true `pose` is the angle.

    Returns:
        By class: "counts" of the histogram, and "concentration" and "doubled_concentration" of the angles.
    """
    left = (pose[:, 0] - alpha[:, 0] + np.pi) % (2 * np.pi) - np.pi
    found = {}
    for number in classes:
        angles = left[labels == number]
        found[str(number)] = {
            "counts": np.histogram(angles, num_bins, (-np.pi, np.pi))[0].tolist(),
            "concentration": circular_concentration(angles),
            "doubled_concentration": circular_concentration(angles, 2),
        }
    return found


def probe_angle(features: np.ndarray, angles: np.ndarray) -> float:
    """Predict the direction of angles, (N,) in radians, from features, (N, F), linearly.

    Returns:
        Cross-validated R^2 over cosine and sine: at most 1, and 0 or below where nothing can be predicted.
    """
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import KFold, cross_val_predict
    from sklearn.preprocessing import StandardScaler

    targets = np.stack([np.cos(angles), np.sin(angles)], 1)
    folds = KFold(5, shuffle=True, random_state=0)
    predicted = cross_val_predict(Ridge(1.0), StandardScaler().fit_transform(features), targets, cv=folds)
    return float(1 - ((targets - predicted) ** 2).sum() / ((targets - targets.mean(0)) ** 2).sum())


def mutual_information(features: np.ndarray, angles: np.ndarray, seed: int = 0) -> float:
    """Estimate the information, in nats, that the most telling single feature has about the direction of an angle.

    The estimate is from nearest neighbours (Kraskov et al., 2004), as scikit-learn computes it.
    """
    from sklearn.feature_selection import mutual_info_regression

    targets = (np.cos(angles), np.sin(angles))
    return float(max(mutual_info_regression(features, target, random_state=seed).max() for target in targets))


def measure_disentanglement(found: dict[str, np.ndarray], is_rotated: bool) -> dict[str, float]:
    """Measure where the angle of 2D inputs went: into the latent, where it should not be, or into alpha.

    Args:
        found: What `avae_hf.training.evaluate_model` gives, of inputs whose first pose number is an angle.
        is_rotated: Whether alpha has an angle too.

    Returns:
        Linear probe and mutual information of the latent and, where there is an angle, of the directions of alpha.
    """
    angles = found["pose"][:, 0]
    result = {
        "latent_probe": probe_angle(found["latent"], angles),
        "latent_information": mutual_information(found["latent"], angles),
    }
    if is_rotated:
        directions = np.stack([np.cos(found["alpha"][:, 0]), np.sin(found["alpha"][:, 0])], 1)
        result |= {
            "alpha_probe": probe_angle(directions, angles),
            "alpha_information": mutual_information(directions, angles),
        }
    return result


@torch.no_grad()
def measure_consistency(model: Any, images: torch.Tensor, angles: Sequence[float], batch_size: int = 128) -> float:
    """Compare `align` of turned inputs with `align` of the upright ones, by a model that searches a 2D rotation.

    Returns:
        Mean squared difference relative to the mean square of the aligned inputs: 0 for perfect agreement, about 2 for
        inputs that have nothing to do with each other.
    """
    difference = total = 0.0
    for batch in images.split(batch_size):
        reference = model.align(batch.to(model.device))
        for angle in angles:
            difference += (model.align(put_alike(model, batch, rotation=angle)) - reference).square().sum().item()
            total += reference.square().sum().item()
    return difference / total


@torch.no_grad()
def estimate_log_likelihood(
    model: Any,
    images: torch.Tensor,
    num_samples: int = 64,
    num_angles: int = 36,
    generator: torch.Generator | None = None,
) -> np.ndarray:
    """Estimate log p(x) by importance sampling from the posterior (Burda et al., ICLR 2016), in nats.

    A model that searches rotations is averaged over angles too, evenly spaced from a random one on, as a model with a
    uniform prior of alpha, which makes its likelihood comparable with that of a plain autoencoder. At the single best
    alpha it would be too large.

    Returns:
        Estimates, (N,). They are lower bounds in expectation.

    Raises:
        ValueError: There are other transforms than a 2D rotation, or the loss is no likelihood.
    """
    config = model.config
    if config.likelihood == "bernoulli" and config.reconstruction_scale != 1:
        raise ValueError("a Bernoulli likelihood has `reconstruction_scale=1`; the scaled loss is none.")
    if config.transforms not in ([], ["rotation"]) or (config.transforms and config.spatial_dims != 2):
        raise ValueError(f"the likelihood is averaged over 2D rotations only, the model has {config.transforms}.")
    num_angles = num_angles if config.transforms else 1
    estimates = []
    for image in images:
        offset = torch.rand(1, generator=generator)
        angles = (offset + torch.arange(num_angles)) * 2 * math.pi / num_angles
        values = [_log_likelihood_at(model, image, angle, num_samples, generator) for angle in angles]
        estimates.append(torch.cat(values).logsumexp(0).item() - math.log(num_samples * num_angles))
    return np.array(estimates)


def _log_likelihood_at(model: Any, image: torch.Tensor, angle: torch.Tensor, num_samples: int, generator):
    """Give the log weights of samples of one input in one pose, (S,)."""
    config = model.config
    images = image[None].to(model.device)
    matrix = affine_matrix(config, pose_of(config, 1, rotation=angle)) if config.transforms else None
    aligned = images if matrix is None else warp(images, matrix, config.background)
    mean, log_variance = model.encoder(aligned)
    noise = torch.randn(num_samples, config.latent_dim, generator=generator).to(model.device)
    latent = mean + noise * (0.5 * log_variance).exp()
    drawn = model.decoder(latent)
    if matrix is not None:
        drawn = warp(drawn, invert_affine(matrix.expand(num_samples, -1, -1)), config.background)
    several = images.expand(num_samples, *image.shape)
    energy, _ = negative_elbo(config, several, drawn, mean.expand_as(latent), log_variance.expand_as(latent))
    log_likelihood = -energy
    if config.likelihood == "gaussian":
        variance = 1 / config.reconstruction_scale
        log_likelihood = log_likelihood - 0.5 * image.numel() * math.log(2 * math.pi * variance)
    log_prior = -0.5 * latent.square().sum(1)
    log_posterior = -0.5 * (noise.square() + log_variance).sum(1)
    return log_likelihood + log_prior - log_posterior


def fit_upright_classifier(images: torch.Tensor, labels: torch.Tensor) -> Any:
    """Fit a support vector machine to upright images, (N, C, H, W), as a classifier that knows one orientation only."""
    from sklearn.svm import SVC

    return SVC(C=10, gamma="scale").fit(images.flatten(1).numpy(), labels.numpy())


@torch.no_grad()
def measure_robustness(
    model: Any,
    classifier: Any,
    images: torch.Tensor,
    labels: torch.Tensor,
    angles: Sequence[float],
    batch_size: int = 128,
) -> list[dict[str, float]]:
    """Classify turned images, with and without `align` in front.

    The classifier is scikit-learn's, of flattened images; the canonical pose of the model must be the one it knows.

    Returns:
        For every angle: "value", and the accuracies "turned" and "aligned".
    """
    rows = []
    for angle in angles:
        turned = put_alike(model, images, rotation=angle)
        aligned = torch.cat([model.align(batch) for batch in turned.split(batch_size)])
        kinds = {"turned": turned, "aligned": aligned}
        accuracies = {
            kind: classifier.score(inputs.flatten(1).cpu().numpy(), labels.numpy()) for kind, inputs in kinds.items()
        }
        rows.append({"value": float(angle), **accuracies})
    return rows


def project(images: torch.Tensor) -> np.ndarray:
    """Give pictures, (B, H, W), of images (first channel) or of voxels, seen from a side; their last axis is up."""
    images = images[:, 0].float().cpu()
    if images.ndim == 3:
        return images.numpy()
    return (1 - torch.exp(-images.sum(1) / 4)).transpose(1, 2).flip(1).numpy()


@torch.no_grad()
def draw_reconstructions(models: dict[str, Any], images: torch.Tensor, angles: Sequence[float], path: str | Path):
    """Draw inputs at several angles, what each model makes of them, and how it aligns them (figures 4.5 and 4.9).

    Args:
        models: By title, in evaluation mode.
        images: Upright, a few, (B, C, ...).
        angles: In radians; of 3D inputs around their last axis, x, which is up in ModelNet.
        path: PNG.
    """
    first = next(iter(models.values())).config
    config = AVAEConfig(spatial_dims=first.spatial_dims, transforms=["rotation"], background=first.background)
    turn = torch.zeros(len(angles), config.pose_dim)
    turn[:, 0] = torch.tensor(angles)
    posed = put_in_pose(config, images.repeat_interleave(len(angles), 0), turn.repeat(len(images), 1))
    rows = {"input": project(posed)}
    for title, model in models.items():
        encoded = model.encode(posed.to(model.device))
        rows[title] = project(model.decode(encoded.latent_mean, encoded.alpha))
        if model.config.transforms:
            rows[f"{title}: aligned"] = project(model.align(posed.to(model.device), encoded.alpha))
    with open_grid(path, len(rows), len(posed), 0.62, 0.68) as (_, axes):
        for line, (title, pictures) in zip(axes, rows.items(), strict=True):
            for axis, picture in zip(line, pictures, strict=True):
                axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
                axis.set(xticks=[], yticks=[])
            line[0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=8)
        for column, axis in enumerate(axes[0]):
            axis.set_title(f"{math.degrees(angles[column % len(angles)]):.0f}°", fontsize=7)


def draw_orientations(epochs: dict[str, dict[str, dict]], path: str | Path):
    """Draw in which orientations classes are encoded, one row per class and one column per epoch (figures 4.12, 4.13).

    Epochs stand by title, e.g. "epoch 1", each with what [`measure_orientations`] gives.
    """
    classes = list(next(iter(epochs.values())))
    with open_grid(path, len(classes), len(epochs), 2.6, 1.7, sharex=True) as (_, axes):
        for column, (epoch, found) in enumerate(epochs.items()):
            for row, name in enumerate(classes):
                counts, axis = np.array(found[name]["counts"]), axes[row, column]
                edges = np.linspace(-180, 180, len(counts) + 1)
                axis.stairs(counts / max(counts.sum(), 1) * 100, edges, fill=True, color="tab:blue")
                axis.set_title(f'"{name}", {epoch}', fontsize=8)
                axis.set_xticks([-180, -90, 0, 90, 180])
                axis.tick_params(labelsize=7)
            axes[-1, column].set_xlabel("degrees", fontsize=8)
        for line in axes:
            line[0].set_ylabel("% of inputs", fontsize=8)


def draw_curves(
    curves: dict[str, dict[str, Sequence[tuple[float, float]]]],
    labels: tuple[str, str],
    path: str | Path,
    marker: str = "o",
):
    """Draw curves, one panel per title: by title and name, points (x, y)."""
    names = list(dict.fromkeys(name for named in curves.values() for name in named))
    lines = {}
    with open_grid(path, 1, len(curves), 4.4, 3.8) as (figure, axes):
        for axis, (title, named) in zip(axes[0], curves.items(), strict=True):
            for name, points in named.items():
                xs, ys = zip(*points, strict=True)
                # a model has one colour in all panels
                (lines[name],) = axis.plot(xs, ys, marker=marker, markersize=3, color=f"C{names.index(name)}")
            values = [y for points in named.values() for _, y in points]
            if 0 < 8 * min(values) < max(values):
                axis.set_yscale("log")
            axis.set_title(title, fontsize=10)
            axis.set(xlabel=labels[0], ylabel=labels[1])
            axis.grid(alpha=0.3)
        figure.legend(lines.values(), lines, loc="outside lower center", ncols=min(3, len(names)), fontsize=8)
