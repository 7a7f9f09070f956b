"""Learned sharing: pull weights to a few values or kernels in training, then put each on its nearest one.

R. Bidart, thesis 2023, sections 3.4 and 3.5: mixture priors (equations 3.1 to 3.4; K. Ullrich et al., ICLR 2017) and
nearest-basis losses (3.5 for weights, 3.6 for kernels). A regulariser here is a module whose `forward()` gives the loss
to add; [`ImageTrainer`] trains its parameters along. Letters: N weights or kernels, J bases, F numbers per kernel.
"""

import copy
import math
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, TrainerCallback

from .layers_shared_conv import SharedConv2d, SharedDepthwiseConv2d

UNITS = ("weight", "kernel")
SCOPES = ("layer", "network")
CHUNK = 1 << 16


def find_convolutions(model: Any, unit: str) -> dict[str, Any]:
    """List the convolutions of a base model that can learn to share, by name: all but the first one.

    Of the unit "kernel" are those with kernels larger than 1x1.

    Raises:
        ValueError: A convolution shares weights already, or the unit is unknown.
    """
    if unit not in UNITS:
        raise ValueError(f"`unit` must be one of {UNITS}, got {unit!r}.")
    kinds = (nn.Conv2d, SharedConv2d, SharedDepthwiseConv2d)
    found = {name: module for name, module in model.base_model.named_modules() if isinstance(module, kinds)}
    found.pop(next(iter(found)))
    tied = [name for name, module in found.items() if getattr(module, "num_ties", 1) != 1]
    if tied:
        raise ValueError(f"{tied[0]} shares weights already; learned sharing starts from a plain network.")
    if unit == "kernel":
        found = {name: module for name, module in found.items() if math.prod(module.kernel_size) > 1}
    return found


class Regulariser(nn.Module):
    """What the losses below have in common: the weights that they see, in groups with their own bases.

    Args:
        model: A plain network of ours.
        unit: "weight" or "kernel".
        scope: Bases per "layer", or for the whole "network".
        tau: Weight of the loss beside the task's.

    Raises:
        ValueError: An option is unknown, `tau` is negative, or one basis for the network meets kernels of several
            sizes.
    """

    # of the bases, relative to the model's, times tau: the curvature of the loss in a basis is tau times its members,
    # which are many
    learning_rate_scale = 1.0

    def __init__(self, model: PreTrainedModel, unit: str, scope: str, tau: float):
        super().__init__()
        if scope not in SCOPES:
            raise ValueError(f"`scope` must be one of {SCOPES}, got {scope!r}.")
        if tau < 0:
            raise ValueError(f"`tau` must not be negative, got {tau}.")
        convolutions = find_convolutions(model, unit)
        sizes = {module.kernel_size for module in convolutions.values()}
        if unit == "kernel" and scope == "network" and len(sizes) > 1:
            raise ValueError(f'kernels of sizes {sorted(sizes)} cannot have the same bases; use `scope="layer"`.')
        self.unit, self.scope, self.tau = unit, scope, tau
        # plain lists: the weights stay the model's
        groups = [[name] for name in convolutions] if scope == "layer" else [list(convolutions)]
        self.groups: list[list[str]] = groups
        self._weights = [[convolutions[name].weight for name in group] for group in groups]

    @property
    def relative_learning_rate(self) -> float:
        """Of the bases, relative to the model's."""
        return min(1.0, self.learning_rate_scale / self.tau) if self.tau else 1.0

    def rows(self, group: int) -> torch.Tensor:
        """Give a group's weights, (N, 1), or kernels, (N, F)."""
        width = 1 if self.unit == "weight" else self._weights[group][0].shape[2:].numel()
        return torch.cat([weight.reshape(-1, width) for weight in self._weights[group]])

    def bases(self, group: int) -> torch.Tensor:
        """Give a group's bases, (J, F)."""
        raise NotImplementedError

    def assign(self, group: int) -> torch.Tensor:
        """Say which basis each row belongs to, (N,)."""
        raise NotImplementedError


