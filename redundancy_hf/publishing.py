"""What makes a saved folder, of any package, fit for the Hub: checks, model card, one commit, and reading it back."""

import filecmp
import json
import logging
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import safetensors.torch
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    EvalResult,
    HfApi,
    ModelCard,
    ModelCardData,
    snapshot_download,
)
from huggingface_hub.errors import HfHubHTTPError

from .cards import find_licence_defect, load_card
from .folders import (
    CODE_PREFIXES,
    EXPORT_INDEX,
    GOLDEN,
    check_difference,
    find_leaks,
    find_load_defects,
    find_outside_links,
    is_export,
    list_files,
    store_golden_output,
)
from .isolation import run_elsewhere
from .record import FILE as TASK_FILE
from .record import read_record
from .splits import GLUE_REPOSITORY, GLUE_TASKS

logger = logging.getLogger(__name__)

# at the top of a repository, of an earlier push: what a folder no longer has must not be loaded with it
REPLACED = ("model*.safetensors", "model.safetensors.index.json", *(f"{prefix}*.py" for prefix in CODE_PREFIXES))
# data sets that come with a library
EMBEDDED = ("standard_library", "digits")
GENERATED = "[More Information Needed]"
BUSY = (429, 500, 502, 503, 504)
PLACEHOLDER = "path/or/name/of/this/model"
PIPELINES = {"SequenceClassification": "text-classification", "MaskedLM": "fill-mask"}
PIPELINES |= {"ImageClassification": "image-classification"}
LOADING = {
    "text-classification": ('pipeline("text-classification", model=name, trust_remote_code=True)', "pipeline"),
    "image-classification": ('pipeline("image-classification", model=name, trust_remote_code=True)', "pipeline"),
    "fill-mask": ("AutoModelForMaskedLM.from_pretrained(name, trust_remote_code=True)", "AutoModelForMaskedLM"),
    None: ("AutoModel.from_pretrained(name, trust_remote_code=True)", "AutoModel"),
}


EXPORT_LOADING = "from transformers import pipeline\n\nfrom redundancy_hf.runtimes import ExportedClassifier\n"
EXPORT_CALL = (
    "model = ExportedClassifier.from_pretrained(folder, num_threads=1)\n"
    'classify = pipeline("text-classification", model=model, tokenizer=folder)'
)


@dataclass(frozen=True)
class Verification:
    """What a fresh process found in a folder; `difference` is `None` where no output was stored to compare with."""

    model_class: str
    parameters: int
    difference: float | None

    def __str__(self) -> str:
        words = f"{self.model_class}, {self.parameters:,} parameters"
        if self.difference is None:
            return f"{words}; no output was stored with it to compare with"
        return f"{words}, output within {self.difference:.1e} of the stored one"


def verify_folder(
    folder: Path, names: list[str] | None = None, private: Mapping[str, str] | None = None
) -> Verification:
    """Check a folder's files, then load and run it in a fresh process without this project's packages.

    Args:
        folder: The saved model. A stored output is compared; if there is none, the one computed is stored.
        names: Its files; by default those that [`list_files`] gives.
        private: As for [`find_leaks`].

    Raises:
        ValueError: Says all that is wrong.
    """
    defects = find_load_defects(folder) + find_leaks(folder, names or list_files(folder)[0], private)
    if defects:
        raise ValueError(f"{folder.name} is not fit for the Hub: {'; '.join(defects)}.")
    golden = folder / GOLDEN
    with tempfile.TemporaryDirectory() as temporary:
        output = Path(temporary, "output.safetensors")
        stored = str(golden.resolve()) if golden.is_file() else None
        try:
            found = run_elsewhere("verify", folder, stored=stored, output=str(output))
        except RuntimeError as error:
            raise ValueError(f"{folder.name} does not load or run without this project: {error}") from error
        if stored is None:
            store_golden_output(safetensors.torch.load_file(output), folder)
    if found["difference"] is not None:
        check_difference(found["difference"], found["dtype"], folder.name)
    config = json.loads((folder / "config.json").read_text())
    missing = sorted(set(found["auto_map"].items()) - set((config.get("auto_map") or {}).items()))
    if missing:
        raise ValueError(f"{folder.name}: auto_map of config.json lacks {dict(missing)}; save the model again.")
    return Verification(found["class"], found["parameters"], found["difference"])


