r"""Evaluate saved classifiers of texts or images, of any architecture; by default on the test split of their own data.

    redundancy-hf evaluate runs/mrpc/full runs/mrpc/best --required_performance 0.99
    redundancy-hf evaluate runs/mrpc/best runs/mrpc-final/seed-42 --results_file runs/mrpc_test.json
    redundancy-hf evaluate your-name/model --dataset_name stanfordnlp/imdb --streaming --max_examples 500

The data are read as the first model's `task.json` says. Use flags for models without that file, and `--dataset_name`
for other data. The test split is for the end: choose by the validation split, then run this once. With
`--required_performance 0.99` the first of `--models` is the full model. Each other model gets a certificate if it keeps
at least 99 % of that score with 95 % confidence; the answer also goes to `certificate.json` in the model's folder. The
rows must be new to both models: neither training nor choice may have read them. `--update_card` writes scores into the
model cards, as the Hub shows them.
"""

import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from datasets import DatasetDict, concatenate_datasets
from huggingface_hub import EvalResult

from .. import images
from ..cards import add_results, name_dataset, write_section
from ..certificate import REFERENCES, certify, check_request
from ..command import parse_call, write_record
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
from ..record import COLUMNS, READ, TaskRecord, hash_input, hash_texts, is_other_data
from ..splits import read_splits
from ..task import TaskArguments, TaskFlags

NUM_RESAMPLES = 10_000


@dataclass(frozen=True)
class Reading:
    """What was read of a split, and what models make of it.

    Attributes:
        dataset: Name of the data set.
        rows: Hashes of what was read, (N,).
        results: By model: its row of the record, its predictions and the labels.
        evidence: What certificates rest on; `None` where none are wanted.
    """

    dataset: str
    rows: np.ndarray
    results: list[tuple[dict[str, Any], np.ndarray, np.ndarray]]
    evidence: Evidence | None = None


def evaluate_classifiers(
    models: Sequence[str],
    revision: str | None = None,
    trust_remote_code: bool = False,
    split: Literal["train", "validation", "test", "all"] = "test",
    batch_size: int = 32,
    device: str | None = None,
    image_column: str | None = None,
    streaming: bool = False,
    max_examples: int | None = None,
    more_metrics: Sequence[str] = (),
    results_file: str | None = None,
    update_card: bool = False,
    required_performance: float | None = None,
    confidence: float = 0.95,
    unseen: bool = False,
    read_again: bool = False,
    task: TaskFlags = TaskFlags(),
) -> dict[str, Any]:
    """Score saved classifiers on one split, print and record what they reach, and certify what they keep.

    Args:
        models: Saved model folders or Hub names, all of texts or all of images; also without the flag.
        revision: Branch, tag or commit of models on the Hub; pin one whose code you have read.
        trust_remote_code: Run code of a model on the Hub that is not the installed packages'.
        split: Split to evaluate on. If the data have no such split, it is carved from train as a training does;
            all: every row.
        batch_size: Examples per batch.
        device: cpu, cuda or mps; a GPU if there is one and none is named.
        image_column: Column of the image; inferred if not given.
        streaming: Read the split while it is evaluated, without storing it; no certificate.
        max_examples: Evaluate at most so many, the first ones.
        more_metrics: Metrics beside the task's: accuracy, f1, macro_f1, ...
        results_file: JSON file for the results.
        update_card: Write the score into the model card of every folder, for the Hub.
        required_performance: Certify that each model but the first keeps this share of the first one's score.
        confidence: Probability that no certificate is wrong, over all that are issued now.
        unseen: You give your word that models without a task.json were neither trained nor chosen on these rows; the
            certificate repeats it.
        read_again: Certify on rows that were read before; every earlier reading halves the risk that is left.
        task: How to read the data, if the first model has no `task.json` or other data are meant.

    Returns:
        The record: "dataset", "split", "num_examples", "majority_score" and, of "models", a row each.

    Raises:
        ValueError: A model or the data cannot be read or do not fit, or no certificate can rest on these rows.
    """
    models = [models] if isinstance(models, str) else models
    check_device(device)
    opened, kind = _open_models(models, revision, trust_remote_code)
    by_pipeline = streaming or kind == IMAGE
    if required_performance is not None:
        _check_request(required_performance, confidence, len(models), by_pipeline)
    if update_card and not all(model.is_here for model in opened):
        raise ValueError("--update_card changes folders; download the model first, or leave the flag out.")
    arguments, image_column = _choose_data(opened, kind, streaming, {**vars(task), "image_column": image_column})
    scoring: dict[str, Any] = {"batch_size": batch_size, "device": device, "more_metrics": more_metrics}
    if by_pipeline:
        examples = _open_examples(arguments, split, image_column, max_examples)
        reading = _score_examples(opened, kind, arguments, *examples, label_order=task.label_order, **scoring)
    else:
        gather = partial(gather_evidence, split=split, is_vouched=unseen, is_read_again=read_again)
        evidence = None if required_performance is None else gather
        reading = _score_task(opened, arguments, split, max_examples, evidence, **scoring)
    about = {"dataset": reading.dataset, "split": split, "required_performance": required_performance}
    record_reading(opened, reading.rows, reading.evidence is not None, **about)
    _tell_seen(opened, split, reading.rows)
    record = _describe(reading, split)
    write_record(results_file, **record)
    if reading.evidence is not None and required_performance is not None:
        _certify(opened, record, reading, reading.evidence, required_performance, confidence)
        write_record(results_file, **record)
    if update_card:
        _update_cards(opened, vars(arguments), kind, record)
    return record


