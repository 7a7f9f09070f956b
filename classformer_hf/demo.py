"""The embedded default of the search: a small RoBERTa classifier, trained from scratch on the standard library."""

import logging
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedTokenizerBase, RobertaConfig, RobertaForSequenceClassification, set_seed

from redundancy_hf.corpus import train_tokenizer
from redundancy_hf.data import tokenize
from redundancy_hf.folders import follow_umask
from redundancy_hf.task import Task

from .training import ClassformerTrainingArguments, fine_tune

logger = logging.getLogger(__name__)

MAX_LENGTH = 128


def prepare_demo_checkpoint(task: Task, folder: Path, disable_tqdm: bool = False):
    """Train the demo's tokenizer and classifier; a finished checkpoint is left as it is.

    Args:
        task: The standard library's functions, raw.
        folder: Where the stock RoBERTa checkpoint and its tokenizer go.
        disable_tqdm: Show no progress bar.
    """
    if folder.exists():
        logger.info("using the classifier in %s", folder)
        return
    # a checkpoint that was cut off in the middle of writing must not count as one
    staging = folder.with_name(folder.name + ".partial")
    tokenizer = train_tokenizer(task, max_length=MAX_LENGTH)
    set_seed(42)
    model = RobertaForSequenceClassification(RobertaConfig(**describe_demo_model(tokenizer), **task.head_config))
    arguments = ClassformerTrainingArguments(
        output_dir=str(staging),
        num_train_epochs=6,
        learning_rate=1e-3,
        early_stopping_patience=0,
        save_strategy="no",
        load_best_model_at_end=False,
        eval_strategy="no",
        use_cpu=True,
        disable_tqdm=disable_tqdm,
    )
    logger.info("training a RoBERTa of %.1f M parameters from scratch (6 epochs)", model.num_parameters() / 1e6)
    result = fine_tune(model, tokenize(task, tokenizer, MAX_LENGTH), tokenizer, arguments)
    logger.info("validation accuracy %.3f after %.0f seconds", result.score, result.seconds)
    if arguments.process_index == 0:
        tokenizer.save_pretrained(staging)
        model.save_pretrained(staging)
        if task.record is not None:
            task.record.write(staging)
        follow_umask(staging)
        staging.rename(folder)
    PartialState().wait_for_everyone()


def describe_demo_model(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Give the settings of a model that a laptop trains in a minute."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 512,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "max_position_embeddings": MAX_LENGTH + tokenizer.pad_token_id + 1,
        "type_vocab_size": 1,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
