"""Evaluate saved classifiers, of any architecture, on a dataset; by default on its test split.

Example:

    python scripts/evaluate_model.py --models runs/mrpc/best runs/mrpc-final/seed-42 --dataset_name mrpc \
        --output results/mrpc_test.json

The test split is for the end: choose by the validation split, then run this once.
"""

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedConfig,
    Trainer,
    TrainingArguments,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.utils import logging as transformers_logging

from classformer_hf.command import describe_command, parse_arguments, run_command
from classformer_hf.data import Task, TaskArguments, load_task, load_tokenizer, tokenize
from classformer_hf.metrics import compute_score, majority_score, predictions_from_logits, standard_error


@dataclass
class EvaluationArguments:
    models: list[str] = field(metadata={"help": "Saved model folders or Hub names."})
    split: str = field(
        default="test", metadata={"help": "Split to evaluate on.", "choices": ["train", "validation", "test"]}
    )
    batch_size: int = field(default=32, metadata={"help": "Examples per batch."})
    use_cpu: bool = field(default=False, metadata={"help": "Stay on the CPU even if there is a GPU."})
    output: str | None = field(default=None, metadata={"help": "JSON file for the results."})


def check_labels(model, task: Task, name: str):
    """Refuse a model whose outputs mean something else than the dataset's labels."""
    found = [model.config.id2label[index] for index in range(model.config.num_labels)]
    generic = [f"LABEL_{index}" for index in range(model.config.num_labels)]
    if len(found) != task.num_labels or (found != list(task.label_names) and found != generic):
        raise ValueError(f"{name} predicts {found}, but {task.name} has the labels {list(task.label_names)}.")


def load_model(name: str):
    """Load a classifier with the code that travels with it; the Auto classes would prefer the installed package."""
    config, _ = PreTrainedConfig.get_config_dict(name)
    reference = config.get("auto_map", {}).get("AutoModelForSequenceClassification")
    if reference is not None:
        return get_class_from_dynamic_module(reference, name).from_pretrained(name)
    return AutoModelForSequenceClassification.from_pretrained(name)


def evaluate_folder(name: str, task: Task, arguments: EvaluationArguments, max_length: int) -> dict:
    tokenizer = load_tokenizer(name, trust_remote_code=True)
    model = load_model(name)
    check_labels(model, task, name)
    split = tokenize(task, tokenizer, max_length).splits[arguments.split]
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=tempfile.gettempdir(),
            per_device_eval_batch_size=arguments.batch_size,
            use_cpu=arguments.use_cpu,
            dataloader_pin_memory=False,
            report_to="none",
        ),
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    output = trainer.predict(split)
    predictions = predictions_from_logits(task.problem_type, output.predictions)
    return {
        "model": name if Path(name).exists() and not Path(name).is_absolute() else Path(name).name,
        "metric_name": task.metric_name,
        "score": compute_score(task.metric_name, predictions, output.label_ids),
        "standard_error": standard_error(task.metric_name, predictions, output.label_ids),
    }


def main():
    arguments, task_arguments = parse_arguments((EvaluationArguments, TaskArguments), __doc__)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    task = load_task(task_arguments)
    if arguments.split not in task.splits:
        raise ValueError(f"{task.name} has no {arguments.split} split, only {sorted(task.splits)}.")
    rows = [evaluate_folder(name, task, arguments, task_arguments.max_length) for name in arguments.models]
    majority = majority_score(task, arguments.split)
    num_examples = len(task.splits[arguments.split])
    print(f"{task.name} {arguments.split}: {num_examples} examples, majority {majority:.4f}")
    for row in rows:
        print(
            f"{row['model']}: {row['metric_name']} {row['score']:.4f} +- {row['standard_error']:.4f} (standard error)"
        )
    if arguments.output is not None:
        record = {
            "command": describe_command(),
            "dataset": task.name,
            "split": arguments.split,
            "num_examples": num_examples,
            "majority_score": majority,
            "models": rows,
        }
        Path(arguments.output).parent.mkdir(parents=True, exist_ok=True)
        Path(arguments.output).write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    run_command(main)
