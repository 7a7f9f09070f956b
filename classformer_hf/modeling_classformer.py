"""Classformer: RoBERTa whose layers drop queries, so that the sequence gets shorter with depth.

A layer attends from the kept positions to all of its inputs (Bidart 2023, equation 5.2), which is cross-attention from
a subset to the whole. RoBERTa's own attention, embeddings and heads do the work; this file states only differences.

Shapes: B examples, L input tokens, N tokens entering a layer, M <= N tokens leaving it, D hidden size.

Inputs are padded on the right. Position 0 must be the first real token: no layer drops it and the classification head
reads it. Pad on the left and the head reads padding, as with RoBERTa.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling, MaskedLMOutput, SequenceClassifierOutput
from transformers.models.roberta.modeling_roberta import (
    RobertaAttention,
    RobertaClassificationHead,
    RobertaCrossAttention,
    RobertaEmbeddings,
    RobertaLayer,
    RobertaLMHead,
    RobertaPooler,
    RobertaPreTrainedModel,
)
from transformers.processing_utils import Unpack
from transformers.pytorch_utils import apply_chunking_to_forward
from transformers.utils import TransformersKwargs, is_tracing, logging
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_classformer import ClassformerConfig

logger = logging.get_logger(__name__)

# of a forward, beside its own; the last from the configuration
KNOWN_ARGUMENTS = (*TransformersKwargs.__annotations__, "return_dict", "use_cache")


def subsample(states: torch.Tensor, gamma: int, eta: int, dim: int = 1) -> torch.Tensor:
    """Keep the first `eta` entries along `dim` and every `gamma`-th one of those that follow.

    Args:
        states: Any tensor with N entries along `dim`.
        gamma: Reduction factor, >= 1.
        eta: Number of leading entries that stay; all stay when N <= eta.
        dim: The token dimension.

    Returns:
        The same tensor with M = min(eta, N) + ceil(max(N - eta, 0) / gamma) entries along `dim`.
    """
    if gamma == 1:
        return states
    if torch.jit.is_tracing():
        # lengths are tensors, of which sym_min knows nothing, and slices stay right at other lengths
        before = (slice(None),) * dim
        kept = [states[(*before, slice(eta))], states[(*before, slice(eta, None, gamma))]]
        return torch.cat(kept, dim) if eta else kept[1]
    num_tokens = states.shape[dim]
    num_leading = torch.sym_min(eta, num_tokens)
    # index_select, because a strided view makes torch.export guard on the parity of the length
    rest = torch.arange(num_leading, num_tokens, gamma, device=states.device)
    if eta == 0:
        return states.index_select(dim, rest)
    leading = torch.arange(num_leading, device=states.device)
    return states.index_select(dim, torch.cat([leading, rest]))


def refuse_unknown(kwargs: dict[str, Any]):
    """Refuse arguments of a forward that neither it reads nor transformers passes to any model.

    Raises:
        TypeError: Names one.
    """
    unknown = [name for name in kwargs if name not in KNOWN_ARGUMENTS]
    if unknown:
        raise TypeError(f"forward() got an unexpected keyword argument {unknown[0]!r}")


class ClassformerLayer(RobertaLayer):
    """A RoBERTa block with queries at the kept positions only; keys and values come from all positions."""

    def __init__(self, config: ClassformerConfig, layer_idx: int):
        super().__init__(config, layer_idx=layer_idx)
        # the parameter names of self-attention, but queries apart from keys and values
        self.attention = RobertaAttention(config, layer_idx=layer_idx, is_cross_attention=True)

    def forward(
        self,
        hidden_states: torch.Tensor,
        query_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """Attend from the kept positions, (B, M, D), to all of them, (B, N, D)."""
        attention_output, _ = self.attention(
            query_states, encoder_hidden_states=hidden_states, encoder_attention_mask=attention_mask, **kwargs
        )
        return apply_chunking_to_forward(
            self.feed_forward_chunk, self.chunk_size_feed_forward, self.seq_len_dim, attention_output
        )


class ClassformerPreTrainedModel(RobertaPreTrainedModel):
    config: ClassformerConfig
    base_model_prefix = "roberta"  # RoBERTa checkpoints load as they are
    _input_embed_layer = "word_embeddings"
    _no_split_modules = ["RobertaEmbeddings", "ClassformerLayer"]
    # with padding, flash attention takes shortened queries for the last keys: wrong, and silently so
    _supports_flash_attn = False
    _can_record_outputs = {"hidden_states": ClassformerLayer, "attentions": RobertaCrossAttention}

    def __init__(self, config: ClassformerConfig):
        # from_pretrained(folder, gamma=...) sets attributes without running the validators
        config.validate()
        super().__init__(config)


class EncoderState(NamedTuple):
    """What one layer hands to the next.

    Attributes:
        hidden_states: (B, N, D).
        attention_mask: The caller's mask at these positions, (B, N) or ready for attention.
        layer_mask: The mask of a layer that keeps all N positions, (B, 1, N, N), where it is already made; `None` where
            every key is seen.
    """

    hidden_states: torch.Tensor
    attention_mask: torch.Tensor | None
    layer_mask: torch.Tensor | bool | None = False


class ClassformerEncoder(nn.Module):
    def __init__(self, config: ClassformerConfig):
        super().__init__()
        self.config = config
        self.layer = nn.ModuleList([ClassformerLayer(config, layer_idx=i) for i in range(config.num_hidden_layers)])

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        cls_only: bool = False,
        schedule: tuple[list[int], int] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        num_tokens = hidden_states.shape[1]
        # of one length there is one graph
        if schedule is None and self.config.length_buckets and not isinstance(num_tokens, int):
            refuse_single_graph("a model with length buckets")
        gamma, eta = schedule or self.config.schedule_for(num_tokens)
        state = self.start(hidden_states, attention_mask)
        for layer, factor in zip(self.layer, gamma, strict=True):
            state = self.step(layer, state, factor, eta, cls_only and layer is self.layer[-1], **kwargs)
        return state.hidden_states

    def start(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> EncoderState:
        """Take what enters the first layer."""
        if attention_mask is not None and attention_mask.ndim == 4 and attention_mask.dtype == torch.bool:
            # eager attention adds a mask to the scores, and adding booleans would hide nothing
            hidden = torch.finfo(hidden_states.dtype).min
            attention_mask = torch.zeros_like(attention_mask, dtype=hidden_states.dtype).masked_fill(
                ~attention_mask, hidden
            )
        return EncoderState(hidden_states, attention_mask)

    def step(
        self, layer: ClassformerLayer, state: EncoderState, gamma: int, eta: int, cls_only: bool = False, **kwargs
    ) -> EncoderState:
        """Run one layer; with `cls_only` it computes position 0 only."""
        hidden_states, attention_mask, layer_mask = state
        query_states = hidden_states[:, :1] if cls_only else subsample(hidden_states, gamma, eta)  # (B, M, D)
        # decided on gamma and not on shapes, which are symbolic when exporting
        keeps_all = gamma == 1 and not cls_only
        # once every key is seen, every one that is left is
        if layer_mask is not None and (layer_mask is False or not keeps_all):
            layer_mask = self.create_layer_mask(state, query_states, gamma, eta, cls_only)
        output = layer(hidden_states, query_states, layer_mask, **kwargs)
        if keeps_all:
            return EncoderState(output, attention_mask, layer_mask)
        if layer_mask is None:
            return EncoderState(output, None, None)
        if attention_mask is not None and not cls_only:
            attention_mask = self.shorten_mask(attention_mask, gamma, eta)
        return EncoderState(output, attention_mask)

    def create_layer_mask(self, state: EncoderState, query_states: torch.Tensor, gamma: int, eta: int, cls_only: bool):
        """Build the mask from a layer's queries to its keys, (B, 1, M, N) or `None` where everything is visible."""
        attention_mask = state.attention_mask
        if attention_mask is not None and attention_mask.ndim == 4:  # made by the caller: (B, 1 or A, 1 or N, N)
            if attention_mask.shape[2] == 1:
                return attention_mask
            return attention_mask[:, :, :1] if cls_only else subsample(attention_mask, gamma, eta, dim=2)
        return create_bidirectional_mask(
            config=self.config,
            # read for the query length only ...
            inputs_embeds=query_states,
            attention_mask=attention_mask,
            # ... and this for the key length
            encoder_hidden_states=state.hidden_states,
        )

    @staticmethod
    def shorten_mask(attention_mask: torch.Tensor, gamma: int, eta: int) -> torch.Tensor:
        """Keep of a mask what belongs to the positions that leave the layer."""
        if attention_mask.ndim == 4 and attention_mask.shape[2] != 1:
            attention_mask = subsample(attention_mask, gamma, eta, dim=2)
        return subsample(attention_mask, gamma, eta, dim=attention_mask.ndim - 1)


