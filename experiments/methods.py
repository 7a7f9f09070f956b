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

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
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
        raise ValueError(f"a method starts from a model without reductions, got gamma {model.config.gamma}.")


class PeerMethod(nn.Module):
    """A classifier of its own, around one all of whose gamma are 1; subclasses say what a layer hands to the next.

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
        for index, layer in enumerate(self.layers[:-1]):
            states, mask = self.run_layer(index, layer, states, mask)
        logits = self.model.classifier(self.run_last_layer(states, mask))
        return SequenceClassifierOutput(loss=None if labels is None else self.loss(logits, labels), logits=logits)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.model.loss_function(logits=logits, labels=labels, pooled_logits=logits, config=self.config)

    def start(self, input_ids: torch.Tensor, mask: torch.Tensor):
        """Get ready for a batch."""

    def bias(self, mask: torch.Tensor) -> torch.Tensor | None:
        """Give what is added to scores so that padding is not seen, (B, 1, 1, N)."""
        return None if bool(mask.all()) else (1 - mask[:, None, None, :].to(self.model.dtype)) * HIDDEN

    def run_layer(self, index: int, layer: nn.Module, states: torch.Tensor, mask: torch.Tensor):
        """Give the states that leave a layer, (B, M, D), and their mask, (B, M)."""
        return layer(states, states, self.bias(mask)), mask

    def run_last_layer(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.layers[-1](states, states[:, :1], self.bias(mask))


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
    """Move what is kept, (B, N), to the front, in its order, and cut what no example needs; gives mask and values."""
    order = (~keep).long().argsort(dim=1, stable=True)[:, : int(keep.sum(1).max())]
    rows = torch.arange(len(keep), device=keep.device)[:, None]
    return [keep[rows, order].long(), *(value[rows, order] for value in values)]


class PooledQueries(PeerMethod):
    """Queries are means over windows of tokens, keys and values are not pooled; the first token is apart.

    Args:
        model: The full classifier, here and below.
        gamma: Width of the windows, per layer.
    """

    def __init__(self, model: ClassformerForSequenceClassification, gamma: Sequence[int]):
        super().__init__(model)
        self.gamma = list(gamma)

    def run_layer(self, index, layer, states, mask):
        pooled, pooled_mask = (states, mask) if self.gamma[index] == 1 else pool(states, mask, self.gamma[index])
        return layer(states, pooled, self.bias(mask)), pooled_mask


def pool(states: torch.Tensor, mask: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Take means over windows of real tokens behind the first one; a window of padding is padding."""
    missing = -(states.shape[1] - 1) % width
    weights = F.pad(mask[:, 1:].to(states.dtype), (0, missing)).unflatten(1, (-1, width))
    windows = F.pad(states[:, 1:], (0, 0, 0, missing)).unflatten(1, (-1, width))
    means = (windows * weights[..., None]).sum(2) / weights.sum(2).clamp(min=1)[..., None]
    return torch.cat([states[:, :1], means], 1), torch.cat([mask[:, :1], (weights.sum(2) > 0).to(mask.dtype)], 1)


class KeptFractions(PeerMethod):
    """A method that keeps of each example's tokens, behind each layer, a fraction of its length."""

    def __init__(self, model: ClassformerForSequenceClassification, fractions: Sequence[float]):
        super().__init__(model)
        self.fractions = list(fractions)

    def start(self, input_ids, mask):
        self.lengths = mask.sum(1)

    def reduces(self, index: int) -> bool:
        """Say whether fewer tokens leave a layer than the one before."""
        return self.fractions[index] < (self.fractions[index - 1] if index else 1)

    def count_kept(self, index: int) -> torch.Tensor:
        """Give the number of tokens that leave a layer, at least 1, (B,)."""
        return (self.lengths * self.fractions[index]).ceil().clamp(min=1).long()


def weigh(probabilities: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Give the attention that each token gets in the mean over heads and real queries, (B, N)."""
    return (probabilities * mask[:, None, :, None]).sum(2).mean(1) / mask.sum(1, keepdim=True)


class AttentionTopK(KeptFractions):
    """After the attention of a layer the tokens that get most of it stay (PoWER-BERT); the first one always does."""

    def run_layer(self, index, layer, states, mask):
        if not self.reduces(index):
            return super().run_layer(index, layer, states, mask)
        output, probabilities, _ = attend(layer, states, self.bias(mask))
        keep = keep_highest(weigh(probabilities, mask), mask, self.count_kept(index))
        mask, output = compact(keep, output)
        return layer.feed_forward_chunk(output), mask


def keep_highest(scores: torch.Tensor, mask: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Mark the first token and so many real ones with the highest scores, (B, N)."""
    scores = scores.masked_fill(mask == 0, -torch.inf)
    scores = torch.cat([torch.full_like(scores[:, :1], torch.inf), scores[:, 1:]], 1)
    return (rank(scores) < numbers[:, None]) & (mask == 1)


def rank(scores: torch.Tensor) -> torch.Tensor:
    """Give the place of every score in its row, the highest first, (B, N)."""
    return scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)


