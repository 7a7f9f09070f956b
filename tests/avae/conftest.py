"""Tiny autoencoders and shapes."""

import numpy as np
import pytest
import torch
from torch import nn

import avae_hf


def build(transforms=("rotation",), spatial_dims=2, **settings):
    """A tiny model whose outputs depend on its input, with running statistics as after training."""
    torch.manual_seed(0)
    defaults = {
        "image_size": 16,
        "latent_dim": 3,
        "encoder_channels": [4, 4, 6, 4],
        "decoder_channels": [6, 4, 4],
        "spatial_dims": spatial_dims,
        "num_rotations": 4,
    }
    model = avae_hf.AVAEModel(avae_hf.AVAEConfig(**{**defaults, "transforms": list(transforms), **settings}))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.1, 0.5)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.3)
    return model.eval()


def draw_shapes(number=4, spatial_dims=2, size=16):
    """Blobs of two parts with no symmetry, each another one, smooth enough to be turned: (number, 1, ...)."""
    generator = np.random.default_rng(0)
    line = (np.arange(size) + 0.5) * 2 / size - 1
    places = np.stack(np.meshgrid(*[line] * spatial_dims, indexing="ij"), -1)
    images = []
    for _ in range(number):
        image = np.zeros(places.shape[:-1])
        for weight, scale in ((1.0, 0.25), (0.7, 0.15)):
            centre = generator.uniform(-0.35, 0.35, spatial_dims)
            image += weight * np.exp(-((places - centre) ** 2).sum(-1) / (2 * scale**2))
        images.append(image / image.max())
    return torch.from_numpy(np.stack(images)).float()[:, None]


@pytest.fixture
def shapes():
    return draw_shapes()


@pytest.fixture(scope="session", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def trained(request):
    """A plain autoencoder, trained upright for some seconds, and shapes that it has not seen."""
    dims = request.param
    images = draw_shapes(72, dims)
    model = build([], dims).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(80 if dims == 2 else 40):
        optimizer.zero_grad()
        model(images[(step % 4) * 16 : (step % 4 + 1) * 16]).loss.backward()
        optimizer.step()
    return model.eval(), images[64:]
