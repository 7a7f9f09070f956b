"""Tokenizers of checkpoints, however old: what their files say is read, and what is wrong with them is told apart."""

import pytest
from transformers import (
    BertConfig,
    CamembertConfig,
    DistilBertConfig,
    ElectraConfig,
    RobertaConfig,
    XLMRobertaConfig,
    convert_slow_tokenizer,
)

from classformer_hf import ClassformerConfig
from redundancy_hf.limits import load_tokenizer

WORDS = ("a", "warm", "and", "clever", "film")


def write_wordpieces(folder, *words):
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]) + "\n")


def write_sentencepieces(folder):
    """Write a unigram model as SentencePiece does."""
    model = convert_slow_tokenizer.import_protobuf().ModelProto()
    letters = [(letter, -9.0, 1) for letter in "▁abcdefghijklmnopqrstuvwxyz"]
    words = [(f"▁{word}", -2.0, 1) for word in WORDS]
    for piece, score, kind in [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), *words, *letters]:
        added = model.pieces.add()
        added.piece, added.score, added.type = piece, score, kind
    model.trainer_spec.model_type = 1
    (folder / "sentencepiece.bpe.model").write_bytes(model.SerializeToString())


@pytest.mark.parametrize("config_class", [BertConfig, ElectraConfig, DistilBertConfig])
@pytest.mark.parametrize(("words", "is_cased"), [(WORDS, False), (("a", "warm", "Film", "film"), True)])
def test_vocabulary_alone_is_a_tokenizer(tmp_path, config_class, words, is_cased):
    config_class(max_position_embeddings=32).save_pretrained(tmp_path)
    write_wordpieces(tmp_path, *words)
    tokenizer = load_tokenizer(str(tmp_path))
    # lower-cased only where the vocabulary is
    assert tokenizer.tokenize("a warm Film") == ["a", "warm", "Film" if is_cased else "film"]
    assert tokenizer.model_max_length == 32
    tokenizer.save_pretrained(tmp_path / "saved")
    assert load_tokenizer(str(tmp_path / "saved")).tokenize("a warm Film") == tokenizer.tokenize("a warm Film")


@pytest.mark.parametrize("config_class", [XLMRobertaConfig, CamembertConfig])
def test_sentencepiece_model_alone_is_a_tokenizer(tmp_path, config_class):
    config_class().save_pretrained(tmp_path)
    write_sentencepieces(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.tokenize("a warm film") == ["▁a", "▁warm", "▁film"]
    ids = tokenizer("a warm film")["input_ids"]
    assert tokenizer.unk_token_id not in ids
    tokenizer.save_pretrained(tmp_path / "saved")
    assert load_tokenizer(str(tmp_path / "saved"))("a warm film")["input_ids"] == ids


def test_missing_package_is_named(tmp_path, monkeypatch):
    XLMRobertaConfig().save_pretrained(tmp_path)
    write_sentencepieces(tmp_path)

    def refuse(*arguments):
        raise ImportError("SentencePieceExtractor requires the SentencePiece library")

    monkeypatch.setattr(convert_slow_tokenizer, "requires_backends", refuse)
    monkeypatch.setattr("redundancy_hf.limits.is_sentencepiece_available", lambda: False)
    with pytest.raises(OSError, match="needs SentencePiece: `pip install sentencepiece protobuf`"):
        load_tokenizer(str(tmp_path))


def damage(name, content):
    def write(folder):
        (folder / name).write_bytes(content)

    return write


@pytest.mark.parametrize(
    ("config_class", "spoil", "message"),
    [
        (XLMRobertaConfig, damage("sentencepiece.bpe.model", b"\xff" * 50), "the .model file of .* is damaged"),
        (
            RobertaConfig,
            damage("tokenizer.json", b'{"version": "1.0"}'),
            "tokenizer of .* cannot be read; copy or download it again",
        ),
        (RobertaConfig, damage("tokenizer.json", b'{"version": '), "JSON file of .* is damaged"),
        (BertConfig, damage("tokenizer_config.json", b'{"a": '), "JSON file of .* is damaged"),
        *((one, lambda folder: None, "holds no tokenizer") for one in (RobertaConfig, BertConfig, XLMRobertaConfig)),
        *((one, lambda folder: None, "holds no tokenizer") for one in (CamembertConfig, ElectraConfig)),
        *((one, lambda folder: None, "holds no tokenizer") for one in (DistilBertConfig, ClassformerConfig)),
    ],
)
def test_what_is_wrong_is_told_apart(tmp_path, config_class, spoil, message):
    config_class().save_pretrained(tmp_path)
    spoil(tmp_path)
    with pytest.raises(OSError, match=message):
        load_tokenizer(str(tmp_path))