def find_task(config: dict) -> str | None:
    """Name the pipeline of a saved model's configuration, if its head has one."""
    architecture = (config.get("architectures") or [""])[0]
    return next((tag for end, tag in PIPELINES.items() if architecture.endswith(end)), None)


def _new_card(folder: Path, title: str) -> ModelCard:
    config = json.loads((folder / "config.json").read_text())
    if is_export(folder):
        about = describe_export(json.loads((folder / EXPORT_INDEX).read_text()))
        code = f'{EXPORT_LOADING}\nfolder = "{title}"\n{EXPORT_CALL}'
        text = f"# {title}\n\n{about[0].upper()}{about[1:]}\n\n```python\n{code}\n```\n"
        return ModelCard(f"---\n{ModelCardData().to_yaml()}\n---\n\n{text}")
    call, name = LOADING[find_task(config)]
    schedule = ""
    if "gamma" in config:
        schedule = (
            f"\n## Schedule\n\n`gamma = {config['gamma']}`, `eta = {config['eta']}`: layer l keeps its first eta query "
            "positions and then every gamma[l]-th one, so that the sequence gets shorter with depth. Pad inputs on the "
            "right.\n"
        )
    return ModelCard(
        f"---\n{ModelCardData().to_yaml()}\n---\n\n# {title}\n\nA {(config.get('architectures') or ['model'])[0]}.\n\n"
        f'```python\nfrom transformers import {name}\n\nname = "{PLACEHOLDER}"\nmodel = {call}\n```\n{schedule}'
    )


def complete_card(folder: Path, repo_id: str, license: str | None = None, base_model: str | list[str] | None = None):
    """Write a folder's model card if it has none, and fill in what its metadata lacks.

    Args:
        folder: With a config.json.
        repo_id: Name on the Hub, which the card tells how to load.
        license: As the metadata name it; `None` leaves what there is.
        base_model: Where the model comes from; `None` leaves what there is.

    Raises:
        ValueError: The card is damaged, or there is no licence in it and none given.
    """
    path, config = folder / "README.md", json.loads((folder / "config.json").read_text())
    title = repo_id.rpartition("/")[2]
    if path.is_file():
        card = load_card(path)
        if GENERATED in card.text:
            # of `push_to_hub`, which writes a form to be filled in
            card.text = _new_card(folder, title).text
    else:
        card = _new_card(folder, title)
    defaults = {"library_name": "transformers", "pipeline_tag": find_task(config), "tags": [config["model_type"]]}
    for key, value in defaults.items():
        if value and not getattr(card.data, key):
            setattr(card.data, key, value)
    for key, value in {"license": license, "base_model": base_model}.items():
        if value is not None:
            setattr(card.data, key, value)
    if card.data.eval_results:
        card.data.model_name = title
    card.text = card.text.replace(PLACEHOLDER, repo_id)
    if license and (defect := find_licence_defect(license)):
        raise ValueError(f"--license must be {defect}.")
    if not card.data.license:
        raise ValueError(
            "the model card names no licence: give one, as --license apache-2.0; a base model's binds you."
        )
    card.save(path)
    if cascade := config.get("cascade"):
        write_section(folder, "Cascade", describe_cascade(cascade))
    if exports := find_exports(folder):
        write_section(folder, "Other runtimes", describe_exports(folder, exports, repo_id))


def describe_cascade(cascade: dict[str, Any]) -> str:
    """Say what a model with a cascade computes."""
    return (
        f"Every text is classified with `gamma = {cascade['gamma']}`, `eta = {cascade['eta']}` first; where the "
        f"probabilities of its two likeliest classes differ by less than {cascade['margin']:g}, the schedule above "
        "classifies it again. Same weights; leave it out with "
        "`AutoModelForSequenceClassification.from_pretrained(name, trust_remote_code=True, cascade=None)`."
    )


def find_exports(folder: Path) -> list[Path]:
    """Find the folders with exported graphs inside a model's."""
    return sorted(path.parent for path in folder.rglob(EXPORT_INDEX))


