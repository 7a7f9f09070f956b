"""What a caller may hand to Classformer: padding, masks of every form, embeddings, and what is refused."""

import logging

import pytest
import torch
from transformers import RobertaConfig, RobertaForSequenceClassification

from classformer_hf import (
    ClassformerConfig,
    ClassformerForSequenceClassification,
    ClassformerModel,
    modeling_classformer,
)

each_attention = pytest.mark.parametrize("attention", ["eager", "sdpa"])
each_schedule = pytest.mark.parametrize(
    "gamma, eta, cls_only",
    [([1, 1, 1], 0, True), ([1, 2, 1], 0, True), ([2, 1, 2], 3, True), ([2, 2, 1], 1, False), ([1, 1, 2], 0, False)],
    ids=str,
)
PAD = 1


def build(settings, model_class=ClassformerForSequenceClassification, **changes):
    torch.manual_seed(1)
    return model_class(ClassformerConfig(**{**settings, **changes})).eval()


@pytest.fixture
def batch():
    input_ids = torch.randint(5, 300, (4, 12))
    input_ids[1, 7:] = input_ids[2, 1:] = PAD
    return {"input_ids": input_ids, "attention_mask": (input_ids != PAD).long()}


@each_attention
@each_schedule
@torch.no_grad()
def test_right_padding_and_batch_order_change_nothing(tiny_settings, batch, gamma, eta, cls_only, attention):
    model = build(tiny_settings, gamma=gamma, eta=eta, last_layer_cls_only=cls_only, attn_implementation=attention)
    expected = model(**batch).logits
    assert (expected[0] - expected[1]).abs().max() > 1e-2
    longer = {
        "input_ids": torch.nn.functional.pad(batch["input_ids"], (0, 9), value=PAD),
        "attention_mask": torch.nn.functional.pad(batch["attention_mask"], (0, 9)),
    }
    torch.testing.assert_close(model(**longer).logits, expected, rtol=0, atol=1e-5)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = {name: values[order] for name, values in batch.items()}
    torch.testing.assert_close(model(**shuffled).logits, expected[order], rtol=0, atol=1e-5)
    for row, length in enumerate(batch["attention_mask"].sum(dim=1).tolist()):
        alone = model(batch["input_ids"][row : row + 1, :length]).logits
        torch.testing.assert_close(alone, expected[row : row + 1], rtol=0, atol=1e-5)


@torch.no_grad()
def test_left_padding_makes_the_head_read_padding_as_in_roberta(tiny_settings, monkeypatch, caplog):
    torch.manual_seed(1)
    parent = RobertaForSequenceClassification(RobertaConfig(**tiny_settings)).eval()
    model = build(tiny_settings)
    model.load_state_dict(parent.state_dict())
    tokens = torch.randint(5, 300, (1, 6))
    left = {
        "input_ids": torch.nn.functional.pad(tokens, (3, 0), value=PAD),
        "attention_mask": torch.nn.functional.pad(torch.ones_like(tokens), (3, 0)),
    }
    torch.testing.assert_close(model(**left).logits, parent(**left).logits, rtol=0, atol=1e-5)
    assert (model(**left).logits - model(tokens).logits).abs().max() > 1e-2
    # and says so, once
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    modeling_classformer.logger.warning_once.cache_clear()
    caplog.clear()
    for _ in range(2):
        model(**left)
    assert caplog.text.count("padded on the left") == 1
    caplog.clear()
    modeling_classformer.logger.warning_once.cache_clear()
    model(tokens, attention_mask=torch.ones_like(tokens))
    assert not caplog.text


def four_dimensional(mask, form, num_heads=4):
    """Forms of the same mask that go straight to the attention."""
    visible = mask[:, None, None, :].bool()
    square = visible.expand(-1, 1, mask.shape[1], -1)
    additive = torch.zeros(square.shape).masked_fill(~square, torch.finfo(torch.float32).min)
    return {
        "row": visible,
        "square": square,
        "square per head": square.expand(-1, num_heads, -1, -1),
        "additive row": additive[:, :, :1],
        "additive square": additive,
    }[form]


FORMS = [
    (attention, form)
    for attention in ("eager", "sdpa")
    for form in ("row", "square", "square per head", "additive row", "additive square")
]


