r"""Pretrain a Classformer on text, with an objective for shortened sequences (thesis section 5.2.6).

A small model on the text of the standard library; and from a checkpoint, on WikiText-2, reduced to a quarter by the
second and the fourth layer:

    redundancy-hf pretrain --gamma 1 2 1 1 --objectives first_k --output_dir runs/small
    redundancy-hf pretrain --model_name_or_path FacebookAI/roberta-base \
        --dataset_name Salesforce/wikitext --dataset_config_name wikitext-2-raw-v1 --objectives funnel \
        --gamma 1 2 1 2 1 1 1 1 1 1 1 1 --num_train_epochs 1 --output_dir runs/funnel

Objectives: first_k, last_k, gamma_th, dense and funnel are masked language modelling with targets at other places, and
distillation is learning the final states of the same model without reductions; several run one after the other, from
the same weights. OUTPUT_DIR/OBJECTIVE is then a model folder that fine-tuning (`redundancy-hf train`) and search
(`redundancy-hf search`) start from. The same command resumes. --from_scratch takes the checkpoint's shape and
tokenizer and random weights; without any checkpoint a small model learns from the text of the standard library.
A large corpus is read as it is needed with --streaming and --max_steps. Two processes on a CPU: torchrun
--nproc_per_node 2 -m redundancy_hf pretrain ... --use_cpu.
"""

import copy
import json
import logging
import math
import shutil
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase, Trainer, set_seed
from transformers.utils import logging as transformers_logging

from redundancy_hf.command import FLAGS, check_settings, describe_command, describe_flags, parse_arguments, write_record
from redundancy_hf.corpus import load_standard_library_task, train_tokenizer
from redundancy_hf.folders import save_folder
from redundancy_hf.limits import check_inputs, load_tokenizer
from redundancy_hf.plan import Plan, describe_lost_training
from redundancy_hf.record import read_record
from redundancy_hf.timing import hardware_fingerprint
from redundancy_hf.training import StopOnInvalidLoss, find_checkpoint, show_progress

from .. import ClassformerConfig, ClassformerForMaskedLM, load_from_encoder
from ..checkpoints import checkpoint_fingerprint, choose_schedule
from ..demo import describe_demo_model
from ..pretraining import (
    OBJECTIVES,
    CountEpochs,
    PretrainingTrainer,
    ShortenedLanguageModelingCollator,
    build_objective,
    check_objective,
    count_training_flops,
    take_backbone,
)
from ..texts import TextArguments, group_into_blocks, load_texts
from ..training import ClassformerTrainingArguments, refuse_label_smoothing

logger = logging.getLogger(__name__)

RESULTS = "pretrain_results.json"


@dataclass
class ModelArguments:
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Checkpoint to start from; without one a small model is made."}
    )
    from_scratch: bool = field(default=False, metadata={"help": "Random weights in the checkpoint's shape."})
    gamma: list[int] | None = field(default=None, metadata={"help": "One reduction factor per layer."})
    eta: int = field(default=0, metadata={"help": "Leading tokens that stay, together with --gamma."})
    objectives: list[str] = field(
        default_factory=lambda: ["funnel"], metadata={"help": f"What to learn: {', '.join(OBJECTIVES)}."}
    )
    mlm_probability: float = field(default=0.15, metadata={"help": "Share of the tokens that are to be predicted."})
    whole_word_mask: bool = field(default=False, metadata={"help": "Choose whole words."})


