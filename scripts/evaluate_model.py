"""Evaluate saved classifiers, of any architecture, on a dataset; by default on its test split.

Example:

    python scripts/evaluate_model.py --models runs/mrpc/best runs/mrpc-final/seed-42 --dataset_name mrpc \
        --output results/mrpc_test.json

The test split is for the end: choose by the validation split, then run this once. With `--required_performance 0.99`
the first of `--models` is the full model, and for each other one the same reading says whether it keeps at least 99 %
of that score with 95 % confidence; the answer also goes to `certificate.json` in the model's folder.
"""

import json
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
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
from classformer_hf.search.certificate import certify, check_request


@dataclass
class EvaluationArguments:
    models: list[str] = field(metadata={"help": "Saved model folders or Hub names."})
    split: str = field(
        default="test", metadata={"help": "Split to evaluate on.", "choices": ["train", "validation", "test"]}
    )
    batch_size: int = field(default=32, metadata={"help": "Examples per batch."})
    use_cpu: bool = field(default=False, metadata={"help": "Stay on the CPU even if there is a GPU."})
    output: str | None = field(default=None, metadata={"help": "JSON file for the results."})
    required_performance: float | None = field(
        default=None,
        metadata={"help": "Certify that each model but the first keeps this share of the first one's score."},
    )
    confidence: float = field(default=0.95, metadata={"help": "Of all certificates together."})


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


def evaluate_folder(
    name: str, task: Task, arguments: EvaluationArguments, max_length: int
) -> tuple[dict, np.ndarray, np.ndarray]:
    """Return a model's row, its predictions and the labels."""
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
    row = {
        "model": name if Path(name).exists() and not Path(name).is_absolute() else Path(name).name,
        "metric_name": task.metric_name,
        "score": compute_score(task.metric_name, predictions, output.label_ids),
        "standard_error": standard_error(task.metric_name, predictions, output.label_ids),
    }
    return row, predictions, np.asarray(output.label_ids)


def certify_rows(results: list[tuple[dict, np.ndarray, np.ndarray]], task: Task, arguments: EvaluationArguments):
    """Add to every row but the first whether its model keeps the required share of the first one's score."""
    (full_row, full_predictions, references), *others = results
    for (row, predictions, _), name in zip(others, arguments.models[1:], strict=True):
        certificate = certify(
            full_row["metric_name"],
            full_predictions,
            predictions,
            references,
            arguments.required_performance,
            arguments.confidence,
            num_candidates=len(others),
        )
        row["certificate"] = {
            "sentence": certificate.sentence,
            **asdict(certificate),
            "full_model": full_row["model"],
            "dataset": task.name,
            "split": arguments.split,
        }
        print(f"{row['model']}: {certificate.sentence}")
        if Path(name).is_dir():
            (Path(name) / "certificate.json").write_text(json.dumps(row["certificate"], indent=2) + "\n")


def check_arguments(arguments: EvaluationArguments, task: Task):
    if arguments.split not in task.splits:
        raise ValueError(f"{task.name} has no {arguments.split} split, only {sorted(task.splits)}.")
    if arguments.required_performance is None:
        return
    if len(arguments.models) < 2:
        raise ValueError(
            f"--required_performance compares with the first of --models, got {len(arguments.models)} model; "
            "name the full model and then at least one other."
        )
    check_request(arguments.required_performance, arguments.confidence, len(arguments.models) - 1)


def write_json(path: str | None, record: dict):
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(record, indent=2) + "\n")


def main():
    arguments, task_arguments = parse_arguments((EvaluationArguments, TaskArguments), __doc__)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    task = load_task(task_arguments)
    check_arguments(arguments, task)
    results = [evaluate_folder(name, task, arguments, task_arguments.max_length) for name in arguments.models]
    rows = [row for row, _, _ in results]
    majority = majority_score(task, arguments.split)
    num_examples = len(task.splits[arguments.split])
    print(f"{task.name} {arguments.split}: {num_examples} examples, majority {majority:.4f}")
    for row in rows:
        print(
            f"{row['model']}: {row['metric_name']} {row['score']:.4f} +- {row['standard_error']:.4f} (standard error)"
        )
    record = {
        "command": describe_command(),
        "dataset": task.name,
        "split": arguments.split,
        "num_examples": num_examples,
        "majority_score": majority,
        "models": rows,
    }
    write_json(arguments.output, record)
    if arguments.required_performance is not None:
        full, margin = rows[0], 2 * rows[0]["standard_error"]
        if full["score"] < majority + margin:
            record["warning"] = (
                f"the full model's {full['metric_name']} {full['score']:.4f} is not above the majority's "
                f"{majority:.4f} by 2 standard errors ({margin:.4f}): to keep a share of that means little."
            )
            print(f"warning: {record['warning']}")
        certify_rows(results, task, arguments)
        write_json(arguments.output, record)


if __name__ == "__main__":
    run_command(main)
