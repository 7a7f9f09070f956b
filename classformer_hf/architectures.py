"""Stock architectures of transformers with random weights, to compare costs with: those do not depend on the weights.

Sizes are those of the base checkpoints on the Hub, as their configurations give them; no weight is downloaded.
"""

import json
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
DEBERTA_V3 = {
    **BASE,
    "vocab_size": 128100,
    "type_vocab_size": 0,
    "relative_attention": True,
    "max_relative_positions": -1,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
}
# model type, and what differs from its configuration's defaults
ROBERTA = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", {}),
    "roberta": ("roberta", ROBERTA),
    # with the schedule of thesis figure 5.13
    "classformer": ("classformer", {**ROBERTA, "gamma": [1, 1, 1, 2, 1, 1, 1, 1, 2, 1, 1, 1], "eta": 8}),
    "distilbert": ("distilbert", {}),
    "distilroberta": ("roberta", {**ROBERTA, "num_hidden_layers": 6}),
    "squeezebert": ("squeezebert", {}),
    "mobilebert": ("mobilebert", {}),
    "modernbert": ("modernbert", {}),
    "albert": ("albert", BASE),
    "electra": ("electra", {**BASE, "embedding_size": 768}),
    "deberta": ("deberta", {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": -1}),
    "deberta-v3": ("deberta-v2", DEBERTA_V3),
    "bigbird": ("big_bird", {}),
    "gpt2": ("gpt2", {}),
    "distilgpt2": ("gpt2", {"num_hidden_layers": 6}),
    # as many attention_types as layers
    "gpt-neo": ("gpt_neo", {**BASE, "attention_types": [[["global", "local"], 6]]}),
    "funnel-small": ("funnel", {"block_sizes": [4, 4, 4], "num_decoder_layers": 2}),
    "funnel-medium": ("funnel", {"block_sizes": [6, 3, 3], "block_repeats": [1, 2, 2]}),
}


# what others call otherwise
OWN_NAMES: dict[tuple[str, str], str] = {
    ("distilbert", "intermediate_size"): "hidden_dim",
    ("funnel", "intermediate_size"): "d_inner",
}


def build_architectures(names: list[str], overrides: str = "{}", dtype: torch.dtype = torch.float32) -> dict:
    """Build classifiers of some architectures with random weights, in evaluation mode.

    Args:
        names: Of `ARCHITECTURES`.
        overrides: Settings of all of them, as a JSON object.
        dtype: Of the weights.

    Returns:
        [`PreTrainedModel`]s by name.

    Raises:
        ValueError: A name is unknown, or the settings do not suit it.
    """
    unknown = [name for name in names if name not in ARCHITECTURES]
    if unknown:
        raise ValueError(f"`--architectures` knows {', '.join(ARCHITECTURES)}, got {unknown[0]}.")
    try:
        given: dict[str, Any] = dict(json.loads(overrides))
    except (json.JSONDecodeError, TypeError, ValueError) as error:
        raise ValueError(f"`--architecture_config` must be a JSON object, got {overrides}: {error}.") from error
    negative = {key: value for key, value in given.items() if isinstance(value, int) and value < 0}
    if negative:
        raise ValueError(f"`--architecture_config` must not have negative numbers, got {negative}.")
    built = {}
    for name in names:
        model_type, differences = ARCHITECTURES[name]
        own = {OWN_NAMES.get((model_type, key)) or key: value for key, value in given.items()}
        strange = sorted(set(own) - known_settings(model_type))
        if strange:
            raise ValueError(f"`--architecture_config` has settings that {name} does not know: {', '.join(strange)}.")
        settings = {**differences, **own}
        try:
            config = AutoConfig.for_model(model_type, **settings)
            built[name] = AutoModelForSequenceClassification.from_config(config, dtype=dtype).eval()
        except Exception as error:  # of validators, constructors and torch, of many kinds
            reason = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(f"`--architecture_config` does not suit {name}: {reason}") from error
    return built


def build_stock(model: Any, num_layers: int | None = None, attention: str = "sdpa") -> RobertaForSequenceClassification:
    """Give plain RoBERTa the weights of a Classformer without reductions, which it then equals.

    Args:
        model: A Classformer classifier.
        num_layers: Only so many layers.
        attention: Implementation, such as "eager".

    Raises:
        ValueError: The model drops tokens, or its head is not RoBERTa's.
    """
    config = model.config
    if max(config.gamma) > 1 or config.length_buckets or config.cascade:
        raise ValueError(
            f"plain RoBERTa equals a model without reductions, buckets and cascade, got gamma {config.gamma}."
        )
    if model.config.classifier_activation != "tanh":
        raise ValueError(f"RoBERTa's head has tanh, and this model {model.config.classifier_activation}.")
    known = RobertaConfig().to_dict()
    settings = {name: value for name, value in model.config.to_dict().items() if name in known}
    settings["model_type"] = "roberta"
    if num_layers is not None:
        settings["num_hidden_layers"] = num_layers
    settings["attn_implementation"] = attention
    stock_config: Any = RobertaConfig(**settings)
    stock = RobertaForSequenceClassification(stock_config)
    weights = model.state_dict()
    stock.load_state_dict({name: weights[name] for name in stock.state_dict()})
    return stock.eval()


def known_settings(model_type: str) -> set[str]:
    """Name the settings of an architecture's configuration."""
    default = AutoConfig.for_model(model_type)
    return {*default.to_dict(), *default.attribute_map}
