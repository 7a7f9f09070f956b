r"""Evaluate saved classifiers of texts or images, of any architecture; by default on the test split of their own data.

    redundancy-hf evaluate runs/mrpc/full runs/mrpc/best --required_performance 0.99
    redundancy-hf evaluate runs/mrpc/best runs/mrpc-final/seed-42 --results_file results/mrpc_test.json
    redundancy-hf evaluate your-name/model --dataset_name stanfordnlp/imdb --streaming --max_examples 500

How the data are read stands in the first model's `task.json`; flags are for models without one, and `--dataset_name`
for other data. The test split is for the end: choose by the validation split, then run this once. With
`--required_performance 0.99` the first of `--models` is the full model, and for each other one the same reading says
whether it keeps at least 99 % of that score with 95 % confidence; the answer also goes to `certificate.json` in the
model's folder. That takes rows that no training and no choice of either model has read, and a reading of its own.
`--update_card` writes scores into the model cards, as the Hub shows them.
"""

import importlib
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import DatasetDict, concatenate_datasets
from huggingface_hub import EvalResult
from transformers.utils import logging as transformers_logging

from ..cards import add_results, name_dataset, write_section
from ..certificate import REFERENCES, certify, check_request
from ..command import describe_command, format_record, parse_arguments
from ..data import EMBEDDED, load_task, tokenize
from ..evaluation import (
    IMAGE,
    check_device,
    evaluate_examples,
    find_pipeline,
    load_classifier,
    load_processor,
    order_outputs,
    predict,
    resolve_folder,
    score_model,
    stream_examples,
)
from ..metrics import constant_score, predictions_from_logits
from ..readings import Evidence, ReadModel, choose_arguments, gather_evidence, open_model, record_reading
from ..record import COLUMNS, READ, TaskRecord, hash_input, hash_texts, is_other_data, make_flags
from ..splits import read_splits
from ..task import Task, TaskArguments

Results = list[tuple[dict, np.ndarray, np.ndarray]]
NUM_RESAMPLES = 10_000


@dataclass
class EvaluationArguments:
    models: list[str] = field(
        metadata={"help": "Saved model folders or Hub names, all of texts or all of images; also without the flag."}
    )
    revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of models on the Hub; pin one whose code you have read."}
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run code of a model on the Hub that is not the installed packages'."}
    )
    split: str = field(
        default="test",
        metadata={
            "help": "Split to evaluate on. One that is missing, as of a single file, is carved from train as for a "
            "training; all: every row.",
            "choices": ["train", "validation", "test", "all"],
        },
    )
    batch_size: int = field(default=32, metadata={"help": "Examples per batch."})
    device: str | None = field(
        default=None, metadata={"help": "cpu, cuda or mps; a GPU if there is one and none is named."}
    )
    image_column: str | None = field(default=None, metadata={"help": "Column of the image; inferred if not given."})
    streaming: bool = field(
        default=False, metadata={"help": "Read the split while it is evaluated, without storing it; no certificate."}
    )
    max_examples: int | None = field(default=None, metadata={"help": "Evaluate at most so many, the first ones."})
    more_metrics: list[str] = field(
        default_factory=list, metadata={"help": "Metrics beside the task's: accuracy, f1, macro_f1, ..."}
    )
    results_file: str | None = field(default=None, metadata={"help": "JSON file for the results."})
    update_card: bool = field(
        default=False, metadata={"help": "Write the score into the model card of every folder, for the Hub."}
    )
    required_performance: float | None = field(
        default=None,
        metadata={"help": "Certify that each model but the first keeps this share of the first one's score."},
    )
    confidence: float = field(default=0.95, metadata={"help": "Of all certificates together."})
    unseen: bool = field(
        default=False,
        metadata={
            "help": "Your word, which the certificate repeats, that models without a task.json were neither trained "
            "nor chosen on these rows."
        },
    )
    read_again: bool = field(
        default=False,
        metadata={"help": "Certify on rows that were read before; every earlier reading halves the risk that is left."},
    )


