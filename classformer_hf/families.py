"""What RoBERTa-, BERT-, ELECTRA- and DistilBERT-family checkpoints call the parts that a Classformer has too."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Family:
    """How an architecture names and sets what RoBERTa has too; see [`FAMILIES`].

    Attributes:
        weight_names: (pattern, replacement) pairs from the start of a weight's name without the model's prefix to
            RoBERTa's; the first that matches counts.
        config_names: Classformer's config field -> this family's, where they differ.
        constants: Classformer's config fields that this family fixes in code.
        starts_at_zero: Whether the position table has no rows for padding.
        has_pooler_head: Whether the pooler is the first layer of the classification head.
        mlm_activation: Config field with the activation of the masked-LM head; `None` where it is a fixed gelu.
    """

    weight_names: tuple[tuple[str, str], ...] = ()
    config_names: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    starts_at_zero: bool = True
    has_pooler_head: bool = False
    mlm_activation: str | None = None

    def rename(self, key: str) -> str:
        """Translate the name of a weight, without the model's prefix, into RoBERTa's."""
        for pattern, replacement in self.weight_names:
            key, count = re.subn(rf"^{pattern}(?=\.)", replacement, key)
            if count:
                break
        return key


ROBERTA = Family(constants={"classifier_activation": "tanh"}, starts_at_zero=False)
BERT = Family(
    weight_names=(
        ("classifier", "classifier.out_proj"),
        (r"cls\.predictions\.transform\.dense", "lm_head.dense"),
        (r"cls\.predictions\.transform\.LayerNorm", "lm_head.layer_norm"),
        (r"cls\.predictions", "lm_head"),
    ),
    constants={"classifier_activation": "tanh"},
    has_pooler_head=True,
    mlm_activation="hidden_act",
)
ELECTRA = Family(
    weight_names=(
        (r"generator_predictions\.dense", "lm_head.dense"),
        (r"generator_predictions\.LayerNorm", "lm_head.layer_norm"),
        ("generator_lm_head", "lm_head.decoder"),
    ),
    constants={"classifier_activation": "gelu"},
)
DISTILBERT = Family(
    weight_names=(
        (r"transformer\.layer\.(\d+)\.attention\.q_lin", r"encoder.layer.\1.attention.self.query"),
        (r"transformer\.layer\.(\d+)\.attention\.k_lin", r"encoder.layer.\1.attention.self.key"),
        (r"transformer\.layer\.(\d+)\.attention\.v_lin", r"encoder.layer.\1.attention.self.value"),
        (r"transformer\.layer\.(\d+)\.attention\.out_lin", r"encoder.layer.\1.attention.output.dense"),
        (r"transformer\.layer\.(\d+)\.sa_layer_norm", r"encoder.layer.\1.attention.output.LayerNorm"),
        (r"transformer\.layer\.(\d+)\.ffn\.lin1", r"encoder.layer.\1.intermediate.dense"),
        (r"transformer\.layer\.(\d+)\.ffn\.lin2", r"encoder.layer.\1.output.dense"),
        (r"transformer\.layer\.(\d+)\.output_layer_norm", r"encoder.layer.\1.output.LayerNorm"),
        ("pre_classifier", "classifier.dense"),
        ("classifier", "classifier.out_proj"),
        ("vocab_transform", "lm_head.dense"),
        ("vocab_layer_norm", "lm_head.layer_norm"),
        ("vocab_projector", "lm_head.decoder"),
    ),
    config_names={
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
        "hidden_dropout_prob": "dropout",
        "attention_probs_dropout_prob": "attention_dropout",
        "classifier_dropout": "seq_classif_dropout",
    },
    constants={"classifier_activation": "relu", "layer_norm_eps": 1e-12, "type_vocab_size": 1},
    mlm_activation="activation",
)
FAMILIES = {
    "roberta": ROBERTA,  # DistilRoBERTa too
    "xlm-roberta": ROBERTA,
    "camembert": ROBERTA,
    "bert": BERT,
    "electra": ELECTRA,
    "distilbert": DISTILBERT,
    "classformer": Family(starts_at_zero=False),
}
