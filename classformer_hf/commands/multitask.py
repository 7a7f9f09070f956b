r"""Train one Classformer encoder on several tasks at once, before fine-tuning (thesis section 6.2.3, equation 2.14).

    redundancy-hf multitask --model_name_or_path FacebookAI/roberta-base --dataset_names mrpc rte qqp sst2 \
        --max_train_samples 10000 --gamma 1 2 1 2 1 1 1 1 1 1 1 1 --num_train_epochs 1 --output_dir runs/multitask
    redundancy-hf multitask --model_name_or_path FacebookAI/roberta-base --dataset_names first.csv second.csv \
        --num_train_epochs 1 --output_dir runs/both

Batches mix the tasks, each has a head of its own, and every loss is divided by what guessing costs. OUTPUT_DIR is then
a folder with the encoder, which `redundancy-hf train` and `redundancy-hf search` start from. The same command resumes.
"""

import json
import shutil
import time
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import DataCollatorWithPadding, Trainer, set_seed
from transformers.utils import logging as transformers_logging

from redundancy_hf.command import FLAGS, check_settings, describe_command, describe_flags, parse_arguments
from redundancy_hf.data import load_tasks
from redundancy_hf.folders import save_folder
from redundancy_hf.limits import check_first_token, check_inputs, load_tokenizer
from redundancy_hf.plan import describe_lost_training, stoppable
from redundancy_hf.record import join_records
from redundancy_hf.timing import hardware_fingerprint
from redundancy_hf.training import StopOnInvalidLoss, find_checkpoint, show_progress

from .. import ClassformerModel, load_from_encoder
from ..checkpoints import checkpoint_fingerprint, choose_schedule
from ..multitask import MultitaskClassformer, mix_tasks
from ..pretraining import count_training_flops
from ..training import ClassformerTrainingArguments, refuse_label_smoothing


@dataclass
class MultitaskArguments:
    model_name_or_path: str = field(metadata={"help": "Folder or Hub name of the checkpoint to start from."})
    dataset_names: list[str] = field(
        metadata={"help": "Tasks: GLUE names, folders, files or standard_library (embedded)."}
    )
    gamma: list[int] | None = field(default=None, metadata={"help": "One reduction factor per layer."})
    eta: int = field(default=0, metadata={"help": "Leading tokens that stay, together with --gamma."})
    max_length: int = field(default=128, metadata={"help": "Longer texts are cut to so many tokens."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Take at most so many examples per task."})


@dataclass
class MultitaskTrainingArguments(ClassformerTrainingArguments):
    """The recipe without validation: what counts is the fine-tuning afterwards."""

    output_dir: str | None = field(default="runs/multitask", metadata={"help": "Folder for everything written."})
    eval_strategy: str = field(default="no", metadata={"help": "Nothing is validated."})
    save_strategy: str = field(default="steps", metadata={"help": "When to save what a resumed run starts from."})
    save_steps: float = field(default=0.1, metadata={"help": "Steps between checkpoints, or a share of all steps."})
    logging_strategy: str = field(default="steps", metadata={"help": "When to log: no, steps or epoch."})
    logging_steps: float = field(default=0.05, metadata={"help": "Steps between logs, or a share of all steps."})
    load_best_model_at_end: bool = field(default=False, metadata={"help": "Keep the best checkpoint."})
    # groups of one length would be groups of one task
    train_sampling_strategy: str = field(default="random", metadata={"help": "random or sequential."})


def build_trainer(
    model: MultitaskClassformer, mixed: Any, tokenizer: Any, training: ClassformerTrainingArguments
) -> Trainer:
    trainer = Trainer(
        model=model,
        args=training,
        train_dataset=mixed,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[StopOnInvalidLoss()],
    )
    show_progress(trainer)
    return trainer


def count_flops(trainer: Trainer, num_batches: int = 16) -> float:
    """Count the operations of an example's training step, padding included, over some batches."""
    model: Any = trainer.accelerator.unwrap_model(trainer.model).train()
    operations, examples = 0, 0
    for batch in islice(trainer.get_train_dataloader(), num_batches):
        operations += count_training_flops(model, {name: value.to(model.device) for name, value in batch.items()})
        examples += len(batch["labels"])
    return operations / examples


def main():
    arguments, training = parse_arguments((MultitaskArguments, MultitaskTrainingArguments), __doc__)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if training.logging_strategy == "no":
        raise ValueError("--logging_strategy no leaves no loss to report; use steps or epoch.")
    training.require_training()
    refuse_label_smoothing(training, "several tasks at once")
    if len(arguments.dataset_names) < 2:
        raise ValueError("--dataset_names needs two tasks at least; `redundancy-hf train` trains on one.")
    output = Path(str(training.output_dir))
    training.output_dir = str(output / "checkpoints")
    tokenizer = load_tokenizer(arguments.model_name_or_path)
    tasks = load_tasks(arguments.dataset_names, tokenizer, arguments.max_length, arguments.max_train_samples)
    schedule = choose_schedule(arguments.gamma, arguments.eta)
    settings = {
        "checkpoint": checkpoint_fingerprint(arguments.model_name_or_path),
        "tasks": [task.fingerprint for task in tasks],
        "schedule": schedule,
        "recipe": training.describe_recipe(),
        FLAGS: describe_flags(**asdict(arguments)),
    }
    check_settings(output / "settings.json", settings, training.process_index == 0)
    results = output / "pretrain_results.json"
    if results.exists():
        print(f"{output} is finished.")
        return
    mixed = mix_tasks(tasks)
    set_seed(training.seed)
    encoder: Any = load_from_encoder(arguments.model_name_or_path, ClassformerModel, **schedule)
    check_first_token(tokenizer)
    check_inputs(encoder, mixed)
    trainer = build_trainer(MultitaskClassformer.from_encoder(encoder, tasks), mixed, tokenizer, training)
    started = time.perf_counter()
    with stoppable(describe_lost_training(training)):
        trainer.train(resume_from_checkpoint=find_checkpoint(output / "checkpoints"))
    seconds = time.perf_counter() - started
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    tokens = sum(map(len, mixed["input_ids"])) * (trainer.state.epoch or 0)
    row = {
        "command": describe_command(),
        "hardware": hardware_fingerprint(),
        "objective": "multitask",
        "tasks": {task.name: len(task.splits["train"]) for task in tasks},
        "loss_before": losses[0],
        "loss_after": losses[-1],
        "perplexity": None,
        "tokens": round(tokens),
        # of this run, where it was resumed
        "seconds": round(seconds, 1),
        "training_flops": count_flops(trainer) * len(mixed) * (trainer.state.epoch or 0),
    }
    if training.process_index == 0:
        trained: Any = trainer.accelerator.unwrap_model(trainer.model)
        # whole, as readers expect it: with a pooler
        save_folder(trained.copy_to(encoder), output, tokenizer)
        records = [task.record for task in tasks if task.record is not None]
        join_records(records, arguments.model_name_or_path, output).write(output)
        results.write_text(json.dumps(row, indent=2) + "\n")
        shutil.rmtree(output / "checkpoints", ignore_errors=True)
        print(
            f"{len(tasks)} tasks, {len(mixed):,} examples: training loss {losses[0]:.3f} -> {losses[-1]:.3f}, where "
            f"guessing has 1; "
            f"{row['tokens']:,} tokens, {row['training_flops'] / 1e12:.2f} TFLOP; {output}"
        )
