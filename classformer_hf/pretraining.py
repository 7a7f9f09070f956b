"""Masked language modelling for shortened sequences: what a model that puts out fewer positions than it reads learns.

Thesis section 5.2.6, figures 5.15 and 5.16. A block of L tokens leaves the encoder as M <= L positions. As in BERT,
15 % of the tokens are chosen, of which 80 % become the mask, 10 % a random token and 10 % stay; all chosen ones are
targets. Where targets and outputs meet:

- `first_k`: output j predicts token j, for the first M tokens.
- `last_k`: output j predicts the j-th of the last M tokens of the text.
- `gamma_th`: output j predicts the token at the position that it comes from.
- `dense`: output j predicts the j-th chosen token of the block; of more than M the first M.
- `funnel`: outputs are repeated up to length L, the full-length states behind the first layer are added, two plain
  layers follow, and every position predicts its token. Where the first layer reduces, the embedding is added instead.
- `distillation` (ours): output j is to equal the final state that the same model without reductions gives to unmasked
  text at the position that j comes from.

Of a text with padding, M in the first four is the number of outputs that come from tokens; the others predict nothing.

Targets are built by a data collator, so that every shape depends on the block size only. Letters: B blocks, D width.
"""

import copy
import logging
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase, Trainer, TrainerCallback
from transformers.modeling_outputs import MaskedLMOutput

from .configuration_classformer import ClassformerConfig
from .modeling_classformer import ClassformerEncoder, ClassformerForMaskedLM, refuse_unknown, shorten_attention_mask

logger = logging.getLogger(__name__)

OBJECTIVES = ("first_k", "last_k", "gamma_th", "dense", "funnel", "distillation")
IGNORED = -100
NUM_DECODER_LAYERS = 2
# what only an objective needs
OWN_PARTS = ("decoder.", "teacher.")
# draws of what is masked, until a batch has a target
MAX_ATTEMPTS = 100


def kept_positions(config: ClassformerConfig, num_tokens: int) -> torch.Tensor:
    """Give the positions of the input that leave the last layer, (M,)."""
    return shorten_attention_mask(torch.arange(num_tokens)[None], config)[0]


def choose_targets(
    labels: torch.Tensor, attention_mask: torch.Tensor, objective: str, config: ClassformerConfig
) -> torch.Tensor:
    """Bring the targets of a block to the positions where a shortened model has outputs.

    Args:
        labels: Tokens to predict, -100 elsewhere, (B, L).
        attention_mask: 1 for tokens and 0 for padding on the right, (B, L).
        objective: One of `OBJECTIVES`.
        config: Of the model.

    Returns:
        Targets, -100 where there is none: (B, M), or (B, L) for those objectives that see every position.
    """
    if objective in ("funnel", "distillation"):
        return labels
    kept = kept_positions(config, labels.shape[1])
    places = torch.arange(len(kept))
    num_outputs = attention_mask[:, kept].sum(1, keepdim=True)  # those of tokens, (B, 1)
    targets = labels[:, kept]
    if objective == "first_k":
        targets = labels[:, : len(kept)]
    if objective == "last_k":
        start = attention_mask.sum(1, keepdim=True) - num_outputs  # (B, 1)
        targets = labels.gather(1, (start + places).clamp(max=labels.shape[1] - 1))
    if objective == "dense":
        targets = pack(labels, len(kept))
    return targets.masked_fill(places >= num_outputs, IGNORED)


def pack(labels: torch.Tensor, length: int) -> torch.Tensor:
    """Move the targets of every block to the front, in their order, and cut or fill to a length, (B, length)."""
    order = (labels == IGNORED).long().argsort(dim=1, stable=True)
    packed = labels.gather(1, order)[:, :length]
    return F.pad(packed, (0, length - packed.shape[1]), value=IGNORED)


