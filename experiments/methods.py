"""Other ways to make the same classifier cheaper, on the same weights: what a searched Classformer is compared with.

Every method wraps a `ClassformerForSequenceClassification` without reductions and is trained like it. Those that choose
tokens by attention need its probabilities, so that no fused attention can be used; that is part of what they cost. In
the last layer all compute position 0 only, which is exact, as Classformer does. For comparison only: none of this
travels.

- pooled queries: Dai et al. 2020, Funnel-Transformer, section 2.2
- attention scores: Goyal et al. 2020, PoWER-BERT, section 3 (top k); Kim et al. 2022, LTP, section 3.2 (threshold)
- merging: Bolya et al. 2023, Token Merging, section 3
- core-sets: Huang et al. 2022, Pyramid-BERT, section 3
- early exit: Xin et al. 2020, DeeBERT, section 3 (entropy); Zhou et al. 2020, PABEE, section 3 (patience)
- fixed patterns: thesis section 6.2.3

Letters: B examples, N tokens, D width, H heads, L layers.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import SequenceClassifierOutput

from classformer_hf.modeling_classformer import ClassformerForSequenceClassification, ClassformerLayer, refuse_unknown

HIDDEN = -1e9


def check_plain(model: ClassformerForSequenceClassification):
    """Refuse a model that drops tokens already.

    Raises:
        ValueError: Says its gamma.
    """
    if any(factor != 1 for factor in model.config.gamma or []):
        raise ValueError(f"a peer starts from a model without reductions, got gamma {model.config.gamma}.")


class PeerMethod(nn.Module):
    """A classifier of its own; subclasses say what a layer hands to the next.

    Args:
        model: The classifier, all of whose gamma are 1.

    Raises:
        ValueError: The model drops tokens already.
    """

    def __init__(self, model: ClassformerForSequenceClassification):
        super().__init__()
        check_plain(model)
        self.model, self.config = model, model.config

    @property
    def layers(self) -> nn.ModuleList:
        return self.model.roberta.encoder.layer

    @property
    def device(self) -> torch.device:
        return self.model.device

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> SequenceClassifierOutput:
        """Classify a batch, (B, N), padded on the right; arguments as for the classifier.

        Raises:
            TypeError: An argument is unknown.
        """
        refuse_unknown(kwargs)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        states = self.model.roberta.embeddings(input_ids=input_ids, token_type_ids=token_type_ids)
        self.start(input_ids, mask)
        return self.decide(states, mask, labels)

    def decide(self, states: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor | None) -> SequenceClassifierOutput:
        """Classify embeddings, (B, N, D)."""
        logits = self.classify(states, mask)
        return SequenceClassifierOutput(loss=self.loss(logits, labels), logits=logits)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor | None:
        if labels is None:
            return None
        return self.model.loss_function(logits=logits, labels=labels, pooled_logits=logits, config=self.config)

    def classify(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        for index, layer in enumerate(self.layers[:-1]):
            states, mask = self.run_layer(index, layer, states, mask)
        return self.model.classifier(self.run_last_layer(self.layers[-1], states, mask))

    def start(self, input_ids: torch.Tensor, mask: torch.Tensor):
        """Get ready for a batch."""

    def run_layer(self, index: int, layer: nn.Module, states: torch.Tensor, mask: torch.Tensor):
        """Give the states that leave a layer, (B, M, D), and their mask, (B, M)."""
        return layer(states, states, bias_of(mask, states.dtype)), mask

    def run_last_layer(self, layer: nn.Module, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return layer(states, states[:, :1], bias_of(mask, states.dtype))


def bias_of(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
    """Give what is added to scores so that padding is not seen, (B, 1, 1, N)."""
    return None if bool(mask.all()) else (1 - mask[:, None, None, :].to(dtype)) * HIDDEN


def attend(
    layer: ClassformerLayer, states: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run a layer's attention in its plain form.

    Returns:
        Its output with residual and norm, (B, N, D); the probabilities, (B, H, N, N); the keys, (B, H, N, D / H).
    """
    attention = layer.attention.self

    def split(values: torch.Tensor) -> torch.Tensor:
        return values.unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)

    query, key, value = (split(part(states)) for part in (attention.query, attention.key, attention.value))
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    probabilities = (scores if bias is None else scores + bias).softmax(-1)
    dropped = F.dropout(probabilities, attention.dropout.p, layer.training)
    context = (dropped @ value).transpose(1, 2).flatten(2)
    return layer.attention.output(context, states), probabilities, key


