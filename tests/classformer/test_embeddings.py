"""States and their mask have one length, so that averages, also those of sentence-transformers, leave padding out."""

import json
import logging

import pytest
import torch
import transformers

from classformer_hf import ClassformerConfig, ClassformerForMaskedLM, ClassformerModel, modeling_classformer
from classformer_hf.modeling_classformer import ClassformerMask

TEXTS = ["a mess", "a warm and clever film, it works in every scene, good, quick, too short, a joy"]


@pytest.fixture
def warnings(monkeypatch, caplog):
    """What was warned of; every warning can come again."""
    monkeypatch.setattr(modeling_classformer.logger, "warning_once", modeling_classformer.logger.warning)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    caplog.set_level(logging.WARNING, logger="classformer_hf")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.fixture
def encoder(tiny_config):
    torch.manual_seed(0)
    return ClassformerModel(tiny_config).eval()


@pytest.fixture
def folder(encoder, tiny_tokenizer, tmp_path):
    encoder.save_pretrained(tmp_path / "encoder")
    tiny_tokenizer.save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


@torch.no_grad()
def test_output_mask_belongs_to_the_states(encoder, warnings):
    # gamma [1, 2, 1], eta 1 keep positions 0, 1, 3 and 5
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    output = encoder(torch.randint(5, 300, (2, 6)), attention_mask=mask)
    assert output.attention_mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert output.last_hidden_state.shape[:2] == output.attention_mask.shape
    assert "average them by `attention_mask` of the output" in warnings()[0]
    assert len(encoder(torch.randint(5, 300, (2, 6)), attention_mask=mask, return_dict=False)) == 3


@torch.no_grad()
def test_output_mask_follows_length_buckets(tiny_settings):
    bucket = {"max_tokens": 4, "gamma": [1, 1, 4], "eta": 0}
    model = ClassformerModel(ClassformerConfig(**tiny_settings, gamma=[2, 1, 1], length_buckets=[bucket])).eval()
    for num_tokens, num_states in ((4, 1), (6, 3)):
        output = model(torch.randint(5, 300, (1, num_tokens)), attention_mask=torch.ones(1, num_tokens).long())
        assert output.attention_mask.shape == output.last_hidden_state.shape[:2] == (1, num_states)


@torch.no_grad()
def test_no_mask_is_invented(encoder, warnings):
    ids = torch.randint(5, 300, (2, 6))
    assert encoder(ids).attention_mask is None
    ready = torch.zeros(2, 1, 1, 6)
    assert encoder(ids, attention_mask=ready).attention_mask is None
    assert encoder(ids, attention_mask=torch.ones(2, 6).long(), cls_only=True).attention_mask is None
    encoder(ids, attention_mask=torch.ones(2, 6).long())
    assert not warnings()


@torch.no_grad()
def test_fill_mask_is_warned_of_where_positions_are_left_out(tiny_settings, tiny_tokenizer, warnings):
    short = ClassformerForMaskedLM(ClassformerConfig(**tiny_settings, gamma=[1, 2, 1])).eval()
    transformers.pipeline("fill-mask", model=short, tokenizer=tiny_tokenizer, device="cpu")("<mask> warm film")
    assert "so that output i is not of token i" in warnings()[0] and "gamma=[1, 1, 1]" in warnings()[0]
    count = len(warnings())
    whole = ClassformerForMaskedLM(ClassformerConfig(**tiny_settings)).eval()
    transformers.pipeline("fill-mask", model=whole, tokenizer=tiny_tokenizer, device="cpu")("<mask> warm film")
    ids = torch.randint(5, 300, (1, 6))
    short(ids, labels=ids[:, ::2])
    assert len(warnings()) == count


def write_modules(folder, *, pooling_mode, has_mask):
    """Write what sentence-transformers reads first."""
    modules = "sentence_transformers.sentence_transformer.modules."
    types = {"": f"{modules}Transformer", "2_Pooling": f"{modules}Pooling"}
    rows = [{"path": path, "type": name} for path, name in types.items()]
    if has_mask:
        rows.insert(1, {"path": "", "type": "modeling_classformer.ClassformerMask"})
    rows = [{"idx": index, "name": str(index), **row} for index, row in enumerate(rows)]
    (folder / "modules.json").write_text(json.dumps(rows))
    (folder / "2_Pooling").mkdir()
    pooling = {"embedding_dimension": 32, "pooling_mode": pooling_mode}
    (folder / "2_Pooling" / "config.json").write_text(json.dumps(pooling))


def embed(folder, texts):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    return torch.tensor(model.encode(texts))


@pytest.mark.parametrize("pooling_mode, has_mask", [("mean", True), ("max", True), ("cls", True), ("cls", False)])
def test_sentence_transformers_leave_padding_out(folder, pooling_mode, has_mask):
    write_modules(folder, pooling_mode=pooling_mode, has_mask=has_mask)
    together = embed(folder, TEXTS)
    torch.testing.assert_close(embed(folder, TEXTS[:1]), together[:1], rtol=0, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 1e-2


def test_sentence_transformers_mean_is_that_of_the_tokens_that_stay(folder, encoder, tiny_tokenizer):
    write_modules(folder, pooling_mode="mean", has_mask=True)
    batch = tiny_tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        output = encoder(**batch)
    weights = output.attention_mask[:, :, None].float()
    expected = (output.last_hidden_state * weights).sum(1) / weights.sum(1)
    torch.testing.assert_close(embed(folder, TEXTS), expected, rtol=0, atol=1e-5)


def test_plain_mean_pooling_is_warned_of(folder, warnings):
    write_modules(folder, pooling_mode="mean", has_mask=False)
    difference = (embed(folder, TEXTS[:1]) - embed(folder, TEXTS)[:1]).abs().max()
    assert difference > 1e-3 and "put `ClassformerMask` before its Pooling" in " ".join(warnings())


def test_mask_of_another_encoder_is_refused(tiny_settings):
    module = ClassformerMask(ClassformerConfig(**tiny_settings, gamma=[2, 1, 1]))
    features = {"attention_mask": torch.ones(1, 8), "token_embeddings": torch.ones(1, 8, 32)}
    with pytest.raises(ValueError, match=r"leave 4 positions, but there are 8 token embeddings"):
        module(features)
