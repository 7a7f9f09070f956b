"""The pose search: nothing but the pose changes, every input is for itself, and fast is as good as direct."""

import copy
import math

import pytest
import torch

import avae_hf
from avae_hf.data import put_in_pose
from avae_hf.layers_avae import affine_matrix
from avae_hf.pose_search_avae import (
    PoseObjective,
    centre_of_mass,
    draw_poses,
    find_neighbours,
    local_minima,
    search_direct,
    search_pose,
    start_rotations,
)

from .conftest import build, draw_shapes

BOTH = ["rotation", "translation"]
SEARCHES = [
    (2, ["rotation"], "fast"),
    (2, BOTH, "fast"),
    (2, ["shear", "scale"], "fast"),
    (2, BOTH, "direct"),
    (3, ["rotation"], "fast"),
    (3, BOTH, "direct"),
]
each_search = pytest.mark.parametrize(("dims", "transforms", "search"), SEARCHES)


def make(dims, transforms, search, **settings):
    small = {"num_restarts": 6, "num_kept": 3, "num_steps": 4} if search == "direct" else {}
    return build(transforms, dims, search=search, **small, **settings), draw_shapes(spatial_dims=dims)


def objective_of(model, fold=True):
    return PoseObjective(model.config, model.encoder, model.decoder, fold=fold)


@each_search
@pytest.mark.parametrize("is_training", [True, False])
def test_weights_gradients_and_buffers_stay_as_they_are(dims, transforms, search, is_training):
    model, pixels = make(dims, transforms, search)
    model.train(is_training)
    model(pixels).loss.backward()
    state = copy.deepcopy(model.state_dict())
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.search_pose(pixels)
    assert model.training == is_training
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.equal(parameter.grad, gradient) and parameter.requires_grad


@each_search
def test_batchmates_do_not_matter(dims, transforms, search):
    model, pixels = make(dims, transforms, search)
    together = model.search_pose(pixels)
    alone = [model.search_pose(pixels[row : row + 1]) for row in range(len(pixels))]
    # other kernels round otherwise, and a refused step more or less shows in the last digits
    torch.testing.assert_close(torch.cat([one.loss for one in alone]), together.loss, atol=2e-3, rtol=0)
    reverse = model.search_pose(pixels.flip(0))
    torch.testing.assert_close(reverse.loss.flip(0), together.loss, atol=2e-3, rtol=0)
    turns = model.config.pose_sizes.get("rotation", 0)
    difference = together.alpha - reverse.alpha.flip(0)
    difference[:, :turns] = (difference[:, :turns] + math.pi).remainder(2 * math.pi) - math.pi
    assert difference.abs().max() < 1e-2


@each_search
def test_loss_is_that_of_the_pose_and_never_above_the_identity_s(dims, transforms, search):
    model, pixels = make(dims, transforms, search)
    found = model.search_pose(pixels)
    outputs = model(pixels, found.alpha)
    torch.testing.assert_close(outputs.reconstruction_loss + outputs.divergence, found.loss, atol=2e-3, rtol=1e-4)
    unmoved = model(pixels, search=False)
    assert (found.loss <= unmoved.reconstruction_loss + unmoved.divergence + 1e-3).all()
    assert (found.loss < unmoved.reconstruction_loss + unmoved.divergence - 1e-2).any(), "it found something"


@each_search
def test_search_works_without_gradients_and_for_one_input(dims, transforms, search):
    model, pixels = make(dims, transforms, search)
    expected = model.search_pose(pixels)
    with torch.no_grad():
        torch.testing.assert_close(model.search_pose(pixels).alpha, expected.alpha)
    with torch.inference_mode():
        found = model.search_pose(pixels)
        torch.testing.assert_close(found.alpha, expected.alpha)
        assert model(pixels[:1]).alpha.shape == (1, model.config.pose_dim)
    assert not found.alpha.is_inference()


def test_folded_networks_give_the_same_losses():
    for dims in (2, 3):
        model, pixels = make(dims, BOTH, "fast")
        matrix = affine_matrix(model.config, draw_poses(model.config, len(pixels)))
        folded, plain = (objective_of(model, fold).evaluate(pixels, matrix) for fold in (True, False))
        torch.testing.assert_close(folded, plain, atol=1e-3, rtol=1e-5)