def describe_exports(folder: Path, exports: list[Path], repo_id: str) -> str:
    """Say how to use exported graphs, and what changes by them.

    Args:
        folder: The model's.
        exports: What [`find_exports`] gives.
        repo_id: Name on the Hub.
    """
    first = exports[0].relative_to(folder).as_posix()
    lines = [
        f"```python\nfrom huggingface_hub import snapshot_download\n{EXPORT_LOADING}\n"
        f'folder = snapshot_download("{repo_id}") + "/{first}"\n{EXPORT_CALL}\n```\n'
    ]
    for path in exports:
        index = json.loads((path / EXPORT_INDEX).read_text())
        lines.append(f"- `{path.relative_to(folder).as_posix()}`: {describe_export(index)}")
    return "\n".join(lines)


def describe_export(index: dict[str, Any]) -> str:
    """Say what an export is and what changes by it, from the content of its index."""
    report, sentences = index.get("report", {}), [f"graphs for {index['runtime']}{', int8' if index['int8'] else ''}."]
    sentences += [f"Against the weights: {report['verdict']}."] if report else []
    sentences += [f"In batches instead of alone: {report['batch_verdict']}."] if report else []
    if index["int8"]:
        sentences.append(
            "Activations are scaled by the largest of a batch, so that it takes one text at a time unless "
            "`from_pretrained` is told `batch_int8=True`."
        )
    return " ".join(sentences)


def name_dataset(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Say by the fields of an `EvalResult` which data set was read.

    Only one on the Hub is named as one: a local folder may be called like somebody else's there, so that its type is
    the word for what nobody can look up, and its name tells several apart.

    Args:
        name: For reports.
        arguments: "dataset_name" and "dataset_config_name", as the commands take them; without, it was a local one.
    """
    source, config_name = (arguments.get(key) for key in ("dataset_name", "dataset_config_name"))
    if source in GLUE_TASKS:
        source, config_name = GLUE_REPOSITORY, source
    elif source is None or source in EMBEDDED or Path(source).expanduser().exists():
        source, config_name = "unknown", name
    return {"dataset_type": source, "dataset_name": name, "dataset_config": config_name}


def latency_results(
    kind: str, dataset: str, milliseconds: dict[str, float], hardware: dict[str, Any], batch_size: int = 1
) -> list[EvalResult]:
    """Say latencies as a model-index does.

    Args:
        kind: The pipeline.
        dataset: What the inputs were.
        milliseconds: By quantile, as "p50" and "p90".
        hardware: As `cost.hardware_fingerprint` describes it.
        batch_size: Inputs of a pass.
    """
    where = f"{hardware['device_name']}, {hardware['dtype']}, {hardware['threads']} thread(s)"
    return [
        EvalResult(
            task_type=kind,
            **name_dataset(dataset, {}),
            metric_type=f"latency_{quantile}_milliseconds",
            metric_name=f"latency {quantile}, ms, batch {batch_size}, on {where}",
            metric_value=round(value, 3),
        )
        for quantile, value in milliseconds.items()
    ]


def write_section(folder: Path, title: str, text: str):
    """Write a section at the end of a folder's card, in the place of an older one of that title."""
    path = folder / "README.md"
    card = ModelCard.load(path)
    kept = re.sub(rf"\n## {re.escape(title)}\n.*?(?=\n## |\Z)", "", card.text, flags=re.DOTALL)
    card.text = f"{kept.rstrip()}\n\n## {title}\n\n{text}\n"
    card.save(path)


def add_results(folder: Path, results: list[EvalResult], base_model: str | None = None):
    """Add results to the model-index of a folder's card, each in the place of an older one of the same measurement.

    Args:
        folder: With a config.json; a card is written if there is none.
        results: What was measured.
        base_model: Name of the checkpoint that the model was trained from; `None` leaves what the card says.

    Raises:
        ValueError: The card is damaged.
    """
    path = folder / "README.md"
    # a folder that is being written will be called without the ending
    name = folder.resolve().name.removesuffix(".partial")
    if not path.is_file():
        _new_card(folder, name).save(path)
    card = load_card(path)

    def measurement(result: EvalResult) -> tuple:
        # a latency's name tells what it was measured on
        where = result.metric_name if str(result.metric_type).startswith("latency") else None
        return result.task_type, result.dataset_name, result.dataset_split, result.metric_type, where

    new = {measurement(result) for result in results}
    kept = [result for result in card.data.eval_results or [] if measurement(result) not in new]
    card.data.model_name = card.data.model_name or name
    card.data.eval_results = [*kept, *results]
    card.data.base_model = base_model or card.data.base_model
    card.save(path)


def stage_folder(folder: Path, staging: Path):
    """Copy what belongs on the Hub, so that the folder itself is never touched; `task.json` without what is private.

    Raises:
        ValueError: A file of the model is a link out of the folder, or `task.json` is damaged.
    """
    if outside := find_outside_links(folder):
        raise ValueError(
            f"in {folder} {', '.join(outside)} lead out of the folder, as in a cache; publish a copy made by `cp -rL`."
        )
    for name in list_files(folder)[0]:
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / name, staging / name)
    # of the model and of exports of it
    for path in staging.rglob(TASK_FILE):
        record = read_record(path.parent)
        if record is not None:
            record.write_public(path.parent)