@dataclass
class ClassformerModelOutput(BaseModelOutputWithPooling):
    """What the bare encoder gives.

    Args:
        attention_mask: 1 where `last_hidden_state` is of a token and 0 where it is of padding, (B, M); `None` where no
            (B, L) mask was given. Average by this one: the caller's is longer than the states.
    """

    attention_mask: torch.Tensor | None = None


def shorten_attention_mask(
    attention_mask: torch.Tensor, config: ClassformerConfig, schedule: tuple[list[int], int] | None = None
) -> torch.Tensor:
    """Keep of a mask what belongs to the positions that leave the last layer.

    Args:
        attention_mask: 1 for tokens and 0 for padding, (B, L).
        config: Of the encoder.
        schedule: gamma and eta; by default the config's for this length.

    Returns:
        (B, M) with M = `config.layer_lengths(L)[-1]`.
    """
    gamma, eta = schedule or config.schedule_for(attention_mask.shape[1])
    for factor in gamma:
        attention_mask = subsample(attention_mask, factor, eta)
    return attention_mask


class ClassformerModel(ClassformerPreTrainedModel):
    """The bare encoder: `last_hidden_state` is (B, M, D) with M = `config.layer_lengths(L)[-1]`."""

    def __init__(self, config: ClassformerConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.embeddings = RobertaEmbeddings(config)
        self.encoder = ClassformerEncoder(config)
        self.pooler = RobertaPooler(config) if add_pooling_layer else None
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        cls_only: bool = False,
        schedule: tuple[list[int], int] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor] | ClassformerModelOutput:
        """Encode a batch.

        Args:
            input_ids: Token ids, (B, L), padded on the right.
            attention_mask: 1 for tokens and 0 for padding, (B, L); or ready for attention, (B, 1 or A, 1 or L, L):
                added to the scores, or boolean and True where a key is seen.
            token_type_ids: Segment ids, (B, L).
            position_ids: Position ids, (B, L); by default RoBERTa's, which start at `pad_token_id + 1`.
            inputs_embeds: Word embeddings instead of `input_ids`, (B, L, D).
            cls_only: Compute only position 0 in the last layer; `last_hidden_state` is then (B, 1, D).
            schedule: gamma and eta; by default the config's for this length.

        Raises:
            ValueError: Not exactly one of `input_ids` and `inputs_embeds` is given.
            TypeError: An argument is unknown.
        """
        refuse_unknown(kwargs)
        if (input_ids is None) ^ (inputs_embeds is not None):
            raise ValueError("exactly one of `input_ids` and `inputs_embeds` must be given.")
        hidden_states = self.embeddings(
            input_ids=input_ids,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
        )
        hidden_states = self.encoder(hidden_states, attention_mask, cls_only, schedule, **kwargs)
        pooled = self.pooler(hidden_states) if self.pooler is not None else None
        mask = attention_mask if attention_mask is not None and attention_mask.ndim == 2 and not cls_only else None
        if mask is not None:
            mask = shorten_attention_mask(mask, self.config, schedule)
            # a head takes what it needs by position
            if self.pooler is not None:
                warn_of_longer_mask(attention_mask, mask)
        return ClassformerModelOutput(last_hidden_state=hidden_states, pooler_output=pooled, attention_mask=mask)


