"""What a model can read decides what its tokenizer makes, and what lies beyond is said in one sentence."""

import json

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizer,
    CamembertConfig,
    DebertaV2Config,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    XLMRobertaConfig,
    pipeline,
)

from classformer_hf import ClassformerConfig, load_from_encoder
from classformer_hf.training import ClassformerTrainingArguments, build_trainer, time_step
from redundancy_hf.evaluation import predict
from redundancy_hf.limits import check_first_token, check_inputs, load_tokenizer, read_limits

SIZES = {"vocab_size": 40, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
SIZES |= {"max_position_embeddings": 20, "pad_token_id": 1}
WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a warm and clever film ##s".split()


@pytest.mark.parametrize(
    ("config_class", "num_tokens"),
    [
        (RobertaConfig, 18),
        (XLMRobertaConfig, 18),
        (CamembertConfig, 18),
        (MPNetConfig, 18),
        (ClassformerConfig, 18),
        (BertConfig, 20),
        (ElectraConfig, 20),
        (DistilBertConfig, 20),
        (DebertaV2Config, 20),
        (ModernBertConfig, None),
    ],
)
def test_longest_input_is_what_the_model_runs_on(config_class, num_tokens):
    names = {"hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"}
    names |= {"intermediate_size": "hidden_dim"}
    sizes = {names.get(name, name) if config_class is DistilBertConfig else name: n for name, n in SIZES.items()}
    special = {name: 0 for name in ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")}
    model = AutoModel.from_config(config_class(**sizes, **special)).eval()
    limits = read_limits(model)
    assert (limits.num_tokens, limits.vocab_size) == (num_tokens, 40)
    model(torch.full((1, num_tokens or 30), 39))
    if num_tokens is not None:
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.full((1, num_tokens + 1), 39))


@pytest.fixture
def unlimited(tmp_path, tiny_settings, tiny_tokenizer):
    """A classifier with 64 positions, whose tokenizer does not say how long its inputs may be."""
    RobertaForSequenceClassification(RobertaConfig(**{**tiny_settings, "num_labels": 2})).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del settings["model_max_length"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert AutoTokenizer.from_pretrained(tmp_path).model_max_length > 10**20
    return tmp_path


def test_tokenizer_without_a_limit_gets_the_models(unlimited, tmp_path):
    tokenizer = load_tokenizer(str(unlimited))
    assert tokenizer.model_max_length == 64
    # and whoever loads what we save has it too
    load_from_encoder(unlimited, gamma=[1, 2, 1]).save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    classify = pipeline("text-classification", model=str(tmp_path / "saved"), trust_remote_code=True)
    assert classify("a warm and clever film " * 100, truncation=True)[0]["score"] > 0


def test_tokenizer_with_a_smaller_limit_keeps_it(unlimited, tiny_tokenizer):
    settings = json.loads((unlimited / "tokenizer_config.json").read_text())
    (unlimited / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 32}))
    assert load_tokenizer(str(unlimited)).model_max_length == 32


def test_tokenizer_makes_no_types_where_the_model_tells_none_apart(tmp_path):
    sizes = {"vocab_size": 11, "dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 8}
    DistilBertModel(DistilBertConfig(**sizes)).save_pretrained(tmp_path)
    # as many DistilBERT checkpoints have it
    BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)}).save_pretrained(tmp_path)
    model, tokenizer = load_from_encoder(tmp_path), load_tokenizer(str(tmp_path))
    pair = tokenizer(["a film"], ["clever"], return_tensors="pt")
    assert set(pair) == {"input_ids", "attention_mask"}
    assert model(**pair).logits.isfinite().all()
    tokenizer.save_pretrained(tmp_path / "saved")
    assert "token_type_ids" not in AutoTokenizer.from_pretrained(tmp_path / "saved")("a film", "clever")
    # a model with two types gets them
    BertModel(BertConfig(**{**SIZES, "vocab_size": 11})).save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path))("a film", "clever")["token_type_ids"][-1] == 1


@pytest.mark.parametrize("word", ["a", "film"])
def test_a_tokenizer_without_a_template_is_refused(tiny_roberta_folder, tiny_tokenizer, tiny_task, word):
    words = Tokenizer(WordLevel({"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, word: 4}, unk_token="<unk>"))
    special = {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>"}
    bare = PreTrainedTokenizerFast(tokenizer_object=words, **special)
    model = load_from_encoder(tiny_roberta_folder, num_labels=2)
    with pytest.raises(ValueError, match="puts no special token, but .* of the text .*: give it a template"):
        build_trainer(model, tiny_task, bare, ClassformerTrainingArguments(use_cpu=True))
    template = {"single": "<s> $A </s>", "pair": "<s> $A </s> $B </s>", "special_tokens": [("<s>", 0), ("</s>", 2)]}
    bare.backend_tokenizer.post_processor = TemplateProcessing(**template)
    check_first_token(bare)
    check_first_token(tiny_tokenizer)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"input_ids": [[0, 2], [0] * 65]}, "the longest input has 65 tokens and the model positions for 64"),
        ({"input_ids": [[0, 2], [0, 300]]}, "below the model's `vocab_size` of 300, the data have 300"),
        (
            {"input_ids": [[0, 2]], "token_type_ids": [[0, 2]]},
            "below the model's `type_vocab_size` of 2, the data have 2",
        ),
    ],
)
def test_what_the_model_has_no_row_for_is_one_sentence(
    tiny_roberta_folder, tiny_tokenizer, tiny_task, columns, message
):
    model = load_from_encoder(tiny_roberta_folder)
    with pytest.raises(ValueError, match=message):
        predict(model, Dataset.from_dict(columns), tiny_tokenizer)
    model = load_from_encoder(tiny_roberta_folder, num_labels=2)
    good = Dataset.from_dict({"input_ids": [[0, 2], []], "labels": [0, 1]})
    check_inputs(model, good)
    for name in ("train", "validation"):
        other = {"train": good, "validation": good} | {name: Dataset.from_dict(columns)}
        tiny_task.splits.update(other)
        with pytest.raises(ValueError, match=message):
            build_trainer(model, tiny_task, tiny_tokenizer, ClassformerTrainingArguments(use_cpu=True))
        # the plan of a search or a training measures a step before the trainer exists
        with pytest.raises(ValueError, match=message):
            time_step(model, tiny_task, tiny_tokenizer, ClassformerTrainingArguments(use_cpu=True))