def retry_if_busy(call: Callable[[], Any], waits: Sequence[float] = (1, 2, 4, 8, 16)) -> Any:
    """Call the Hub again when it is busy, and say so: the client does that for reading files only.

    Raises:
        HfHubHTTPError: It refuses, or is still busy.
    """
    for wait in waits:
        try:
            return call()
        except Exception as error:
            status = find_status(error)
            if status not in BUSY:
                raise
            logger.warning(f"the Hub answers {status}; trying again in {wait} s")
            time.sleep(wait)
    return call()


def find_status(error: BaseException) -> int | None:
    """Give the Hub's answer behind an error, which the client may have wrapped."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, HfHubHTTPError):
        cause = cause.__cause__
    return None if cause is None else getattr(cause.response, "status_code", None)


def push_folder(folder: Path, repo_id: str, private: bool, revision: str | None, create_pr: bool, message: str):
    """Push all files of a folder in one commit; stale weights and code of an earlier push are deleted with it.

    Returns:
        `CommitInfo`: its `oid` and, with `create_pr`, its `pr_url`; and whether anything has changed.

    Raises:
        ValueError: The repository is public and should be private.
        HfHubHTTPError: The Hub refuses.
    """
    api = HfApi()
    retry_if_busy(lambda: api.create_repo(repo_id, private=private, exist_ok=True))
    if private and not retry_if_busy(lambda: api.repo_info(repo_id)).private:
        raise ValueError(f"{repo_id} is public; make it private in its settings first, or leave --private out.")
    if revision is not None:
        retry_if_busy(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True))
    head = retry_if_busy(lambda: api.repo_info(repo_id, revision=revision)).sha
    names, _ = list_files(folder)
    there = retry_if_busy(lambda: api.list_repo_files(repo_id, revision=revision))
    stale = [
        name
        for name in there
        if "/" not in name and name not in names and any(fnmatch(name, pattern) for pattern in REPLACED)
    ]
    if stale:
        logger.warning(f"deleted there, because {folder.name} no longer has them: {', '.join(stale)}")

    def commit():
        operations: list[Any] = [CommitOperationAdd(name, folder / name) for name in names]
        operations += [CommitOperationDelete(name) for name in stale]
        return api.create_commit(repo_id, operations, commit_message=message, revision=revision, create_pr=create_pr)

    info = retry_if_busy(commit)
    return info, info.oid != head


def read_back(folder: Path, repo_id: str, commit: str) -> Verification:
    """Download a commit into an empty cache, compare every file with the folder, and verify the copy.

    Raises:
        ValueError: A file differs, or the copy does not pass.
    """
    with tempfile.TemporaryDirectory() as cache:
        copy = Path(snapshot_download(repo_id, revision=commit, local_dir=Path(cache, Path(repo_id).name)))
        names, _ = list_files(folder)
        different = [
            name
            for name in names
            if not (copy / name).is_file() or not filecmp.cmp(copy / name, folder / name, shallow=False)
        ]
        if different:
            raise ValueError(f"{repo_id} at {commit} differs from what was pushed in {', '.join(different)}.")
        return verify_folder(copy, names)


__all__ = [
    "Verification",
    "add_results",
    "complete_card",
    "find_task",
    "latency_results",
    "name_dataset",
    "push_folder",
    "find_status",
    "read_back",
    "retry_if_busy",
    "stage_folder",
    "verify_folder",
    "write_section",
]
