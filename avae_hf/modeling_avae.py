"""Affine variational autoencoder: separates the shape of an object from its pose (R. Bidart, thesis 2023, chapter 4).

An input is turned to the pose that explains it best, encoded, decoded and turned back. The pose is found by
optimisation, not predicted. Letters: B inputs, C channels, d axes, P pose numbers (`layers_avae` says what they mean).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_avae import AVAEConfig
from .layers_avae import Decoder, Encoder, affine_matrix, invert_affine, warp
from .pose_search_avae import (
    PoseObjective,
    centre_of_mass,
    draw_poses,
    gather_weights,
    negative_elbo,
    search_pose,
)

# weight of the newest batch in the running centre of mass
CENTRE_MOMENTUM = 0.05


@dataclass
class AVAEOutput(ModelOutput):
    """
    Output of [`AVAEModel`].

    Args:
        pooler_output (`torch.FloatTensor` of shape `(B, latent_dim)`):
            The features of an input, whatever its pose: the mean of the posterior. First, because that is what
            pipelines for feature extraction give.
        loss (`torch.FloatTensor` of shape `(1,)`):
            Mean over the batch of reconstruction loss and divergence: the negative evidence lower bound, without
            the Gaussian's constant.
        reconstruction (`torch.FloatTensor` of shape `(B, C, ...)`):
            In the pose of the input.
        latent_mean (`torch.FloatTensor` of shape `(B, latent_dim)`):
            Mean of the posterior.
        latent_log_variance (`torch.FloatTensor` of shape `(B, latent_dim)`):
            Logarithm of the variance of the posterior.
        alpha (`torch.FloatTensor` of shape `(B, P)`):
            Pose.
        reconstruction_loss (`torch.FloatTensor` of shape `(B,)`):
            Negative log-likelihood of every input.
        divergence (`torch.FloatTensor` of shape `(B,)`):
            Of every input's posterior from the standard normal distribution.
        hidden_states (`tuple(torch.FloatTensor)`, *optional*, returned when `output_hidden_states=True`):
            What every convolution of the encoder gives, of the input in its canonical pose.
    """

    pooler_output: torch.Tensor | None = None
    loss: torch.Tensor | None = None
    reconstruction: torch.Tensor | None = None
    latent_mean: torch.Tensor | None = None
    latent_log_variance: torch.Tensor | None = None
    alpha: torch.Tensor | None = None
    reconstruction_loss: torch.Tensor | None = None
    divergence: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


@dataclass
class AVAEEncoderOutput(ModelOutput):
    """
    Output of [`AVAEModel.encode`]; the same as in [`AVAEOutput`].
    """

    latent_mean: torch.Tensor | None = None
    latent_log_variance: torch.Tensor | None = None
    alpha: torch.Tensor | None = None


@dataclass
class AVAEPoseOutput(ModelOutput):
    """
    Output of [`AVAEModel.search_pose`].

    Args:
        alpha (`torch.FloatTensor` of shape `(B, P)`):
            The best pose that was found.
        loss (`torch.FloatTensor` of shape `(B,)`):
            Its loss, with the latent at its mean.
    """

    alpha: torch.Tensor | None = None
    loss: torch.Tensor | None = None


class AVAEModel(PreTrainedModel):
    """Affine variational autoencoder; without transforms, a plain one.

    Args:
        config: A folder of a plain autoencoder, trained in one pose, opens with other `transforms` too: it then
            searches the pose of what it gets.
    """

    config: AVAEConfig
    centre: torch.Tensor
    config_class = AVAEConfig
    base_model_prefix = "avae"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    # the loss is a mean over the batch, whatever the Trainer counts
    accepts_loss_kwargs = False

    def __init__(self, config: AVAEConfig):
        # from_pretrained(folder, transforms=...) sets attributes as they are, without running the validators
        config.transforms = list(config.transforms)
        config.validate()
        super().__init__(config)
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        # where the search puts an input's centre of mass
        self.register_buffer("centre", torch.zeros(config.spatial_dims))
        self.post_init()

    @property
    def device(self) -> torch.device:
        """Where it computes, also where accelerate keeps the weights elsewhere between calls."""
        return gather_weights(self, recurse=False)["centre"].device

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Draw as PyTorch does by default, which the author's networks do."""
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            bound = 1 / math.sqrt(nn.init._calculate_fan_in_and_fan_out(module.weight)[0])
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, AVAEModel):
            init.zeros_(module.centre)  # type: ignore[arg-type]
        else:
            super()._init_weights(module)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        alpha: torch.Tensor | None = None,
        search: bool = True,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> AVAEOutput:
        """Reconstruct inputs in their best pose, and compute the loss.

        In training the latent is drawn from the posterior (unless `config.sample_latent` is off); no gradient goes
        through the search.

        Args:
            pixel_values: (B, C, ...), C of `config.in_channels` and every side `config.image_size`.
            alpha: Poses, (B, P), or one for all, (P,); no search then.
            search: Whether to search the pose; without a search, and without `alpha`, it is the identity. A search
                can be neither exported nor compiled.
            output_hidden_states: Whether to return them; the configuration's setting by default.
            **kwargs: What transformers passes to any model; without effect.

        Returns:
            Loss, reconstruction, latent, pose and the terms of the loss of every input.

        Raises:
            ValueError: A shape is wrong, or values are outside [0, 1] with a decoder that ends in a sigmoid.
            TypeError: An argument is unknown.
        """
        unknown = [name for name in kwargs if name not in TransformersKwargs.__annotations__]
        if unknown:
            raise TypeError(f"forward() got an unexpected keyword argument {unknown[0]!r}")
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        pixel_values, alpha = self._prepare(pixel_values, alpha, search)
        matrix = affine_matrix(self.config, alpha)
        aligned = self._warp(pixel_values, matrix)
        states: tuple[torch.Tensor, ...] = (aligned.to(self.dtype),)
        for layer in self.encoder.layers:
            states += (layer(states[-1]),)
        mean, log_variance = self.encoder.posterior(states[-1])
        latent = mean
        if self.training:
            self._update_centre(aligned)
            if self.config.sample_latent:
                latent = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        reconstruction = self._warp(self.decoder(latent), invert_affine(matrix))
        likelihood, divergence = negative_elbo(self.config, pixel_values, reconstruction, mean, log_variance)
        return AVAEOutput(
            pooler_output=mean,
            loss=(likelihood + divergence).mean(),
            reconstruction=reconstruction,
            latent_mean=mean,
            latent_log_variance=log_variance,
            alpha=alpha,
            reconstruction_loss=likelihood,
            divergence=divergence,
            hidden_states=states[1:] if output_hidden_states else None,
        )

    def encode(
        self, pixel_values: torch.Tensor, alpha: torch.Tensor | None = None, search: bool = True
    ) -> AVAEEncoderOutput:
        """Give the posterior of the shape, and the pose; arguments as in [`forward`]."""
        pixel_values, alpha = self._prepare(pixel_values, alpha, search)
        aligned = self._warp(pixel_values, affine_matrix(self.config, alpha))
        mean, log_variance = self.encoder(aligned.to(self.dtype))
        return AVAEEncoderOutput(latent_mean=mean, latent_log_variance=log_variance, alpha=alpha)

    def decode(self, latent: torch.Tensor, alpha: torch.Tensor | None = None) -> torch.Tensor:
        """Draw shapes in a pose.

        Args:
            latent: (B, latent_dim).
            alpha: Poses, (B, P), or one for all, (P,); the canonical pose by default.

        Returns:
            Images, (B, C, ...).

        Raises:
            ValueError: A shape is wrong.
        """
        if latent.ndim != 2 or latent.shape[1] != self.config.latent_dim:
            raise ValueError(f"`latent` must be (batch, {self.config.latent_dim}), got {tuple(latent.shape)}.")
        alpha = self._check_alpha(alpha, latent)
        images = self.decoder(latent.to(self.dtype))
        return self._warp(images, invert_affine(affine_matrix(self.config, alpha)))

    @torch.compiler.disable(reason="a pose search can be neither compiled nor exported: give `alpha` or search=False")
    def search_pose(self, pixel_values: torch.Tensor, generator: torch.Generator | None = None) -> AVAEPoseOutput:
        """Find the pose of every input (equation 4.4), under `torch.no_grad()` and `torch.inference_mode()` too.

        Args:
            pixel_values: (B, C, ...).
            generator: Of the random starts; by default always the same ones in evaluation mode, other ones at every
                call in training mode.

        Returns:
            Poses, (B, P), and their losses, (B,).

        Raises:
            ValueError: The shape is wrong, or values are outside [0, 1] with a decoder that ends in a sigmoid.
        """
        self._check_inputs(pixel_values)
        if not self.training and generator is None:
            generator = torch.Generator().manual_seed(0)
        # losses are compared in full precision, whatever the caller computes in
        with torch.inference_mode(False), torch.autocast(pixel_values.device.type, enabled=False):
            config = self.config.for_training() if self.training else self.config
            objective = PoseObjective(config, self.encoder, self.decoder)
            images = pixel_values.detach().clone().float()
            if self.dtype != torch.float32:
                objective.encoder.float(), objective.decoder.float()
            centre = gather_weights(self, recurse=False)["centre"].float()
            alpha, loss = search_pose(objective, images, centre, generator, self.training)
        return AVAEPoseOutput(alpha=alpha, loss=loss)

    def align(self, pixel_values: torch.Tensor, alpha: torch.Tensor | None = None) -> torch.Tensor:
        """Turn inputs to their canonical pose.

        Args:
            pixel_values: (B, C, ...).
            alpha: Their poses, (B, P); searched if not given.

        Returns:
            Images, (B, C, ...).
        """
        pixel_values, alpha = self._prepare(pixel_values, alpha, search=True)
        return self._warp(pixel_values, affine_matrix(self.config, alpha))

    def reconstruct(self, pixel_values: torch.Tensor, alpha: torch.Tensor | None = None) -> torch.Tensor:
        """Encode inputs at the mean of the posterior and draw them again in their pose, (B, C, ...)."""
        encoded: Any = self.encode(pixel_values, alpha)
        return self.decode(encoded.latent_mean, encoded.alpha)

    @torch.no_grad()
    def sample(
        self,
        num_samples: int = 1,
        alpha: torch.Tensor | None = None,
        random_pose: bool = False,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Draw new shapes.

        Args:
            num_samples: How many, B.
            alpha: Their poses, (B, P), or one for all, (P,); canonical by default.
            random_pose: Draw the poses too; not together with `alpha`.
            generator: On the CPU, of all random numbers.

        Returns:
            Images, (B, C, ...).

        Raises:
            ValueError: The number is below 1, or both `alpha` and `random_pose` are given.
        """
        if num_samples < 1:
            raise ValueError(f"`num_samples` must be at least 1, got {num_samples}.")
        if random_pose and alpha is not None:
            raise ValueError("give `alpha` or `random_pose`, not both.")
        latent = torch.randn(num_samples, self.config.latent_dim, generator=generator).to(self.device)
        if random_pose:
            alpha = draw_poses(self.config, num_samples, generator).to(self.device)
        return self.decode(latent, alpha)

    @torch.no_grad()
    def interpolate(
        self, first: torch.Tensor, second: torch.Tensor, num_steps: int = 8, alpha: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Change one shape into another one, in a pose that stays.

        Args:
            first: (B, C, ...).
            second: (B, C, ...).
            num_steps: Images per pair, the ends among them.
            alpha: The pose of all, (P,); canonical by default.

        Returns:
            Images, (B, num_steps, C, ...).

        Raises:
            ValueError: There are fewer than two steps, or a shape is wrong.
        """
        if num_steps < 2:
            raise ValueError(f"`num_steps` must be at least 2, got {num_steps}.")
        ends: list[Any] = [self.encode(images).latent_mean for images in (first, second)]
        weights = torch.linspace(0, 1, num_steps, device=self.device)[None, :, None]
        latents = torch.lerp(ends[0][:, None], ends[1][:, None], weights.to(ends[0].dtype))
        return self.decode(latents.flatten(0, 1), alpha).unflatten(0, latents.shape[:2])

    def _warp(self, images: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        return warp(images, matrix, self.config.background) if self.config.transforms else images

    def _prepare(self, pixel_values: torch.Tensor, alpha: torch.Tensor | None, search: bool):
        """Check inputs and find their poses if they need to be found."""
        if not isinstance(search, bool):
            raise ValueError(
                f"`search` must be True or False, got {search!r}; the kind of search is the configuration's `search`."
            )
        self._check_inputs(pixel_values)
        if alpha is None and search and self.config.transforms:
            if torch.compiler.is_exporting():
                raise ValueError("a pose search cannot be exported: give `alpha`, or search=False.")
            alpha = self.search_pose(pixel_values).alpha
        return pixel_values, self._check_alpha(alpha, pixel_values)

    def _check_inputs(self, pixel_values: torch.Tensor):
        shape = (self.config.in_channels, *[self.config.image_size] * self.config.spatial_dims)
        if pixel_values.ndim != len(shape) + 1 or tuple(pixel_values.shape[1:]) != shape or pixel_values.shape[0] == 0:
            raise ValueError(
                f"`pixel_values` must be (batch, {', '.join(map(str, shape))}), got {tuple(pixel_values.shape)}; the "
                "folder's image processor pads to that."
            )
        if not pixel_values.is_floating_point():
            raise ValueError(f"`pixel_values` must be floating point, got {pixel_values.dtype}; divide bytes by 255.")
        # a graph has no branch that depends on values
        is_graph = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if self.config.output_activation == "sigmoid" and not is_graph:
            low, high = (value.item() for value in pixel_values.aminmax())
            # negated, so that NaN is refused too
            if not (low >= -1e-5 and high <= 1 + 1e-5):
                what = "Bernoulli likelihood" if self.config.likelihood == "bernoulli" else "decoder's sigmoid"
                raise ValueError(
                    f"the {what} needs values in [0, 1], got {low:g} to {high:g}; the folder's image processor scales "
                    'them, and normalised ones need `likelihood="gaussian"` with `output_activation="identity"`.'
                )

    def _check_alpha(self, alpha: torch.Tensor | None, batch: torch.Tensor) -> torch.Tensor:
        number, size = batch.shape[0], self.config.pose_dim
        if alpha is None:
            return torch.zeros(number, size, device=batch.device)
        is_one_per_input = alpha.ndim == 2 and alpha.shape[0] == number
        if alpha.shape[-1:] != (size,) or not (alpha.ndim == 1 or is_one_per_input):
            raise ValueError(
                f"`alpha` must be ({number}, {size}) or ({size},), the numbers of {self.config.pose_sizes}, got "
                f"{tuple(alpha.shape)}."
            )
        return alpha.detach().to(batch.device, torch.float32).expand(number, size)

    @torch.no_grad()
    def _update_centre(self, aligned: torch.Tensor):
        self.centre.lerp_(
            centre_of_mass(aligned - self.config.background).mean(0).to(self.centre.dtype), CENTRE_MOMENTUM
        )


__all__ = ["AVAEModel"]