@dataclass
class PretrainingArguments(ClassformerTrainingArguments):
    """The recipe of pretraining.

    Betas, weight decay and shape of the learning rate are RoBERTa's (Liu et al. 2019, table 9); peak and batch size are
    for far fewer tokens than its 8,000 x 512 at a time, and epsilon and clipping are the Trainer's.
    """

    output_dir: str | None = field(default="runs/pretraining", metadata={"help": "Folder for everything written."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Epochs over which the learning rate decays to 0."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate of AdamW."})
    warmup_steps: float = field(default=0.06, metadata={"help": "Warm-up: steps, or below 1 a share of all steps."})
    weight_decay: float = field(default=0.01, metadata={"help": "Of AdamW."})
    adam_beta2: float = field(default=0.98, metadata={"help": "Of AdamW."})
    eval_strategy: str = field(default="no", metadata={"help": "Validation before and after is always made."})
    save_strategy: str = field(default="steps", metadata={"help": "When to save what a resumed run starts from."})
    save_steps: float = field(default=0.1, metadata={"help": "Steps between checkpoints, or a share of all steps."})
    logging_strategy: str = field(default="steps", metadata={"help": "When to log: no, steps or epoch."})
    logging_steps: float = field(default=0.05, metadata={"help": "Steps between logs, or a share of all steps."})
    load_best_model_at_end: bool = field(default=False, metadata={"help": "Keep the best checkpoint."})
    per_device_eval_batch_size: int = field(default=16, metadata={"help": "Blocks per batch of validation."})
    train_sampling_strategy: str = field(default="random", metadata={"help": "random or sequential."})


