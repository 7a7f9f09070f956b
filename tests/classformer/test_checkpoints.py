"""Checkpoints of every family become a Classformer that computes the same, or a clear error."""

import json
import logging

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import BertWordPieceTokenizer
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

from classformer_hf import (
    ClassformerConfig,
    ClassformerForMaskedLM,
    ClassformerForSequenceClassification,
    ClassformerModel,
)
from classformer_hf.checkpoints import load_from_encoder

SHARED = {"vocab_size": 60, "max_position_embeddings": 24, "initializer_range": 0.3}
BERT_LIKE = SHARED | {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "layer_norm_eps": 1e-5,
    "hidden_dropout_prob": 0.05,
    "attention_probs_dropout_prob": 0.15,
    "classifier_dropout": 0.25,
}
DISTILBERT = SHARED | {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "dropout": 0.05}
DISTILBERT["layer_norm_eps"] = 0.1  # not a field of this family, which has 1e-12 in its code
SETTINGS = {
    "roberta": ("Roberta", BERT_LIKE),
    "xlm-roberta": ("XLMRoberta", BERT_LIKE | {"type_vocab_size": 1}),
    "camembert": ("Camembert", BERT_LIKE),
    "bert": ("Bert", BERT_LIKE | {"pad_token_id": 3}),
    "electra": ("Electra", BERT_LIKE | {"embedding_size": 16}),
    "distilbert": ("DistilBert", DISTILBERT | {"attention_dropout": 0.15, "seq_classif_dropout": 0.25}),
}
FAMILIES = pytest.mark.parametrize("family", SETTINGS)
HEADS = {ClassformerForSequenceClassification: "ForSequenceClassification", ClassformerForMaskedLM: "ForMaskedLM"}


def save(folder, family, kind, half=False, **changes):
    """Save a stock model in which every weight is random and return it."""
    prefix, settings = SETTINGS[family]
    config = getattr(transformers, f"{prefix}Config")(**(settings | changes))
    model = getattr(transformers, prefix + kind)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # LayerNorm and biases too, or a mix-up of them goes unseen
            parameter.normal_(0, 0.3)
    if half:
        model = model.half()
    model.save_pretrained(folder)
    return model


def padded_batch(config, with_types=False):
    lengths = torch.tensor([7, 20, 12])
    mask = (torch.arange(20) < lengths[:, None]).long()  # (B, L)
    input_ids = torch.randint(5, config.vocab_size, mask.shape) * mask + config.pad_token_id * (1 - mask)
    batch = {"input_ids": input_ids, "attention_mask": mask}
    if with_types:
        batch["token_type_ids"] = (torch.arange(20) > lengths[:, None] // 2).long() * mask
    return batch


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder, edit):
    path = folder / "model.safetensors"
    weights = load_file(path)
    edit(weights)
    save_file(weights, path, metadata={"format": "pt"})


def messages(caplog, level):
    return [record.getMessage() for record in caplog.records if record.levelno == level]


@torch.no_grad()
def assert_same(original, converted, batch):
    expected, actual = original(**batch)[0], converted(**batch)[0]
    if expected.ndim == 3:
        is_token = batch["attention_mask"].bool()
        expected, actual = expected[is_token], actual[is_token]
    assert expected.std() > 0.1
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


