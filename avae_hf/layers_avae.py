"""Affine transforms and the networks of the affine variational autoencoder (R. Bidart, thesis 2023, section 4.1).

A pose alpha says how an object lies in its image: a point c of the canonical image is found at `x = L c + t` in the
input. Coordinates are (x, y) or (x, y, z), x along the last axis of a tensor, from -1 to 1 between the outer edges of
the image (`align_corners=False`). Pose numbers come in this order, each only if the configuration names its transform:

    rotation     2D: an angle in radians, positive is counterclockwise on the screen, as in Pillow (equation 4.2).
                 3D: r_x, r_y, r_z of R = R_x(r_x) R_y(r_y) R_z(r_z), right-handed.
    translation  t, in half sides of the image, one number per axis.
    scale        logarithm of the scale of every axis.
    shear        2D: h_xy; 3D: h_xy, h_xz, h_yz, the upper triangle of a matrix with ones on its diagonal.

L = rotation @ shear @ diag(scale), so that with all four every invertible affine map but reflections has a pose.
Letters: B inputs, C channels, d 2 or 3 axes, P pose numbers; an affine matrix is (B, d, d + 1), [L | t].
"""

import torch
import torch.nn.functional as F
from torch import nn

from .configuration_avae import AVAEConfig


def rotation_matrix(angles: torch.Tensor) -> torch.Tensor:
    """Build rotations: angles (B, 1) to (B, 2, 2), or Euler angles (B, 3) to (B, 3, 3)."""
    cos, sin = angles.cos(), angles.sin()
    if angles.shape[1] == 1:
        return torch.stack([torch.cat([cos, sin], 1), torch.cat([-sin, cos], 1)], 1)
    zero, one = torch.zeros_like(cos[:, 0]), torch.ones_like(cos[:, 0])
    factors = []
    for axis in range(3):
        c, s = cos[:, axis], sin[:, axis]
        rows = [[one, zero, zero], [zero, c, -s], [zero, s, c]]
        # the same block, with the axes in turn
        order = [(column - axis) % 3 for column in range(3)]
        factors.append(torch.stack([torch.stack([rows[i][j] for j in order], 1) for i in order], 1))
    return factors[0] @ factors[1] @ factors[2]


def rotation_angles(rotation: torch.Tensor) -> torch.Tensor:
    """Find the angles of rotations: (B, 2, 2) to (B, 1), or (B, 3, 3) to (B, 3), with r_y in [-pi/2, pi/2]."""
    if rotation.shape[1] == 2:
        return torch.atan2(rotation[:, 0, 1], rotation[:, 0, 0])[:, None]
    r_x = torch.atan2(-rotation[:, 1, 2], rotation[:, 2, 2])
    r_y = torch.asin(rotation[:, 0, 2].clamp(-1, 1))
    # what is left without r_x: exact also where r_y is a right angle and r_x is arbitrary
    middle = r_x.cos()[:, None] * rotation[:, 1] + r_x.sin()[:, None] * rotation[:, 2]
    return torch.stack([r_x, r_y, torch.atan2(middle[:, 0], middle[:, 1])], 1)


def small_rotation(turn: torch.Tensor) -> torch.Tensor:
    """Build rotations near the identity, smooth at 0: (B, 1) to (B, 2, 2), or rotation vectors (B, 3) to (B, 3, 3).

    In 3D the unit quaternion is (1, turn / 2), normalised, so the angle is 2 atan(|turn| / 2).
    """
    if turn.shape[1] == 1:
        return rotation_matrix(turn)
    w, x, y, z = F.normalize(torch.cat([torch.ones_like(turn[:, :1]), turn / 2], 1), dim=1).unbind(1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, 1) for row in rows], 1)


def affine_matrix(config: AVAEConfig, alpha: torch.Tensor, rotation: torch.Tensor | None = None) -> torch.Tensor:
    """Build [L | t] of poses.

    Args:
        config: Says which transforms the pose numbers are of.
        alpha: Poses, (B, P).
        rotation: Rotations, (B, d, d), that take the place of those of `alpha`.

    Returns:
        Matrices, (B, d, d + 1), from canonical to input coordinates.
    """
    dims = config.spatial_dims
    parts = dict(zip(config.pose_sizes, alpha.split(list(config.pose_sizes.values()), dim=1), strict=True))
    linear = torch.eye(dims, dtype=alpha.dtype, device=alpha.device).expand(alpha.shape[0], dims, dims)
    if "rotation" in parts:
        linear = rotation_matrix(parts["rotation"]) if rotation is None else rotation
    if "shear" in parts:
        upper = torch.triu_indices(dims, dims, 1, device=alpha.device)
        shear = torch.eye(dims, dtype=alpha.dtype, device=alpha.device).repeat(alpha.shape[0], 1, 1)
        linear = linear @ shear.index_put(
            (torch.arange(alpha.shape[0], device=alpha.device)[:, None], *upper), parts["shear"]
        )
    if "scale" in parts:
        linear = linear * parts["scale"].exp()[:, None]
    shift = parts.get("translation", alpha.new_zeros(alpha.shape[0], dims))
    return torch.cat([linear, shift[:, :, None]], 2)


