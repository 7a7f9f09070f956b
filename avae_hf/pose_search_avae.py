"""Search for the pose with which an autoencoder explains an input best (R. Bidart, thesis 2023, equation 4.4).

    alpha* = argmin_alpha  reconstruction(x, warp(decode(encode(warp(x, alpha))), alpha^-1)) + KL

with the latent at its mean. All searches compare per-input losses, so that no input changes another one's pose, and
return the best of everything that they evaluated. They work on a frozen copy of the networks, batch norm in evaluation
mode: weights, gradients and running statistics stay as they are.

    direct    the thesis' method (4.1.5): random starts, of which the best get steps of Adam.
    fast      Starts that all inputs share: angles, or rotations of a cube and random ones, with the translation from
              the centre of mass. Of these the local minima are refined: a 2D rotation by parabolas through three
              losses, which needs no gradient, anything else by a quasi-Newton search of its own for every candidate.

Letters: B inputs, K starts, n candidates per input, N inputs or candidates in one list, d axes, P pose numbers.
"""

import copy
import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn

from .configuration_avae import AVAEConfig
from .layers_avae import (
    ConvNormAct,
    Decoder,
    Encoder,
    affine_matrix,
    invert_affine,
    rotation_angles,
    rotation_matrix,
    small_rotation,
    warp,
)

# pixels or voxels that are evaluated at once
CHUNK = 1 << 17
# how much of every transform counts as much as a radian
UNITS = {"rotation": 1.0, "translation": 0.3, "scale": 0.3, "shear": 0.5}
FIRST_STEP, LARGEST_STEP = 0.06, 0.25
# rotations closer than this, in radians, are neighbours in the fast search's set of 3D starts
NEIGHBOURHOOD = 1.0