class Pretraining:
    """What all objectives share: the start, the tokenizer and the blocks of text."""

    def __init__(self, arguments: ModelArguments, texts: TextArguments, training: PretrainingArguments):
        self.arguments, self.training = arguments, training
        self.output = Path(str(training.output_dir))
        self.output.mkdir(parents=True, exist_ok=True)  # if it cannot be, that is said before long work
        unfinished = [one for one in arguments.objectives if not (self.output / one / RESULTS).exists()]
        self.plan = Plan(dict.fromkeys(unfinished), has_bars=not training.disable_tqdm)
        self.tokenizer = self.load_tokenizer()
        raw = load_texts(texts)
        self.block_size = texts.block_size
        with training.main_process_first(desc="making blocks"):
            train, validation = (
                group_into_blocks(part, self.tokenizer, texts.block_size, arguments.whole_word_mask, description)
                for part, description in ((raw.train, "train blocks"), (raw.validation, "validation blocks"))
            )
        self.validation = validation.select(range(min(len(validation), texts.max_validation_blocks)))
        if texts.max_train_blocks is not None:
            train = train.take(texts.max_train_blocks)
        self.train = train
        self.is_stream = texts.streaming
        self.text: list[Any] = [
            raw.name,
            texts.dataset_config_name,
            texts.streaming,
            texts.block_size,
            texts.max_train_blocks,
        ]
        self.text += [fingerprint_blocks(self.validation), fingerprint_blocks(train)]

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        if self.arguments.model_name_or_path is not None:
            return load_tokenizer(self.arguments.model_name_or_path)
        return train_tokenizer(load_standard_library_task())

    def load_model(self) -> ClassformerForMaskedLM:
        """Give the model that every objective starts from."""
        arguments = self.arguments
        schedule = choose_schedule(arguments.gamma, arguments.eta)
        set_seed(self.training.seed)
        if arguments.model_name_or_path is None:
            return ClassformerForMaskedLM(ClassformerConfig(**describe_demo_model(self.tokenizer), **schedule))
        model: Any = load_from_encoder(arguments.model_name_or_path, ClassformerForMaskedLM, **schedule)
        for blocks in (self.train, self.validation):
            if isinstance(blocks, Dataset):
                check_inputs(model, blocks)
        return ClassformerForMaskedLM(model.config) if arguments.from_scratch else model

    def settings(self, objective: str) -> dict[str, Any]:
        """Say what decides the result, so that only the same training is resumed."""
        arguments = self.arguments
        checkpoint = arguments.model_name_or_path
        return {
            "checkpoint": checkpoint_fingerprint(checkpoint) if checkpoint else "small",
            "text": self.text,
            "objective": [objective, arguments.mlm_probability, arguments.whole_word_mask, arguments.from_scratch],
            "schedule": [arguments.gamma, arguments.eta],
            "recipe": self.training.describe_recipe(),
            FLAGS: describe_flags(model_name_or_path=checkpoint),
            "batches of validation": self.training.per_device_eval_batch_size,
        }

    def run(self, objective: str) -> dict[str, Any]:
        """Train for one objective and save the backbone; a finished one is read."""
        folder = self.output / objective
        check_settings(folder / "settings.json", self.settings(objective), self.training.process_index == 0)
        results = folder / RESULTS
        if results.exists():
            return json.loads(results.read_text())
        model = self.load_model()
        if max(model.config.gamma or ()) == 1:
            if objective == "distillation":
                raise ValueError("distillation has nothing to learn where no layer reduces; give --gamma.")
            logger.warning("no layer reduces: %s is pretraining at full length; --gamma shortens.", objective)
        model = build_objective(objective, model)
        trainer = self.build_trainer(objective, model, folder / "checkpoints")
        before = self.validate(trainer)
        checkpoint = find_checkpoint(folder / "checkpoints")
        num_earlier = int(Path(checkpoint).name.rpartition("-")[2]) if checkpoint else 0
        started = time.perf_counter()
        with self.plan.stage(objective, lost=describe_lost_training(self.training)):
            trainer.train(resume_from_checkpoint=checkpoint)
        seconds = time.perf_counter() - started
        after = self.validate(trainer)
        num_steps = trainer.state.global_step
        blocks = self.count_blocks(trainer)
        row: dict[str, Any] = {
            "command": describe_command(),
            "objective": objective,
            "loss_before": before,
            "loss_after": after,
            "perplexity": None if objective == "distillation" else math.exp(min(after, 700)),  # of which e is a float
            "tokens": blocks * self.block_size,
            # of this run, where it was resumed
            "seconds": round(seconds, 1),
            "tokens_per_second": round(blocks * self.block_size * (1 - num_earlier / num_steps) / seconds, 1),
            "training_flops": self.count_flops_of_block(trainer) * blocks,
        }
        if self.training.process_index == 0:
            backbone = take_backbone(trainer.accelerator.unwrap_model(trainer.model))
            start = None if self.arguments.from_scratch else self.arguments.model_name_or_path
            # text without labels flatters no score, but what the checkpoint was trained on does
            save_folder(backbone, folder, self.tokenizer, None if start is None else read_record(Path(start)))
            results.write_text(json.dumps(row, indent=2) + "\n")
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        return row

    def count_blocks(self, trainer: Trainer) -> int:
        """Give how many blocks were trained on.

        The last batch of an epoch may be smaller than the others; several processes fill it up.
        """
        num_steps = min(trainer.state.global_step, trainer.state.max_steps)
        size = self.training.train_batch_size * self.training.world_size
        blocks_per_step = size * self.training.gradient_accumulation_steps
        if self.is_stream:
            return num_steps * blocks_per_step
        blocks_per_epoch = len(self.train)
        if self.training.dataloader_drop_last:
            blocks_per_epoch = blocks_per_epoch // size * size
        elif self.training.world_size > 1:
            blocks_per_epoch = math.ceil(blocks_per_epoch / size) * size
        num_epochs, rest = divmod(num_steps, math.ceil(blocks_per_epoch / blocks_per_step))
        return num_epochs * blocks_per_epoch + rest * blocks_per_step

    def build_trainer(self, objective: str, model: ClassformerForMaskedLM, folder: Path) -> Trainer:
        arguments = copy.copy(self.training)
        arguments.output_dir = str(folder)
        arguments.remove_unused_columns = False  # the collator reads more than the model
        collator = ShortenedLanguageModelingCollator(
            self.tokenizer, model.config, objective, self.arguments.mlm_probability, self.arguments.whole_word_mask
        )
        trainer = PretrainingTrainer(
            model=model,
            args=arguments,
            train_dataset=self.train,
            eval_dataset=self.validation,
            data_collator=collator,
            callbacks=[StopOnInvalidLoss(), CountEpochs(collator)],
        )
        tokens = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
        show_progress(trainer, self.plan, tokens * self.block_size)
        return trainer

    def validate(self, trainer: Trainer) -> float:
        """Give the loss on the validation blocks; the same tokens are masked every time."""
        metrics = trainer.evaluate()
        if "eval_loss" not in metrics:
            raise ValueError("no batch of validation is full; lower --per_device_eval_batch_size or do not drop it.")
        return metrics["eval_loss"]

    def count_flops_of_block(self, trainer: Trainer) -> int:
        size = min(4, len(self.validation))
        batch = trainer.data_collator([self.validation[index] for index in range(size)])
        model: Any = trainer.accelerator.unwrap_model(trainer.model).train()
        return count_training_flops(model, {name: value.to(model.device) for name, value in batch.items()}) // size


