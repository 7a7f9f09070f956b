"""Classformer computes what it is defined to compute: RoBERTa where nothing is dropped, equation 5.2 elsewhere."""

import pytest
import torch
from transformers import RobertaConfig, RobertaForMaskedLM, RobertaForSequenceClassification, RobertaModel

from classformer_hf import (
    ClassformerConfig,
    ClassformerForMaskedLM,
    ClassformerForSequenceClassification,
    ClassformerModel,
)
from classformer_hf.modeling_classformer import subsample

each_attention = pytest.mark.parametrize("attention", ["eager", "sdpa"])
SCHEDULES = [([1, 2, 1], 0), ([2, 2, 2], 1), ([3, 1, 4], 2), ([1, 64, 1], 0), ([64, 1, 2], 5), ([2, 1, 1], 64)]


def build(model_class, settings, **changes):
    torch.manual_seed(1)
    config_class = RobertaConfig if model_class.__name__.startswith("Roberta") else ClassformerConfig
    return model_class(config_class(**{**settings, **changes})).eval()


def make_batch(lengths=(13, 9, 1), vocab_size=300, pad_token_id=1):
    """Right-padded input ids and their mask."""
    input_ids = torch.full((len(lengths), max(lengths)), pad_token_id)
    for row, length in zip(input_ids, lengths, strict=True):
        row[:length] = torch.randint(5, vocab_size, (length,))
    return {"input_ids": input_ids, "attention_mask": (input_ids != pad_token_id).long()}


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}


PARENTS = {
    "classifier": (ClassformerForSequenceClassification, RobertaForSequenceClassification),
    "masked LM": (ClassformerForMaskedLM, RobertaForMaskedLM),
}


@each_attention
@pytest.mark.parametrize("head", PARENTS)
def test_unreduced_model_equals_roberta_in_logits_and_all_gradients(tiny_settings, head, attention):
    model_class, parent_class = PARENTS[head]
    settings = {**tiny_settings, "attn_implementation": attention}
    parent = build(parent_class, settings)
    model = build(model_class, settings, last_layer_cls_only=False)
    model.load_state_dict(parent.state_dict())
    batch = make_batch()
    labels = torch.tensor([0, 2, 1]) if head == "classifier" else batch["input_ids"].clone()
    outputs = {}
    for name, each in (("parent", parent), ("ours", model)):
        outputs[name] = each(**batch, labels=labels)
        outputs[name].loss.backward()
    torch.testing.assert_close(outputs["ours"].logits, outputs["parent"].logits, rtol=0, atol=1e-6)
    expected, found = gradients(parent), gradients(model)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= 1e-6, name


def test_reduced_model_does_not_equal_roberta(tiny_settings):
    parent = build(RobertaForSequenceClassification, tiny_settings)
    model = build(ClassformerForSequenceClassification, tiny_settings, gamma=[2, 1, 1])
    model.load_state_dict(parent.state_dict())
    batch = make_batch()
    assert (model(**batch).logits - parent(**batch).logits).abs().max() > 1e-2


@pytest.mark.parametrize("gamma, eta", SCHEDULES, ids=str)
@each_attention
def test_last_layer_shortcut_changes_no_logit(tiny_settings, gamma, eta, attention):
    settings = {**tiny_settings, "gamma": gamma, "eta": eta, "attn_implementation": attention}
    full = build(ClassformerForSequenceClassification, settings, last_layer_cls_only=False)
    short = build(ClassformerForSequenceClassification, settings)
    batch = make_batch()
    with torch.no_grad():
        torch.testing.assert_close(short(**batch).logits, full(**batch).logits, rtol=0, atol=1e-5)
        states = short(**batch, output_hidden_states=True).hidden_states
    assert states[-1].shape[1] == 1 and len(states) == 4