def compact(keep: torch.Tensor, *values: torch.Tensor) -> list[torch.Tensor]:
    """Move what is kept to the front, in its order, and cut what no example needs.

    Args:
        keep: Which tokens stay, (B, N).
        values: (B, N, ...) each.

    Returns:
        The new mask, (B, M), and the values, (B, M, ...).
    """
    order = (~keep).long().argsort(dim=1, stable=True)[:, : int(keep.sum(1).max())]
    rows = torch.arange(len(keep), device=keep.device)[:, None]
    return [keep[rows, order].long(), *(value[rows, order] for value in values)]


def count_kept(mask: torch.Tensor, fraction: float) -> torch.Tensor:
    """Give the number of tokens that a fraction of each example's length is, at least 1, (B,)."""
    return (mask.sum(1) * fraction).ceil().clamp(min=1).long()


class PooledQueries(PeerMethod):
    """Queries are means over windows of tokens, keys and values are not pooled; the first token is apart.

    Args:
        model: See [`PeerMethod`].
        gamma: Width of the windows, per layer.
    """

    def __init__(self, model: ClassformerForSequenceClassification, gamma: Sequence[int]):
        super().__init__(model)
        self.gamma = list(gamma)

    def run_layer(self, index, layer, states, mask):
        if self.gamma[index] == 1:
            return super().run_layer(index, layer, states, mask)
        pooled, pooled_mask = pool(states, mask, self.gamma[index])
        return layer(states, pooled, bias_of(mask, states.dtype)), pooled_mask


