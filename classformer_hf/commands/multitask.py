r"""Train one Classformer encoder on several tasks at once, before fine-tuning (thesis section 6.2.3, equation 2.14).

    redundancy-hf multitask --model_name_or_path FacebookAI/roberta-base --dataset_names mrpc rte qqp sst2 \
        --max_train_samples 10000 --gamma 1 2 1 2 1 1 1 1 1 1 1 1 --num_train_epochs 1 --output_dir runs/multitask
    redundancy-hf multitask --model_name_or_path FacebookAI/roberta-base --dataset_names first.csv second.csv \
        --num_train_epochs 1 --output_dir runs/both

Batches mix the tasks, and each task has a head of its own. Every loss is divided by the loss of guessing, so that a
task of many classes does not outweigh the others. OUTPUT_DIR then holds the encoder, which `redundancy-hf train` and
`redundancy-hf search` start from. The same command resumes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase, Trainer

from redundancy_hf.command import FLAGS, check_settings, describe_flags, describe_run, parse_call
from redundancy_hf.data import load_tasks
from redundancy_hf.folders import save_folder
from redundancy_hf.limits import check_first_token, check_inputs, load_tokenizer
from redundancy_hf.plan import describe_lost_training, stoppable
from redundancy_hf.record import join_records
from redundancy_hf.task import Task
from redundancy_hf.timing import hardware_fingerprint
from redundancy_hf.training import StopOnInvalidLoss, find_checkpoint, run_seed, show_progress

from .. import ClassformerModel, load_from_encoder
from ..checkpoints import checkpoint_fingerprint, choose_schedule
from ..flops import count_step_flops
from ..multitask import MultitaskClassformer, mix_tasks
from ..training import ClassformerTrainingArguments, LongTrainingArguments, refuse_label_smoothing
from .pretrain import RESULTS


@dataclass
class MultitaskTrainingArguments(LongTrainingArguments):
    """The recipe, without validation."""

    output_dir: str | None = field(default="runs/multitask", metadata={"help": "Folder for everything written."})


def train_multitask(
    model_name_or_path: str,
    dataset_names: Sequence[str],
    training: MultitaskTrainingArguments,
    gamma: Sequence[int] | None = None,
    eta: int = 0,
    max_length: int = 128,
    max_train_samples: int | None = None,
) -> dict[str, Any]:
    """Train an encoder on several tasks at once; what is finished is read back.

    Args:
        model_name_or_path: Folder or Hub name of the checkpoint to start from.
        dataset_names: Tasks: GLUE names, folders, files or standard_library (embedded).
        training: The recipe; its output folder is then a folder with the encoder.
        gamma: One reduction factor per layer.
        eta: Leading tokens that stay, together with --gamma.
        max_length: Longer texts are cut to so many tokens.
        max_train_samples: Take at most so many examples per task.

    Returns:
        The row of results: losses at the beginning and the end, tokens, seconds, operations.

    Raises:
        ValueError: The data or the checkpoint cannot be read, arguments do not fit, or the folder holds another
            training.
    """
    if training.logging_strategy == "no":
        raise ValueError("--logging_strategy no leaves no loss to report; use steps or epoch.")
    training.require_training()
    refuse_label_smoothing(training, "several tasks at once")
    if len(dataset_names) < 2:
        raise ValueError("--dataset_names needs two tasks at least; `redundancy-hf train` trains on one.")
    output, tokenizer = Path(str(training.output_dir)), load_tokenizer(model_name_or_path)
    tasks = load_tasks(list(dataset_names), tokenizer, max_length, max_train_samples)
    schedule = choose_schedule(gamma, eta)
    settings = {
        "checkpoint": checkpoint_fingerprint(model_name_or_path),
        "tasks": [task.fingerprint for task in tasks],
        "schedule": schedule,
        "recipe": training.describe_recipe(),
        FLAGS: describe_flags(
            model_name_or_path=model_name_or_path,
            dataset_names=list(dataset_names),
            gamma=gamma and list(gamma),
            eta=eta,
            max_length=max_length,
            max_train_samples=max_train_samples,
        ),
    }
    check_settings(output / "settings.json", settings, training.process_index == 0)
    if (output / RESULTS).exists():
        print(f"{output} is finished.")
    train = partial(train_encoder, model_name_or_path, tasks, tokenizer, schedule)
    return run_seed(train, training, output, training.seed, RESULTS)


def train_encoder(
    checkpoint: str,
    tasks: list[Task],
    tokenizer: PreTrainedTokenizerBase,
    schedule: dict[str, Any],
    arguments: ClassformerTrainingArguments,
    folder: Path,
) -> dict[str, Any]:
    """Train the encoder of a checkpoint with a schedule, and save it; returns the row of results."""
    mixed = mix_tasks(tasks)
    encoder: Any = load_from_encoder(checkpoint, ClassformerModel, **schedule)
    check_first_token(tokenizer)
    check_inputs(encoder, mixed)
    trainer = Trainer(
        model=MultitaskClassformer.from_encoder(encoder, tasks),
        args=arguments,
        train_dataset=mixed,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[StopOnInvalidLoss()],
    )
    show_progress(trainer)
    with stoppable(describe_lost_training(arguments)):
        pace = trainer.train(resume_from_checkpoint=find_checkpoint(folder / "checkpoints")).metrics
    epochs = trainer.state.epoch or 0
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    row: dict[str, Any] = {
        **describe_run(),
        "hardware": hardware_fingerprint(),
        "objective": "multitask",
        "tasks": {task.name: len(task.splits["train"]) for task in tasks},
        "loss_before": losses[0],
        "loss_after": losses[-1],
        "perplexity": None,
        "tokens": round(sum(map(len, mixed["input_ids"])) * epochs),
        # of this run, where it was resumed
        "seconds": round(pace["train_runtime"], 1),
        "training_flops": count_flops(trainer) * len(mixed) * epochs,
    }
    if arguments.process_index == 0:
        trained: Any = trainer.accelerator.unwrap_model(trainer.model)
        # whole, as readers expect it: with a pooler
        save_folder(trained.copy_to(encoder), folder, tokenizer)
        join_records([task.record for task in tasks if task.record is not None], checkpoint, folder).write(folder)
        print(
            f"{len(tasks)} tasks, {len(mixed):,} examples: training loss {losses[0]:.3f} -> {losses[-1]:.3f}, "
            f"where guessing has 1; {row['tokens']:,} tokens, {row['training_flops'] / 1e12:.2f} TFLOP; {folder}"
        )
    return row


def count_flops(trainer: Trainer, num_batches: int = 16) -> float:
    """Count the operations of an example's training step, padding included, over some batches."""
    batches = list(islice(trainer.get_train_dataloader(), num_batches))
    operations = sum(count_step_flops(trainer, batch) for batch in batches)
    return operations / sum(len(batch["labels"]) for batch in batches)


def main():
    train_multitask(**parse_call(train_multitask, __doc__))
