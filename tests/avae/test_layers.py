"""Affine conventions: what alpha means, that the inverse is the inverse, that warps compose, in 2D and 3D."""

import math

import numpy as np
import PIL.Image
import pytest
import torch

from avae_hf import AVAEConfig
from avae_hf.layers_avae import affine_matrix, invert_affine, rotation_angles, rotation_matrix, small_rotation, warp
from avae_hf.pose_search_avae import cube_rotations, draw_poses, random_rotations

from .conftest import draw_shapes

ALL = ["rotation", "translation", "scale", "shear"]
each_dims = pytest.mark.parametrize("dims", [2, 3])


def config_of(dims, transforms=ALL):
    return AVAEConfig(spatial_dims=dims, image_size=16, transforms=transforms)


def homogeneous(matrix):
    last = torch.zeros(len(matrix), 1, matrix.shape[2])
    last[..., -1] = 1
    return torch.cat([matrix, last], 1)


@each_dims
def test_pose_numbers_have_one_order_whatever_the_list_says(dims):
    config = config_of(dims, ["shear", "rotation"])
    assert list(config.pose_sizes) == ["rotation", "shear"]
    assert config_of(dims).pose_dim == {2: 6, 3: 12}[dims]
    assert config_of(dims, ["rotation"]).pose_dim == {2: 1, 3: 3}[dims]
    assert config_of(dims, ["rotation", "translation"]).pose_dim == {2: 3, 3: 6}[dims]


@each_dims
def test_inverse_is_the_inverse(dims):
    matrix = affine_matrix(config_of(dims), draw_poses(config_of(dims), 16))
    product = homogeneous(matrix) @ homogeneous(invert_affine(matrix))
    torch.testing.assert_close(product, torch.eye(dims + 1).expand_as(product), atol=1e-5, rtol=0)


@each_dims
def test_identity_pose_changes_nothing(dims):
    images, config = draw_shapes(spatial_dims=dims), config_of(dims)
    matrix = affine_matrix(config, torch.zeros(len(images), config.pose_dim))
    assert torch.equal(matrix[:, :, :-1], torch.eye(dims).expand(len(images), dims, dims))
    torch.testing.assert_close(warp(images, matrix), images, atol=1e-6, rtol=0)