def _open_models(names: Sequence[str], revision: str | None, trust_remote_code: bool) -> tuple[list[ReadModel], str]:
    """Open models of one kind; give them and the kind of their pipeline."""
    folders = {name: resolve_folder(name, revision, trust_remote_code) for name in names}
    kinds = {name: find_pipeline(folder) for name, folder in folders.items()}
    if len(set(kinds.values())) != 1:
        raise ValueError(f"--models must be all of texts or all of images, got {kinds}.")
    return [open_model(name, folders[name]) for name in names], kinds[names[0]]


def _check_request(required_performance: float, confidence: float, num_models: int, by_pipeline: bool):
    if by_pipeline:
        raise ValueError("--required_performance is for data sets of texts that are not streamed.")
    if num_models < 2:
        raise ValueError(
            f"--required_performance compares with the first of --models, got {num_models} model; name the full model "
            "and then at least one other."
        )
    check_request(required_performance, confidence, num_models - 1)


def _choose_data(models: list[ReadModel], kind: str, streaming: bool, typed: dict[str, Any]) -> tuple[Any, str | None]:
    """Give the arguments to read the data by, of the first `task.json` or of the flags, and the column of images."""
    is_image = kind == IMAGE and not streaming
    found = choose_arguments(images.ImageDataArguments if is_image else TaskArguments, models, typed)
    column = typed["image_column"]
    record = next((model.record for model in models if model.record is not None), None)
    if record is None:
        return found, column
    if is_other_data(record, typed):
        return found if is_image or streaming else _keep_columns(found, record, typed), column
    return found, column or record.arguments.get("image_column")


def _keep_columns(found: TaskArguments, record: TaskRecord, typed: dict[str, Any]) -> TaskArguments:
    """Take the columns of the record in other data too, if all of them are there and none is named."""
    columns = {name: record.arguments[name] for name in COLUMNS if record.arguments.get(name)}
    if not columns or any(map(typed.get, COLUMNS)) or found.dataset_name in (None, EMBEDDED):
        return found
    there = read_splits(str(found.dataset_name), found.dataset_config_name)[1]["train"].column_names
    return replace(found, **columns) if set(columns.values()) <= set(there) else found