@FAMILIES
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_classifier_is_carried(tmp_path, caplog, family, attention):
    changes = {"num_labels": 3, "id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
    original = save(tmp_path, family, "ForSequenceClassification", problem_type="multi_label_classification", **changes)
    with caplog.at_level(logging.INFO, logger="classformer_hf"):
        model = load_from_encoder(tmp_path, attn_implementation=attention)

    assert_same(original, model, padded_batch(model.config, with_types=model.config.type_vocab_size > 1))
    assert not caplog.records
    assert not model.training
    for field in ("id2label", "label2id", "problem_type", "num_labels", "hidden_act", "pad_token_id"):
        assert getattr(model.config, field, None) == getattr(original.config, field, "gelu"), field
    dropouts = (model.config.hidden_dropout_prob, model.config.attention_probs_dropout_prob)
    assert dropouts == (0.05, 0.15)
    assert model.config.classifier_dropout == 0.25
    assert model.config.use_cache is False
    assert model.config._attn_implementation == attention
    assert model.config.name_or_path == str(tmp_path)


@FAMILIES
def test_masked_lm_head_is_carried(tmp_path, caplog, family):
    original = save(tmp_path, family, "ForMaskedLM")
    with caplog.at_level(logging.INFO, logger="classformer_hf"):
        model = load_from_encoder(tmp_path, ClassformerForMaskedLM)

    assert_same(original, model, padded_batch(model.config, with_types=model.config.type_vocab_size > 1))
    assert not caplog.records
    assert model.lm_head.decoder.weight is model.roberta.embeddings.word_embeddings.weight
    assert model.lm_head.decoder.bias is model.lm_head.bias


@FAMILIES
def test_bare_encoder_is_carried(tmp_path, caplog, family):
    original = save(tmp_path, family, "Model")
    model = load_from_encoder(tmp_path, ClassformerModel)
    batch = padded_batch(model.config)
    assert_same(original, model, batch)
    if family in ("electra", "distilbert"):
        assert messages(caplog, logging.WARNING) == [
            f"Fresh weights, which `{tmp_path}` does not have in this shape and training must set: pooler.dense.bias, "
            "pooler.dense.weight"
        ]
    else:
        assert not caplog.records
        torch.testing.assert_close(model(**batch).pooler_output, original(**batch).pooler_output, atol=1e-5, rtol=0)


@FAMILIES
def test_positions_are_as_many_as_in_the_source(tmp_path, family):
    original = save(tmp_path, family, "Model")
    model = load_from_encoder(tmp_path, ClassformerModel)
    usable = 24 if family in ("bert", "electra", "distilbert") else 24 - model.config.pad_token_id - 1
    input_ids = torch.randint(5, 60, (2, usable + 1))
    assert_same(original, model, {"input_ids": input_ids[:, :-1], "attention_mask": torch.ones(2, usable)})
    with pytest.raises((IndexError, RuntimeError), match="out of (range|bounds)"):
        model(input_ids)


@pytest.mark.parametrize("activation", ["gelu_new", "relu"])
@pytest.mark.parametrize("family", ["bert", "electra", "distilbert", "roberta"])
def test_activation_of_the_layers_is_carried(tmp_path, family, activation):
    field = "activation" if family == "distilbert" else "hidden_act"
    original = save(tmp_path, family, "ForSequenceClassification", **{field: activation})
    model = load_from_encoder(tmp_path)
    assert model.config.hidden_act == activation
    assert_same(original, model, padded_batch(model.config))


@pytest.mark.parametrize(("family", "activation"), [("bert", "tanh"), ("electra", "gelu"), ("distilbert", "relu")])
def test_activation_of_the_head_is_in_the_config(tmp_path, family, activation):
    save(tmp_path, family, "Model")
    assert load_from_encoder(tmp_path).config.classifier_activation == activation


@pytest.mark.parametrize(("family", "field"), [("bert", "hidden_act"), ("distilbert", "activation")])
def test_activation_of_a_masked_lm_head_is_refused(tmp_path, family, field):
    save(tmp_path, family, "ForMaskedLM", **{field: "relu"})
    with pytest.raises(ValueError, match='must have the activation "gelu", got "relu"'):
        load_from_encoder(tmp_path, ClassformerForMaskedLM)
    load_from_encoder(tmp_path)  # which has no masked-LM head


@pytest.mark.parametrize("family", ["roberta", "electra"])
def test_fixed_gelu_of_a_masked_lm_head_is_carried(tmp_path, family):
    original = save(tmp_path, family, "ForMaskedLM", hidden_act="relu")
    model = load_from_encoder(tmp_path, ClassformerForMaskedLM)
    assert_same(original, model, padded_batch(model.config))


@FAMILIES
def test_untied_masked_lm_head_is_carried_and_saved(tmp_path, family):
    original = save(tmp_path, family, "ForMaskedLM", tie_word_embeddings=False)
    model = load_from_encoder(tmp_path, ClassformerForMaskedLM)
    batch = padded_batch(model.config)
    assert_same(original, model, batch)
    model.save_pretrained(tmp_path / "saved")
    assert_same(original, ClassformerForMaskedLM.from_pretrained(tmp_path / "saved"), batch)


def test_tied_head_can_be_untied(tmp_path):
    original = save(tmp_path, "bert", "ForMaskedLM")
    model = load_from_encoder(tmp_path, ClassformerForMaskedLM, tie_word_embeddings=False)
    model.save_pretrained(tmp_path / "saved")
    saved = ClassformerForMaskedLM.from_pretrained(tmp_path / "saved")
    assert saved.lm_head.decoder.weight is not saved.roberta.embeddings.word_embeddings.weight
    assert_same(original, saved, padded_batch(model.config))


def test_weights_that_differ_are_untied_whatever_the_config_says(tmp_path, caplog):
    original = save(tmp_path, "bert", "ForMaskedLM", tie_word_embeddings=False)
    edit_config(tmp_path, tie_word_embeddings=True)
    model = load_from_encoder(tmp_path, ClassformerForMaskedLM)
    assert not model.config.tie_word_embeddings
    assert "weights to tie differ" in messages(caplog, logging.WARNING)[0]
    assert_same(original, model, padded_batch(model.config))


def test_bert_for_pretraining_keeps_what_is_asked_for(tmp_path, caplog):
    original = save(tmp_path, "bert", "ForPreTraining")
    with caplog.at_level(logging.INFO, logger="classformer_hf"):
        masked_lm = load_from_encoder(tmp_path, ClassformerForMaskedLM)
        classifier = load_from_encoder(tmp_path)
    assert_same(original, masked_lm, padded_batch(masked_lm.config))
    torch.testing.assert_close(classifier.classifier.dense.weight, original.bert.pooler.dense.weight)
    unused_for_lm, unused_for_classifier = messages(caplog, logging.INFO)
    assert "bert.pooler.dense.weight, cls.seq_relationship.bias" in unused_for_lm
    assert "cls.predictions.bias" in unused_for_classifier
    assert "pooler" not in unused_for_classifier
    (warning,) = messages(caplog, logging.WARNING)
    assert warning.endswith("training must set: classifier.out_proj.bias, classifier.out_proj.weight")


@FAMILIES
def test_fresh_head_is_said_aloud(tmp_path, caplog, family):
    save(tmp_path, family, "ForMaskedLM")
    with caplog.at_level(logging.INFO, logger="classformer_hf"):
        model = load_from_encoder(tmp_path, num_labels=4)
    assert messages(caplog, logging.WARNING) == [
        f"Fresh weights, which `{tmp_path}` does not have in this shape and training must set: classifier.dense.bias, "
        "classifier.dense.weight, classifier.out_proj.bias, classifier.out_proj.weight"
    ]
    (unused,) = messages(caplog, logging.INFO)
    assert unused.startswith(f"Weights of `{tmp_path}` that are not used: ")
    assert model.classifier.out_proj.weight.shape == (4, 16)
    assert model.classifier.dense.weight.std().item() == pytest.approx(0.3, rel=0.3)  # initializer_range, not garbage


def test_pooler_of_a_bare_bert_starts_the_head(tmp_path):
    original = save(tmp_path, "bert", "Model")
    torch.testing.assert_close(load_from_encoder(tmp_path).classifier.dense.weight, original.pooler.dense.weight)


@FAMILIES
def test_other_number_of_labels_gives_a_fresh_output_layer(tmp_path, caplog, family):
    original = save(
        tmp_path, family, "ForSequenceClassification", id2label={0: "no", 1: "yes"}, problem_type="regression"
    )
    model = load_from_encoder(tmp_path, num_labels=3)
    (warning,) = messages(caplog, logging.WARNING)
    assert warning.endswith("training must set: classifier.out_proj.bias, classifier.out_proj.weight")
    assert model(**padded_batch(model.config)).logits.shape == (3, 3)
    assert model.config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    assert model.config.problem_type is None
    dense = {"bert": "bert.pooler.dense", "distilbert": "pre_classifier"}.get(family, "classifier.dense")
    torch.testing.assert_close(model.classifier.dense.weight, original.get_submodule(dense).weight)


@FAMILIES
def test_head_takes_the_order_of_the_labels(tmp_path, caplog, family):
    original = save(tmp_path, family, "ForSequenceClassification", id2label={0: "a", 1: "b", 2: "c"})
    model = load_from_encoder(tmp_path, id2label={0: "C", 1: "A", 2: "B"})
    batch = padded_batch(model.config)
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, original(**batch).logits[:, [2, 0, 1]])
    assert not caplog.records
    # of other labels nothing is carried but what all labels share
    model = load_from_encoder(tmp_path, id2label={0: "x", 1: "y", 2: "z"})
    assert ["its head is left out" in text for text in messages(caplog, logging.WARNING)] == [True, False]
    model = load_from_encoder(tmp_path, id2label={0: "x", 1: "y", 2: "z"}, output_names=["y", "z", "x"])
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, original(**batch).logits[:, [2, 0, 1]])
    with pytest.raises(ValueError, match="must be a classifier of x, y, z; it lacks classifier.out_proj.bias"):
        load_from_encoder(tmp_path, id2label={0: "x", 1: "y", 2: "z"}, needs_head=True)


