"""What makes a saved folder, of any package, fit for the Hub: checks, model card, one commit, and reading it back."""

import ast
import json
import re
import shutil
import tempfile
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    EvalResult,
    HfApi,
    ModelCard,
    ModelCardData,
    get_token,
    snapshot_download,
)

from .elsewhere import OUR_PACKAGES, compute_output, make_inputs, run_elsewhere

TRAVELLING = ("configuration_", "modeling_", "layers_", "pose_search_", "image_processing_")
GOLDEN = "golden_output.safetensors"
# in half precision other kernels round otherwise
TOLERANCES = {"float32": 1e-3, "float64": 1e-3}
HALF_TOLERANCE = 0.05
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.joblib", "*.npy", "*.npz")
# what a training leaves beside a model
LEFT_OUT = (*PICKLES, ".*", "_*", "*.partial", "*.lock", "checkpoint*/*", "poses/*", "runs/*", "__pycache__/*")
# of an earlier push: a folder that no longer has them must not be loaded with them
REPLACED = ("*.safetensors", "*.safetensors.index.json", "*.py", *PICKLES)
SECRETS = re.compile(
    r"\b(hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|AKIA[0-9A-Z]{16})"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY"
)
FOLDERS = "home|root|Users|tmp|var|mnt|opt|srv|work|data|workspace|content|private|scratch"
ABSOLUTE_PATH = re.compile(rf"(?<![\w.:/~<>@-])(/(?:{FOLDERS})/[\w.@+-]+|[A-Za-z]:\\+Users\b)")
# their words may look like anything
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "*.model")
PIPELINES = {"SequenceClassification": "text-classification", "MaskedLM": "fill-mask"}
PIPELINES |= {"ImageClassification": "image-classification"}
LOADING = {
    "text-classification": ('pipeline("text-classification", model=name, trust_remote_code=True)', "pipeline"),
    "image-classification": ('pipeline("image-classification", model=name, trust_remote_code=True)', "pipeline"),
    "fill-mask": ("AutoModelForMaskedLM.from_pretrained(name, trust_remote_code=True)", "AutoModelForMaskedLM"),
    None: ("AutoModel.from_pretrained(name, trust_remote_code=True)", "AutoModel"),
}


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


def write_golden_output(model: Any, folder: Path):
    """Store what a model gives for fixed inputs beside its weights, so that anybody can tell whether they arrived.

    Args:
        model: The one that was saved.
        folder: Where.
    """
    inputs = make_inputs(model.config)
    tensors = {f"inputs.{name}": value for name, value in inputs.items()}
    safetensors.torch.save_file({**tensors, "output": compute_output(model, inputs)}, folder / GOLDEN)


def compare_golden_output(model: Any, folder: Path) -> float | None:
    """Give the largest difference from the stored output, relative to its largest value; `None` if none is stored.

    Raises:
        ValueError: It is above what rounding explains, so that weights or code are not those that were saved.
    """
    if not (folder / GOLDEN).is_file():
        return None
    stored = safetensors.torch.load_file(folder / GOLDEN)
    inputs = {name.removeprefix("inputs."): value for name, value in stored.items() if name != "output"}
    difference = ((compute_output(model, inputs) - stored["output"]).abs().max() / stored["output"].abs().max()).item()
    check_difference(difference, str(model.dtype).removeprefix("torch."), folder.name)
    return difference


def check_difference(difference: float, dtype: str, name: str):
    """Refuse a difference from a stored output that rounding does not explain.

    Raises:
        ValueError: Says so.
    """
    if not difference <= TOLERANCES.get(dtype, HALF_TOLERANCE):
        raise ValueError(
            f"{name} gives another output than was stored with it, by {difference:.1e} of its largest value: weights "
            f"or code have changed since it was saved. If that is meant, delete {GOLDEN}."
        )


