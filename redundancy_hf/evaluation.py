"""Evaluation of saved classifiers, of texts or images and of any architecture, by pipelines over single examples."""

import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import ClassLabel, Dataset, Image
from huggingface_hub import snapshot_download
from scipy.stats import binomtest
from tqdm import tqdm
from transformers import BatchEncoding, DataCollatorWithPadding, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from .cards import find_task
from .columns import NUM_PROBED, describe_columns, find_text_columns
from .failures import explain_failure, first_line, retry_if_busy
from .folders import check_golden_output, find_load_defects, find_notes, find_strange_code, is_export
from .isolation import check_tokenizer
from .labels import as_class, find_label_column, is_missing
from .limits import check_inputs, load_tokenizer
from .metrics import compute_score, standard_error
from .outputs import describe_assumption, find_label_order, name_outputs, normalise_name
from .runtimes import ExportedClassifier
from .splits import GLUE_REPOSITORY, GLUE_TASKS, name_path, stream_splits
from .task import Task, TaskArguments

logger = logging.getLogger(__name__)
# what a command says on standard output
screen = logging.getLogger("screen")

TEXT, IMAGE = "text-classification", "image-classification"
AUTO_CLASSES = {TEXT: "AutoModelForSequenceClassification", IMAGE: "AutoModelForImageClassification"}
DOWNLOADED = ("*.json", "*.safetensors", "*.py", "*.txt", "*.model", "*.jinja")
PROCESSORS = {TEXT: "tokenizer", IMAGE: "image_processor"}


def resolve_folder(name: str, revision: str | None = None, trust_remote_code: bool = False) -> Path:
    """Give the local folder of a model; of one on the Hub its files are downloaded, code and safetensors only.

    What a folder holds is checked before any of its code runs, and what is odd is said. `trust_remote_code` lets code
    from the Hub run that is not the installed packages'.

    Raises:
        ValueError: There is no such model, or it would not load, or has code that is not trusted.
    """
    folder = Path(name)
    if not folder.is_dir():
        try:
            folder = Path(
                retry_if_busy(lambda: snapshot_download(name, revision=revision, allow_patterns=list(DOWNLOADED)))
            )
        except (OSError, ValueError) as error:
            reason = explain_failure(name, error, revision)
            raise ValueError(reason or f"{name} cannot be read: {first_line(error)}") from error
    if defects := find_load_defects(folder):
        raise ValueError(f"{name} does not load: {'; '.join(defects)}.")
    strange = find_strange_code(folder)
    if strange and not Path(name).is_dir() and not trust_remote_code:
        raise ValueError(
            f"{name} has code that is not the installed packages': {', '.join(strange)}. Read it in {folder}, then "
            "give --trust_remote_code, and pin what you have read by --revision."
        )
    for note in find_notes(folder):
        logger.warning(f"{name}: {note}.")
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """Give the settings of a saved model as they are written."""
    return PreTrainedConfig.get_config_dict(folder)[0]


def find_pipeline(folder: Path) -> str:
    """Say which pipeline a saved classifier is for.

    Raises:
        ValueError: It is no classifier of texts or images.
    """
    config = read_config(folder)
    kind = find_task(config)
    if kind not in AUTO_CLASSES:
        architecture = (config.get("architectures") or ["nothing"])[0]
        raise ValueError(f"{folder} is no classifier of texts or images: its architecture is {architecture}.")
    return kind