def evaluate_folder(name: str, folder: Path, task: Task, arguments: EvaluationArguments, max_length: int) -> tuple:
    """Return a model's row, its predictions and the labels, of a task of texts."""
    # the model first, because its files are checked
    model = load_classifier(folder)
    tokenizer = load_processor(folder)
    order = order_outputs(model.config, task, name)
    split = tokenize(task, tokenizer, max_length).splits[arguments.split]
    device = arguments.device or torch.accelerator.current_accelerator() or "cpu"
    logits = predict(model.to(device), split, tokenizer, arguments.batch_size)[:, order]
    predictions = predictions_from_logits(task.problem_type, logits)
    references = np.asarray(split["labels"])
    metric_names = [task.metric_name, *arguments.more_metrics]
    return score_model(name, metric_names, predictions, references), predictions, references


def read_texts(arguments: EvaluationArguments, task_arguments: TaskArguments) -> tuple[Task, np.ndarray]:
    """Give a task whose split is what is to be evaluated, and the hashes of its rows."""
    task = load_task(task_arguments, is_whole=arguments.split == "all")
    if arguments.split == "all":
        every = concatenate_datasets(list(task.splits.values()))
        task = replace(task, splits=DatasetDict({"train": every, "all": every}))
    check_arguments(arguments, task)
    split = task.splits[arguments.split]
    if arguments.max_examples is not None:
        split = task.splits[arguments.split] = split.select(range(min(arguments.max_examples, len(split))))
    return task, hash_texts([split[column] for column in task.text_columns])


def evaluate_texts(
    models: list[ReadModel], arguments: EvaluationArguments, task_arguments: TaskArguments
) -> tuple[dict, Results, Task, np.ndarray, Evidence | None]:
    """Evaluate on a task of texts, of any kind of label.

    Returns:
        The record, all results, the task, the hashes of the rows that were read, and what a certificate may rest on.
    """
    task, rows = read_texts(arguments, task_arguments)
    evidence = None
    if arguments.required_performance is not None:
        # of a published folder the splits tell what its training read, if they are the same
        known = [model.with_rows_of(task.record) for model in models]
        evidence = gather_evidence(known, rows, arguments.split, arguments.unseen, arguments.read_again)
        task.splits[arguments.split], rows = task.splits[arguments.split].select(evidence.kept), rows[evidence.kept]
    results = [
        evaluate_folder(model.name, model.folder, task, arguments, task_arguments.max_length) for model in models
    ]
    labels = np.asarray(task.splits[arguments.split]["labels"])
    facts = {"dataset": task.name, "majority_score": constant_score(task.metric_name, labels, labels)}
    return facts, results, task, rows, evidence


def image_data() -> Any:
    """Give the module that reads data sets of images, which this package does not know before it is asked."""
    return importlib.import_module("vision_hf.data")


def read_images(arguments: EvaluationArguments, task_arguments: Any) -> tuple[str, Callable]:
    """Load a task of images; give its name, and what starts to read its pairs of image and label."""
    task = image_data().load_task(task_arguments)
    chosen = list(task.splits) if arguments.split == "all" else [arguments.split]

    def read() -> Iterator[tuple[Any, str]]:
        for row in itertools.chain.from_iterable(task.splits[name] for name in chosen):
            yield row["image"], task.label_names[row["labels"]]

    return task.name, read


def evaluate_by_pipeline(
    models: list[ReadModel],
    arguments: EvaluationArguments,
    task_arguments: Any,
    kind: str,
    label_order: list[str] | None,
) -> tuple[dict, Results, np.ndarray]:
    """Evaluate on images, or on anything that is streamed; give the record, all results and the rows' hashes."""

    if isinstance(task_arguments, TaskArguments):
        dataset, read = stream_examples(task_arguments, arguments.split, arguments.image_column)
    else:
        dataset, read = read_images(arguments, task_arguments)
    results: Results = []
    hashes: list[np.ndarray] = []

    def note(examples: Iterable[tuple[Any, str]]) -> Iterator[tuple[Any, str]]:
        for example, label in examples:
            hashes.append(hash_input(example))
            yield example, label

    for model in models:
        hashes.clear()
        predictions, references = evaluate_examples(
            model.folder,
            kind,
            note(read()),
            arguments.batch_size,
            arguments.device,
            # images have no length
            getattr(task_arguments, "max_length", 0),
            arguments.max_examples,
            label_order,
        )
        row = score_model(model.name, ["accuracy", *arguments.more_metrics], predictions, references)
        results.append((row, predictions, references))
    references = results[0][2]
    facts = {"dataset": dataset, "majority_score": constant_score("accuracy", references, references)}
    # the pipeline may have looked ahead
    return facts, results, np.concatenate(hashes)[: len(references)]