def list_files(folder: Path) -> tuple[list[str], list[str]]:
    """Give the files that belong on the Hub, and those that are left out: pickles and what a training leaves."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    left_out = [name for name in names if any(fnmatch(name, p) or fnmatch(Path(name).name, p) for p in LEFT_OUT)]
    return [name for name in names if name not in left_out], left_out


def find_load_defects(folder: Path) -> list[str]:
    """Name why a folder would not load, or would not load what it seems to, without running any of its code."""
    try:
        config = json.loads((folder / "config.json").read_text())
        config["model_type"]
    except FileNotFoundError:
        return ["it has no config.json, so it is no saved model"]
    except (ValueError, TypeError, KeyError) as error:
        return [f"its config.json cannot be read ({type(error).__name__}: {error}); save the model again"]
    return _find_code_defects(folder, config) + _find_weight_defects(folder)


def find_leaks(folder: Path, names: list[str]) -> list[str]:
    """Name what must not be published: tokens, keys, paths of this machine; and a damaged card."""
    defects = []
    for name in names:
        if name.endswith(".safetensors"):
            continue
        text = (folder / name).read_bytes().decode(errors="ignore")
        if SECRETS.search(text):
            defects.append(f"{name} holds something that looks like a token or key; remove it, and revoke it")
        is_vocabulary = any(fnmatch(name, pattern) for pattern in VOCABULARIES)
        paths = [] if is_vocabulary or "\0" in text else ABSOLUTE_PATH.findall(text)
        if not is_vocabulary and str(folder.resolve().parent) in text:
            paths.append(str(folder.resolve().parent))
        if paths:
            defects.append(f"{name} holds the path {paths[0]} of one machine; replace it by a name")
    if "README.md" in names:
        defects += _find_card_defects(folder / "README.md")
    return defects


def find_notes(folder: Path) -> list[str]:
    """Say what is odd about a folder but no defect: pickles, which are never opened, and code unlike the package's."""
    notes = []
    pickles = [path.name for path in sorted(folder.iterdir()) if any(fnmatch(path.name, p) for p in PICKLES)]
    if pickles:
        notes.append(f"{', '.join(pickles)}: not opened, because a pickle can run code")
    different = []
    for package in OUR_PACKAGES:
        for path in sorted(Path(__file__).parent.parent.joinpath(package).glob("*.py")):
            copy = folder / path.name
            if path.stem.startswith(TRAVELLING) and copy.is_file() and copy.read_bytes() != path.read_bytes():
                different.append(path.name)
    if different:
        notes.append(f"{', '.join(different)}: not the code of the installed package; read it before you run it")
    return notes


def _find_code_defects(folder: Path, config: dict) -> list[str]:
    defects = []
    auto_map = config.get("auto_map") or {}
    if not isinstance(auto_map, dict):
        return [f"auto_map of config.json must be a mapping, got {auto_map}"]
    for auto_class, reference in auto_map.items():
        if not re.fullmatch(r"[A-Za-z_]\w*\.[A-Za-z_]\w*", str(reference)):
            defects.append(f"auto_map names {reference} for {auto_class}, which is not file.Class of this folder")
            continue
        module, _, name = reference.rpartition(".")
        path = folder / f"{module}.py"
        if not path.is_file():
            defects.append(f"auto_map names {reference} for {auto_class}, but there is no {path.name}")
        elif not re.search(rf"^class {re.escape(name)}\b", path.read_text(), re.MULTILINE):
            defects.append(f"auto_map names {reference} for {auto_class}, but {path.name} defines no {name}")
    for path in sorted(folder.glob("*.py")):
        try:
            nodes = list(ast.walk(ast.parse(path.read_text())))
        except SyntaxError as error:
            defects.append(f"{path.name} is no Python: {error}")
            continue
        siblings = [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 1]
        missing = [name for name in siblings if name and not (folder / f"{name.split('.')[0]}.py").is_file()]
        defects += [f"{path.name} imports {name}, but there is no {name}.py" for name in missing]
    return defects