def test_direct_search_is_the_thesis_one():
    """32 starts, the 8 best, 20 Adam steps, written down again for one input at a time."""
    model, pixels = build(BOTH, search="direct", include_identity=False), draw_shapes()
    starts = draw_poses(model.config, 32, torch.Generator().manual_seed(7))
    objective = objective_of(model, fold=False)
    alpha, loss = search_direct(objective, pixels, torch.Generator().manual_seed(7))

    def loss_at(image, pose):
        outputs = model(image, pose) if not pose.requires_grad else None
        if outputs is not None:
            return outputs.reconstruction_loss + outputs.divergence
        return objective._losses(image, affine_matrix(model.config, pose))

    for row, image in enumerate(pixels):
        image = image[None]
        with torch.no_grad():
            first = torch.cat([loss_at(image, start[None]) for start in starts])
        best = math.inf
        for index in first.topk(8, largest=False).indices:
            pose = starts[index][None].clone().requires_grad_()
            optimizer = torch.optim.Adam([pose], lr=0.03)
            for _ in range(21):
                value = loss_at(image, pose)
                best = min(best, value.item())
                optimizer.zero_grad()
                value.sum().backward(inputs=[pose])
                optimizer.step()
        assert loss[row].item() == pytest.approx(best, abs=1e-3)


def test_thesis_starts_are_32_without_the_identity(monkeypatch):
    counted = []
    original = PoseObjective.evaluate

    def evaluate(self, images, matrix):
        counted.append(len(images))
        return original(self, images, matrix)

    monkeypatch.setattr(PoseObjective, "evaluate", evaluate)
    pixels = draw_shapes(2)
    build(search="direct", include_identity=False, num_steps=0).search_pose(pixels)
    assert counted == [2 * 32, 2 * 8]
    counted.clear()
    build(search="direct", include_identity=True, num_steps=0).search_pose(pixels)
    assert counted == [2 * 32, 2 * 8, 2]


@pytest.mark.parametrize("transforms", [["rotation"], BOTH])
def test_fast_is_as_good_as_direct(trained, transforms):
    model, upright = trained
    config = copy.deepcopy(model.config)
    config.transforms, config.num_rotations = transforms, 24
    pixels = put_in_pose(config, upright, draw_poses(config, len(upright), torch.Generator().manual_seed(3)))
    objective = PoseObjective(config, model.encoder, model.decoder)
    _, fast = search_pose(objective, pixels, centre_of_mass(upright).mean(0))
    config.search = "direct"
    _, direct = search_pose(objective, pixels, model.centre, torch.Generator().manual_seed(0))
    config.search = "fast"
    assert fast.mean() <= direct.mean() + 0.02
    config.search_dtype = "bfloat16"
    _, half = search_pose(objective, pixels, centre_of_mass(upright).mean(0))
    assert half.mean() <= direct.mean() + 0.02


def test_a_turned_input_is_found_turned():
    """With a decoder that knows one shape only, the pose of the shape is what the search must find."""
    model, shape = build(), draw_shapes(1)
    objective = objective_of(model)
    # a "network" that always draws the shape upright
    objective.encoder = lambda images: (torch.zeros(len(images), 3), torch.zeros(len(images), 3))
    objective.decoder = lambda latent: shape.expand(len(latent), -1, -1, -1)
    true = torch.tensor([[-2.8], [-1.0], [0.3], [1.7], [3.0]])
    config = model.config
    pixels = put_in_pose(config, shape.expand(5, -1, -1, -1), true)
    alpha, _ = search_pose(objective, pixels, model.centre)
    assert ((alpha - true + math.pi).remainder(2 * math.pi) - math.pi).abs().max() < 0.02