def nearest(rows: torch.Tensor, bases: torch.Tensor, max_share: float | None = None) -> torch.Tensor:
    """Find the nearest basis, (J, F), of every row, (N, F), as indices, (N,).

    No basis has more rows than `max_share` of them, if it is given: the nearest get it, the others their next nearest.
    """
    distances = torch.cat([torch.cdist(chunk, bases) for chunk in rows.split(CHUNK)])
    chosen = distances.argmin(1)
    if max_share is None:
        return chosen
    room = torch.full((len(bases),), math.ceil(max_share * len(rows)), device=rows.device)
    open_rows = torch.arange(len(rows), device=rows.device)
    while len(open_rows):
        wanted = distances[open_rows].argmin(1)
        left = []
        for basis in wanted.unique():
            takers = open_rows[wanted == basis]
            takers = takers[distances[takers, basis].argsort()]
            kept = takers[: int(room[basis])]
            chosen[kept] = basis
            room[basis] -= len(kept)
            left.append(takers[len(kept) :])
            if room[basis] == 0:
                distances[:, basis] = torch.inf
        open_rows = torch.cat(left)
    return chosen


class NearestBasisLoss(Regulariser):
    """tau * sum over rows of (distance to the nearest basis)^p: thesis equations 3.5 (weights) and 3.6 (kernels).

    Args:
        model: A plain network of ours.
        num_bases: J.
        unit: "weight" or "kernel"; the distance of kernels is Euclidean.
        scope: Bases per "layer" or for the whole "network".
        p: Outer norm, 1 or 2.
        tau: Weight of the loss.
        max_share: Cap on the rows per basis, relative to all; `None` for no cap.
        seed: Of the first bases, which k-means finds.

    Raises:
        ValueError: An option is out of range.
    """

    learning_rate_scale = 2e-4

    def __init__(
        self,
        model: PreTrainedModel,
        num_bases: int = 16,
        unit: str = "weight",
        scope: str = "layer",
        p: int = 2,
        tau: float = 1e-3,
        max_share: float | None = None,
        seed: int = 0,
    ):
        super().__init__(model, unit, scope, tau)
        if p not in (1, 2):
            raise ValueError(f"`p` must be 1 or 2, got {p}.")
        if num_bases < 2:
            raise ValueError(f"`num_bases` must be at least 2, got {num_bases}.")
        if max_share is not None and not 1 / num_bases <= max_share <= 1:
            raise ValueError(f"`max_share` must be from 1 / num_bases = {1 / num_bases:g} to 1, got {max_share}.")
        self.p, self.max_share = p, max_share
        rows = [self.rows(group) for group in range(len(self.groups))]
        self.values = nn.ParameterList(nn.Parameter(first_bases(row, num_bases, seed)) for row in rows)

    def bases(self, group: int) -> torch.Tensor:
        return self.values[group]

    @torch.no_grad()
    def assign(self, group: int) -> torch.Tensor:
        return nearest(self.rows(group), self.values[group], self.max_share)

    def forward(self) -> torch.Tensor:
        total = self.values[0].new_zeros(())
        for group in range(len(self.groups)):
            rows = self.rows(group)
            squares = (rows - self.values[group][self.assign(group)]).square().sum(1)
            # the gradient of a square root has no limit at 0
            total = total + (squares if self.p == 2 else (squares + 1e-12).sqrt()).sum()
        return self.tau * total

    @torch.no_grad()
    def reseed(self):
        """Move bases that nothing is nearest to onto the rows that are farthest from theirs."""
        for group in range(len(self.groups)):
            rows, values = self.rows(group), self.values[group]
            chosen = nearest(rows, values)
            dead = torch.bincount(chosen, minlength=len(values)) == 0
            farthest = (rows - values[chosen]).square().sum(1).topk(int(dead.sum())).indices
            values[dead] = rows[farthest]


