"""Configuration of Classformer: RoBERTa's, plus where and how much the sequence is shortened.

Source: Bidart 2023 (University of Waterloo), sections 5.1.1 and 5.1.2, equation 5.2 and table 5.3.
"""

# transformers answers with the first folder's code where two of one name have the same configuration file
# digest of the code that travels with this file: a9910db949875dc0

from collections.abc import Iterator
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import RobertaConfig

AUTO_MAP = {
    "AutoConfig": "configuration_classformer.ClassformerConfig",
    "AutoModel": "modeling_classformer.ClassformerModel",
    "AutoModelForMaskedLM": "modeling_classformer.ClassformerForMaskedLM",
    "AutoModelForSequenceClassification": "modeling_classformer.ClassformerForSequenceClassification",
}

# an int32, far above any input
LONGEST = 2**31 - 1


def shorten(num_tokens: Any, gamma: Any, eta: Any) -> Any:
    """Count the positions that a layer keeps: min(eta, n) + ceil(max(n - eta, 0) / gamma).

    Args:
        num_tokens: Those that enter it, n; a number, or like the others an array.
        gamma: Reduction factor, >= 1.
        eta: Number of leading tokens that stay.
    """
    # without min and max, which know no arrays
    rest = (num_tokens - eta) * (num_tokens > eta)
    return num_tokens - rest - (-rest // gamma)


def shorten_by_layers(num_tokens: Any, gamma: Any, eta: Any, cls_only: bool = False) -> Iterator[Any]:
    """Count the positions that leave every layer, one after the other; numbers or arrays, as in [`shorten`].

    Args:
        num_tokens: Those that enter the first one.
        gamma: Reduction factor of every layer.
        eta: Number of leading tokens that stay.
        cls_only: Whether the last layer computes position 0 only.
    """
    for layer, factor in enumerate(gamma):
        num_tokens = shorten(num_tokens, factor, eta)
        yield 1 * (num_tokens > 0) if cls_only and layer == len(gamma) - 1 else num_tokens


@strict
class ClassformerConfig(RobertaConfig):
    r"""
    Configuration of a [`ClassformerModel`]. Only what differs from [`RobertaConfig`] is listed.

    Args:
        gamma (`list[int]`, *optional*):
            Reduction factor of every layer, each >= 1; index 0 is the first block. Layer `l` keeps the query positions
            `0 .. eta-1` and then every `gamma[l]`-th one. A factor as large as the longest input keeps one position
            beside the first `eta`. `None` reduces nothing, which is RoBERTa.
        eta (`int`, *optional*, defaults to 0):
            Number of leading tokens that no layer drops.
        last_layer_cls_only (`bool`, *optional*, defaults to `True`):
            Whether the classification head computes only position 0 in the last layer. The head reads nothing else, so
            the logits stay the same up to rounding; the last hidden state then has length 1.
        classifier_activation (`str`, *optional*, defaults to `"tanh"`):
            Activation between the two linear layers of the classification head: `"tanh"` (RoBERTa, BERT's pooler),
            `"gelu"` (ELECTRA) or `"relu"` (DistilBERT).
        length_buckets (`list[dict]`, *optional*):
            Other schedules for shorter inputs, shortest first: `{"max_tokens": 32, "gamma": [...], "eta": 0}` holds for
            inputs of at most 32 tokens. Longer ones than the last bucket's use `gamma` and `eta`. The classification
            head runs the examples of a batch bucket by bucket.
        cascade (`dict`, *optional*):
            A faster schedule that is tried first, `{"gamma": [...], "eta": 0, "margin": 0.5}`. Examples whose two
            likeliest classes are less than `margin` apart in probability are then classified once more, as without a
            cascade. In evaluation only, and only where one of several classes is chosen.

    Raises:
        StrictDataclassClassValidationError: `gamma` has not one integer >= 1 per layer, `eta` is negative,
            `length_buckets` are not ascending, or the `cascade` has other keys or a margin outside 0 to 1; a type that
            does not fit raises StrictDataclassFieldValidationError. Both are huggingface_hub's.

    Example:

    ```python
    >>> from classformer_hf import ClassformerConfig

    >>> config = ClassformerConfig(num_hidden_layers=4, gamma=[1, 2, 1, 4], eta=2)
    >>> config.layer_lengths(128)
    [128, 65, 65, 18]
    ```"""

    model_type = "classformer"

    gamma: list[int] | None = None
    eta: int = 0
    last_layer_cls_only: bool = True
    classifier_activation: str = "tanh"
    length_buckets: list[dict] | None = None
    cascade: dict | None = None
    use_cache: bool = False

    def __post_init__(self, **kwargs):
        if self.gamma is None:
            self.gamma = [1] * self.num_hidden_layers
        # save_pretrained names only the class it saves; a folder must open with every head
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
        super().__post_init__(**kwargs)

    def validate_gamma(self):
        self._check_schedule("gamma", self.gamma, self.eta)

    def validate_length_buckets(self):
        limits = []
        for bucket in self.length_buckets or []:
            if set(bucket) != {"max_tokens", "gamma", "eta"}:
                raise ValueError(f"a length bucket has max_tokens, gamma and eta, got {sorted(bucket)}.")
            self._check_schedule("length_buckets' gamma", bucket["gamma"], bucket["eta"])
            limits.append(bucket["max_tokens"])
        if any(limit < 1 for limit in limits) or limits != sorted(set(limits)):
            raise ValueError(f"`length_buckets` must be in ascending order of max_tokens, each >= 1, got {limits}.")

    def validate_cascade(self):
        if self.cascade is None:
            return
        if set(self.cascade) != {"gamma", "eta", "margin"}:
            raise ValueError(f"`cascade` has gamma, eta and margin, got {sorted(self.cascade)}.")
        self._check_schedule("cascade's gamma", self.cascade["gamma"], self.cascade["eta"])
        margin = self.cascade["margin"]
        if isinstance(margin, bool) or not isinstance(margin, int | float) or not 0 <= margin <= 1:
            raise ValueError(f"the margin of a `cascade` is a difference of probabilities, 0 to 1, got {margin!r}.")
        if self.num_labels == 1 or self.problem_type in ("regression", "multi_label_classification"):
            raise ValueError("a `cascade` needs classes of which one is chosen; margins say nothing of other tasks.")

    def _check_schedule(self, name: str, gamma: list[int], eta: int):
        if not isinstance(gamma, list) or isinstance(eta, bool) or not isinstance(eta, int):
            raise ValueError(f"`{name}` is a list and its eta an integer, got {gamma!r} and {eta!r}.")
        if len(gamma) != self.num_hidden_layers:
            raise ValueError(
                f"`{name}` needs one factor per layer, got {len(gamma)} for {self.num_hidden_layers} layers: "
                f"{gamma}; write 1 for a layer that drops nothing."
            )
        if any(isinstance(factor, bool) or not isinstance(factor, int) or factor < 1 for factor in gamma):
            raise ValueError(f"every factor in `{name}` must be an integer >= 1, got {gamma}; 1 drops nothing.")
        if max(*gamma, eta, 0) > LONGEST:
            raise ValueError(
                f"`{name}` and `eta` must not be above {LONGEST}, got {gamma} and {eta}; no input is longer."
            )
        if eta < 0:
            raise ValueError(f"`eta` counts leading tokens and must be >= 0, got {eta}.")

    def validate_classifier_activation(self):
        if self.classifier_activation not in ("tanh", "gelu", "relu"):
            raise ValueError(
                f'`classifier_activation` must be "tanh", "gelu" or "relu", got "{self.classifier_activation}".'
            )

    def validate_encoder_only(self):
        if self.is_decoder or self.add_cross_attention:
            raise ValueError("Classformer is an encoder: `is_decoder` and `add_cross_attention` must be False.")

    def schedule_for(self, num_tokens: int) -> tuple[list[int], int]:
        """Give the gamma and eta of an input of so many tokens."""
        for bucket in self.length_buckets or []:
            if num_tokens <= bucket["max_tokens"]:
                return bucket["gamma"], bucket["eta"]
        return self.gamma or [], self.eta

    def layer_lengths(self, num_tokens: int, cls_only: bool = False) -> list[int]:
        """Count the token states that leave every layer (thesis table 5.3).

        Args:
            num_tokens: Length of the input, in tokens.
            cls_only: Whether the last layer computes position 0 only, as the classification head makes it.

        Returns:
            One length per layer; index 0 is what leaves the first block.
        """
        gamma, eta = self.schedule_for(num_tokens)
        return list(shorten_by_layers(num_tokens, gamma, eta, cls_only))


__all__ = ["ClassformerConfig", "shorten", "shorten_by_layers"]