def load_classifier(folder: Path, kind: str = TEXT, needs_head: bool = True) -> Any:
    """Load a classifier with the code that travels with it; the Auto classes would prefer the installed package.

    A stored output is compared. Exported graphs are opened, with as many threads as torch has. Without `needs_head` a
    base checkpoint gets a random head, to be timed.

    Raises:
        ValueError: It does not load, or gives another output than was stored with it.
    """
    if is_export(folder):
        return ExportedClassifier.from_pretrained(folder, num_threads=torch.get_num_threads())
    try:
        reference = read_config(folder).get("auto_map", {}).get(AUTO_CLASSES[kind])
        model_class: Any = getattr(transformers, AUTO_CLASSES[kind])
        if reference is not None:
            model_class = get_class_from_dynamic_module(reference, str(folder))
        model, info = model_class.from_pretrained(folder, output_loading_info=True, ignore_mismatched_sizes=True)
    # what hostile settings break, in as many kinds as there are layers
    except Exception as error:
        raise ValueError(f"{folder} does not load: {first_line(error.__cause__ or error)}") from error
    missing = info["missing_keys"] if needs_head else []
    if wrong := sorted({*missing, *(key for key, *_ in info["mismatched_keys"])}):
        raise ValueError(
            f"{folder} does not load: its weights lack {', '.join(wrong[:5])}, or have them in other shapes."
        )
    # with a new head there is nothing to compare
    if not info["missing_keys"]:
        check_golden_output(model, folder)
    return model


def order_outputs(config: Any, task: Task, name: str) -> list[int]:
    """Find a task's labels among a classifier's outputs, by name or in the order that the user has given.

    Returns:
        Of every label the index of its output.

    Raises:
        ValueError: They do not mean the same; names the classifier.
    """
    found = name_outputs(config)
    order = find_label_order(found, task.label_names, task.output_names)
    if order is None:
        difference = f"{name} predicts {found}, but {task.name} has the labels {task.label_names}"
        if len(found) != task.num_labels:
            raise ValueError(f"{difference}: not as many.")
        raise ValueError(f"{difference}; if they mean the same, say in which order it has them by --label_order.")
    if order.is_assumed:
        screen.info(describe_assumption(name, found, task.label_names))
    return order.outputs


def load_processor(folder: Path, kind: str = TEXT) -> Any:
    """Load the tokenizer or image processor of a saved folder.

    Raises:
        ValueError: It does not load.
    """
    part = PROCESSORS[kind].replace("_", " ")
    try:
        if kind == TEXT:
            tokenizer = load_tokenizer(str(folder), trust_remote_code=True)
            check_tokenizer(tokenizer, read_config(folder).get("vocab_size") or 0)
            return tokenizer
        if not (folder / "preprocessor_config.json").is_file():
            raise ValueError("there is no preprocessor_config.json; save the model's there too")
        return transformers.AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    except Exception as error:  # of parsers and of whatever the file names
        raise ValueError(f"the {part} in {folder} does not load: {first_line(error)}") from error


def stream_examples(
    arguments: TaskArguments, split_name: str, image_column: str | None = None
) -> tuple[str, Callable[[], Iterator[tuple[Any, str]]]]:
    """Open a split that is read while it is used, without storing it, and print which columns are read.

    The split is named as the data set does; of a GLUE task "test" is its validation split.

    Returns:
        The data set's name, and what starts to read: pairs of a pipeline's input and the name of its label.

    Raises:
        ValueError: It cannot be read, or a column cannot be found; when it is used, an example has no label.
    """
    source = str(arguments.dataset_name)
    split = _open_stream(source, arguments.dataset_config_name, split_name)
    path = Path(source).expanduser()
    name = name_path(path) if path.exists() else source
    label_column = find_label_column(split, arguments.label_column)
    label = split.features[label_column]
    images = [column for column, feature in split.features.items() if isinstance(feature, Image)]

    def read_rows() -> Iterator[dict[str, Any]]:
        try:
            yield from split
        except Exception as error:  # of parsers and decoders
            raise ValueError(
                f"cannot read an example of the split {split_name!r} of {source}: {first_line(error)}"
            ) from error

    def name_label(value: Any) -> str:
        if is_missing(value) or str(value) == "-1":
            raise ValueError(f"the split {split_name!r} of {source} has an example without a label.")
        return label.int2str(value) if isinstance(label, ClassLabel) else str(as_class(value))

    if images:
        column = image_column or images[0]
        screen.info(f"{name}: images from {column}, labels from {label_column}")
        return name, lambda: ((row[column], name_label(row[label_column])) for row in read_rows())
    given = tuple(c for c in (arguments.text_column, arguments.text_pair_column) if c)
    rows = list(itertools.islice(read_rows(), NUM_PROBED))
    if not rows:
        raise ValueError(f"the split {split_name!r} of {source} is empty: there is no example to evaluate.")
    first = Dataset.from_list(rows, features=split.features)
    text_columns = find_text_columns(first, label_column, given)
    screen.info(f"{name}: {describe_columns(first, text_columns, label_column)}")

    def read_texts(row: dict[str, Any]) -> dict[str, str]:
        for column in text_columns:
            if row[column] is None:
                raise ValueError(f"the split {split_name!r} of {source} has an example without a text in {column!r}.")
        return {key: row[column] for key, column in zip(("text", "text_pair"), text_columns, strict=False)}

    return name, lambda: ((read_texts(row), name_label(row[label_column])) for row in read_rows())