def _open_examples(
    arguments: Any, split: str, image_column: str | None, max_examples: int | None
) -> tuple[str, Callable[[], Iterator[tuple[Any, str]]]]:
    """Open images, or what is streamed; give the name of the data, and what starts to read pairs of input and label."""
    if isinstance(arguments, TaskArguments):
        dataset, read = stream_examples(arguments, split, image_column)
        return dataset, lambda: itertools.islice(read(), max_examples)
    task = images.load_task(arguments)
    rows = task.splits.values() if split == "all" else [task.splits[split]]
    return task.name, lambda: (
        (row["image"], task.label_names[row["labels"]])
        for row in itertools.islice(itertools.chain.from_iterable(rows), max_examples)
    )


def _score_examples(
    models: list[ReadModel],
    kind: str,
    arguments: Any,
    dataset: str,
    read: Callable[[], Iterator[tuple[Any, str]]],
    label_order: list[str] | None,
    batch_size: int,
    device: str | None,
    more_metrics: Sequence[str],
) -> Reading:
    """Evaluate by pipelines, on images or on anything that is streamed."""
    results, hashes = [], list[np.ndarray]()

    def note() -> Iterator[tuple[Any, str]]:
        for example, label in read():
            hashes.append(hash_input(example))
            yield example, label

    for model in models:
        hashes.clear()
        # images have no length
        length = getattr(arguments, "max_length", 0)
        predictions, labels = evaluate_examples(model.folder, kind, note(), batch_size, device, length, label_order)
        results.append((score_model(model.name, ["accuracy", *more_metrics], predictions, labels), predictions, labels))
    return Reading(dataset, np.concatenate(hashes), results)


def _score_task(
    models: list[ReadModel],
    arguments: TaskArguments,
    split: str,
    max_examples: int | None,
    gather: Callable[[list[ReadModel], np.ndarray], Evidence] | None,
    batch_size: int,
    device: str | None,
    more_metrics: Sequence[str],
) -> Reading:
    """Evaluate on a task of texts, of any kind of label; with `gather`, on the rows that a certificate may rest on."""
    task, evidence = load_task(arguments, is_whole=split == "all"), None
    splits = {**task.splits, "all": concatenate_datasets(list(task.splits.values()))} if split == "all" else task.splits
    if split not in splits:
        raise ValueError(f"{task.name} has no {split} split, only {sorted(splits)}.")
    chosen = splits[split]
    if max_examples is not None:
        chosen = chosen.select(range(min(max_examples, len(chosen))))
    rows = hash_texts([chosen[column] for column in task.text_columns])
    if gather is not None:
        # of a published folder the splits tell what its training read, if they are the same
        evidence = gather([model.with_rows_of(task.record) for model in models], rows)
        chosen, rows = chosen.select(evidence.kept), rows[evidence.kept]
    labels, results = np.asarray(chosen["labels"]), []
    task = replace(task, splits=DatasetDict({split: chosen}))
    for model in models:
        # the model first, because its files are checked
        classifier, tokenizer = load_classifier(model.folder), load_processor(model.folder)
        order = order_outputs(classifier.config, task, model.name)
        inputs = tokenize(task, tokenizer, arguments.max_length).splits[split]
        classifier.to(device or torch.accelerator.current_accelerator() or "cpu")
        outputs = predict(classifier, inputs, tokenizer, batch_size)
        predictions = predictions_from_logits(task.problem_type, outputs[:, order])
        row = score_model(model.name, [task.metric_name, *more_metrics], predictions, labels)
        results.append((row, predictions, labels))
    return Reading(task.name, rows, results, evidence)


def _tell_seen(models: list[ReadModel], split: str, rows: np.ndarray):
    """Say how many of the rows trained or chose a model, whose score they flatter."""
    for model in models:
        is_seen = model.has_seen(rows)
        if is_seen is not None and is_seen.any() and split not in READ:
            print(
                f"note: {is_seen.sum():,} of {len(rows):,} rows had been read by the training of {model.name} or by a "
                "choice in it; they flatter its score."
            )