@pytest.mark.parametrize("dims", [2, 3])
def test_a_moved_input_is_found_where_it_is(dims):
    model, shape = build(BOTH, dims, num_refinements=5, num_rotations=24), draw_shapes(1, dims)
    shape = torch.nn.functional.pad(
        torch.nn.functional.avg_pool2d(shape, 2) if dims == 2 else shape[..., ::2, ::2, ::2], [4] * 2 * dims
    )
    objective = objective_of(model)
    objective.encoder = lambda images: (torch.zeros(len(images), 3), torch.zeros(len(images), 3))
    objective.decoder = lambda latent: shape.expand(len(latent), *shape.shape[1:])
    true = draw_poses(model.config, 6, torch.Generator().manual_seed(1))
    pixels = put_in_pose(model.config, shape.expand(6, *shape.shape[1:]), true)
    alpha, loss = search_pose(objective, pixels, centre_of_mass(shape)[0])
    found = affine_matrix(model.config, alpha)
    expected = affine_matrix(model.config, true)
    # a solid of two parts looks the same turned around the line through them
    assert (loss < 0.1 * 0.5 * pixels.square().flatten(1).sum(1)).all()
    if dims == 2:
        torch.testing.assert_close(found, expected, atol=0.05, rtol=0)


def test_training_turns_the_grid_so_that_it_shapes_nothing():
    model, pixels = build(num_refinements=1, train_search={"num_refinements": 1, "num_basins": 1}), draw_shapes(1)
    model.train()
    found = torch.cat([model.search_pose(pixels).alpha for _ in range(5)])
    assert len(found.unique()) == 5
    model.eval()
    found = torch.cat([model.search_pose(pixels).alpha for _ in range(3)])
    assert len(found.unique()) == 1


def test_training_has_its_own_settings():
    config = avae_hf.AVAEConfig(train_search={"search": "direct", "num_steps": 2})
    assert (config.search, config.for_training().search, config.for_training().num_steps) == ("fast", "direct", 2)
    assert avae_hf.AVAEConfig(train_search={}).for_training().num_basins is None


def test_local_minima_come_before_what_lies_beside_a_better_one():
    losses = torch.tensor([[3.0, 1.0, 1.5, 4.0, 2.0, 5.0]]).T
    neighbours = find_neighbours(start_rotations(avae_hf.AVAEConfig(num_angles=6), None, False))
    assert neighbours.sum(1).eq(3).all()
    assert local_minima(losses, neighbours, 2).flatten().tolist() == [1, 4]
    assert local_minima(losses, neighbours, 3).flatten().tolist() == [1, 4, 2]


def test_centre_of_mass_is_in_grid_coordinates():
    image = torch.zeros(2, 1, 8, 8)
    image[0, 0, 0, 7] = 2
    torch.testing.assert_close(centre_of_mass(image), torch.tensor([[0.875, -0.875], [0.0, 0.0]]))
    solid = torch.zeros(1, 1, 8, 8, 8)
    solid[0, 0, 1, 2, 7] = 1
    torch.testing.assert_close(centre_of_mass(solid), torch.tensor([[0.875, -0.375, -0.625]]))


def test_dark_objects_on_white_are_found_too():
    """What is below the background weighs as much as what is above."""
    model, shapes = build(BOTH, background=1.0), draw_shapes()
    alpha = model.search_pose(1 - shapes).alpha
    assert alpha.abs().max() < 4
    torch.testing.assert_close(centre_of_mass((1 - shapes) - 1.0), centre_of_mass(shapes))


def test_without_a_rotation_there_are_several_starts():
    """Two equal blobs: from the centre of mass alone, the search ends between them."""
    model = build(["translation"], max_translation=0.6)
    line = torch.arange(16) - 7.5
    shape = torch.exp(-(line[:, None] ** 2 + line**2) / 8)[None, None]
    objective = objective_of(model)
    objective.encoder = lambda images: (torch.zeros(len(images), 3), torch.zeros(len(images), 3))
    objective.decoder = lambda latent: shape.expand(len(latent), -1, -1, -1)
    pixels = shape.roll(5, 3) + 0.9 * shape.roll(-5, 3)
    alpha, _ = search_pose(objective, pixels, torch.zeros(2), torch.Generator().manual_seed(0))
    assert alpha[0, 0].abs().item() == pytest.approx(5 / 8, abs=0.1)


def test_starts_are_drawn_from_the_whole_range():
    config = avae_hf.AVAEConfig(transforms=["rotation", "translation", "scale", "shear"])
    poses = draw_poses(config, 2000, torch.Generator().manual_seed(0))
    limits = torch.tensor([2 * math.pi, 0.2, 0.2, 0.25, 0.25, 0.5])
    assert (poses.amax(0) <= limits).all() and (poses.amax(0) > 0.98 * limits).all()
    assert poses[:, 0].min() >= 0 and poses[:, 1:].amin(0).lt(0).all()