def _open_stream(name: str, config_name: str | None, split_name: str) -> Any:
    if name in GLUE_TASKS:
        # the labels of its test split are not public, so that the validation split takes its place
        if split_name == "validation":
            raise ValueError(f"the validation split of {name} is the test split here; name that one.")
        name, config_name, split_name = GLUE_REPOSITORY, name, split_name.replace("test", "validation")
    if Path(name).expanduser().is_file() and split_name != "train":
        raise ValueError(f"one file is a train split: stream {Path(name).name} with --split train.")
    try:
        splits = stream_splits(name, config_name)
        if split_name not in splits:
            raise ValueError(f"there are only {', '.join(splits)}")
        split = splits[split_name]
        return split if split.features else split._resolve_features()
    except StopIteration as error:
        raise ValueError(f"the split {split_name!r} of {name} is empty: there is no example to evaluate.") from error
    # of connections, parsers and builders, in many kinds
    except Exception as error:
        raise ValueError(f"cannot stream the split {split_name!r} of {name}: {first_line(error)}") from error


def evaluate_examples(
    folder: Path,
    kind: str,
    examples: Iterable[tuple[Any, str]],
    batch_size: int = 32,
    device: str | None = None,
    max_length: int = 128,
    label_names: list[str] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Run a saved classifier's pipeline over pairs of its input and the name of the label.

    Longer texts are cut to `max_length` tokens. It runs on a GPU if there is one and no device is named; labels are
    named as [`_number_labels`] says.

    Returns:
        Predictions and labels as ids, (N,) each.

    Raises:
        ValueError: There is no example, or one has a label that the model does not know.
    """
    model, processor = load_classifier(folder, kind), load_processor(folder, kind)
    outputs = name_outputs(model.config)
    find_id = _number_labels(folder, outputs, label_names)
    options: dict[str, Any] = {"truncation": True, "max_length": max_length} if kind == TEXT else {}
    if kind == TEXT and max_length > processor.model_max_length:
        raise ValueError(
            f"`max_length` must be at most the tokenizer's `model_max_length` of {processor.model_max_length}, got "
            f"{max_length}."
        )
    parts: dict[str, Any] = {PROCESSORS[kind]: processor}
    classify: Any = transformers.pipeline(kind, model=model, device=device, **parts)  # type: ignore[call-overload]
    references: list[int] = []

    def inputs() -> Iterator[Any]:
        for example, label in examples:
            references.append(find_id(label))
            yield example

    answers = classify(inputs(), batch_size=batch_size, top_k=1, **options)
    try:
        best = [
            answer[0] if isinstance(answer, list) else answer
            for answer in tqdm(answers, desc=folder.name, unit="example", leave=False)
        ]
    except IndexError as error:
        raise ValueError(
            f"{folder} has no row for a token of its tokenizer, which is another model's or has words that the model "
            "never got."
        ) from error
    if not best:
        raise ValueError("there is no example to evaluate; check --split and --max_examples.")
    if any(math.isnan(answer["score"]) for answer in best):
        raise ValueError(f"{folder} gives NaN for an example; check its inputs and weights.")
    return np.asarray([outputs.index(answer["label"]) for answer in best]), np.asarray(references)


def _number_labels(folder: Path, outputs: list[str], label_names: list[str] | None) -> Callable[[str], int]:
    """Give what finds the output of a label, by `label_names`, the data's names for the outputs, in order.

    By default they are the model's, whatever the case, or the numbers.
    """
    known = label_names or outputs
    if len(known) != len(outputs):
        raise ValueError(f"--label_order must name the outputs of {folder}, {outputs}, got {known}.")
    # names may differ in case or signs only
    normalise = normalise_name if len(set(map(normalise_name, known))) == len(known) else str
    ids = {normalise(label): index for index, label in enumerate(known)}

    def find_id(label: str) -> int:
        if normalise(label) not in ids:
            raise ValueError(
                f"{folder} predicts {known}, but the data have the label {label!r}; --label_order says what the data "
                "call its outputs, in order."
            )
        return ids[normalise(label)]

    return find_id


@torch.inference_mode()
def predict(model: Any, split: Dataset, tokenizer: PreTrainedTokenizerBase, batch_size: int = 64) -> np.ndarray:
    """Compute a classifier's logits or values for a tokenised split, (N, K), in the dtype and on the device it has.

    Raises:
        ValueError: The model has no table for an input.
    """
    check_inputs(model, split)
    was_training = model.training
    model.eval()
    outputs = np.zeros((len(split), model.config.num_labels), np.float32)
    for rows, batch in batches_by_length(split, tokenizer, batch_size):
        outputs[rows] = model(**batch.to(model.device)).logits.float().cpu().numpy()
    model.train(was_training)
    return outputs


def batches_by_length(
    split: Dataset, tokenizer: PreTrainedTokenizerBase, batch_size: int
) -> Iterator[tuple[np.ndarray, BatchEncoding]]:
    """Cut a tokenised split into padded batches of similar length, without labels; gives the rows of each too."""
    inputs = split.remove_columns([name for name in split.column_names if name == "labels"])
    order = np.argsort([len(ids) for ids in inputs["input_ids"]], kind="stable")
    collate = DataCollatorWithPadding(tokenizer)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        yield rows, BatchEncoding(collate([inputs[int(row)] for row in rows]))


def interval_of(metric_name: str, score: float, error: float, number: int) -> list[float]:
    """Give a 95 % interval: Wilson's for accuracy, else the score and 1.96 standard errors, within its range."""
    if metric_name == "accuracy":
        found = binomtest(round(score * number), number).proportion_ci(method="wilson")
        return [float(found.low), float(found.high)]
    lowest = -1.0 if metric_name in ("matthews_correlation", "spearmanr") else 0.0
    return [max(lowest, score - 1.96 * error), min(1.0, score + 1.96 * error)]


def check_device(device: str | None):
    """Refuse a device that torch cannot use here.

    Raises:
        ValueError: Says why.
    """
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise ValueError(f"--device must be one that torch can use here, got {device}: {first_line(error)}") from error


def score_model(name: str, metric_names: list[str], predictions: Any, references: Any) -> dict[str, Any]:
    """Score predictions by the first metric, with its standard error and 95 % interval, and by the others.

    Of a model in a folder elsewhere only the last part of the name is kept.
    """
    first, *others = metric_names
    score, error = (measure(first, predictions, references) for measure in (compute_score, standard_error))
    row = {
        "model": name if Path(name).exists() and not Path(name).is_absolute() else Path(name).name,
        "metric_name": first,
        "score": score,
        "standard_error": error,
        "confidence_interval": interval_of(first, score, error, len(references)),
    }
    if others:
        row["more_metrics"] = {other: compute_score(other, predictions, references) for other in others}
    return row
