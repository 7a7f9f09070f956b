"""Text to pretrain on: any data set with a column of text, cut into blocks of equal length."""

import logging
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from redundancy_hf.columns import NUM_PROBED, describe_columns, find_text_columns, is_text
from redundancy_hf.corpus import joined_texts, load_standard_library_task
from redundancy_hf.failures import first_line
from redundancy_hf.splits import TEXT_BUILDERS, name_path, read_splits, stream_splits

logger = logging.getLogger(__name__)
# what a command says on standard output
screen = logging.getLogger("screen")

# texts of a stream's validation split that are read, or of its train split that are held out
NUM_STREAMED_FOR_VALIDATION = 1000
# texts of a stream among which the next is drawn
SHUFFLE_BUFFER = 10_000


@dataclass
class TextArguments:
    """What to read."""

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Name on the Hub, a folder with train and validation files, or one file (parquet, csv, json, txt). "
            "By default the functions of the standard library."
        },
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration on the Hub."})
    text_column: str | None = field(
        default=None, metadata={"help": "Column of text; by default `text` or the only one."}
    )
    block_size: int = field(default=128, metadata={"help": "Tokens of a block, with the first and the last one."})
    max_train_blocks: int | None = field(
        default=None, metadata={"help": "Train on the first so many blocks; of a stream --max_steps says how many."}
    )
    max_validation_blocks: int = field(default=200, metadata={"help": "Validate on the first so many blocks."})
    validation_fraction: float = field(
        default=0.05,
        metadata={
            "help": "Share of the texts that is held out where there is no validation split; of a stream the first "
            f"{NUM_STREAMED_FOR_VALIDATION:,} texts are."
        },
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read the train split while training, instead of before; needs --max_steps."}
    )


@dataclass(frozen=True)
class Texts:
    """A data set of raw text; `train` may be an endless stream.

    Attributes:
        name: For reports.
        train: With a column `text`.
        validation: Likewise, never a stream.
    """

    name: str
    train: Dataset | IterableDataset
    validation: Dataset


def load_texts(arguments: TextArguments) -> Texts:
    """Read a data set.

    Raises:
        ValueError: It cannot be read, has no column of text, or an argument is out of range.
    """
    if not 0 < arguments.validation_fraction < 1:
        raise ValueError(f"`validation_fraction` is a share of the texts, got {arguments.validation_fraction}.")
    if arguments.streaming and arguments.max_train_blocks is not None:
        raise ValueError("--max_train_blocks is not for a stream; --max_steps says where it ends.")
    limits = (arguments.max_train_blocks, arguments.max_validation_blocks)
    if any(limit is not None and limit < 1 for limit in limits):
        raise ValueError("`max_train_blocks` and `max_validation_blocks` must be at least 1.")
    if arguments.dataset_name is None:
        task = load_standard_library_task()
        train, validation = (Dataset.from_dict({"text": joined_texts(task, name)}) for name in ("train", "validation"))
        return Texts(task.name, train, validation)
    if arguments.streaming:
        return _stream(arguments)
    name, splits = read_splits(arguments.dataset_name, arguments.dataset_config_name, TEXT_BUILDERS)
    column = _find_text_column(name, splits["train"], arguments.text_column)
    splits = {key: _rename_text(split, column) for key, split in splits.items()}
    if "validation" not in splits:
        if len(splits["train"]) < 2:
            raise ValueError(f"{name} has one text only and no validation split; give a file with one text per line.")
        splits |= {
            ("validation" if key == "test" else key): part
            for key, part in splits["train"].train_test_split(arguments.validation_fraction, seed=42).items()
        }
    return Texts(name, splits["train"], splits["validation"])