def _describe(reading: Reading, split: str) -> dict[str, Any]:
    rows, (_, _, labels) = [row for row, _, _ in reading.results], reading.results[0]
    majority = constant_score(rows[0]["metric_name"], labels, labels)
    print(f"{reading.dataset} {split}: {len(labels)} examples, majority {majority:.4f}")
    for row in rows:
        more = "".join(f", {name} {value:.4f}" for name, value in row.get("more_metrics", {}).items())
        low, high = row["confidence_interval"]
        print(f"{row['model']}: {row['metric_name']} {row['score']:.4f} (95 %: {low:.4f} to {high:.4f}){more}")
    return {
        "dataset": reading.dataset,
        "split": split,
        "num_examples": len(labels),
        "majority_score": majority,
        "models": rows,
    }


def _certify(
    models: list[ReadModel],
    record: dict[str, Any],
    reading: Reading,
    evidence: Evidence,
    required_performance: float,
    confidence: float,
):
    """Add to every row but the first whether its model keeps the required share of the first one's score.

    A full model that is no better than a constant makes that mean little, which the record and the sentences say.
    """
    (full, full_predictions, labels), *others = reading.results
    margin, majority, warning = 2 * full["standard_error"], record["majority_score"], ""
    if full["score"] < majority + margin:
        record["warning"] = (
            f"the full model's {full['metric_name']} {full['score']:.4f} is not above the majority's "
            f"{majority:.4f} by 2 standard errors ({margin:.4f}): to keep a share of that means little."
        )
        warning = f" Warning: {record['warning']}"
    number = evidence.count_candidates(len(others))
    # so many tell so small a risk
    resamples = max(NUM_RESAMPLES, math.ceil(10 * number / (1 - confidence)))
    for (row, predictions, _), model in zip(others, models[1:], strict=True):
        certificate = certify(
            *(full["metric_name"], full_predictions, predictions, labels),
            *(required_performance, confidence, number, resamples),
        )
        row["certificate"] = {
            "sentence": certificate.sentence + evidence.sentences + warning,
            **asdict(certificate),
            "full_model": full["model"],
            "reference": _read_reference(models[0].folder),
            "dataset": record["dataset"],
            "split": record["split"],
            "num_examples_left_out": evidence.num_dropped,
            "reading": evidence.reading,
            "unseen_by_word": list(evidence.vouched),
        }
        print(f"{row['model']}: {row['certificate']['sentence']}")
        if model.is_here:
            (model.folder / "certificate.json").write_text(json.dumps(row["certificate"], indent=2) + "\n")


def _read_reference(folder: Path) -> str | None:
    """Read which full model a search has kept in a folder, one of `REFERENCES`; `None` where none says."""
    with suppress(OSError, ValueError, AttributeError):
        found = json.loads((folder / "search.json").read_text()).get("reference")
        return found if found in REFERENCES else None
    return None


def _update_cards(models: list[ReadModel], arguments: dict[str, Any], kind: str, record: dict[str, Any]):
    """Write every model's score, and its certificate if one was asked for, into the card in its folder."""
    number = record["num_examples"]
    for model, row in zip(models, record["models"], strict=True):
        result = EvalResult(
            task_type=kind,
            **name_dataset(record["dataset"], arguments),
            dataset_split=record["split"],
            metric_type=row["metric_name"],
            metric_name=f"{row['metric_name']}, n = {number}",
            metric_value=round(row["score"], 4),
        )
        add_results(model.folder, [result])
        if certificate := row.get("certificate"):
            full, reference = Path(certificate["full_model"]).name, certificate["reference"]
            full += f" ({REFERENCES[reference]})" if reference is not None else ""
            where = f"the {record['split']} split of {record['dataset']} ({number} examples)"
            write_section(model.folder, "Certificate", f"Against {full}, on {where}: {certificate['sentence']}")
        print(f"{model.name}/README.md tells the score")


def main():
    evaluate_classifiers(**parse_call(evaluate_classifiers, __doc__, positional="models"))