class ShortenedLanguageModelingCollator:
    """Masks blocks of tokens and puts the targets where an objective wants them.

    What is masked is drawn anew for every batch, from a seed that the batch and `epoch` give: the same blocks in
    another batch or epoch are masked otherwise, and a resumed run masks as an uninterrupted one. `CountEpochs` keeps
    `epoch`, of which a stream has one: where it repeats, blocks are masked otherwise as far as batches differ.

    Args:
        tokenizer: Of the model.
        config: Gives the schedule.
        objective: One of `OBJECTIVES`.
        mlm_probability: Share of the tokens that are chosen.
        whole_word_mask: Choose whole words; all of them become the mask then. Examples need an `offset_mapping`.

    Raises:
        ValueError: The objective is unknown; when called, no token of a batch can be a target.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        config: ClassformerConfig,
        objective: str,
        mlm_probability: float = 0.15,
        whole_word_mask: bool = False,
    ):
        check_objective(objective)
        self.config, self.objective, self.epoch = config, objective, 0
        if objective == "distillation":
            self.mask = DataCollatorForLanguageModeling(tokenizer, mlm=False)
            return
        # whole words can only be masked, not replaced by others
        whole: dict[str, Any] = {"whole_word_mask": True, "mask_replace_prob": 1.0, "random_replace_prob": 0.0}
        self.mask = DataCollatorForLanguageModeling(
            tokenizer, mlm_probability=mlm_probability, **(whole if whole_word_mask else {})
        )

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids = [token for example in examples for token in example["input_ids"]]
        seed = zlib.crc32(np.asarray(ids, np.int64).tobytes(), self.epoch)
        for attempt in range(MAX_ATTEMPTS):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed + attempt)
                batch = self.mask([dict(example) for example in examples])
            mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
            labels = choose_targets(batch["labels"], mask, self.objective, self.config)
            # the mean over no targets is no number
            if (labels != IGNORED).any():
                return {"input_ids": batch["input_ids"], "attention_mask": mask, "labels": labels}
        raise ValueError(
            f"a batch of {len(examples)} blocks has no target for {self.objective}; use more blocks per batch, longer "
            "ones, a larger mlm_probability or a schedule that leaves more outputs."
        )


class CountEpochs(TrainerCallback):
    """Tells a collator the epoch."""

    def __init__(self, collator: ShortenedLanguageModelingCollator):
        self.collator = collator

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.collator.epoch = int(state.epoch + 1e-6)  # a whole number but for rounding, or within a resumed epoch


class PretrainingTrainer(Trainer):
    """Masks the same tokens in every validation."""

    def get_eval_dataloader(self, eval_dataset=None):
        collator: Any = self.data_collator
        self.data_collator = copy.copy(collator)
        self.data_collator.epoch = 0
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = collator


def check_objective(objective: str):
    if objective not in OBJECTIVES:
        raise ValueError(f"the objective must be one of {', '.join(OBJECTIVES)}, got {objective!r}.")


class FunnelClassformerForMaskedLM(ClassformerForMaskedLM):
    """The funnel objective; `decoder` is of no use afterwards."""

    def __init__(self, config: ClassformerConfig):
        super().__init__(config)
        plain = copy.deepcopy(config)
        plain.num_hidden_layers, plain.eta, plain.length_buckets = NUM_DECODER_LAYERS, 0, None
        plain.gamma = [1] * NUM_DECODER_LAYERS
        self.decoder = ClassformerEncoder(plain)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> MaskedLMOutput:
        """Predict every token: `labels` are (B, L), -100 where there is none to predict, and logits (B, L, vocab_size).

        Raises:
            TypeError: An argument is unknown.
        """
        refuse_unknown(kwargs)
        encoded = self.roberta(input_ids, attention_mask=attention_mask, output_hidden_states=True)
        # of the first layer where it leaves all positions, (B, L, D)
        gamma, _ = self.config.schedule_for(input_ids.shape[1])
        full = encoded.hidden_states[1 if gamma[0] == 1 else 0]
        states = full + encoded.last_hidden_state[:, self.repeats(input_ids)]
        logits = self.lm_head(self.decoder(states, attention_mask))  # (B, L, vocab_size)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size)
        return MaskedLMOutput(loss=loss, logits=logits)

    def repeats(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Give for every position the output of the last one up to it that was kept, (L,)."""
        num_tokens = input_ids.shape[1]
        starts = torch.zeros(num_tokens, dtype=torch.long)
        starts[kept_positions(self.config, num_tokens)] = 1
        return (starts.cumsum(0) - 1).to(input_ids.device)


class DistilledClassformerForMaskedLM(ClassformerForMaskedLM):
    """The distillation objective; the teacher is the model itself, as it starts, without reductions."""

    def __init__(self, config: ClassformerConfig):
        super().__init__(config)
        plain = copy.deepcopy(config)
        plain.gamma, plain.length_buckets = [1] * config.num_hidden_layers, None
        self.teacher = type(self.roberta)(plain, add_pooling_layer=False)
        self.teacher.requires_grad_(False)
        self.post_init()

    def train(self, mode: bool = True):
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> MaskedLMOutput:
        """Compare final states, (B, M, D), with the teacher's, by the mean squared difference over those of tokens.

        Raises:
            TypeError: An argument is unknown.
        """
        refuse_unknown(kwargs)
        student = self.roberta(input_ids, attention_mask=attention_mask).last_hidden_state  # (B, M, D)
        kept = kept_positions(self.config, input_ids.shape[1]).to(input_ids.device)
        with torch.no_grad():
            teacher = self.teacher(input_ids, attention_mask=attention_mask).last_hidden_state[:, kept]
        seen = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        weights = seen[:, kept, None].to(student.dtype)
        loss = ((student - teacher).square() * weights).sum() / (weights.sum() * student.shape[-1])
        return MaskedLMOutput(loss=loss, logits=student)


def build_objective(objective: str, model: ClassformerForMaskedLM) -> ClassformerForMaskedLM:
    """Give the model that is trained for an objective, with the weights of another, which is also the teacher.

    Raises:
        ValueError: The objective is unknown.
    """
    check_objective(objective)
    classes: dict[str, type[ClassformerForMaskedLM]] = {
        "funnel": FunnelClassformerForMaskedLM,
        "distillation": DistilledClassformerForMaskedLM,
    }
    if objective not in classes:
        return model
    trained: Any = classes[objective](copy.deepcopy(model.config))
    found = trained.load_state_dict(model.state_dict(), strict=False)
    assert not found.unexpected_keys and all(key.startswith(OWN_PARTS) for key in found.missing_keys)
    if objective == "distillation":
        trained.teacher.load_state_dict(model.roberta.state_dict())
    return trained.train(model.training)


def take_backbone(trained: ClassformerForMaskedLM) -> ClassformerForMaskedLM:
    """Give what was pretrained as a plain masked language model, without what only the objective needed."""
    model = ClassformerForMaskedLM(trained.config)
    if dropped := model.load_state_dict(trained.state_dict(), strict=False).unexpected_keys:
        logger.info("left out, since only the objective needs it: the %s.", dropped[0].partition(".")[0])
    return model.eval()