@each_dims
@pytest.mark.parametrize("transforms", [["rotation"], ["translation"], ["scale"], ["shear"], ALL])
def test_there_and_back(dims, transforms):
    """What is left is the blur of interpolating twice, which no wrong convention comes close to."""
    size = 32
    images = torch.nn.functional.pad(draw_shapes(spatial_dims=dims, size=size // 2), [size // 4] * 2 * dims)
    config = AVAEConfig(spatial_dims=dims, image_size=size, transforms=transforms, max_shear=0.3)
    matrix = affine_matrix(config, draw_poses(config, len(images)))
    there = warp(images, invert_affine(matrix))
    back = warp(there, matrix)
    error = (back - images).square().sum() / images.square().sum()
    wrong = (warp(there, invert_affine(matrix)) - images).square().sum() / images.square().sum()
    assert error < 0.05 and error < wrong / 20, (error, wrong)


def test_positive_angle_is_counterclockwise_as_in_pillow():
    image = np.zeros((40, 40), np.uint8)
    image[18:22, 20:38] = 255
    turned = np.array(PIL.Image.fromarray(image).rotate(30, PIL.Image.Resampling.BILINEAR))
    alpha = torch.tensor([[math.radians(30)]])
    matrix = affine_matrix(config_of(2, ["rotation"]), alpha)
    # equation 4.2 of the thesis, from canonical to input coordinates
    cos, sin = math.cos(math.radians(30)), math.sin(math.radians(30))
    torch.testing.assert_close(matrix[0, :, :2], torch.tensor([[cos, sin], [-sin, cos]]))
    ours = warp(torch.from_numpy(image)[None, None] / 255, invert_affine(matrix))[0, 0].numpy() * 255
    assert np.abs(ours - turned).max() < 2


@each_dims
def test_translation_is_where_the_canonical_centre_lies(dims):
    config = config_of(dims, ["translation"])
    image = torch.zeros(1, 1, *[16] * dims)
    image[(0, 0, *[slice(7, 9)] * dims)] = 1
    shift = torch.tensor([[0.5, -0.25, 0.125][:dims]])
    moved = warp(image, invert_affine(affine_matrix(config, shift)))
    expected = image
    for axis, steps in zip(range(-1, -dims - 1, -1), (4, -2, 1), strict=False):
        expected = expected.roll(steps, axis)
    torch.testing.assert_close(moved, expected, atol=1e-5, rtol=0)


def test_scale_and_shear_make_what_they_say():
    config = config_of(2, ["scale", "shear"])
    matrix = affine_matrix(config, torch.tensor([[math.log(2), math.log(3), 0.5]]))
    torch.testing.assert_close(matrix[0], torch.tensor([[2.0, 1.5, 0.0], [0.0, 3.0, 0.0]]))
    matrix = affine_matrix(config_of(3, ["shear"]), torch.tensor([[0.1, 0.2, 0.3]]))
    torch.testing.assert_close(matrix[0, :, :3], torch.tensor([[1.0, 0.1, 0.2], [0.0, 1.0, 0.3], [0.0, 0.0, 1.0]]))


def test_every_affine_map_but_reflections_has_a_pose():
    linear = torch.randn(50, 2, 2)
    linear = linear[torch.linalg.det(linear) > 0.1]
    q, r = torch.linalg.qr(linear)
    sign = torch.diag_embed(torch.diagonal(r, dim1=1, dim2=2).sign())
    q, r = q @ sign, sign @ r
    scale = torch.diagonal(r, dim1=1, dim2=2)
    alpha = torch.cat([rotation_angles(q), scale.log(), (r[:, 0, 1] / scale[:, 1])[:, None]], 1)
    rebuilt = affine_matrix(config_of(2, ["rotation", "scale", "shear"]), alpha)[:, :, :2]
    torch.testing.assert_close(rebuilt, linear, atol=1e-4, rtol=1e-3)


def test_euler_angles_are_the_author_s_product():
    r_x, r_y, r_z = torch.tensor([[0.3, 0.0, 0.0]]), torch.tensor([[0.0, -0.7, 0.0]]), torch.tensor([[0.0, 0.0, 1.1]])
    product = rotation_matrix(r_x) @ rotation_matrix(r_y) @ rotation_matrix(r_z)
    torch.testing.assert_close(rotation_matrix(r_x + r_y + r_z), product)
    turned = rotation_matrix(torch.tensor([[0.0, 0.0, math.pi / 2]]))[0] @ torch.tensor([1.0, 0.0, 0.0])
    torch.testing.assert_close(turned, torch.tensor([0.0, 1.0, 0.0]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("angles", [[0.3, -1.2, 2.5], [3.0, 1.5, -3.0], [0.4, math.pi / 2, 0.9], [1, -math.pi / 2, 2]])
def test_angles_of_a_rotation_give_it_back(angles):
    rotation = rotation_matrix(torch.tensor([angles]))
    torch.testing.assert_close(rotation_matrix(rotation_angles(rotation)), rotation, atol=1e-5, rtol=0)


def test_small_rotations_are_rotations_with_a_gradient_at_0():
    turn = torch.zeros(2, 3, requires_grad=True)
    rotation = small_rotation(turn)
    torch.testing.assert_close(rotation, torch.eye(3).expand(2, 3, 3))
    gradient = torch.autograd.grad(rotation[:, 2, 1].sum(), turn)[0]
    torch.testing.assert_close(gradient, torch.tensor([[1.0, 0.0, 0.0]] * 2))
    rotation = small_rotation(torch.randn(20, 3))
    torch.testing.assert_close(rotation @ rotation.transpose(1, 2), torch.eye(3).expand(20, 3, 3), atol=1e-5, rtol=0)


def test_starts_in_3d_are_rotations():
    rotations = torch.cat([cube_rotations(), random_rotations(200)])
    assert len(cube_rotations()) == 24
    torch.testing.assert_close(torch.linalg.det(rotations), torch.ones(224), atol=1e-4, rtol=0)
    assert random_rotations(2000).mean(0).abs().max() < 0.1, "uniform: no direction is preferred"


def test_outside_is_background():
    shifted = warp(
        torch.ones(1, 1, 8, 8), affine_matrix(config_of(2, ["translation"]), torch.tensor([[1.0, 0.0]])), -0.4
    )
    torch.testing.assert_close(shifted[0, 0, :, :4], torch.ones(8, 4))
    torch.testing.assert_close(shifted[0, 0, :, 4:], torch.full((8, 4), -0.4))


def test_half_precision_is_warped_at_full_precision():
    images = draw_shapes(size=64)
    matrix = affine_matrix(config_of(2, ["rotation"]), torch.full((4, 1), 0.3))
    half = warp(images.bfloat16(), matrix)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), warp(images, matrix), atol=0.02, rtol=0)