@each_schedule
@pytest.mark.parametrize("attention, form", FORMS)
@torch.no_grad()
def test_masks_of_two_and_four_dimensions_agree(tiny_settings, batch, gamma, eta, cls_only, attention, form):
    settings = {**tiny_settings, "gamma": gamma, "eta": eta, "last_layer_cls_only": cls_only}
    expected = build(settings, attn_implementation="sdpa")(**batch).logits
    model = build(settings, attn_implementation=attention)
    torch.testing.assert_close(model(**batch).logits, expected, rtol=0, atol=1e-5)
    mask = four_dimensional(batch["attention_mask"], form)
    torch.testing.assert_close(model(batch["input_ids"], attention_mask=mask).logits, expected, rtol=0, atol=1e-5)


@each_attention
@torch.no_grad()
def test_rows_of_a_square_mask_follow_their_queries(tiny_settings, attention):
    model = build(tiny_settings, ClassformerModel, gamma=[2, 1, 1], attn_implementation=attention)
    # every position sees itself and its left neighbour, so a row that is used for another query shows
    distance = torch.arange(8)[:, None] - torch.arange(8)
    visible = (distance == 0) | (distance == 1)
    mask = torch.zeros(1, 1, 8, 8).masked_fill(~visible, torch.finfo(torch.float32).min)
    input_ids = torch.randint(5, 300, (1, 8))

    def first_layer(ids):
        return model(ids, attention_mask=mask, output_hidden_states=True).hidden_states[1][0]

    expected = first_layer(input_ids)
    for query in range(0, 8, 2):
        changed = torch.where(visible[query], input_ids, torch.randint(5, 300, (1, 8)))
        torch.testing.assert_close(first_layer(changed)[query // 2], expected[query // 2], rtol=0, atol=1e-5)
        if query > 0:
            changed = input_ids.clone()
            changed[0, query - 1] = (changed[0, query - 1] + 7) % 290 + 5
            assert (first_layer(changed)[query // 2] - expected[query // 2]).abs().max() > 1e-3


@torch.no_grad()
def test_no_mask_equals_a_mask_of_ones(tiny_settings):
    model = build(tiny_settings, gamma=[2, 1, 2], eta=1)
    input_ids = torch.randint(5, 300, (2, 11))
    expected = model(input_ids, attention_mask=torch.ones_like(input_ids)).logits
    torch.testing.assert_close(model(input_ids).logits, expected, rtol=0, atol=1e-6)


@torch.no_grad()
def test_embeddings_instead_of_ids(tiny_settings, batch):
    model = build(tiny_settings, gamma=[1, 2, 2], eta=1)
    # without ids there is no padding to skip, so the positions are given
    positions = torch.arange(2, 14).expand(4, -1)
    embedded = model.get_input_embeddings()(batch["input_ids"])
    expected = model(**batch, position_ids=positions).logits
    output = model(inputs_embeds=embedded, attention_mask=batch["attention_mask"], position_ids=positions).logits
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-6)
    unpadded = batch["input_ids"][:1]
    torch.testing.assert_close(model(inputs_embeds=embedded[:1]).logits, model(unpadded).logits, rtol=0, atol=1e-5)


@torch.no_grad()
def test_token_types_reach_the_embeddings(tiny_settings, batch):
    model = build(tiny_settings, gamma=[1, 2, 2], type_vocab_size=2)
    types = torch.zeros_like(batch["input_ids"])
    plain = model(**batch).logits
    torch.testing.assert_close(model(**batch, token_type_ids=types).logits, plain)
    types[:, 5:] = 1
    assert (model(**batch, token_type_ids=types).logits - plain)[0].abs().max() > 1e-3


@pytest.mark.parametrize("inputs", [{}, {"input_ids": torch.ones(1, 4).long(), "inputs_embeds": torch.ones(1, 4, 32)}])
def test_exactly_one_kind_of_input(tiny_settings, inputs):
    with pytest.raises(ValueError, match="exactly one of `input_ids` and `inputs_embeds` must be given"):
        build(tiny_settings)(**inputs)


def test_outputs_as_a_tuple(tiny_settings, batch):
    output = build(tiny_settings)(**batch, labels=torch.tensor([0, 1, 2, 0]), return_dict=False)
    assert isinstance(output, tuple) and output[0].ndim == 0 and output[1].shape == (4, 3)


@pytest.mark.parametrize("version", [2, 3])
def test_flash_attention_is_refused(tiny_settings, tiny_classifier_folder, version):
    name, message = f"flash_attention_{version}", f"does not support Flash Attention {version}"
    with pytest.raises(ValueError, match=message):
        ClassformerForSequenceClassification.from_pretrained(tiny_classifier_folder, attn_implementation=name)
    with pytest.raises(ValueError, match=message):
        build(tiny_settings, attn_implementation=name)
    with pytest.raises(ValueError, match=message):
        build(tiny_settings).set_attn_implementation(name)