def fingerprint_blocks(blocks: Dataset | IterableDataset) -> list[int]:
    """Give the number of blocks and a checksum of up to 1,000 of them, evenly spaced; of a stream, of the first."""
    if isinstance(blocks, IterableDataset):
        return [zlib.crc32(json.dumps(next(iter(blocks))["input_ids"]).encode())]
    rows = np.linspace(0, len(blocks) - 1, min(len(blocks), 1000)).astype(int)
    return [len(blocks), zlib.crc32(json.dumps(blocks[rows]["input_ids"]).encode())]


def main():
    arguments, texts, training = parse_arguments((ModelArguments, TextArguments, PretrainingArguments), __doc__)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if "none" in arguments.objectives:
        raise ValueError("none means no pretraining; `redundancy-hf train` fine-tunes a checkpoint as it is.")
    for objective in arguments.objectives:
        check_objective(objective)
    if arguments.from_scratch and arguments.model_name_or_path is None:
        raise ValueError("--from_scratch takes the shape of --model_name_or_path.")
    if "distillation" in arguments.objectives and (arguments.from_scratch or arguments.model_name_or_path is None):
        raise ValueError("distillation needs a model that has learned something: --model_name_or_path.")
    if "distillation" in arguments.objectives:
        refuse_label_smoothing(training, "distillation")
    if not 0 < arguments.mlm_probability < 1:
        raise ValueError(f"--mlm_probability is a share of the tokens, 0 to 1, got {arguments.mlm_probability}.")
    choose_schedule(arguments.gamma, arguments.eta)
    if texts.streaming and training.max_steps < 1:
        raise ValueError("a stream has no end: --streaming needs --max_steps.")
    if texts.streaming and training.dataloader_num_workers > 1:
        raise ValueError("a stream is read by one process: --dataloader_num_workers must be 0 or 1.")
    training.require_training()
    pretraining = Pretraining(arguments, texts, training)
    rows = []
    for objective in arguments.objectives:
        row = pretraining.run(objective)
        rows.append(row)
        if training.process_index > 0:
            continue
        perplexity = "" if row["perplexity"] is None else f", perplexity {row['perplexity']:.1f}"
        print(
            f"{objective}: validation loss {row['loss_before']:.4f} -> {row['loss_after']:.4f}{perplexity}; "
            f"{row['tokens']:,} tokens, {row['tokens_per_second']:,.0f} a second, "
            f"{row['training_flops'] / 1e12:.2f} TFLOP; {pretraining.output / objective}"
        )
    if training.process_index == 0:
        if len(rows) > 1:
            print("Losses of different objectives do not compare: each predicts other tokens, or states.")
        print(f"Next: redundancy-hf train --model_name_or_path {pretraining.output / rows[-1]['objective']} ...")
        write_record(str(pretraining.output / RESULTS), hardware=hardware_fingerprint(), rows=rows)