@pytest.mark.parametrize("gamma, eta", SCHEDULES, ids=str)
def test_states_have_the_lengths_of_the_config(tiny_settings, gamma, eta):
    model = build(ClassformerModel, tiny_settings, gamma=gamma, eta=eta)
    for num_tokens in (1, 2, 3, 5, 8, 13, 64):
        with torch.no_grad():
            output = model(torch.randint(5, 300, (2, num_tokens)), output_hidden_states=True)
        lengths = [states.shape[1] for states in output.hidden_states]
        assert lengths == [num_tokens, *model.config.layer_lengths(num_tokens)]
        assert output.last_hidden_state.shape == (2, lengths[-1], 32)


@pytest.mark.parametrize("eta", [0, 1, 3, 20])
@pytest.mark.parametrize("gamma", [1, 2, 3, 20])
@pytest.mark.parametrize("num_tokens", [1, 2, 9, 10])
def test_subsample_keeps_the_first_eta_and_every_gamma_th(num_tokens, gamma, eta):
    kept = [p for p in range(num_tokens) if gamma == 1 or p < eta or (p - eta) % gamma == 0]
    positions = torch.arange(num_tokens).repeat(2, 1)
    assert subsample(positions, gamma, eta).tolist() == [kept, kept]
    assert subsample(positions[:, None, None], gamma, eta, dim=3)[0, 0, 0].tolist() == kept


def naive_layer(layer, states, is_real, gamma, eta):
    """Equation 5.2 for one example, one kept position and one attention head at a time.

    Args:
        layer: Source of the weights.
        states: Token states, (N, D).
        is_real: Whether a position is a token and not padding, N booleans.
    """
    attention, kept = layer.attention, []
    keys, values = attention.self.key(states), attention.self.value(states)
    num_heads, size = attention.self.num_attention_heads, attention.self.attention_head_size
    tokens = [position for position in range(len(states)) if is_real[position]]
    for position in range(len(states)):
        if position >= eta and (position - eta) % gamma != 0:
            continue
        query, context = attention.self.query(states[position]), []
        for head in range(num_heads):
            part = slice(head * size, (head + 1) * size)
            scores = torch.stack([query[part] @ keys[token, part] / size**0.5 for token in tokens])
            weights = torch.exp(scores) / torch.exp(scores).sum()
            context.append(sum(weight * values[token, part] for weight, token in zip(weights, tokens, strict=True)))
        state = attention.output.dense(torch.cat(context)) + states[position]
        state = attention.output.LayerNorm(state)
        update = torch.nn.functional.gelu(layer.intermediate.dense(state))
        kept.append((position, layer.output.LayerNorm(layer.output.dense(update) + state)))
    return torch.stack([state for _, state in kept]), [is_real[position] for position, _ in kept]


@each_attention
@pytest.mark.parametrize(
    "gamma, eta", [([1, 1, 1], 0), ([2, 1, 2], 0), ([2, 3, 1], 1), ([1, 2, 2], 3), ([9, 1, 1], 4)], ids=str
)
@torch.no_grad()
def test_model_equals_the_definition_position_by_position(tiny_settings, gamma, eta, attention):
    model = build(ClassformerModel, tiny_settings, gamma=gamma, eta=eta, attn_implementation=attention)
    batch = make_batch(lengths=(9, 6, 2))
    output = model(**batch, output_hidden_states=True).hidden_states
    embedded = model.embeddings(batch["input_ids"])
    for example in range(3):
        states, is_real = embedded[example], batch["attention_mask"][example].bool().tolist()
        for index, layer in enumerate(model.encoder.layer):
            states, is_real = naive_layer(layer, states, is_real, gamma[index], eta)
            torch.testing.assert_close(output[index + 1][example], states, rtol=0, atol=1e-5)


def test_attentions_have_shortened_queries_and_all_keys(tiny_settings):
    settings = {**tiny_settings, "gamma": [2, 1, 3], "eta": 1, "attn_implementation": "eager"}
    batch = make_batch()
    with torch.no_grad():
        full = build(ClassformerModel, settings)(**batch, output_attentions=True).attentions
        short = build(ClassformerForSequenceClassification, settings)(**batch, output_attentions=True).attentions
    assert [tuple(attention.shape) for attention in full] == [(3, 4, 7, 13), (3, 4, 7, 7), (3, 4, 3, 7)]
    assert [tuple(attention.shape) for attention in short] == [(3, 4, 7, 13), (3, 4, 7, 7), (3, 4, 1, 7)]
    for attention in full:
        torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]))
    assert full[0][1, :, :, 9:].max() == 0, "padding is attended to"


