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

import json
import logging
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset
from transformers import Trainer

from redundancy_hf.command import FLAGS, check_settings, describe_flags, describe_run, parse_call, write_record
from redundancy_hf.corpus import load_standard_library_task, train_tokenizer
from redundancy_hf.folders import save_folder
from redundancy_hf.limits import check_inputs, load_tokenizer
from redundancy_hf.plan import Plan, describe_lost_training
from redundancy_hf.record import read_record
from redundancy_hf.timing import hardware_fingerprint
from redundancy_hf.training import StopOnInvalidLoss, find_checkpoint, run_seed, show_progress

from .. import ClassformerConfig, ClassformerForMaskedLM, load_from_encoder
from ..checkpoints import checkpoint_fingerprint, choose_schedule
from ..demo import describe_demo_model
from ..flops import count_step_flops
from ..pretraining import (
    CountEpochs,
    PretrainingTrainer,
    ShortenedLanguageModelingCollator,
    build_objective,
    check_objective,
    take_backbone,
)
from ..texts import TextArguments, group_into_blocks, load_texts
from ..training import LongTrainingArguments, refuse_label_smoothing

logger = logging.getLogger(__name__)

RESULTS = "pretrain_results.json"


@dataclass
class PretrainingArguments(LongTrainingArguments):
    """The recipe of pretraining.

    Betas, weight decay and shape of the learning rate are RoBERTa's (Liu et al. 2019, table 9); peak and batch size are
    for far fewer tokens than its 8,000 x 512 at a time, and epsilon and clipping are the Trainer's.
    """

    output_dir: str | None = field(default="runs/pretraining", metadata={"help": "Folder for everything written."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Epochs over which the learning rate decays to 0."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate of AdamW."})
    warmup_steps: float = field(default=0.06, metadata={"help": "Warm-up: steps, or below 1 a share of all steps."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay of AdamW."})
    adam_beta2: float = field(default=0.98, metadata={"help": "Second momentum coefficient of AdamW."})
    per_device_eval_batch_size: int = field(default=16, metadata={"help": "Blocks per batch of validation."})


def pretrain_classformer(
    text: TextArguments,
    training: PretrainingArguments,
    model_name_or_path: str | None = None,
    from_scratch: bool = False,
    gamma: Sequence[int] | None = None,
    eta: int = 0,
    objectives: Sequence[str] = ("funnel",),
    mlm_probability: float = 0.15,
    whole_word_mask: bool = False,
) -> list[dict[str, Any]]:
    """Pretrain a model for one or more objectives, each into a folder of its own; what is finished is read back.

    Args:
        text: What to learn from.
        training: The recipe.
        model_name_or_path: Checkpoint to start from; without one a small model is made.
        from_scratch: Random weights in the checkpoint's shape.
        gamma: One reduction factor per layer.
        eta: Leading tokens that stay, together with --gamma.
        objectives: What to learn: first_k, last_k, gamma_th, dense, funnel, distillation.
        mlm_probability: Share of the tokens that are to be predicted.
        whole_word_mask: Choose whole words.

    Returns:
        A row per objective: losses before and after, perplexity, tokens, seconds, operations.

    Raises:
        ValueError: The text or the checkpoint cannot be read, arguments do not fit, or a folder holds another training.
    """
    check_objectives(objectives, from_scratch, model_name_or_path, training)
    if not 0 < mlm_probability < 1:
        raise ValueError(f"--mlm_probability is a share of the tokens, 0 to 1, got {mlm_probability}.")
    schedule = choose_schedule(gamma, eta)
    if text.streaming and training.max_steps < 1:
        raise ValueError("a stream has no end: --streaming needs --max_steps.")
    if text.streaming and training.dataloader_num_workers > 1:
        raise ValueError("a stream is read by one process: --dataloader_num_workers must be 0 or 1.")
    training.require_training()
    output = Path(str(training.output_dir))
    output.mkdir(parents=True, exist_ok=True)  # if it cannot be, that is said before long work
    unfinished = [one for one in objectives if not (output / one / RESULTS).exists()]
    plan = Plan(dict.fromkeys(unfinished), has_bars=not training.disable_tqdm)
    pretraining = Pretraining(
        text, training, plan, model_name_or_path, from_scratch, schedule, mlm_probability, whole_word_mask
    )
    rows = []
    for objective in objectives:
        settings = pretraining.settings(objective)
        check_settings(output / objective / "settings.json", settings, training.process_index == 0)
        rows.append(run_seed(pretraining.train, training, output / objective, training.seed, RESULTS))
        if training.process_index == 0:
            print(f"{describe_row(rows[-1])}; {output / objective}")
    if training.process_index == 0:
        if len(rows) > 1:
            print("Losses of different objectives do not compare: each predicts other tokens, or states.")
        print(f"Next: redundancy-hf train --model_name_or_path {output / objectives[-1]} ...")
        write_record(str(output / RESULTS), hardware=hardware_fingerprint(), rows=rows)
    return rows


def check_objectives(
    objectives: Sequence[str], from_scratch: bool, checkpoint: str | None, training: PretrainingArguments
):
    """Refuse objectives that are none, or have nothing to start from; arguments as of [`pretrain_classformer`]."""
    if "none" in objectives:
        raise ValueError("none means no pretraining; `redundancy-hf train` fine-tunes a checkpoint as it is.")
    for objective in objectives:
        check_objective(objective)
    if from_scratch and checkpoint is None:
        raise ValueError("--from_scratch takes the shape of --model_name_or_path.")
    if "distillation" in objectives:
        if from_scratch or checkpoint is None:
            raise ValueError("distillation needs a model that has learned something: --model_name_or_path.")
        refuse_label_smoothing(training, "distillation")


def describe_row(row: dict[str, Any]) -> str:
    perplexity = "" if row["perplexity"] is None else f", perplexity {row['perplexity']:.1f}"
    return (
        f"{row['objective']}: validation loss {row['loss_before']:.4f} -> {row['loss_after']:.4f}{perplexity}; "
        f"{row['tokens']:,} tokens, {row['tokens_per_second']:,.0f} a second, {row['training_flops'] / 1e12:.2f} TFLOP"
    )


@dataclass
class Pretraining:
    """What all objectives share: the start, the tokenizer and the blocks of text; arguments as of the verb."""

    text: TextArguments
    training: PretrainingArguments
    plan: Plan
    checkpoint: str | None
    from_scratch: bool
    schedule: dict[str, Any]
    mlm_probability: float
    whole_word_mask: bool

    def __post_init__(self):
        if self.checkpoint is not None:
            self.tokenizer = load_tokenizer(self.checkpoint)
        else:
            self.tokenizer = train_tokenizer(load_standard_library_task())
        raw, text = load_texts(self.text), self.text
        with self.training.main_process_first(desc="making blocks"):
            train, validation = (
                group_into_blocks(part, self.tokenizer, text.block_size, self.whole_word_mask, description)
                for part, description in ((raw.train, "train blocks"), (raw.validation, "validation blocks"))
            )
        self.validation = validation.select(range(min(len(validation), text.max_validation_blocks)))
        self.blocks = train if text.max_train_blocks is None else train.take(text.max_train_blocks)
        self.fingerprint: list[Any] = [
            raw.name,
            text.dataset_config_name,
            text.streaming,
            text.block_size,
            text.max_train_blocks,
            fingerprint_blocks(self.validation),
            fingerprint_blocks(self.blocks),
        ]

    def settings(self, objective: str) -> dict[str, Any]:
        """Say what decides the result, so that only the same training is resumed."""
        return {
            "checkpoint": checkpoint_fingerprint(self.checkpoint) if self.checkpoint else "small",
            "text": self.fingerprint,
            "objective": [objective, self.mlm_probability, self.whole_word_mask, self.from_scratch],
            "schedule": [self.schedule.get("gamma"), self.schedule.get("eta", 0)],
            "recipe": self.training.describe_recipe(),
            FLAGS: describe_flags(model_name_or_path=self.checkpoint),
            "batches of validation": self.training.per_device_eval_batch_size,
        }

    def load_model(self) -> ClassformerForMaskedLM:
        """Give the model that every objective starts from."""
        if self.checkpoint is None:
            return ClassformerForMaskedLM(ClassformerConfig(**describe_demo_model(self.tokenizer), **self.schedule))
        model: Any = load_from_encoder(self.checkpoint, ClassformerForMaskedLM, **self.schedule)
        for blocks in (self.blocks, self.validation):
            if isinstance(blocks, Dataset):
                check_inputs(model, blocks)
        return ClassformerForMaskedLM(model.config) if self.from_scratch else model

    def train(self, arguments: PretrainingArguments, folder: Path) -> dict[str, Any]:
        """Train for the objective that the folder is named like, and save the backbone."""
        model, objective = self.load_model(), folder.name
        if max(model.config.gamma or ()) == 1:
            if objective == "distillation":
                raise ValueError("distillation has nothing to learn where no layer reduces; give --gamma.")
            logger.warning("no layer reduces: %s is pretraining at full length; --gamma shortens.", objective)
        trainer = self.build_trainer(objective, build_objective(objective, model), arguments)
        before = self.validate(trainer)
        with self.plan.stage(objective, lost=describe_lost_training(arguments)):
            pace = trainer.train(resume_from_checkpoint=find_checkpoint(folder / "checkpoints")).metrics
        after = self.validate(trainer)
        num_blocks = self.count_blocks(trainer)
        tokens = num_blocks * self.text.block_size
        row = {
            **describe_run(),
            "objective": objective,
            "loss_before": before,
            "loss_after": after,
            "perplexity": None if objective == "distillation" else math.exp(min(after, 700)),  # of which e is a float
            "tokens": tokens,
            # of this run, where it was resumed
            "seconds": round(pace["train_runtime"], 1),
            "tokens_per_second": round(tokens / trainer.state.global_step * pace["train_steps_per_second"], 1),
            "training_flops": self.count_flops_of_block(trainer) * num_blocks,
        }
        if arguments.process_index == 0:
            backbone = take_backbone(trainer.accelerator.unwrap_model(trainer.model))
            # text without labels flatters no score, but what the checkpoint was trained on does
            record = read_record(Path(self.checkpoint)) if self.checkpoint and not self.from_scratch else None
            save_folder(backbone, folder, self.tokenizer, record)
        return row

    def count_blocks(self, trainer: Trainer) -> int:
        """Count the blocks of all steps, also of those whose checkpoint does not say how many tokens it has seen.

        The last batch of an epoch may be smaller than the others; several processes fill it up.
        """
        arguments, num_steps = trainer.args, trainer.state.global_step
        size = arguments.train_batch_size * arguments.world_size
        blocks_per_step = size * arguments.gradient_accumulation_steps
        if isinstance(self.blocks, IterableDataset):
            return num_steps * blocks_per_step
        blocks_per_epoch = len(self.blocks)
        if arguments.dataloader_drop_last:
            blocks_per_epoch = blocks_per_epoch // size * size
        elif arguments.world_size > 1:
            blocks_per_epoch = math.ceil(blocks_per_epoch / size) * size
        num_epochs, rest = divmod(num_steps, math.ceil(blocks_per_epoch / blocks_per_step))
        return num_epochs * blocks_per_epoch + rest * blocks_per_step

    def build_trainer(self, objective: str, model: ClassformerForMaskedLM, arguments: PretrainingArguments) -> Trainer:
        arguments.remove_unused_columns = False  # the collator reads more than the model
        collator = ShortenedLanguageModelingCollator(
            self.tokenizer, model.config, objective, self.mlm_probability, self.whole_word_mask
        )
        trainer = PretrainingTrainer(
            model=model,
            args=arguments,
            train_dataset=self.blocks,
            eval_dataset=self.validation,
            data_collator=collator,
            callbacks=[StopOnInvalidLoss(), CountEpochs(collator)],
        )
        blocks = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
        show_progress(trainer, self.plan, blocks * self.text.block_size)
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
        return count_step_flops(trainer, batch) // size


def fingerprint_blocks(blocks: Dataset | IterableDataset) -> list[int]:
    """Give the number of blocks and a checksum of up to 1,000 of them, evenly spaced; of a stream, of the first."""
    if isinstance(blocks, IterableDataset):
        return [zlib.crc32(json.dumps(next(iter(blocks))["input_ids"]).encode())]
    rows = np.linspace(0, len(blocks) - 1, min(len(blocks), 1000)).astype(int)
    return [len(blocks), zlib.crc32(json.dumps(blocks[rows]["input_ids"]).encode())]


def main():
    pretrain_classformer(**parse_call(pretrain_classformer, __doc__))