def invert_affine(matrix: torch.Tensor) -> torch.Tensor:
    """Invert affine maps, (B, d, d + 1)."""
    linear, shift = matrix[:, :, :-1], matrix[:, :, -1:]
    inverse = torch.linalg.inv(linear)
    return torch.cat([inverse, -(inverse @ shift)], 2)


def warp(images: torch.Tensor, matrix: torch.Tensor, background: float = 0.0) -> torch.Tensor:
    """Sample images at affine positions: the value at c of the result is that of `images` at `L c + t`.

    Args:
        images: (B, C, ...). Interpolation is linear.
        matrix: [L | t], (B, d, d + 1). That of a pose turns an input to its canonical pose, its inverse turns a
            canonical image to the pose.
        background: What lies outside.
    """
    # positions in half precision would be wrong by a good part of a pixel
    with torch.autocast(images.device.type, enabled=False):
        grid = F.affine_grid(matrix.float(), list(images.shape), align_corners=False)
        sampled = F.grid_sample(images.float() - background, grid, align_corners=False) + background
    return sampled.to(images.dtype)


class ConvNormAct(nn.Sequential):
    """A convolution without bias, batch norm and ELU."""

    def __init__(self, conv: nn.Module, norm: nn.Module):
        super().__init__()
        self.conv, self.norm, self.act = conv, norm, nn.ELU()


class Encoder(nn.Module):
    """Four convolutions and the parameters of the posterior (thesis 4.1.5; kernel sizes of the author's code)."""

    def __init__(self, config: AVAEConfig):
        super().__init__()
        is_flat = config.spatial_dims == 2
        conv, norm = (nn.Conv2d, nn.BatchNorm2d) if is_flat else (nn.Conv3d, nn.BatchNorm3d)
        # kernel, stride, padding
        shapes = (
            [(5, 1, 2), (4, 2, 1), (3, 2, 1), (5, 1, 2)] if is_flat else [(3, 1, 1), (5, 2, 2), (5, 2, 2), (3, 2, 1)]
        )
        widths = [config.in_channels, *(config.encoder_channels or [])]
        layers: list[nn.Module] = [
            ConvNormAct(conv(widths[i], widths[i + 1], *shapes[i], bias=False), norm(widths[i + 1])) for i in range(3)
        ]
        layers.append(conv(widths[3], widths[4], *shapes[3]))
        self.layers = nn.Sequential(*layers)
        num_features = widths[4] * (config.image_size // config.reduction) ** config.spatial_dims
        self.mean = nn.Linear(num_features, config.latent_dim)
        self.log_variance = nn.Linear(num_features, config.latent_dim) if config.learned_variance else None

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Give mean and logarithm of the variance of the posterior, (B, latent_dim) each."""
        return self.posterior(self.layers(images))

    def posterior(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Give the same of what the last convolution gives."""
        features = features.flatten(1)
        mean = self.mean(features)
        return mean, torch.zeros_like(mean) if self.log_variance is None else self.log_variance(features)


class Decoder(nn.Module):
    """Four transposed convolutions (thesis 4.1.5)."""

    def __init__(self, config: AVAEConfig):
        super().__init__()
        is_flat = config.spatial_dims == 2
        conv, norm = (nn.ConvTranspose2d, nn.BatchNorm2d) if is_flat else (nn.ConvTranspose3d, nn.BatchNorm3d)
        # kernel, stride, padding, output padding; in 2D the first one shrinks the image by a pixel
        shapes = [(4, 1, 2, 0), (5, 2, 1, 1), (5, 2, 2, 1)] if is_flat else [(3, 2, 1, 1), (5, 2, 2, 1), (5, 2, 2, 1)]
        side = config.image_size // config.reduction
        self.start = ((config.encoder_channels or [])[-1], *[side] * config.spatial_dims)
        widths = [self.start[0], *(config.decoder_channels or [])]
        self.expand = nn.Linear(config.latent_dim, self.start[0] * side**config.spatial_dims)
        layers: list[nn.Module] = [
            ConvNormAct(conv(widths[i], widths[i + 1], *shapes[i], bias=False), norm(widths[i + 1])) for i in range(3)
        ]
        layers.append(conv(widths[3], config.in_channels, 3, 1, 1))
        layers.append(nn.Sigmoid() if config.output_activation == "sigmoid" else nn.Identity())
        self.layers = nn.Sequential(*layers)

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """Give images, (B, C, ...), in the canonical pose."""
        return self.layers(self.expand(latent).unflatten(1, self.start))