def _stream(arguments: TextArguments) -> Texts:
    """Open the train split as an endless stream; without a validation split its first texts are held out."""
    name = str(arguments.dataset_name)
    try:
        splits = stream_splits(name, arguments.dataset_config_name, TEXT_BUILDERS)
        if "train" not in splits:
            raise ValueError(f"it has no train split, only {', '.join(splits)}")
        first = Dataset.from_list(list(islice(splits["train"], NUM_PROBED)))
    except Exception as error:  # of many kinds, from connections to parsers
        raise ValueError(f"cannot stream {name}: {first_line(error)}; check the name and the connection.") from error
    if not len(first):
        raise ValueError(f"the train split of {name} is empty.")
    column = _find_text_column(name, first, arguments.text_column)
    train, size = splits["train"], NUM_STREAMED_FOR_VALIDATION
    held_out = [row[column] for row in islice(splits.get("validation", train), size)]
    if "validation" not in splits:
        logger.info("%s has no validation split: its first %d texts are held out for it.", name, size)
        train = train.skip(size)
        if next(iter(train), None) is None:
            raise ValueError(
                f"{name} has {len(held_out)} texts, all of them held out for validation; read it without a stream."
            )
    # repeated, since a resumed training finds its place in one pass only
    train = train.shuffle(seed=42, buffer_size=SHUFFLE_BUFFER).repeat(None)
    return Texts(name_path(Path(name).expanduser()), _rename_text(train, column), Dataset.from_dict({"text": held_out}))


def _rename_text(texts: Any, column: str) -> Any:
    texts = texts.select_columns(column)
    return texts if column == "text" else texts.rename_column(column, "text")


def _find_text_column(name: str, rows: Dataset, given: str | None) -> str:
    """Choose the column of text, and print which it is; `rows` may be the first ones of a stream."""
    if given is None:
        (column,) = find_text_columns(rows, max_columns=1)
    elif given not in rows.column_names:
        raise ValueError(f"{name} has no column {given}, only {', '.join(rows.column_names)}; see `text_column`.")
    elif not is_text(rows, given):
        raise ValueError(f"column {given} of {name} holds no text, but {rows.features[given]}; see `text_column`.")
    else:
        column = given
    screen.info(f"{name}: {describe_columns(rows, (column,))}")
    return column


def group_into_blocks(
    texts: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
    has_offsets: bool = False,
    description: str = "blocks",
) -> Dataset | IterableDataset:
    """Tokenise texts, join them with the separator in between, and cut blocks of one length.

    Args:
        texts: With a column `text`.
        tokenizer: Of the model.
        block_size: L, tokens of a block, its first and last special one included; what is left over at the end of
            1,000 texts is dropped.
        has_offsets: Whether to say where in its text every token stands, by which words are told apart.
        description: For the progress bar.

    Returns:
        Rows of `input_ids`, `special_tokens_mask` and, if asked for, `offset_mapping`, L long.

    Raises:
        ValueError: The block does not suit the tokenizer, or not one block can be filled.
    """
    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    if first is None or last is None or tokenizer.mask_token_id is None:
        raise ValueError("the tokenizer needs a first, a separating and a mask token.")
    if not 4 <= block_size <= tokenizer.model_max_length:
        raise ValueError(f"`block_size` must be 4 to {tokenizer.model_max_length}, got {block_size}.")
    inner = block_size - 2

    def cut_blocks(sequences: list[list], first: Any, last: Any) -> list[list]:
        joined = list(chain.from_iterable([*one, last] for one in sequences if one))
        return [[first, *joined[at : at + inner], last] for at in range(0, len(joined) - inner + 1, inner)]

    def cut(batch: dict[str, list]) -> dict[str, list]:
        filled = [text for text in batch["text"] if text is not None]
        encoded = tokenizer(filled, add_special_tokens=False, verbose=False, return_offsets_mapping=has_offsets)
        blocks = cut_blocks(encoded["input_ids"], first, last)
        columns = {
            "input_ids": blocks,
            "special_tokens_mask": [[int(token in (first, last)) for token in block] for block in blocks],
        }
        if has_offsets:
            columns["offset_mapping"] = cut_blocks(encoded["offset_mapping"], (0, 0), (0, 0))
        return columns

    if isinstance(texts, IterableDataset):
        return texts.map(cut, batched=True, remove_columns=["text"])
    blocks = texts.map(cut, batched=True, remove_columns=["text"], desc=description)
    if not len(blocks):
        raise ValueError(f"the text does not fill one block of {block_size} tokens; give more or a smaller block.")
    return blocks