class ReseedBases(TrainerCallback):
    """Gives bases without members a new place after every epoch."""

    def __init__(self, loss: NearestBasisLoss):
        self.loss = loss

    def on_epoch_end(self, args, state, control, **kwargs):
        self.loss.reseed()


@torch.no_grad()
def first_bases(rows: torch.Tensor, num_bases: int, seed: int) -> torch.Tensor:
    """Find bases by k-means over at most 20,000 rows; where there are fewer rows than bases, some repeat."""
    from sklearn.cluster import KMeans

    generator = np.random.default_rng(seed)
    points = rows.detach().float().cpu().numpy()
    points = points[generator.permutation(len(points))[:20000]]
    num_clusters = min(num_bases, len(np.unique(points, axis=0)))
    centres = KMeans(num_clusters, n_init=1, random_state=seed).fit(points).cluster_centers_
    centres = centres[np.arange(num_bases) % num_clusters]
    return torch.from_numpy(centres).to(rows)


class MixturePrior(Regulariser):
    """-tau * log p(weights) under a mixture of Gaussians or Laplace distributions: thesis equations 3.1 to 3.4.

    Means and scales are trained with the weights. Without a hyper-prior on the scales the likelihood has no bound: a
    component could shrink onto one weight.

    Args:
        model: A plain network of ours.
        num_components: J, with the one at 0.
        kind: "gaussian" or "laplace".
        scope: A mixture per "layer" or for the whole "network".
        tau: Weight of the loss.
        mixing: Of the components beside the one at 0: "fixed" (equal), "trained", or "dirichlet" (trained, with a
            Dirichlet(2, ..., 2) hyper-prior that keeps all of them alive).
        zero_weight: Mixing weight of a component fixed at mean 0, which sets the sparsity; 0 for none.
        precision_prior: Shape and rate of the Gamma hyper-prior on 1 / sigma^2 (Gaussian) or 1 / b (Laplace); by
            default one with the mean 1 / 0.02^2 or 1 / 0.02.

    Raises:
        ValueError: An option is out of range.
    """

    # of a mean it grows with its members' precision, too
    learning_rate_scale = 2e-7

    def __init__(
        self,
        model: PreTrainedModel,
        num_components: int = 16,
        kind: str = "gaussian",
        scope: str = "layer",
        tau: float = 1e-5,
        mixing: str = "trained",
        zero_weight: float = 0.0,
        precision_prior: tuple[float, float] | None = None,
    ):
        super().__init__(model, "weight", scope, tau)
        if kind not in ("gaussian", "laplace"):
            raise ValueError(f'`kind` must be "gaussian" or "laplace", got {kind!r}.')
        if mixing not in ("fixed", "trained", "dirichlet"):
            raise ValueError(f'`mixing` must be "fixed", "trained" or "dirichlet", got {mixing!r}.')
        if not 0 <= zero_weight < 1:
            raise ValueError(f"`zero_weight` must be in [0, 1), got {zero_weight}.")
        if num_components < 2:
            raise ValueError(f"`num_components` must be at least 2, got {num_components}.")
        precision_prior = precision_prior or (250.0, 0.1 if kind == "gaussian" else 5.0)
        if min(precision_prior) <= 0:
            raise ValueError(f"`precision_prior` needs a shape and a rate above 0, got {precision_prior}.")
        self.kind, self.mixing, self.zero_weight, self.precision_prior = kind, mixing, zero_weight, precision_prior
        num_free = num_components - (zero_weight > 0)
        levels = (torch.arange(num_free) + 0.5) / num_free
        rows = [self.rows(group).detach().float().flatten() for group in range(len(self.groups))]
        # the sorted values, because torch's quantile has a limit of size
        means = [row.sort().values[(levels * len(row)).long()] for row in rows]
        self.means = nn.Parameter(torch.stack(means))
        deviations = torch.stack([row.std() for row in rows]).clamp(min=1e-4)
        self.log_scales = nn.Parameter((deviations / 4).log()[:, None].repeat(1, num_components))
        self.mixing_logits = nn.Parameter(torch.zeros(len(rows), num_free), requires_grad=mixing != "fixed")

    def bases(self, group: int) -> torch.Tensor:
        means = self.means[group]
        if self.zero_weight > 0:
            means = torch.cat([means.new_zeros(1), means])
        return means[:, None]

    def log_mixing(self, group: int) -> torch.Tensor:
        """Give the logarithms of the mixing weights, (J,)."""
        free = self.mixing_logits[group].log_softmax(0)
        if self.zero_weight == 0:
            return free
        zero = free.new_tensor([math.log(self.zero_weight)])
        return torch.cat([zero, free + math.log(1 - self.zero_weight)])

    def log_joint(self, weights: torch.Tensor, group: int) -> torch.Tensor:
        """Give log(pi_j p(w | j)) of every weight and component, (N, J)."""
        distances, log_scales = weights - self.bases(group).T, self.log_scales[group]
        if self.kind == "gaussian":
            log_density = -0.5 * (distances / log_scales.exp()).square() - log_scales - 0.5 * math.log(2 * math.pi)
        else:
            log_density = -distances.abs() / log_scales.exp() - log_scales - math.log(2)
        return self.log_mixing(group) + log_density

    @torch.no_grad()
    def assign(self, group: int) -> torch.Tensor:
        return torch.cat([self.log_joint(chunk, group).argmax(1) for chunk in self.rows(group).split(CHUNK)])

    def log_hyper_prior(self) -> torch.Tensor:
        """Give the log density of the scales, and of the mixing weights if they have a hyper-prior."""
        shape, rate = self.precision_prior
        log_precision = -(2 if self.kind == "gaussian" else 1) * self.log_scales
        total = ((shape - 1) * log_precision - rate * log_precision.exp()).sum()
        if self.mixing == "dirichlet":
            total = total + self.mixing_logits.log_softmax(1).sum()
        return total

    def forward(self) -> torch.Tensor:
        total = self.log_hyper_prior()
        for group in range(len(self.groups)):
            for chunk in self.rows(group).split(CHUNK):
                total = total + self.log_joint(chunk, group).logsumexp(1).sum()
        return -self.tau * total