def test_names_of_labels_can_be_given(tmp_path, caplog):
    save(tmp_path, "bert", "ForSequenceClassification")
    model = load_from_encoder(tmp_path, id2label={0: "no", 1: "yes"})
    assert model.config.label2id == {"no": 0, "yes": 1}
    assert not caplog.records  # as many labels as before: the head stays


def test_head_of_another_task_is_not_taken_for_a_classifier(tmp_path, caplog):
    save(tmp_path, "bert", "ForTokenClassification")
    with caplog.at_level(logging.INFO, logger="classformer_hf"):
        load_from_encoder(tmp_path)
    (warning,) = messages(caplog, logging.WARNING)
    assert "classifier.out_proj.weight" in warning
    (unused,) = messages(caplog, logging.INFO)
    assert unused.endswith("not used: classifier.bias, classifier.weight")


def test_config_without_architectures_is_searched_for_the_head(tmp_path, caplog):
    original = save(tmp_path, "distilbert", "ForSequenceClassification")
    edit_config(tmp_path, architectures=None)
    model = load_from_encoder(tmp_path)
    assert_same(original, model, padded_batch(model.config))
    assert not caplog.records


def test_half_precision_is_loaded_as_float32_unless_asked(tmp_path):
    original = save(tmp_path, "bert", "ForSequenceClassification", half=True)
    model = load_from_encoder(tmp_path)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config.dtype == torch.float32
    assert_same(original.float(), model, padded_batch(model.config))
    assert load_from_encoder(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_nothing_is_said_about_stock_classes(tmp_path, capfd, monkeypatch):
    save(tmp_path, "roberta", "ForMaskedLM")
    monkeypatch.setattr(transformers_logging, "_tqdm_active", True)
    handler = logging.StreamHandler()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.add_handler(handler)
    transformers_logging.set_verbosity_warning()
    capfd.readouterr()
    try:
        load_from_encoder(tmp_path)
        assert "".join(capfd.readouterr()) == ""
        assert transformers_logging.get_verbosity() == logging.WARNING
    finally:
        transformers_logging.remove_handler(handler)
        transformers_logging.set_verbosity(verbosity)


@pytest.mark.parametrize("model_class", HEADS, ids=HEADS.values())
def test_classformer_loads_as_itself_with_the_overrides(tmp_path, caplog, model_class):
    config = ClassformerConfig(**BERT_LIKE, gamma=[1, 3], eta=2, classifier_activation="relu", num_labels=3)
    original = model_class(config).eval()
    original.save_pretrained(tmp_path)
    model = load_from_encoder(tmp_path, model_class)
    batch = padded_batch(config)
    torch.testing.assert_close(model(**batch).logits, original(**batch).logits)
    assert (model.config.gamma, model.config.eta) == ([1, 3], 2)
    assert model.config.classifier_activation == "relu"
    model = load_from_encoder(tmp_path, model_class, gamma=[2, 1], eta=0)
    assert (model.config.gamma, model.config.eta, model.config.num_labels) == ([2, 1], 0, 3)
    # a masked LM that reduces warns of itself when it runs
    assert not [record for record in caplog.records if record.name == "classformer_hf.checkpoints"]


def test_converted_model_reduces_and_survives_saving(tmp_path):
    save(tmp_path, "bert", "ForSequenceClassification")
    model = load_from_encoder(tmp_path, gamma=[2, 4], eta=1, last_layer_cls_only=False)
    batch = padded_batch(model.config, with_types=True)
    states = model(**batch, output_hidden_states=True).hidden_states
    assert [state.shape[1] for state in states] == [20, 11, 4]
    model.save_pretrained(tmp_path / "saved")
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(saved(**batch).logits, model(**batch).logits)


def test_bert_tokenizer_serves_as_it_is(tmp_path):
    words = BertWordPieceTokenizer()
    words.train_from_iterator(["a cat sat on the mat", "the dog barked at it"], vocab_size=60)
    words.save_model(str(tmp_path))
    transformers.BertTokenizer.from_pretrained(tmp_path, model_max_length=24).save_pretrained(tmp_path)
    original = save(tmp_path, "bert", "ForSequenceClassification", pad_token_id=0)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    pairs = ["a cat sat", "the dog " * 20], ["the dog barked at it", "a mat"]
    batch = tokenizer(*pairs, padding=True, truncation=True, return_tensors="pt")
    assert batch["token_type_ids"].any()
    assert batch["input_ids"].shape[1] == 24
    assert_same(original, load_from_encoder(tmp_path), batch)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("bert", {"position_embedding_type": "relative_key"}, '`position_embedding_type` is "relative_key"'),
        ("roberta", {"is_decoder": True}, "is a decoder"),
        ("bert", {"add_cross_attention": True, "is_decoder": True}, "is a decoder"),
        ("electra", {"embedding_size": 8}, "`embedding_size` must equal `hidden_size`, got 8 and 16"),
        ("bert", {"auto_map": {"AutoModel": "modeling_own.OwnModel"}}, "its own model code"),
        ("bert", {"quantization_config": {"quant_method": "gptq"}}, "its weights are quantized"),
        ("bert", {"pad_token_id": None}, "need a `pad_token_id` >= 0, got None"),
        ("bert", {"hidden_size": "sixteen"}, "must suit bert: .*hidden_size"),
        (
            "bert",
            {"model_type": "t5"},
            "must be one of bert, camembert, classformer, distilbert, electra, roberta, xlm-roberta, got 't5'",
        ),
        ("bert", {"model_type": None}, "`model_type` must be one of .*, got None"),
        ("bert", {"vocab_size": 61}, r"must have the shapes that config.json in .*word_embeddings.weight \(60, 16\)"),
        ("bert", {"num_hidden_layers": 3}, "must be complete, but it lacks .*layer.2.attention"),
        ("bert", {"num_hidden_layers": 1}, "must hold weights of BertModel only, but it has .*layer.1.attention"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else None,
)
def test_config_that_cannot_be_carried_is_refused(tmp_path, family, changes, message):
    save(tmp_path, family, "Model")
    edit_config(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        load_from_encoder(tmp_path)


def lose(name):
    return lambda weights: weights.pop(name)


def add(name):
    return lambda weights: weights.update({name: torch.zeros(2)})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lose("bert.encoder.layer.1.output.dense.bias"), "must be complete, but it lacks bert.encoder.layer.1.output"),
        (add("bert.encoder.layer.1.adapter.weight"), "but it has bert.encoder.layer.1.adapter.weight too"),
        (add("classifier.dense.weight"), "but it has classifier.dense.weight too"),
        (add("extra.weight"), "but it has extra.weight too"),
    ],
    ids=["missing", "adapter", "other head", "extra"],
)
def test_missing_and_unexpected_weights_are_errors(tmp_path, edit, message):
    save(tmp_path, "bert", "ForSequenceClassification")
    edit_weights(tmp_path, edit)
    with pytest.raises(ValueError, match=message):
        load_from_encoder(tmp_path)


