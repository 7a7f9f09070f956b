"""What a model can read: how many tokens at a time, which ids and which token types.

What lies beyond its tables ends in an IndexError somewhere inside of it, and on a GPU in less.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import pyarrow.compute
import torch
from datasets import Dataset
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import is_protobuf_available, is_sentencepiece_available

from .failures import explain_failure, first_line
from .runtimes import ExportedClassifier


@dataclass(frozen=True)
class InputLimits:
    """Longest input with special tokens, number of token ids and of token types; `None` without such a table."""

    num_tokens: int | None = None
    vocab_size: int | None = None
    num_types: int | None = None


def read_limits(model: PreTrainedModel) -> InputLimits:
    """Read from a model's embeddings what it can read, or from the config of an export, whose tables are in graphs."""
    if isinstance(model, ExportedClassifier):
        num_types = model.config.type_vocab_size if "token_type_ids" in model.input_names else None
        return InputLimits(int(model.limits[-1]), model.config.vocab_size, num_types)
    tables = {
        name.rpartition(".")[2]: module
        for name, module in model.base_model.named_modules()
        if isinstance(module, nn.Embedding)
    }
    positions = tables.get("position_embeddings", tables.get("wpe"))
    types = tables.get("token_type_embeddings")
    num_tokens = None
    if positions is not None:
        # RoBERTa and its like give padding a position, and begin after it
        num_tokens = positions.num_embeddings - (0 if positions.padding_idx is None else positions.padding_idx + 1)
    return InputLimits(
        num_tokens,
        getattr(model.get_input_embeddings(), "num_embeddings", None),
        None if types is None else types.num_embeddings,
    )


def limit_tokenizer(tokenizer: PreTrainedTokenizerBase, name_or_path: str, trust_remote_code: bool = False):
    """Let a tokenizer make what the model beside it can read: no more tokens, and no types where it tells none apart.

    A tokenizer of which nobody said how long its inputs may be would make inputs of any length, also with
    `truncation=True`. It is changed in place, so that a folder it is saved to has the limit too.
    """
    try:
        config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=trust_remote_code)
        with torch.device("meta"):  # without weights
            model = AutoModel.from_config(config, trust_remote_code=trust_remote_code)
    except Exception:  # loading the model says what is wrong with it
        return
    limits = read_limits(model)
    if limits.num_tokens is not None and tokenizer.model_max_length > limits.num_tokens:
        tokenizer.model_max_length = limits.num_tokens
    if limits.num_types == 1 or "token_type_ids" not in inspect.signature(model.forward).parameters:
        tokenizer.model_input_names = [one for one in tokenizer.model_input_names if one != "token_type_ids"]
        # what is saved are the settings that a tokenizer was made with
        tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names


def check_first_token(tokenizer: PreTrainedTokenizerBase):
    """Refuse a tokenizer that puts no special token first, where the classification head reads.

    Raises:
        ValueError: Says so, and what a tokenizer lacks that was trained and saved without a template.
    """
    ids = tokenizer("a")["input_ids"]
    # a word that it does not know is no beginning either
    if not ids or ids[0] not in {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}:
        first = tokenizer.convert_ids_to_tokens(ids[:1])
        raise ValueError(
            f"the classification head reads position 0, where the tokenizer puts no special token, but {first} of the "
            'text "a": give it a template, as `tokenizer.backend_tokenizer.post_processor = '
            'tokenizers.processors.TemplateProcessing(single="<s> $A </s>", pair="<s> $A </s> $B </s>", '
            "special_tokens=[...])`, and save it again."
        )


def check_inputs(model: Any, split: Dataset):
    """Refuse inputs of a tokenised split that are beyond a model's tables; what wraps a model passes.

    Raises:
        ValueError: Says what is too long or too large, and the way out.
    """
    if not isinstance(model, PreTrainedModel):
        return
    limits = read_limits(model)
    found = _find_largest(split)
    if limits.num_tokens is not None and found["tokens"] > limits.num_tokens:
        raise ValueError(
            f"the longest input has {found['tokens']} tokens and the model positions for {limits.num_tokens}; give a "
            "smaller --max_length."
        )
    if limits.vocab_size is not None and found["input_ids"] >= limits.vocab_size:
        raise ValueError(
            f"token ids must be below the model's `vocab_size` of {limits.vocab_size}, the data have "
            f"{found['input_ids']}: the tokenizer is another model's, or has words that the model never got; take the "
            "checkpoint's own, or call `model.resize_token_embeddings(len(tokenizer))` and save both."
        )
    if limits.num_types is not None and found["token_type_ids"] >= limits.num_types:
        raise ValueError(
            f"token types must be below the model's `type_vocab_size` of {limits.num_types}, the data have "
            f"{found['token_type_ids']}: the tokenizer is another model's; take the checkpoint's own."
        )


def _find_largest(split: Dataset) -> dict[str, int]:
    """Give the length of the longest input, the largest id and the largest token type of a tokenised split."""
    columns = [name for name in ("input_ids", "token_type_ids") if name in split.column_names]
    table = split.with_format("arrow", columns=columns)[:]
    values = {name: pyarrow.compute.list_flatten(table[name]) for name in columns}
    values["tokens"] = pyarrow.compute.list_value_length(table["input_ids"])
    found = {name: pyarrow.compute.max(one).as_py() for name, one in values.items() if len(one)}
    return {"tokens": 0, "input_ids": -1, "token_type_ids": -1} | found


NO_TOKENIZER = (
    "`{}` holds no tokenizer (tokenizer.json, vocab.txt, vocab.json with merges.txt, or a .model file); save the "
    "checkpoint's there too."
)


def load_tokenizer(name_or_path: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint, which makes no longer inputs than the model beside it has positions.

    Raises:
        OSError: There is none, a file or a package is missing, or the Hub cannot be reached.
    """
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, **options)
        words = [word for word in tokenizer.get_vocab() if word not in tokenizer.all_special_tokens]
        says_case = "do_lower_case" in get_tokenizer_config(name_or_path)
        has_capitals = any(word != word.lower() for word in words if not word.startswith("["))
        # without a file that says otherwise, BERT's lower-cases, and would know no word of a cased vocabulary
        if getattr(tokenizer, "do_lower_case", False) and not says_case and has_capitals:
            tokenizer = AutoTokenizer.from_pretrained(name_or_path, do_lower_case=False, **options)
    except Exception as error:  # of the Hub, of parsers and of whatever the files name
        raise OSError(_explain_tokenizer(name_or_path, error)) from error
    if not words:  # where no file has any, the tokenizer loads all the same
        raise OSError(NO_TOKENIZER.format(name_or_path))
    limit_tokenizer(tokenizer, name_or_path, trust_remote_code)
    return tokenizer


def _explain_tokenizer(name: str, error: Exception) -> str:
    """Say why a tokenizer cannot be loaded."""
    if "Couldn't instantiate the backend tokenizer" in str(error):
        return NO_TOKENIZER.format(name)
    # what transformers tries last with a file of SentencePiece's, whatever was wrong with it
    if "tiktoken" in str(error):
        if not is_sentencepiece_available() or not is_protobuf_available():
            return f"the tokenizer of `{name}` needs SentencePiece: `pip install sentencepiece protobuf`."
        return f"the .model file of the tokenizer of `{name}` is damaged; copy or download it again."
    reason = explain_failure(name, error)
    return reason or f"the tokenizer of `{name}` cannot be read; copy or download it again ({first_line(error)})."