def _find_weight_defects(folder: Path) -> list[str]:
    weights = [path.name for path in sorted(folder.glob("*.safetensors")) if path.name != GOLDEN]
    if not weights:
        return ["it has no weights in safetensors; save it with save_pretrained"]
    defects = []
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = set(json.loads(index.read_text())["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError):
            return [f"{index.name} cannot be read; save the model again"]
        defects += [f"{index.name} names {name}, which is missing" for name in sorted(shards - set(weights))]
    for name in weights:
        try:
            with safetensors.safe_open(folder / name, framework="pt") as tensors:
                values = ((key, tensors.get_tensor(key)) for key in tensors.keys())  # noqa: SIM118
                defects += [f"{name}: {key} is not finite" for key, v in values if not v.float().isfinite().all()]
        except safetensors.SafetensorError as error:
            defects.append(f"{name} is damaged ({error}); save the model again")
    return defects


def _find_card_defects(path: Path) -> list[str]:
    try:
        ModelCard.load(path)
    except Exception as error:  # of the card's parser, of many kinds
        return [f"README.md has unreadable metadata: {' '.join(str(error).split())}"]
    return []


def verify_folder(folder: Path, names: list[str] | None = None) -> Verification:
    """Check a folder's files, then load and run it in a fresh process without this project's packages.

    Args:
        folder: The saved model. A stored output is compared; if there is none, the one computed is stored.
        names: Its files; by default those that [`list_files`] gives.

    Raises:
        ValueError: Says all that is wrong.
    """
    defects = find_load_defects(folder) + find_leaks(folder, names or list_files(folder)[0])
    if defects:
        raise ValueError(f"{folder.name} is not fit for the Hub: {'; '.join(defects)}.")
    golden = folder / GOLDEN
    with tempfile.TemporaryDirectory() as temporary:
        output = Path(temporary, GOLDEN)
        stored = str(golden.resolve()) if golden.is_file() else None
        try:
            found = run_elsewhere("verify", folder, stored=stored, output=str(output))
        except RuntimeError as error:
            raise ValueError(f"{folder.name} does not load or run without this project: {error}") from error
        if stored is None:
            shutil.copy(output, golden)
    if found["difference"] is not None:
        check_difference(found["difference"], found["dtype"], folder.name)
    config = json.loads((folder / "config.json").read_text())
    missing = sorted(set(found["auto_map"].items()) - set((config.get("auto_map") or {}).items()))
    if missing:
        raise ValueError(f"{folder.name}: auto_map of config.json lacks {dict(missing)}; save the model again.")
    return Verification(found["class"], found["parameters"], found["difference"])


def _find_task(config: dict) -> str | None:
    architecture = (config.get("architectures") or [""])[0]
    return next((tag for end, tag in PIPELINES.items() if architecture.endswith(end)), None)


def _new_card(folder: Path, title: str) -> ModelCard:
    config = json.loads((folder / "config.json").read_text())
    call, name = LOADING[_find_task(config)]
    return ModelCard(
        f"---\n{ModelCardData().to_yaml()}\n---\n\n# {title}\n\nA {(config.get('architectures') or ['model'])[0]}.\n\n"
        f'```python\nfrom transformers import {name}\n\nname = "path/or/name/of/this/model"\nmodel = {call}\n```\n'
    )


def complete_card(folder: Path, title: str, **given: Any):
    """Write a folder's model card if it has none, and fill in what its metadata lacks.

    Args:
        folder: With a config.json.
        title: Of a new card.
        given: Values for the metadata, as "license" and "base_model"; `None` leaves what there is.

    Raises:
        ValueError: The card is damaged, or there is no licence in it and none given.
    """
    path, config = folder / "README.md", json.loads((folder / "config.json").read_text())
    if path.is_file():
        if defects := _find_card_defects(path):
            raise ValueError(f"{defects[0]}.")
        card = ModelCard.load(path)
    else:
        card = _new_card(folder, title)
    defaults = {"library_name": "transformers", "pipeline_tag": _find_task(config), "tags": [config["model_type"]]}
    for key, value in defaults.items():
        if value and not getattr(card.data, key):
            setattr(card.data, key, value)
    for key, value in given.items():
        if value is not None:
            setattr(card.data, key, value)
    if not card.data.license:
        raise ValueError(
            "the model card names no licence: give one, as --license apache-2.0; a base model's binds you."
        )
    card.save(path)


def add_results(folder: Path, results: list[EvalResult]):
    """Add results to the model-index of a folder's card, each in the place of an older one of the same measurement.

    Args:
        folder: With a config.json; a card is written if there is none.
        results: What was measured.

    Raises:
        ValueError: The card is damaged.
    """
    path = folder / "README.md"
    if not path.is_file():
        _new_card(folder, folder.name).save(path)
    if defects := _find_card_defects(path):
        raise ValueError(f"{defects[0]}.")
    card = ModelCard.load(path)

    def measurement(result: EvalResult) -> tuple:
        return result.task_type, result.dataset_name, result.dataset_split, result.metric_type

    new = {measurement(result) for result in results}
    kept = [result for result in card.data.eval_results or [] if measurement(result) not in new]
    card.data.model_name = card.data.model_name or folder.resolve().name
    card.data.eval_results = [*kept, *results]
    card.save(path)


def stage_folder(folder: Path, staging: Path) -> list[str]:
    """Copy what belongs on the Hub, so that the folder itself is never touched; give the names."""
    names, _ = list_files(folder)
    for name in names:
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / name, staging / name)
    return names


def push_folder(folder: Path, repo_id: str, private: bool, revision: str | None, create_pr: bool, message: str):
    """Push all files of a folder in one commit; stale weights and code of an earlier push are deleted with it.

    Returns:
        `CommitInfo`: its `oid` and, with `create_pr`, its `pr_url`.

    Raises:
        ValueError: There is no token.
        HfHubHTTPError: The Hub refuses.
    """
    if get_token() is None:
        raise ValueError("the Hub needs a token to write: run `hf auth login`, or set HF_TOKEN, and try again.")
    api = HfApi()
    api.create_repo(repo_id, private=private, exist_ok=True)
    if revision is not None and not create_pr:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    names, _ = list_files(folder)
    there = api.list_repo_files(repo_id, revision=None if create_pr else revision)
    stale = [name for name in there if name not in names and any(fnmatch(name, pattern) for pattern in REPLACED)]
    operations: list[Any] = [CommitOperationAdd(name, folder / name) for name in names]
    operations += [CommitOperationDelete(name) for name in stale]
    return api.create_commit(
        repo_id, operations, commit_message=message, revision=None if create_pr else revision, create_pr=create_pr
    )


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
            if not (copy / name).is_file() or (copy / name).read_bytes() != (folder / name).read_bytes()
        ]
        if different:
            raise ValueError(f"{repo_id} at {commit} differs from what was pushed in {', '.join(different)}.")
        return verify_folder(copy, names)


__all__ = [
    "GOLDEN",
    "Verification",
    "add_results",
    "complete_card",
    "find_leaks",
    "find_load_defects",
    "find_notes",
    "list_files",
    "push_folder",
    "read_back",
    "stage_folder",
    "verify_folder",
    "write_golden_output",
]