def certify_rows(results: Results, task: Task, arguments: EvaluationArguments, evidence: Evidence, warning: str):
    """Add to every row but the first whether its model keeps the required share of the first one's score.

    Args:
        results: Of all models, the full one first.
        task: What was read.
        arguments: Of the command.
        evidence: What the certificates rest on.
        warning: What makes them mean little, which they repeat; empty where nothing does.
    """
    (full_row, full_predictions, references), *others = results
    assert arguments.required_performance is not None, "there is something to certify"
    number = evidence.count_candidates(len(others))
    for (row, predictions, _), name in zip(others, arguments.models[1:], strict=True):
        certificate = certify(
            full_row["metric_name"],
            full_predictions,
            predictions,
            references,
            arguments.required_performance,
            arguments.confidence,
            num_candidates=number,
            num_resamples=count_resamples(number, arguments.confidence),
        )
        row["certificate"] = {
            "sentence": certificate.sentence + evidence.sentences + (f" Warning: {warning}" if warning else ""),
            **asdict(certificate),
            "full_model": full_row["model"],
            "reference": read_reference(Path(arguments.models[0])),
            "dataset": task.name,
            "split": arguments.split,
            "num_examples_left_out": evidence.num_dropped,
            "reading": evidence.reading,
            "unseen_by_word": list(evidence.vouched),
        }
        print(f"{row['model']}: {row['certificate']['sentence']}")
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


def count_resamples(num_candidates: int, confidence: float) -> int:
    """Say how many resamples tell so small a risk."""
    return max(NUM_RESAMPLES, math.ceil(10 * num_candidates / (1 - confidence)))


def write_json(path: str | None, record: dict):
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(format_record(record) + "\n")


def describe_certificate(certificate: dict, num_examples: int) -> str:
    where = f"the {certificate['split']} split of {certificate['dataset']} ({num_examples} examples)"
    full = Path(certificate["full_model"]).name
    if certificate["reference"] is not None:
        full += f" ({REFERENCES[certificate['reference']]})"
    return f"Against {full}, on {where}: {certificate['sentence']}"


def read_reference(folder: Path) -> str | None:
    """Read which full model a search has kept in a folder, one of `REFERENCES`; `None` where none says."""
    with suppress(OSError, ValueError, AttributeError):
        found = json.loads((folder / "search.json").read_text()).get("reference")
        return found if found in REFERENCES else None
    return None


def update_cards(arguments: EvaluationArguments, task_arguments: Any, kind: str, record: dict):
    """Write every model's score, and its certificate if one was asked for, into the card in its folder."""
    for name, row in zip(arguments.models, record["models"], strict=True):
        result = EvalResult(
            task_type=kind,
            **name_dataset(record["dataset"], vars(task_arguments)),
            dataset_split=arguments.split,
            metric_type=row["metric_name"],
            metric_name=f"{row['metric_name']}, n = {record['num_examples']}",
            metric_value=round(row["score"], 4),
        )
        add_results(Path(name), [result])
        if "certificate" in row:
            write_section(Path(name), "Certificate", describe_certificate(row["certificate"], record["num_examples"]))
        print(f"{name}/README.md tells the score")


def certify_models(record: dict, results: Results, task: Task, arguments: EvaluationArguments, evidence: Evidence):
    """Say whether the others keep the required share of the first one's score, and whether that means anything."""
    full, margin, majority = results[0][0], 2 * results[0][0]["standard_error"], record["majority_score"]
    if full["score"] < majority + margin:
        record["warning"] = (
            f"the full model's {full['metric_name']} {full['score']:.4f} is not above the majority's "
            f"{majority:.4f} by 2 standard errors ({margin:.4f}): to keep a share of that means little."
        )
    certify_rows(results, task, arguments, evidence, record.get("warning", ""))