@torch.no_grad()
def quantise(model: PreTrainedModel, regulariser: Regulariser) -> PreTrainedModel:
    """Put every weight or kernel on its basis and store codebooks and indices instead of weights.

    The model is the one that the regulariser, with the trained bases, was made for; it stays as it is.

    Returns:
        A network of the same class whose `config.codebooks` names the layers; `save_pretrained` writes J entries and
        one byte per weight (or kernel), and `from_pretrained` reads them.
    """
    codebooks: dict[str, dict] = {}
    states: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for group, names in enumerate(regulariser.groups):
        bases, chosen, start = regulariser.bases(group), regulariser.assign(group), 0
        for name in names:
            weight: Any = model.base_model.get_submodule(name).weight
            shape = weight.shape if regulariser.unit == "weight" else weight.shape[:2]
            entry_shape = () if regulariser.unit == "weight" else weight.shape[2:]
            stop = start + shape.numel()
            codebooks[name] = {"size": len(bases), "unit": regulariser.unit}
            states[name] = bases.view(len(bases), *entry_shape), chosen[start:stop].view(shape)
            start = stop
    config: Any = copy.deepcopy(model.config)
    config.codebooks = codebooks
    quantised: Any = type(model)(config)
    quantised.to(model.device, model.dtype)
    own = {name: value for name, value in model.state_dict().items() if name in quantised.state_dict()}
    quantised.load_state_dict(own, strict=False)
    for name, (entries, indices) in states.items():
        layer: Any = quantised.base_model.get_submodule(name)
        layer.codebook.copy_(entries)
        layer.indices.copy_(indices)
    return quantised.train(model.training)