def warn_of_longer_mask(given: torch.Tensor, shortened: torch.Tensor):
    """Warn once where averaging the states by the caller's mask would go wrong, or leave it out."""
    if is_tracing(given) or given.shape == shortened.shape or given.device.type != "cpu" or given.all():
        return
    logger.warning_once(
        "The states are shorter than the attention mask: average them by `attention_mask` of the output. For "
        'sentence-transformers take `pooling_mode="cls"`, or put `ClassformerMask` before its Pooling.'
    )


class ClassformerMask(nn.Module):
    """A module of sentence-transformers, between its Transformer and its Pooling: gives the mask the states' length.

    Without it Pooling finds a mask that is longer than the states, leaves it out and averages padding in. In
    `modules.json` its type is `modeling_classformer.ClassformerMask`, its path is empty.

    Args:
        config: Of the encoder.
    """

    def __init__(self, config: ClassformerConfig):
        super().__init__()
        self.config = config

    def forward(self, features: dict[str, Any], **kwargs) -> dict[str, Any]:
        """Shorten `attention_mask`, (B, L), to the length of `token_embeddings`, (B, M, D).

        Raises:
            ValueError: The states have another length: they are not of an encoder with this config.
        """
        mask = shorten_attention_mask(features["attention_mask"], self.config)
        num_states = features["token_embeddings"].shape[1]
        if mask.shape[1] != num_states:
            raise ValueError(
                f"gamma {self.config.gamma} and eta {self.config.eta} leave {mask.shape[1]} positions, but there are "
                f"{num_states} token embeddings: the config must be the encoder's."
            )
        return {**features, "attention_mask": mask}

    def save(self, output_path: str, *args, **kwargs):
        """Save nothing, since the encoder's config says all."""

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs) -> "ClassformerMask":
        """Read the encoder's config; arguments as of sentence-transformers' modules."""
        known = {name: kwargs[name] for name in ("token", "revision", "local_files_only") if name in kwargs}
        return cls(ClassformerConfig.from_pretrained(model_name_or_path, cache_dir=kwargs.get("cache_folder"), **known))