def negative_elbo(
    config: AVAEConfig,
    images: torch.Tensor,
    reconstruction: torch.Tensor,
    mean: torch.Tensor,
    log_variance: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the two terms of the loss for every input, without the Gaussian's constant.

    Images and reconstruction are (B, C, ...), mean and logarithm of the variance of the posterior (B, latent_dim).

    Returns:
        Negative log-likelihood times `reconstruction_scale`, and divergence from the standard normal, (B,) each.
    """
    images, reconstruction, mean, log_variance = (
        value.float() for value in (images, reconstruction, mean, log_variance)
    )
    if config.likelihood == "gaussian":
        errors = 0.5 * (images - reconstruction).square()
    else:
        inside = reconstruction.clamp(1e-6, 1 - 1e-6)
        errors = -(images * inside.log() + (1 - images) * (1 - inside).log())
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
    return config.reconstruction_scale * errors.flatten(1).sum(1), divergence


def gather_weights(module: nn.Module, recurse: bool = True) -> dict[str, torch.Tensor]:
    """Copy weights and buffers, also those that accelerate's hooks bring only for the length of a call."""
    weights: dict[str, torch.Tensor] = {}
    for prefix, part in module.named_modules() if recurse else [("", module)]:
        hook = getattr(part, "_hf_hook", None)
        if hook is not None:
            hook.pre_forward(part)
        for name, value in (*part.named_parameters(prefix, recurse), *part.named_buffers(prefix, recurse)):
            if name not in weights and not value.is_meta:
                weights[name] = value.detach().clone()
        if hook is not None:
            hook.post_forward(part, None)
    return weights


def freeze(network: nn.Module, config: AVAEConfig, fold: bool = True) -> nn.Module:
    """Copy a network for evaluation; folded, batch norm becomes part of the convolutions, channels last."""
    if any(parameter.is_meta for parameter in network.parameters()):
        weights = gather_weights(network)
        with torch.device("meta"):
            network = type(network)(config)  # type: ignore[arg-type]
        network.load_state_dict(weights, assign=True)
    else:
        network = copy.deepcopy(network)
    network = network.eval().requires_grad_(False)
    if not fold:
        return network
    for module in network.modules():
        if isinstance(module, ConvNormAct):
            transposed = isinstance(module.conv, (nn.ConvTranspose2d, nn.ConvTranspose3d))
            conv, norm = cast(Any, module.conv), cast(Any, module.norm)
            module.conv = nn.utils.fuse_conv_bn_eval(conv, norm, transpose=transposed)
            module.norm = nn.Identity()
    is_flat = any(isinstance(module, nn.Conv2d | nn.ConvTranspose2d) for module in network.modules())
    return network.to(memory_format=torch.channels_last if is_flat else torch.channels_last_3d)  # type: ignore


class PoseObjective:
    """The loss of inputs at given poses.

    Args:
        config: Of the model.
        encoder: Of the model; it is copied.
        decoder: Of the model; it is copied.
        fold: Whether batch norm is folded into the copies, which halves the time.
    """

    def __init__(self, config: AVAEConfig, encoder: Encoder, decoder: Decoder, fold: bool = True):
        self.config = config
        self.encoder, self.decoder = freeze(encoder, config, fold), freeze(decoder, config, fold)

    def _losses(self, images: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        background = self.config.background
        mean, log_variance = self.encoder(warp(images, matrix, background))
        reconstruction = warp(self.decoder(mean), invert_affine(matrix), background)
        return sum(negative_elbo(self.config, images, reconstruction, mean, log_variance))  # type: ignore

    def _split(self, images: torch.Tensor, *more: torch.Tensor):
        size = max(1, CHUNK // images[0].numel())
        return zip(images.split(size), *(values.split(size) for values in more), strict=True)

    @torch.no_grad()
    def evaluate(self, images: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        """Compute losses, (N,), of images (N, C, ...) at matrices (N, d, d + 1)."""
        return torch.cat([self._losses(*chunk) for chunk in self._split(images, matrix)])

    def differentiate(
        self, images: torch.Tensor, pose: torch.Tensor, build: Callable[..., torch.Tensor], *more: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute losses, (N,), and their gradients, (N, P).

        `build` gives matrices of poses and of what `more` has for each of them.
        """
        losses, gradients = [], []
        for image, own, *extra in self._split(images, pose, *more):
            with torch.enable_grad():
                own = own.detach().requires_grad_(True)
                loss = self._losses(image, build(own, *extra))
                # to the pose only: nothing is left in the .grad of a weight
                gradients.append(torch.autograd.grad(loss.sum(), own)[0])
            losses.append(loss.detach())
        return torch.cat(losses), torch.cat(gradients)


def draw_poses(config: AVAEConfig, num_poses: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """Draw poses, (num_poses, P): angles from the whole circle, the others uniformly up to the configured maximum."""
    parts = []
    limits = {"translation": config.max_translation, "scale": config.max_log_scale, "shear": config.max_shear}
    for name, size in config.pose_sizes.items():
        part = torch.rand(num_poses, size, generator=generator)
        parts.append(part * 2 * math.pi if name == "rotation" else (2 * part - 1) * limits[name])
    return torch.cat(parts, 1) if parts else torch.zeros(num_poses, 0)


def repeat(images: torch.Tensor, times: int) -> torch.Tensor:
    """Repeat a batch, (B, ...) to (times * B, ...), candidate by candidate."""
    return images.repeat(times, *[1] * (images.ndim - 1))


def pick(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Pick candidates: values (K, B, ...) at index (n, B) to (n, B, ...)."""
    return values[index, torch.arange(values.shape[1], device=values.device)]


def search_direct(
    objective: PoseObjective, images: torch.Tensor, generator: torch.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Search as thesis section 4.1.5 does; all inputs share the random starts.

    Returns:
        The best pose of every input, (B, P), and its loss, (B,).
    """
    config, batch = objective.config, len(images)

    def build(pose: torch.Tensor) -> torch.Tensor:
        return affine_matrix(config, pose)

    starts = draw_poses(config, config.num_restarts, generator).to(images.device)
    poses = starts[:, None].expand(-1, batch, -1)
    losses = objective.evaluate(repeat(images, len(starts)), build(poses.flatten(0, 1))).view(-1, batch)
    kept = losses.topk(config.num_kept, 0, largest=False)[1]
    best_loss, best_pose = pick(losses, kept).flatten(), pick(poses, kept).flatten(0, 1)
    pose, several = best_pose.clone(), repeat(images, config.num_kept)
    optimizer = torch.optim.Adam([pose], lr=config.search_learning_rate)
    for step in range(config.num_steps + 1):
        if step < config.num_steps:
            loss, pose.grad = objective.differentiate(several, pose, build)
        else:
            loss = objective.evaluate(several, build(pose))
        is_better = loss < best_loss
        best_loss = torch.where(is_better, loss, best_loss)
        best_pose = torch.where(is_better[:, None], pose, best_pose)
        if step < config.num_steps:
            optimizer.step()
    best_loss, winner = best_loss.view(-1, batch).min(0)
    return pick(best_pose.view(-1, batch, config.pose_dim), winner[None])[0], best_loss


def local_minima(losses: torch.Tensor, is_neighbour: torch.Tensor, number: int) -> torch.Tensor:
    """Find the lowest local minima of losses, (K, B), as indices, (n, B); the next best starts fill up."""
    around = torch.stack([losses[row].min(0).values for row in is_neighbour])
    span = losses.max() - losses.min() + 1
    return torch.where(losses <= around, losses, losses + span).topk(number, 0, largest=False)[1]


def rank_in(config: AVAEConfig, device: torch.device) -> torch.autocast:
    """Give the context for ranking candidates in the configured precision."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.search_dtype == "bfloat16")


def search_angle(
    objective: PoseObjective, images: torch.Tensor, offset: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Search a 2D rotation: angles that all share, then parabolas through three losses in ever narrower basins.

    Args:
        offset: Added to all angles.

    Returns:
        The best angle of every input, (B, 1), and its loss, (B,).
    """
    config, batch = objective.config, len(images)
    number, basins = config.num_angles, min(config.num_basins or 2, config.num_angles)

    def evaluate(angles: torch.Tensor) -> torch.Tensor:
        matrix = affine_matrix(config, angles.reshape(-1, 1))
        return objective.evaluate(repeat(images, len(angles)), matrix).view(len(angles), batch)

    angles = offset + torch.arange(number, device=images.device) * 2 * math.pi / number
    with rank_in(config, images.device):
        losses = evaluate(angles[:, None].expand(-1, batch))
    place = torch.arange(number, device=images.device)
    distance = (place[:, None] - place).remainder(number)
    index = local_minima(losses, (distance == 1) | (distance == number - 1), basins)
    centre, middle = angles[index], pick(losses, index)
    if config.search_dtype != "float32":
        middle = evaluate(centre)
    left, right = pick(losses.roll(1, 0), index), pick(losses.roll(-1, 0), index)
    best_loss, best_angle, step = middle, centre, 2 * math.pi / number

    def keep(loss: torch.Tensor, angle: torch.Tensor):
        nonlocal best_loss, best_angle
        is_better = loss < best_loss
        best_loss, best_angle = torch.where(is_better, loss, best_loss), torch.where(is_better, angle, best_angle)

    for round_ in range(config.num_refinements):
        curvature = (left - 2 * middle + right).clamp_min(1e-6)
        vertex = centre + (0.5 * (left - right) / curvature).clamp(-1, 1) * step
        keep(evaluate(vertex), vertex)
        if round_ == config.num_refinements - 1:
            break
        if round_ == config.num_refinements - 2:
            # the last round is for the best basin alone
            best_loss, winner = best_loss.min(0, keepdim=True)
            best_angle = pick(best_angle, winner)
        step /= 2.5
        centre, middle = best_angle, best_loss
        left, right = evaluate(torch.cat([centre - step, centre + step])).chunk(2)
        keep(left, centre - step)
        keep(right, centre + step)
    loss, winner = best_loss.min(0)
    return pick(best_angle, winner[None])[0][:, None], loss


def cube_rotations() -> torch.Tensor:
    """List the 24 rotations of a cube, (24, 3, 3)."""
    quarters = torch.cartesian_prod(*[torch.arange(4) * math.pi / 2] * 3)
    return torch.unique(rotation_matrix(quarters).round(), dim=0)


def random_rotations(number: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """Draw rotations uniformly, (number, 3, 3)."""
    w, x, y, z = nn.functional.normalize(torch.randn(number, 4, generator=generator), dim=1).unbind(1)
    w = torch.where(w.abs() < 1e-4, w.new_tensor(1e-4), w)
    return small_rotation(2 * torch.stack([x, y, z], 1) / w[:, None])


def start_rotations(config: AVAEConfig, generator: torch.Generator | None, is_training: bool) -> torch.Tensor:
    """Give the rotations that all inputs try, (K, d, d); in training the regular ones are turned at random.

    Without a rotation to search they are K times the identity.
    """
    dims = config.spatial_dims
    if "rotation" not in config.transforms:
        return torch.eye(dims).repeat(config.num_angles, 1, 1)
    if dims == 2:
        offset = torch.rand(1, generator=generator) * 2 * math.pi if is_training else torch.zeros(1)
        return rotation_matrix((offset + torch.arange(config.num_angles) * 2 * math.pi / config.num_angles)[:, None])
    turn = random_rotations(1, generator) if is_training else torch.eye(3)[None]
    return torch.cat([cube_rotations() @ turn, random_rotations(config.num_rotations, generator)])


def find_neighbours(rotations: torch.Tensor) -> torch.Tensor:
    """Say which of K rotations are neighbours, (K, K) bool; itself is one."""
    number, dims = rotations.shape[:2]
    trace = torch.einsum("kij,lij->kl", rotations, rotations)
    cosine = (trace / 2 if dims == 2 else (trace - 1) / 2).clamp(-1, 1)
    return cosine.acos() < (1.5 * 2 * math.pi / number if dims == 2 else NEIGHBOURHOOD)


def centre_of_mass(images: torch.Tensor) -> torch.Tensor:
    """Find the centre of mass of the values' sizes, (B, d), in grid coordinates; an empty image has it at 0.

    Args:
        images: (B, C, ...), minus the background.
    """
    values = images.float().abs().sum(1)
    total = values.flatten(1).sum(1).clamp_min(1e-6)
    centre = []
    for axis in range(values.ndim - 1, 0, -1):
        size = values.shape[axis]
        line = (torch.arange(size, device=images.device) + 0.5) * 2 / size - 1
        others = [other for other in range(1, values.ndim) if other != axis]
        centre.append((values.sum(others) * line).sum(1) / total)
    return torch.stack(centre, 1)


def start_poses(
    config: AVAEConfig,
    images: torch.Tensor,
    rotations: torch.Tensor,
    centre: torch.Tensor,
    generator: torch.Generator | None,
) -> torch.Tensor:
    """Give the poses that the search begins with, (K, B, P), but for the rotation, which is 0.

    The translation takes the centre of mass to where it is in the canonical pose. Without a rotation to search, all but
    the first start are drawn.
    """
    parts = {
        name: torch.zeros(len(rotations), len(images), size, device=images.device)
        for name, size in config.pose_sizes.items()
    }
    if "translation" in parts:
        parts["translation"] = centre_of_mass(images - config.background) - (rotations @ centre)[:, None]
    start = torch.cat(list(parts.values()), 2)
    if "rotation" not in parts:
        start[1:] += draw_poses(config, len(rotations) - 1, generator).to(images.device)[:, None]
    return start


def search_quasi_newton(
    objective: PoseObjective,
    images: torch.Tensor,
    centre: torch.Tensor,
    generator: torch.Generator | None = None,
    is_training: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Search any pose: shared rotations, translation from the centre of mass, then BFGS for every candidate.

    Rotations are refined as small turns of their start, so that no Euler angle gets in the way.

    Args:
        centre: Centre of mass of inputs in their canonical pose, (d,).

    Returns:
        The best pose of every input, (B, P), and its loss, (B,).
    """
    config, batch, device = objective.config, len(images), images.device
    rotations = start_rotations(config, generator, is_training).to(device)
    number, basins = len(rotations), min(config.num_basins or 4, len(rotations))
    num_turns = config.pose_sizes.get("rotation", 0)

    def turn(pose: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
        return rotation @ small_rotation(pose[:, :num_turns]) if num_turns else rotation

    def build(pose: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
        return affine_matrix(config, pose, turn(pose, rotation))

    start = start_poses(config, images, rotations, centre, generator)
    shared = rotations[:, None].expand(-1, batch, -1, -1)
    with rank_in(config, device):
        several = repeat(images, number)
        losses = objective.evaluate(several, build(start.flatten(0, 1), shared.flatten(0, 1))).view(number, batch)
    is_neighbour = find_neighbours(rotations) if num_turns else torch.eye(number, dtype=torch.bool, device=device)
    index = local_minima(losses, is_neighbour, basins)
    pose, rotation = pick(start, index).flatten(0, 1), pick(shared, index).flatten(0, 1)
    units = torch.cat([torch.full((size,), UNITS[name]) for name, size in config.pose_sizes.items()]).to(device)

    num_steps = config.num_refinements * max(3, config.pose_dim)

    def evaluate(images: torch.Tensor, pose: torch.Tensor, rotation: torch.Tensor):
        loss, gradient = objective.differentiate(images, pose, build, rotation)
        return loss, gradient * units

    pose, rotation, loss = minimise(evaluate, images, pose, rotation, units, num_steps)
    winner = loss.view(-1, batch).argmin(0) * batch + torch.arange(batch, device=device)
    pose, rotation, loss = pose[winner], rotation[winner], loss[winner]
    if num_turns:
        pose = torch.cat([rotation_angles(turn(pose, rotation)), pose[:, num_turns:]], 1)
    return pose, loss


def minimise(
    evaluate: Callable,
    images: torch.Tensor,
    pose: torch.Tensor,
    rotation: torch.Tensor,
    units: torch.Tensor,
    steps: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """BFGS for every candidate at once; steps that do not lower a loss are refused.

    After every third of the steps the better half of every input's candidates goes on.

    Args:
        evaluate: Images, poses and rotations to losses and gradients, in units.
        images: (B, C, ...).
        pose: Starts, (n * B, P).
        rotation: (n * B, d, d), handed on.
        units: Of the pose numbers, (P,).
        steps: Number of steps.

    Returns:
        Poses, rotations and losses of the candidates that are left.
    """
    batch, several = len(images), repeat(images, len(pose) // len(images))
    identity = torch.eye(pose.shape[1], device=pose.device)
    loss, gradient = evaluate(several, pose, rotation)
    inverse = (FIRST_STEP / gradient.norm(dim=1).clamp_min(1e-6))[:, None, None] * identity
    is_fresh = torch.ones(len(pose), dtype=torch.bool, device=pose.device)
    for step in range(steps):
        number = len(pose) // batch
        if step > 0 and step % max(1, steps // 3) == 0 and number > 1:
            places = loss.view(number, batch).topk((number + 1) // 2, 0, largest=False)[1]
            best = (places * batch + torch.arange(batch, device=pose.device)).flatten()
            pose, rotation, loss, gradient = pose[best], rotation[best], loss[best], gradient[best]
            inverse, is_fresh, several = inverse[best], is_fresh[best], repeat(images, len(places))
        change = -(inverse @ gradient[..., None])[..., 0]
        change = change * (LARGEST_STEP / change.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)
        trial = pose + change * units
        new_loss, new_gradient = evaluate(several, trial, rotation)
        difference = new_gradient - gradient
        curvature = (change * difference).sum(1)
        is_curved = curvature > 1e-8
        scale = (curvature / difference.square().sum(1).clamp_min(1e-12))[:, None, None]
        inverse = torch.where((is_fresh & is_curved)[:, None, None], scale * identity, inverse)
        is_fresh = is_fresh & ~is_curved
        ratio, column = (1 / curvature.clamp_min(1e-8))[:, None, None], change[..., None]
        left = identity - ratio * column @ difference[:, None, :]
        updated = left @ inverse @ left.transpose(1, 2) + ratio * column @ column.transpose(1, 2)
        is_lower = new_loss < loss
        # without curvature to learn from, shorter steps
        inverse = torch.where(
            is_curved[:, None, None], updated, torch.where(is_lower, 0.3, 0.15)[:, None, None] * inverse
        )
        pose = torch.where(is_lower[:, None], trial, pose)
        gradient = torch.where(is_lower[:, None], new_gradient, gradient)
        loss = torch.where(is_lower, new_loss, loss)
    return pose, rotation, loss


@torch.no_grad()
def search_pose(
    objective: PoseObjective,
    images: torch.Tensor,
    centre: torch.Tensor,
    generator: torch.Generator | None = None,
    is_training: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Search the pose of every input as the configuration says.

    Args:
        objective: The loss.
        images: (B, C, ...).
        centre: Centre of mass of inputs in their canonical pose, (d,).
        generator: Of all random numbers; torch's own by default.
        is_training: Turn regular starts at random, so that they do not shape the poses that are learned.

    Returns:
        Poses, (B, P), and their losses, (B,).
    """
    config = objective.config
    identity = torch.zeros(len(images), config.pose_dim, device=images.device)
    if not config.transforms:
        return identity, objective.evaluate(images, affine_matrix(config, identity))
    if config.search == "direct":
        alpha, loss = search_direct(objective, images, generator)
    elif config.is_angle_only:
        offset = torch.rand((), generator=generator).item() * 2 * math.pi if is_training else 0.0
        alpha, loss = search_angle(objective, images, offset=offset)
    else:
        alpha, loss = search_quasi_newton(objective, images, centre, generator, is_training)
    if config.include_identity:
        unmoved = objective.evaluate(images, affine_matrix(config, identity))
        alpha = torch.where((unmoved <= loss)[:, None], identity, alpha)
        loss = torch.minimum(unmoved, loss)
    angles, others = alpha.tensor_split([config.pose_sizes.get("rotation", 0)], dim=1)
    return torch.cat([(angles + math.pi).remainder(2 * math.pi) - math.pi, others], 1), loss