def pool(states: torch.Tensor, mask: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Take means over windows of real tokens behind the first one; a window of padding is padding."""
    missing = -(states.shape[1] - 1) % width
    weights = F.pad(mask[:, 1:].to(states.dtype), (0, missing)).unflatten(1, (-1, width))
    windows = F.pad(states[:, 1:], (0, 0, 0, missing)).unflatten(1, (-1, width))
    means = (windows * weights[..., None]).sum(2) / weights.sum(2).clamp(min=1)[..., None]
    return torch.cat([states[:, :1], means], 1), torch.cat([mask[:, :1], (weights.sum(2) > 0).to(mask.dtype)], 1)


class KeptFractions(PeerMethod):
    """A method that keeps a fraction of each example's tokens behind each layer.

    Args:
        model: See [`PeerMethod`].
        fractions: Of the example's length, per layer.
    """

    def __init__(self, model: ClassformerForSequenceClassification, fractions: Sequence[float]):
        super().__init__(model)
        self.fractions = list(fractions)

    def start(self, input_ids, mask):
        self.lengths = mask

    def reduces(self, index: int) -> bool:
        """Say whether fewer tokens leave a layer than the one before."""
        return self.fractions[index] < (self.fractions[index - 1] if index else 1)

    def count_kept(self, index: int) -> torch.Tensor:
        """Give the number of tokens that leave a layer, (B,)."""
        return count_kept(self.lengths, self.fractions[index])


class AttentionTopK(KeptFractions):
    """After the attention of a layer the tokens that get most of it stay (PoWER-BERT); the first one always does.

    Args:
        model: See [`PeerMethod`].
        fractions: What is kept behind each layer, of the example's length.
    """

    def run_layer(self, index, layer, states, mask):
        if not self.reduces(index):
            return super().run_layer(index, layer, states, mask)
        output, probabilities, _ = attend(layer, states, bias_of(mask, states.dtype))
        # what padding looks at does not count
        received = (probabilities * mask[:, None, :, None]).sum((1, 2))  # (B, N)
        keep = keep_highest(received, mask, self.count_kept(index))
        mask, output = compact(keep, output)
        return layer.feed_forward_chunk(output), mask


def keep_highest(scores: torch.Tensor, mask: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Mark the first token and so many real ones with the highest scores, (B, N)."""
    scores = scores.masked_fill(mask == 0, -torch.inf)
    scores = torch.cat([torch.full_like(scores[:, :1], torch.inf), scores[:, 1:]], 1)
    ranks = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (ranks < numbers[:, None]) & (mask == 1)


class AttentionThreshold(PeerMethod):
    """After the attention of layer l a token stays if its mean attention is at least `share * (l + 1) / (L * N)` (LTP).

    LTP learns a threshold per layer, for inputs of one length; this one goes with the length of each example, of whose
    N tokens each has 1 / N on average.

    Args:
        model: See [`PeerMethod`].
        share: Of that average, in the last layer.
    """

    def __init__(self, model: ClassformerForSequenceClassification, share: float):
        super().__init__(model)
        self.share = share

    def start(self, input_ids, mask):
        self.threshold = self.share / mask.sum(1, keepdim=True)  # (B, 1)

    def run_layer(self, index, layer, states, mask):
        output, probabilities, _ = attend(layer, states, bias_of(mask, states.dtype))
        received = (probabilities * mask[:, None, :, None]).sum(2).mean(1) / mask.sum(1, keepdim=True)
        keep = (received >= self.threshold * (index + 1) / len(self.layers)) & (mask == 1)
        keep[:, 0] = True
        mask, output = compact(keep, output)
        return layer.feed_forward_chunk(output), mask


class TokenMerging(PeerMethod):
    """After the attention of a layer the most similar pairs of tokens become their mean, weighted by size (ToMe).

    Args:
        model: See [`PeerMethod`].
        fractions: Share of each example's tokens that is merged away in a layer, at most a half.
    """

    def __init__(self, model: ClassformerForSequenceClassification, fractions: Sequence[float]):
        super().__init__(model)
        self.fractions = list(fractions)

    def start(self, input_ids, mask):
        self.sizes = mask.to(self.model.dtype)

    def run_layer(self, index, layer, states, mask):
        # a token that stands for several is seen as often
        bias = self.sizes.clamp(min=1).log()[:, None, None, :]
        hidden = bias_of(mask, states.dtype)
        output, _, key = attend(layer, states, bias if hidden is None else bias + hidden)
        number = (mask.sum(1) * self.fractions[index]).floor().long()
        if number.any():
            output, self.sizes, keep = merge(output, self.sizes, key.mean(1), mask, number)
            mask, output, self.sizes = compact(keep, output, self.sizes)
        return layer.feed_forward_chunk(output), mask

    def run_last_layer(self, layer, states, mask):
        bias = self.sizes.clamp(min=1).log()[:, None, None, :]
        hidden = bias_of(mask, states.dtype)
        return layer(states, states[:, :1], bias if hidden is None else bias + hidden)


def merge(
    states: torch.Tensor, sizes: torch.Tensor, keys: torch.Tensor, mask: torch.Tensor, numbers: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Merge by bipartite soft matching: of the tokens at even positions those most like one at an odd position.

    Args:
        states: (B, N, D).
        sizes: How many tokens each stands for, (B, N).
        keys: What is compared, by its cosine, (B, N, E).
        mask: (B, N).
        numbers: How many are merged away, (B,).

    Returns:
        States and sizes with the merged ones added to their partners, and which tokens stay, (B, N).
    """
    unit = F.normalize(keys, dim=-1)
    similarity = unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)  # (B, A, C)
    similarity = similarity.masked_fill((mask[:, ::2, None] * mask[:, None, 1::2]) == 0, -torch.inf)
    similarity[:, 0] = -torch.inf  # the first token stays
    best, partner = similarity.max(-1)  # (B, A)
    ranks = best.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    merged = (ranks < numbers[:, None]) & best.isfinite()
    weighted = states * sizes[..., None]
    moved = merged[..., None].to(states.dtype)
    even, odd = weighted[:, ::2], weighted[:, 1::2]
    odd = odd.scatter_add(1, partner[..., None].expand_as(even), even * moved)
    odd_sizes = sizes[:, 1::2].scatter_add(1, partner, sizes[:, ::2] * moved[..., 0])
    states, sizes = states.clone(), sizes.clone()
    states[:, 1::2] = odd / odd_sizes.clamp(min=1)[..., None]
    sizes[:, 1::2] = odd_sizes
    keep = mask == 1
    keep[:, ::2] &= ~merged
    return states, sizes, keep


class CoreSet(KeptFractions):
    """Behind a layer a core-set of the tokens stays: from the first one on, always the farthest from those chosen
    (Pyramid-BERT, greedy k-centre).

    Args:
        model: See [`PeerMethod`].
        fractions: What is kept behind each layer, of the example's length.
    """

    def run_layer(self, index, layer, states, mask):
        states, mask = super().run_layer(index, layer, states, mask)
        if self.reduces(index):
            keep = choose_core_set(states.detach(), mask, self.count_kept(index))
            mask, states = compact(keep, states)
        return states, mask


def choose_core_set(states: torch.Tensor, mask: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Mark a greedy core-set of each example, (B, N)."""
    distances = torch.cdist(states, states)  # (B, N, N)
    keep = torch.zeros_like(mask, dtype=torch.bool)
    keep[:, 0] = True
    nearest = distances[:, 0].masked_fill(mask == 0, -1.0)
    rows = torch.arange(len(mask), device=mask.device)
    for done in range(1, int(numbers.max())):
        farthest = nearest.argmax(1)
        keep[rows, farthest] |= (numbers > done) & (nearest[rows, farthest] >= 0)
        nearest = nearest.minimum(distances[rows, farthest])
    return keep & (mask == 1)


class FirstLayers(PeerMethod):
    """Only the first layers run.

    Args:
        model: See [`PeerMethod`].
        num_layers: How many.
    """

    def __init__(self, model: ClassformerForSequenceClassification, num_layers: int):
        super().__init__(model)
        self.num_layers = num_layers

    @property
    def layers(self) -> nn.ModuleList:
        return self.model.roberta.encoder.layer[: self.num_layers]


class FixedPattern(KeptFractions):
    """Queries at positions that depend on nothing but the length, or on the separators (thesis section 6.2.3).

    Args:
        model: See [`PeerMethod`].
        pattern: "front": the first ones; "log": ever farther apart; "separators": the separators, and evenly spaced
            ones.
        fractions: What is kept in each layer, of the example's length.

    Raises:
        ValueError: There is no such pattern.
    """

    PATTERNS = ("front", "log", "separators")

    def __init__(self, model: ClassformerForSequenceClassification, pattern: str, fractions: Sequence[float]):
        super().__init__(model, fractions)
        if pattern not in self.PATTERNS:
            raise ValueError(f"`pattern` must be one of {self.PATTERNS}, got {pattern!r}.")
        self.pattern = pattern

    def start(self, input_ids, mask):
        super().start(input_ids, mask)
        self.is_separator = (input_ids == self.config.eos_token_id) & (mask == 1)

    def run_layer(self, index, layer, states, mask):
        if not self.reduces(index):
            return super().run_layer(index, layer, states, mask)
        if self.pattern != "separators" and bool(mask.all()) and bool(self.lengths.all()):
            # without padding the positions follow from the length
            number = min(int(count_kept(self.lengths[:1], self.fractions[index])), states.shape[1])
            chosen = positions_of(self.pattern, states.shape[1], number).to(states.device)
            return layer(states, states.index_select(1, chosen), None), mask[:, : len(chosen)]
        number, bias = self.count_kept(index), bias_of(mask, states.dtype)
        keep = self.choose(mask, number)
        mask, queries, self.is_separator = compact(keep, states, self.is_separator)
        return layer(states, queries, bias), mask

    def choose(self, mask: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """Mark the positions that stay, (B, N)."""
        positions = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
        if self.pattern == "front":
            return (positions < numbers[:, None]) & (mask == 1)
        keep = torch.zeros_like(mask, dtype=torch.bool)
        for row, (length, number) in enumerate(zip(mask.sum(1).tolist(), numbers.tolist(), strict=True)):
            spaced = log_positions if self.pattern == "log" else even_positions
            keep[row, spaced(length, min(number, length))] = True
            if self.pattern == "separators":
                keep[row] |= self.is_separator[row]
        return keep & (mask == 1)


@functools.lru_cache(maxsize=4096)
def positions_of(pattern: str, length: int, number: int) -> torch.Tensor:
    """Give the positions of "front" or "log" for a text without padding, (number,)."""
    return torch.tensor(list(range(number)) if pattern == "front" else log_positions(length, number))


def even_positions(length: int, number: int) -> list[int]:
    """Give positions that are evenly spaced; the first is 0."""
    return [index * length // number for index in range(number)]


def log_positions(length: int, number: int) -> list[int]:
    """Give positions whose distances grow by a constant factor, as far as whole numbers do; the first is 0."""
    positions = [0]
    for left in range(number - 1, 0, -1):
        # what is left, spread evenly on a logarithmic scale, but never less than one apart
        step = (length / (positions[-1] + 1)) ** (1 / left)
        positions.append(min(max(positions[-1] + 1, round((positions[-1] + 1) * step) - 1), length - left))
    return positions


class EarlyExit(PeerMethod):
    """A classifier behind every layer, with fresh weights; an example leaves at the first one that is sure.

    The loss is that of all classifiers, weighted by their depth (PABEE, equation 3); DeeBERT trains the last one first
    and the others with the encoder frozen, which `freeze_for_exits` prepares.

    Args:
        model: See [`PeerMethod`].
        entropy: Leave below this entropy of the prediction, in nats (DeeBERT); or
        patience: leave when so many classifiers in a row agree with the one before (PABEE).

    Raises:
        ValueError: Not exactly one of the two is given, or the task is a regression.
    """

    def __init__(
        self, model: ClassformerForSequenceClassification, entropy: float | None = None, patience: int | None = None
    ):
        super().__init__(model)
        if (entropy is None) == (patience is None):
            raise ValueError("give `entropy` or `patience`, not both.")
        if model.config.problem_type == "regression" or model.config.num_labels == 1:
            raise ValueError("early exit is for classes; a regression has no entropy.")
        self.entropy, self.patience = entropy, patience
        self.exits = nn.ModuleList(type(model.classifier)(model.config) for _ in self.layers[:-1])
        for module in self.exits.modules():
            model._init_weights(module)
        self.exits.to(device=model.device, dtype=model.dtype)
        self.is_frozen = False

    def freeze_for_exits(self):
        """Train nothing but the exits from now on (DeeBERT's second stage)."""
        self.model.requires_grad_(False)
        self.is_frozen = True

    def decide(self, states, mask, labels):
        if labels is None and not self.training:
            return SequenceClassifierOutput(logits=self.classify(states, mask))
        logits = self.classify_at_all(states, mask)
        if labels is None:
            return SequenceClassifierOutput(logits=logits[-1])
        trained = logits[:-1] if self.is_frozen else logits
        weights = [1.0] * len(trained) if self.is_frozen else list(range(1, len(trained) + 1))
        losses = [weight * self.loss(one, labels) for weight, one in zip(weights, trained, strict=True)]
        chosen = logits[-1] if self.training else self.choose(logits)[0]
        return SequenceClassifierOutput(loss=sum(losses) / sum(weights), logits=chosen)

    def classify_at_all(self, states: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
        bias, logits = bias_of(mask, states.dtype), []
        for layer, leave in zip(self.layers[:-1], self.exits, strict=True):
            states = layer(states, states, bias)
            logits.append(leave(states))
        return [*logits, self.model.classifier(self.run_last_layer(self.layers[-1], states, mask))]

    def choose(self, logits: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Give each example's prediction where it leaves, (B, C), and after how many layers that is, (B,)."""
        chosen = torch.stack(logits)  # (L, B, C)
        sure = torch.stack([self.is_sure(logits[: depth + 1]) for depth in range(len(logits))])
        sure[-1] = True
        depth = sure.int().argmax(0)
        return chosen[depth, torch.arange(chosen.shape[1], device=depth.device)], depth + 1

    def is_sure(self, logits: Sequence[torch.Tensor]) -> torch.Tensor:
        """Say of each example whether it leaves behind the last of these classifiers, (B,)."""
        if self.entropy is not None:
            logs = logits[-1].log_softmax(-1)
            return -(logs.exp() * logs).sum(-1) < self.entropy
        if len(logits) <= int(self.patience or 0):
            return torch.zeros(len(logits[-1]), dtype=torch.bool, device=logits[-1].device)
        classes = torch.stack([one.argmax(-1) for one in logits[-int(self.patience or 0) - 1 :]])
        return (classes == classes[-1]).all(0)

    def classify(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Run layers until the whole batch may leave; at batch 1 that is what is saved."""
        bias, logits = bias_of(mask, states.dtype), []
        left = torch.zeros(len(states), dtype=torch.bool, device=states.device)
        for layer, leave in zip(self.layers[:-1], self.exits, strict=True):
            states = layer(states, states, bias)
            logits.append(leave(states))
            left |= self.is_sure(logits)
            if left.all():
                return self.choose(logits)[0]
        logits.append(self.model.classifier(self.run_last_layer(self.layers[-1], states, mask)))
        return self.choose(logits)[0]


def operating_points(num_layers: int) -> dict[str, dict[str, Callable]]:
    """Give two settings of every method, a mild and a strong one.

    Args:
        num_layers: Of the classifier, L.

    Returns:
        By method and setting, what builds it from the classifier.
    """

    def decay(share: float) -> list[float]:
        """Of the tokens, so much is left behind the last layer, by the same factor in each."""
        return [share ** ((index + 1) / num_layers) for index in range(num_layers)]

    def windows(*layers: int) -> list[int]:
        return [2 if index in layers else 1 for index in range(num_layers)]

    third, half = num_layers // 3, num_layers // 2
    points: dict[str, dict[str, Callable]] = {
        "pooled queries": {
            "late": lambda model: PooledQueries(model, windows(third, 2 * third)),
            "early": lambda model: PooledQueries(model, windows(0, third, 2 * third)),
        },
        "attention threshold": {
            f"{share:g}/N": lambda model, share=share: AttentionThreshold(model, share) for share in (0.5, 1.0)
        },
        "first layers": {f"{n} of {num_layers}": lambda model, n=n: FirstLayers(model, n) for n in (2 * third, half)},
        "entropy": {f"{share:g} ln C": lambda model, share=share: _entropy_exit(model, share) for share in (0.3, 0.7)},
        "patience": {f"{n}": lambda model, n=n: EarlyExit(model, patience=n) for n in (half - 1, 1)},
    }
    for share in (0.4, 0.15):
        setting = f"{share:g} left"
        kept = decay(share)
        merged = [1 - share ** (1 / num_layers)] * num_layers
        settings: dict[str, Callable] = {
            "attention top k": lambda model, kept=kept: AttentionTopK(model, kept),
            "core-set": lambda model, kept=kept: CoreSet(model, kept),
            "merging": lambda model, merged=merged: TokenMerging(model, merged),
        }
        settings |= {
            name: lambda model, name=name, kept=kept: FixedPattern(model, name, kept) for name in FixedPattern.PATTERNS
        }
        for name, build in settings.items():
            points.setdefault(name, {})[setting] = build
    return points


def _entropy_exit(model: ClassformerForSequenceClassification, share: float) -> EarlyExit:
    method = EarlyExit(model, entropy=share * math.log(len(model.config.id2label or ())))
    method.freeze_for_exits()
    return method


def mark_front(points: list[dict[str, Any]], majority: float):
    """Say of each point whether none is faster and at least as good, and how far the front is above it.

    What is no better than the majority class is on no front, however fast.
    """
    for point in points:
        faster = [other["test_score"] for other in points if other["ratio"] <= point["ratio"]]
        point["below_front"] = max(faster) - point["test_score"]
        point["is_on_front"] = point["below_front"] <= 0 and point["test_score"] > majority


__all__ = [
    "AttentionThreshold",
    "AttentionTopK",
    "CoreSet",
    "EarlyExit",
    "FirstLayers",
    "FixedPattern",
    "PeerMethod",
    "PooledQueries",
    "TokenMerging",
    "check_plain",
    "mark_front",
    "operating_points",
]