class ClassformerClassificationHead(RobertaClassificationHead):
    """RoBERTa's head with a choice of activation, so that ELECTRA's and DistilBERT's heads fit in."""

    def __init__(self, config: ClassformerConfig):
        super().__init__(config)
        self.activation = ACT2FN[config.classifier_activation]

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        states = self.dropout(features[:, 0, :])  # (B, D)
        states = self.dropout(self.activation(self.dense(states)))
        return self.out_proj(states)


class ClassformerForSequenceClassification(ClassformerPreTrainedModel):
    """Classification or regression from position 0; `config.problem_type` decides the loss as in RoBERTa."""

    # the loss is a plain mean: a Trainer that believes otherwise multiplies it by the number of processes
    accepts_loss_kwargs = False

    def __init__(self, config: ClassformerConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.roberta = ClassformerModel(config, add_pooling_layer=False)
        self.classifier = ClassformerClassificationHead(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        schedule: tuple[list[int], int] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor] | SequenceClassifierOutput:
        """Classify a batch; arguments as in [`ClassformerModel`].

        Args:
            labels: Class ids (B,), float targets (B,) for regression, or 0/1 floats (B, num_labels) for multi-label.
            schedule: gamma and eta for all examples, instead of the config's, its buckets and its cascade.
        """
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        warn_of_left_padding(attention_mask)
        if schedule is not None:
            outputs = self.classify(inputs, schedule=schedule, **kwargs)
        elif self.config.cascade and not self.training:
            outputs = self.classify_unsure_again(inputs, **kwargs)
        else:
            outputs = self.classify_by_bucket(inputs, **kwargs)
        loss, logits = None, outputs.logits
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, pooled_logits=logits, config=self.config)
        # anew, because the order of the entries is that of the tuple
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def classify(self, inputs: dict[str, torch.Tensor | None], **kwargs) -> SequenceClassifierOutput:
        """Classify a batch with one schedule, by default that of its padded length."""
        outputs = self.roberta(**inputs, cls_only=self.config.last_layer_cls_only, return_dict=True, **kwargs)
        return SequenceClassifierOutput(
            logits=self.classifier(outputs.last_hidden_state),  # (B, num_labels)
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def classify_by_bucket(self, inputs: dict[str, torch.Tensor | None], **kwargs) -> SequenceClassifierOutput:
        """Classify the examples of each length bucket together, so that no example depends on its batchmates.

        Raises:
            ValueError: Hidden states or attentions of several buckets are asked for; they do not stack. Or the model is
                exported or traced, and which example is in which bucket depends on data.
        """
        lengths = count_tokens(inputs["attention_mask"]) if self.config.length_buckets else None
        if lengths is None:
            return self.classify(inputs, **kwargs)
        refuse_single_graph("a model with length buckets")
        limits = torch.tensor([bucket["max_tokens"] for bucket in self.config.length_buckets], device=lengths.device)
        buckets = torch.bucketize(lengths, limits)
        found = buckets.unique().tolist()
        if self.asks_states(kwargs) and len(found) > 1:
            raise ValueError(
                "hidden states and attentions of several length buckets have different lengths; give a batch of one "
                "bucket, or set config.length_buckets = None."
            )
        logits = None
        for bucket in found:
            rows = (buckets == bucket).nonzero()[:, 0]
            outputs = self.classify(select_examples(inputs, rows), **kwargs)
            if logits is None:
                logits = outputs.logits.new_empty(len(lengths), self.num_labels)
            logits = logits.index_copy(0, rows, outputs.logits)
        outputs.logits = logits
        return outputs

    def classify_unsure_again(self, inputs: dict[str, torch.Tensor | None], **kwargs) -> SequenceClassifierOutput:
        """Classify with the cascade's fast schedule, then what has a small margin as without a cascade.

        Raises:
            ValueError: Hidden states or attentions are asked for, which do not stack for two schedules; or the model is
                exported or traced, and which examples are classified again depends on data.
        """
        refuse_single_graph("a cascade")
        if self.asks_states(kwargs):
            raise ValueError(
                "hidden states and attentions of a cascade's two schedules have different lengths; set config.cascade "
                "= None to get them."
            )
        cascade = self.config.cascade
        outputs = self.classify(inputs, schedule=(cascade["gamma"], cascade["eta"]), **kwargs)
        best, second = outputs.logits.float().softmax(-1).topk(2).values.unbind(-1)  # (B,)
        unsure = (best - second < cascade["margin"]).nonzero()[:, 0]
        if len(unsure) > 0:
            again = self.classify_by_bucket(select_examples(inputs, unsure), **kwargs)
            outputs.logits = outputs.logits.index_copy(0, unsure, again.logits)
        return outputs

    def asks_states(self, kwargs: dict) -> bool:
        """Say whether a caller, or the config, wants hidden states or attentions."""
        return any(
            kwargs.get(name) or getattr(self.config, name) for name in ("output_hidden_states", "output_attentions")
        )


def refuse_single_graph(what: str):
    """Refuse to be exported or traced where the graph would hold one schedule of several.

    Raises:
        ValueError: Says so.
    """
    if torch.compiler.is_exporting() or torch.jit.is_tracing():
        raise ValueError(f"{what} is no single graph: classformer_hf.export.export makes one for each schedule.")


def warn_of_left_padding(attention_mask: torch.Tensor | None):
    """Warn once where position 0, which is classified, is padding."""
    if attention_mask is None or attention_mask.ndim != 2 or attention_mask.device.type != "cpu":
        return
    # the first column alone where it says enough
    if is_tracing(attention_mask) or attention_mask[:, 0].all():
        return
    if ((attention_mask[:, 0] == 0) & (attention_mask != 0).any(dim=1)).any():
        logger.warning_once(
            'Inputs are padded on the left, but position 0 is what is classified: set tokenizer.padding_side = "right".'
        )


def count_tokens(attention_mask: torch.Tensor | None) -> torch.Tensor | None:
    """Give the lengths of the examples without their padding, (B,), or `None` where no (B, L) mask says."""
    if attention_mask is None or attention_mask.ndim != 2:
        return None
    positions = torch.arange(1, attention_mask.shape[1] + 1, device=attention_mask.device)
    return (positions * (attention_mask != 0)).amax(dim=1)


def select_examples(inputs: dict[str, torch.Tensor | None], rows: torch.Tensor) -> dict[str, torch.Tensor | None]:
    """Take examples of a batch, without the padding that none of them needs."""
    # what is given once for all examples stays as it is
    selected = {name: value if value is None or len(value) == 1 else value[rows] for name, value in inputs.items()}
    lengths = count_tokens(selected["attention_mask"])
    if lengths is None:
        return selected
    longest = max(int(lengths.max()), 1)
    return {name: None if value is None else value[:, :longest] for name, value in selected.items()}


class ClassformerForMaskedLM(ClassformerPreTrainedModel):
    """Token prediction at the positions that leave the last layer."""

    _tied_weights_keys = {
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    }
    accepts_loss_kwargs = False

    def __init__(self, config: ClassformerConfig):
        super().__init__(config)
        self.roberta = ClassformerModel(config, add_pooling_layer=False)
        self.lm_head = RobertaLMHead(config)
        self.post_init()

    def get_output_embeddings(self):
        return self.lm_head.decoder

    def set_output_embeddings(self, new_embeddings):
        self.lm_head.decoder = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor] | MaskedLMOutput:
        """Predict tokens; arguments as in [`ClassformerModel`].

        Args:
            labels: Token ids, -100 where there is nothing to predict, (B, M) with M = `config.layer_lengths(L)[-1]`.

        Raises:
            ValueError: `labels` has another length than the output.
        """
        outputs = self.roberta(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            return_dict=True,
            **kwargs,
        )
        logits = self.lm_head(outputs.last_hidden_state)  # (B, M, vocab_size)
        loss = None
        if labels is None:
            self.warn_of_other_positions(input_ids if inputs_embeds is None else inputs_embeds)
        else:
            if labels.shape[1] != logits.shape[1]:
                raise ValueError(
                    f"`labels` must have one entry per output position, got {labels.shape[1]} for {logits.shape[1]}: "
                    f"gamma {self.config.gamma} shortens the sequence, so choose labels for the positions that stay."
                )
            # labels[:, ::2] is a natural way to choose them, and the loss flattens its targets by a view
            loss = self.loss_function(logits=logits, labels=labels.contiguous(), vocab_size=self.config.vocab_size)
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def warn_of_other_positions(self, inputs: torch.Tensor):
        """Warn once where output i is not of token i, as a fill-mask pipeline takes for granted."""
        if self.training or is_tracing(inputs):
            return
        num_tokens = inputs.shape[1]
        num_states = self.config.layer_lengths(num_tokens)[-1]
        if num_states != num_tokens:
            logger.warning_once(
                f"gamma {self.config.gamma} leaves {num_states} of {num_tokens} positions, so that output i is not of "
                "token i and a fill-mask pipeline shows another token's prediction: load the model with "
                f"gamma={[1] * self.config.num_hidden_layers} for that."
            )


__all__ = [
    "ClassformerForMaskedLM",
    "ClassformerForSequenceClassification",
    "ClassformerMask",
    "ClassformerModel",
    "ClassformerModelOutput",
    "ClassformerPreTrainedModel",
]