def test_missing_weights_of_the_head_are_fresh(tmp_path, caplog):
    save(tmp_path, "bert", "ForSequenceClassification")
    edit_weights(tmp_path, lose("classifier.bias"))
    load_from_encoder(tmp_path)
    (warning,) = messages(caplog, logging.WARNING)
    assert warning.endswith("training must set: classifier.out_proj.bias")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"gama": [1, 2]}, "must be fields of ClassformerConfig, got gama; check the spelling"),
        ({"gamma": [1, 2, 3]}, "`gamma` needs one factor per layer, got 3 for 2 layers"),
        ({"eta": -1}, "`eta` counts leading tokens"),
        ({"hidden_size": 32}, "overrides must fit the weights .*'hidden_size': 32}; at odds: .* and 26 more"),
        ({"num_hidden_layers": 1}, "overrides must fit the weights .*layer.1.attention"),
        ({"num_hidden_layers": 3}, "overrides must fit the weights .*layer.2.attention"),
        ({"id2label": {0: "a", 1: "b"}, "output_names": ["b", "c"]}, "must be the labels .'a', 'b'. in some order"),
        ({"id2label": {0: "a"}, "num_labels": 2}, "`id2label` must name `num_labels` labels, got 1 names for 2"),
        ({"num_labels": 1, "problem_type": "single_label_classification"}, ".*num_labels > 1"),
        ({"num_labels": 0}, "`num_labels` must be an integer >= 1, got 0"),
        ({"model_class": AutoModel}, "`model_class` must be Classformer.*, got AutoModel"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_wrong_override_is_refused(tmp_path, overrides, message):
    save(tmp_path, "bert", "ForSequenceClassification")
    with pytest.raises(ValueError, match=message):
        load_from_encoder(tmp_path, **overrides)


@pytest.mark.parametrize("num_bytes", [0, 4, 5000])
def test_truncated_weights_are_an_error(tmp_path, num_bytes):
    save(tmp_path, "bert", "Model")
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:num_bytes])
    with pytest.raises(OSError, match="the weights of .* cannot be read; copy or download them again"):
        load_from_encoder(tmp_path)


def test_folder_without_weights_is_an_error(tmp_path):
    save(tmp_path, "bert", "Model")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OSError, match="the weights of .* cannot be read"):
        load_from_encoder(tmp_path)


def test_corrupt_bin_is_an_error(tmp_path):
    save(tmp_path, "bert", "Model")
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="the weights of .* cannot be read"):
        load_from_encoder(tmp_path)


def test_folder_without_config_is_an_error(tmp_path):
    with pytest.raises(OSError, match="must hold config.json"):
        load_from_encoder(tmp_path)


def test_corrupt_config_is_an_error(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": ')
    with pytest.raises(OSError, match="must be valid JSON"):
        load_from_encoder(tmp_path)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nobody/no-such-encoder", "no such model in the cache, while HF_HUB_OFFLINE forbids to ask the Hub"),
        ("/no/such/folder", "it is no name on the Hub, which is OWNER/MODEL; check the path"),
        ("two words", "it is no name on the Hub, which is OWNER/MODEL; check the path"),
    ],
)
def test_name_that_is_not_there_is_an_error(name, reason):
    with pytest.raises(OSError, match=f"there is no folder `{name}`, and {reason}"):
        load_from_encoder(name)