def test_pooler_reads_position_0_of_the_last_state(tiny_settings):
    model = build(ClassformerModel, tiny_settings, gamma=[2, 2, 1])
    with torch.no_grad():
        output = model(**make_batch())
        expected = torch.tanh(model.pooler.dense(output.last_hidden_state[:, 0]))
    torch.testing.assert_close(output.pooler_output, expected)


def test_roberta_pooler_is_kept(tiny_settings, tmp_path):
    parent = build(RobertaModel, tiny_settings)
    parent.save_pretrained(tmp_path)
    model = ClassformerModel.from_pretrained(tmp_path).eval()
    batch = make_batch()
    with torch.no_grad():
        expected, output = parent(**batch), model(**batch)
    torch.testing.assert_close(output.pooler_output, expected.pooler_output, rtol=0, atol=1e-6)


@pytest.mark.parametrize("gamma, eta", SCHEDULES, ids=str)
@pytest.mark.parametrize("cls_only", [True, False], ids=["shortcut", "no shortcut"])
def test_a_gradient_reaches_every_parameter(tiny_settings, gamma, eta, cls_only):
    settings = {**tiny_settings, "gamma": gamma, "eta": eta, "last_layer_cls_only": cls_only}
    model = build(ClassformerForSequenceClassification, settings)
    model(**make_batch(), labels=torch.tensor([0, 1, 2])).loss.backward()
    # a key's bias shifts all scores of a query alike, and the softmax removes it; over one position it is constant
    lengths = [13, *model.config.layer_lengths(13)]
    parts = [
        f"layer.{i}.attention.self.{part}" for i, n in enumerate(lengths[:-1]) if n == 1 for part in ("query", "key")
    ]
    unreached = [
        name
        for name, gradient in gradients(model).items()
        if not (name.endswith("key.bias") or any(part in name for part in parts))
        and (gradient is None or gradient.abs().sum() == 0)
    ]
    assert unreached == []


@pytest.mark.parametrize("activation", ["tanh", "gelu", "relu"])
def test_head_uses_the_activation_of_the_config(tiny_settings, activation):
    model = build(ClassformerForSequenceClassification, tiny_settings, classifier_activation=activation)
    batch = make_batch()
    with torch.no_grad():
        state = model.roberta(**batch).last_hidden_state[:, 0]
        expected = model.classifier.out_proj(getattr(torch.nn.functional, activation)(model.classifier.dense(state)))
        torch.testing.assert_close(model(**batch).logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "changes, labels",
    [
        ({"num_labels": 1}, torch.tensor([0.5, -1.0, 2.0])),
        ({"num_labels": 3}, torch.tensor([0, 1, 2])),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, torch.eye(3)),
    ],
    ids=["regression", "single label", "multi label"],
)
def test_loss_is_robertas_for_every_problem_type(tiny_settings, changes, labels):
    parent = build(RobertaForSequenceClassification, tiny_settings, **changes)
    model = build(ClassformerForSequenceClassification, tiny_settings, **changes)
    model.load_state_dict(parent.state_dict())
    batch = make_batch()
    torch.testing.assert_close(model(**batch, labels=labels).loss, parent(**batch, labels=labels).loss)


def test_masked_lm_wants_labels_for_the_positions_that_stay(tiny_settings):
    model = build(ClassformerForMaskedLM, tiny_settings, gamma=[2, 1, 1])
    batch = make_batch()
    assert model(**batch, labels=batch["input_ids"][:, ::2]).loss > 0
    with pytest.raises(ValueError, match=r"one entry per output position, got 13 for 7: gamma \[2, 1, 1\] shortens"):
        model(**batch, labels=batch["input_ids"])


def test_output_embeddings_stay_tied(tiny_settings):
    model = build(ClassformerForMaskedLM, tiny_settings)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    model.resize_token_embeddings(310)
    assert model(**make_batch()).logits.shape[-1] == 310