def choose_data(arguments: EvaluationArguments, flags: Any, models: list[ReadModel], kind: str) -> Any:
    """Say how to read the data: as the first `task.json` has it, or as the flags say where there is none."""
    is_image = kind == IMAGE and not arguments.streaming
    typed = {**vars(flags), "image_column": arguments.image_column}
    found = choose_arguments(image_data().ImageTaskArguments if is_image else TaskArguments, models, typed)
    record = next((model.record for model in models if model.record is not None), None)
    if record is None:
        return found
    if is_other_data(record, typed):
        return found if is_image or arguments.streaming else keep_columns(found, record, typed)
    arguments.image_column = arguments.image_column or record.arguments.get("image_column")
    return found


def keep_columns(found: TaskArguments, record: TaskRecord, typed: dict[str, Any]) -> TaskArguments:
    """Take the columns of the record in other data too, if all of them are there and none is named."""
    columns = {name: record.arguments[name] for name in COLUMNS if record.arguments.get(name)}
    is_named = any(typed.get(name) for name in COLUMNS)
    if is_named or not columns or found.dataset_name in (None, EMBEDDED):
        return found
    there = read_splits(str(found.dataset_name), found.dataset_config_name)[1]["train"].column_names
    return replace(found, **columns) if set(columns.values()) <= set(there) else found


def tell_seen(arguments: EvaluationArguments, models: list[ReadModel], rows: np.ndarray):
    """Say how many of the rows trained or chose a model, whose score they flatter."""
    for model in models:
        is_seen = model.has_seen(rows)
        if is_seen is not None and is_seen.any() and arguments.split not in READ:
            print(
                f"note: {is_seen.sum():,} of {len(rows):,} rows had been read by the training of {model.name} or by a "
                "choice in it; they flatter its score."
            )


def main():
    types = (EvaluationArguments, make_flags(TaskArguments))
    arguments, flags = parse_arguments(types, __doc__, positional="models")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    check_device(arguments.device)
    folders = {name: resolve_folder(name, arguments.revision, arguments.trust_remote_code) for name in arguments.models}
    kinds = {name: find_pipeline(folder) for name, folder in folders.items()}
    kind = kinds[arguments.models[0]]
    if set(kinds.values()) != {kind}:
        raise ValueError(f"--models must be all of texts or all of images, got {kinds}.")
    by_pipeline = arguments.streaming or kind == IMAGE
    if by_pipeline and arguments.required_performance is not None:
        raise ValueError("--required_performance is for data sets of texts that are not streamed.")
    if arguments.update_card and not all(Path(name).is_dir() for name in arguments.models):
        raise ValueError("--update_card changes folders; download the model first, or leave the flag out.")
    models = [open_model(name, folders[name]) for name in arguments.models]
    task_arguments = choose_data(arguments, flags, models, kind)
    task = evidence = None
    if by_pipeline:
        facts, results, rows = evaluate_by_pipeline(models, arguments, task_arguments, kind, flags.label_order)
    else:
        facts, results, task, rows, evidence = evaluate_texts(models, arguments, task_arguments)
    about = {"dataset": facts["dataset"], "split": arguments.split}
    record_reading(models, rows, evidence is not None, **about, required_performance=arguments.required_performance)
    tell_seen(arguments, models, rows)
    record = {
        "command": describe_command(),
        "dataset": facts["dataset"],
        "split": arguments.split,
        "num_examples": len(results[0][2]),
        "majority_score": facts["majority_score"],
        "models": [row for row, _, _ in results],
    }
    print(
        f"{record['dataset']} {arguments.split}: {record['num_examples']} examples, "
        f"majority {record['majority_score']:.4f}"
    )
    for row in record["models"]:
        more = "".join(f", {name} {value:.4f}" for name, value in row.get("more_metrics", {}).items())
        low, high = row["confidence_interval"]
        print(f"{row['model']}: {row['metric_name']} {row['score']:.4f} (95 %: {low:.4f} to {high:.4f}){more}")
    write_json(arguments.results_file, record)
    if evidence is not None:
        certify_models(record, results, task, arguments, evidence)
        write_json(arguments.results_file, record)
    if arguments.update_card:
        update_cards(arguments, task_arguments, kind, record)