class AttentionThreshold(PeerMethod):
    """After the attention of layer l a token stays if its mean attention is at least `share * (l + 1) / (L * N)` (LTP).

    LTP learns a threshold per layer, for inputs of one length; this one goes with the length of each example, of whose
    N tokens each has 1 / N on average.
    """

    def __init__(self, model: ClassformerForSequenceClassification, share: float):
        super().__init__(model)
        self.share = share

    def start(self, input_ids, mask):
        self.threshold = self.share / mask.sum(1, keepdim=True)  # (B, 1), in the last layer

    def run_layer(self, index, layer, states, mask):
        output, probabilities, _ = attend(layer, states, self.bias(mask))
        keep = (weigh(probabilities, mask) >= self.threshold * (index + 1) / len(self.layers)) & (mask == 1)
        keep[:, 0] = True
        mask, output = compact(keep, output)
        return layer.feed_forward_chunk(output), mask


class TokenMerging(PeerMethod):
    """After the attention of a layer the most similar pairs of tokens become their mean, weighted by size (ToMe).

    Args:
        model: The full classifier.
        fractions: Share of each example's tokens that is merged away in a layer, at most a half.
    """

    def __init__(self, model: ClassformerForSequenceClassification, fractions: Sequence[float]):
        super().__init__(model)
        self.fractions = list(fractions)

    def start(self, input_ids, mask):
        self.sizes = mask.to(self.model.dtype)

    def bias(self, mask):
        # a token that stands for several is seen as often
        hidden, sizes = super().bias(mask), self.sizes.clamp(min=1).log()[:, None, None, :]
        return sizes if hidden is None else sizes + hidden

    def run_layer(self, index, layer, states, mask):
        output, _, key = attend(layer, states, self.bias(mask))
        number = (mask.sum(1) * self.fractions[index]).floor().long()
        if number.any():
            output, self.sizes, keep = merge(output, self.sizes, key.mean(1), mask, number)
            mask, output, self.sizes = compact(keep, output, self.sizes)
        return layer.feed_forward_chunk(output), mask


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
    merged = (rank(best) < numbers[:, None]) & best.isfinite()
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
    """

    def run_layer(self, index, layer, states, mask):
        states, mask = super().run_layer(index, layer, states, mask)
        if self.reduces(index):
            mask, states = compact(choose_core_set(states.detach(), mask, self.count_kept(index)), states)
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
    """Only the first layers run."""

    def __init__(self, model: ClassformerForSequenceClassification, num_layers: int):
        super().__init__(model)
        self.num_layers = num_layers

    @property
    def layers(self) -> nn.ModuleList:
        return self.model.roberta.encoder.layer[: self.num_layers]


class FixedPattern(KeptFractions):
    """Queries at positions that depend on nothing but the length, or on the separators (thesis section 6.2.3).

    Args:
        model: The full classifier.
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
        number, bias = self.count_kept(index), self.bias(mask)
        if self.pattern != "separators" and bias is None and len(set(self.lengths.tolist())) == 1:
            # without padding the positions follow from the length
            chosen = positions_of(self.pattern, states.shape[1], min(int(number[0]), states.shape[1])).to(states.device)
            return layer(states, states.index_select(1, chosen), None), mask[:, : len(chosen)]
        mask, queries, self.is_separator = compact(self.choose(mask, number), states, self.is_separator)
        return layer(states, queries, bias), mask

    def choose(self, mask: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """Mark the positions that stay, (B, N)."""
        keep = torch.zeros_like(mask, dtype=torch.bool)
        for row, (length, number) in enumerate(zip(mask.sum(1).tolist(), numbers.tolist(), strict=True)):
            keep[row, positions_of(self.pattern, length, min(number, length))] = True
        return (keep | self.is_separator if self.pattern == "separators" else keep) & (mask == 1)


@lru_cache(maxsize=4096)
def positions_of(pattern: str, length: int, number: int) -> torch.Tensor:
    """Give the positions of a pattern, of "separators" those beside them, for a text without padding, (number,)."""
    if pattern == "front":
        return torch.arange(number)
    return torch.tensor(log_positions(length, number) if pattern == "log" else even_positions(length, number))


def even_positions(length: int, number: int) -> list[int]:
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
        model: The full classifier.
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
        self.entropy, self.patience, self.is_frozen = entropy, patience, False
        self.exits = nn.ModuleList(type(model.classifier)(model.config) for _ in self.layers[:-1])
        for module in self.exits.modules():
            model._init_weights(module)
        self.exits.to(device=model.device, dtype=model.dtype)

    def freeze_for_exits(self):
        """Train nothing but the exits from now on (DeeBERT's second stage)."""
        self.model.requires_grad_(False)
        self.is_frozen = True

    def decide(self, states, mask, labels):
        if self.training or labels is not None:
            logits = self.classify_at_all(states, mask)
        else:
            logits = self.classify_until_sure(states, mask)
        chosen = logits[-1] if self.training else self.choose(logits)[0]
        if labels is None:
            return SequenceClassifierOutput(logits=chosen)
        trained = logits[:-1] if self.is_frozen else logits
        weights = [1 if self.is_frozen else depth + 1 for depth in range(len(trained))]
        losses = [weight * self.loss(one, labels) for weight, one in zip(weights, trained, strict=True)]
        return SequenceClassifierOutput(loss=sum(losses) / sum(weights), logits=chosen)

    def iterate_exits(self, states: torch.Tensor, mask: torch.Tensor) -> Iterator[torch.Tensor]:
        """Give the logits behind one layer after the other, (B, C)."""
        bias = self.bias(mask)
        for layer, leave in zip(self.layers[:-1], self.exits, strict=True):
            states = layer(states, states, bias)
            yield leave(states)
        yield self.model.classifier(self.run_last_layer(states, mask))

    def classify_at_all(self, states: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
        return list(self.iterate_exits(states, mask))

    def classify_until_sure(self, states: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
        """Run layers until the whole batch may leave; at batch 1 that is what is saved."""
        logits: list[torch.Tensor] = []
        left = torch.zeros(len(states), dtype=torch.bool, device=states.device)
        for one in self.iterate_exits(states, mask):
            logits.append(one)
            left |= self.is_sure(logits)
            if left.all():
                break
        return logits

    def choose(self, logits: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Give each example's prediction where it leaves, (B, C), and after how many layers that is, (B,)."""
        chosen = torch.stack(logits)  # (L, B, C)
        sure = torch.stack([self.is_sure(logits[: depth + 1]) for depth in range(len(logits))])
        sure[-1] = True
        depth = sure.int().argmax(0)
        return chosen[depth, torch.arange(chosen.shape[1], device=depth.device)], depth + 1

    def is_sure(self, logits: Sequence[torch.Tensor]) -> torch.Tensor:
        """Say of each example whether it leaves behind the last of these classifiers, (B,)."""
        if self.patience is None:
            logs = logits[-1].log_softmax(-1)
            return -(logs.exp() * logs).sum(-1) < self.entropy
        if len(logits) <= self.patience:
            return torch.zeros(len(logits[-1]), dtype=torch.bool, device=logits[-1].device)
        classes = torch.stack([one.argmax(-1) for one in logits[-self.patience - 1 :]])
        return (classes == classes[-1]).all(0)


Builder = Callable[[ClassformerForSequenceClassification], nn.Module]


def operating_points(num_layers: int) -> dict[str, dict[str, Builder]]:
    """Give two settings of every method for a classifier of so many layers, a mild and a strong one, by their names."""
    third, half = num_layers // 3, num_layers // 2

    def windows(*layers: int) -> list[int]:
        return [2 if index in layers else 1 for index in range(num_layers)]

    def decay(share: float) -> list[float]:
        """Of the tokens, so much is left behind the last layer, by the same factor in each."""
        return [share ** ((index + 1) / num_layers) for index in range(num_layers)]

    def exit_below(model: ClassformerForSequenceClassification, share: float) -> EarlyExit:
        method = EarlyExit(model, entropy=share * math.log(len(model.config.id2label or ())))
        method.freeze_for_exits()
        return method

    points: dict[str, dict[str, Builder]] = {
        "pooled queries": {
            "late": partial(PooledQueries, gamma=windows(third, 2 * third)),
            "early": partial(PooledQueries, gamma=windows(0, third, 2 * third)),
        },
        "attention threshold": {f"{share:g}/N": partial(AttentionThreshold, share=share) for share in (0.5, 1.0)},
        "first layers": {f"{n} of {num_layers}": partial(FirstLayers, num_layers=n) for n in (2 * third, half)},
        "entropy": {f"{share:g} ln C": partial(exit_below, share=share) for share in (0.3, 0.7)},
        "patience": {f"{n}": partial(EarlyExit, patience=n) for n in (half - 1, 1)},
    }
    kinds: dict[str, Any] = {"attention top k": AttentionTopK, "core-set": CoreSet, "merging": TokenMerging}
    kinds |= {pattern: partial(FixedPattern, pattern=pattern) for pattern in FixedPattern.PATTERNS}
    for name, build in kinds.items():
        points[name] = {}
        for share in (0.4, 0.15):
            fractions = [1 - share ** (1 / num_layers)] * num_layers if build is TokenMerging else decay(share)
            points[name][f"{share:g} left"] = partial(build, fractions=fractions)
    return points
