"""Saved folders of any package: what lies in them, whether they would load, and the output that was stored with them.

Nothing here runs code of a folder.
"""

import ast
import hashlib
import itertools
import json
import os
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from accelerate.utils import extract_model_from_parallel

from .__main__ import PACKAGES
from .failures import first_line
from .isolation import compare_output, compute_output, make_inputs
from .record import TaskRecord

# in a folder of its own, because tools take every *.safetensors beside the weights for weights
GOLDEN = "golden/output.safetensors"
# of a folder of exported graphs, which has no weights
EXPORT_INDEX = "graphs.json"
# in half precision other kernels round otherwise
TOLERANCES = {"float32": 1e-3, "float64": 1e-3}
HALF_TOLERANCE = 0.05
CODE_PREFIXES = ("configuration_", "modeling_", "layers_", "pose_search_", "image_processing_")
CODE_REFERENCE = re.compile(r"[A-Za-z_]\w*\.[A-Za-z_]\w*")
CONFIGS = (
    "config.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.joblib")
# may hold pickles, and hold arrays here
ARRAYS = ("*.npy", "*.npz")
# what reading JSON or Python of strangers raises
UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, RecursionError, MemoryError)
# what a training leaves beside a model, by the name of the file or of a folder above it
LEFT_OUT = (
    *PICKLES,
    *ARRAYS,
    "test_readings*",
    ".*",
    "_*",
    "*.partial",
    "*.lock",
    "checkpoint*",
    "poses",
    "runs",
    "wandb",
)


def digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_export(folder: Path) -> bool:
    """Whether a folder holds exported graphs, which [`serving.ExportedClassifier`] opens, and no weights."""
    return (folder / EXPORT_INDEX).is_file()


def find_weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def save_folder(model: Any, folder: Path, processor: Any, record: TaskRecord | None = None):
    """Save a trained model with what prepares its inputs, its output for fixed ones, and what it was trained on."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if record is not None:
        record.write(folder)
    write_golden_output(model, folder)
    follow_umask(folder)


def follow_umask(folder: Path):
    """Give tensor files the rights that other new files get; safetensors lets nobody but their owner read them."""
    # it can only be read by setting it, and what another thread makes meanwhile must not be too open
    umask = os.umask(0o077)
    os.umask(umask)
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o666 & ~umask)


def write_golden_output(model: Any, folder: Path):
    """Store what a model gives for fixed inputs beside its weights, so that anybody can tell whether they arrived.

    What a training wrapped around the model, as mixed precision, is taken off.
    """
    # whoever loads the folder has the weights, and neither autocast nor a compiled graph
    model = extract_model_from_parallel(model, keep_fp32_wrapper=False, keep_torch_compile=False)
    inputs = make_inputs(model.config)
    tensors = {f"inputs.{name}": value for name, value in inputs.items()}
    store_golden_output({**tensors, "output": compute_output(model, inputs)}, folder)


def store_golden_output(tensors: dict[str, Any], folder: Path):
    """Store inputs and output, with the SHA-256 of the weights that gave it."""
    (folder / GOLDEN).parent.mkdir(exist_ok=True)
    digests = {path.name: digest(path) for path in find_weights(folder)}
    safetensors.torch.save_file(tensors, folder / GOLDEN, {"format": "pt", "weights": json.dumps(digests)})


def check_golden_output(model: Any, folder: Path):
    """Compare a loaded model with the output that was stored with it, if there is one.

    Raises:
        ValueError: They differ by more than rounding explains.
    """
    if (folder / GOLDEN).is_file():
        stored = safetensors.torch.load_file(folder / GOLDEN)
        inputs = {name.removeprefix("inputs."): value for name, value in stored.items() if name != "output"}
        try:
            difference = compare_output(compute_output(model, inputs), stored["output"])
        except Exception as error:  # whatever the model says of inputs that it cannot read
            raise ValueError(f"{folder.name} does not run on the inputs in {GOLDEN}: {first_line(error)}") from error
        check_difference(difference, str(model.dtype).removeprefix("torch."), folder.name)


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
    """Give the files that belong on the Hub, and those that are left out.

    Left out are pickles, what a training leaves, and links that lead out of the folder.
    """
    kept: list[str] = []
    left_out: list[str] = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = path.relative_to(folder)
            is_left_out = any(fnmatch(part, pattern) for part in name.parts for pattern in LEFT_OUT)
            # weights of OpenVINO, which are no pickle
            is_left_out &= path.suffix != ".bin" or not path.with_suffix(".xml").is_file()
            is_outside = not path.resolve().is_relative_to(folder.resolve())
            (left_out if is_left_out or is_outside else kept).append(name.as_posix())
    return kept, left_out


def find_outside_links(folder: Path) -> list[str]:
    """Name files of a model that are links out of its folder, as in a cache of the Hub, and so are left out."""
    needed = [folder / "config.json", *folder.glob("*.safetensors"), *folder.glob("*.py")]
    inside = folder.resolve()
    return [path.name for path in needed if path.is_file() and not path.resolve().is_relative_to(inside)]


def find_load_defects(folder: Path) -> list[str]:
    """Name why a folder would not load, or would not load what it seems to, without running any of its code."""
    try:
        config = json.loads((folder / "config.json").read_text())
        config["model_type"]
    except FileNotFoundError:
        return ["it has no config.json, so it is no saved model"]
    except UNREADABLE as error:
        return [f"its config.json cannot be read ({type(error).__name__}: {error}); save the model again"]
    architectures = config.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        return [f"architectures of config.json must be a list of names, got {architectures}"]
    for name in ("id2label", "label2id"):
        if not isinstance(config.get(name) or {}, dict):
            return [f"{name} of config.json must be a mapping, got {config[name]}"]
    labels = config.get("id2label") or {}
    are_names = all(isinstance(label, str) for label in labels.values())
    if set(labels) != {str(index) for index in range(len(labels))} or not are_names:
        return [f"id2label of config.json must name the labels 0 to {len(labels) - 1}, got {labels}"]
    # whoever opens an export looks at its graphs
    return [] if is_export(folder) else _find_code_defects(folder) + _find_weight_defects(folder)


def _find_code_defects(folder: Path) -> list[str]:
    defects = []
    for name in CONFIGS:
        if not (folder / name).is_file():
            continue
        try:
            config = json.loads((folder / name).read_text())
            auto_map = config.get("auto_map") or {}
            references = [one.get("impl") for one in (config.get("custom_pipelines") or {}).values()]
        except UNREADABLE:
            defects.append(f"{name} cannot be read; save it again")
            continue
        if not isinstance(auto_map, dict):
            defects.append(f"auto_map of {name} must be a mapping, got {auto_map}")
            continue
        # strings, and lists of them, with `None` where a tokenizer has no such class
        named = [value if isinstance(value, list) else [value] for value in auto_map.values()]
        references += [one for one in itertools.chain.from_iterable(named) if one is not None]
        defects += [defect for one in references for defect in _check_reference(folder, name, str(one))]
    for path in sorted(folder.glob("*.py")):
        try:
            nodes = list(ast.walk(ast.parse(path.read_text())))
        except (SyntaxError, *UNREADABLE) as error:
            defects.append(f"{path.name} is no Python: {error or type(error).__name__}")
            continue
        siblings = [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 1]
        missing = [name for name in siblings if name and not (folder / f"{name.split('.')[0]}.py").is_file()]
        defects += [f"{path.name} imports {name}, but there is no {name}.py" for name in missing]
    return defects


def _check_reference(folder: Path, name: str, reference: str) -> list[str]:
    if not CODE_REFERENCE.fullmatch(reference):
        return [f"{name} names the code {reference}, which is not file.Class of this folder"]
    module, _, class_name = reference.rpartition(".")
    path = folder / f"{module}.py"
    if not path.is_file():
        return [f"{name} names {reference}, but there is no {path.name}"]
    if not re.search(rf"^class {re.escape(class_name)}\b", path.read_text(errors="ignore"), re.MULTILINE):
        return [f"{name} names {reference}, but {path.name} defines no {class_name}"]
    return []


def _find_weight_defects(folder: Path) -> list[str]:
    weights = [path.name for path in find_weights(folder)]
    index, defects = folder / "model.safetensors.index.json", []
    if index.is_file():
        try:
            shards = {str(name) for name in json.loads(index.read_text())["weight_map"].values()}
        except UNREADABLE:
            return [f"{index.name} cannot be read; save the model again"]
        defects = [f"{index.name} names {name}, which is missing" for name in sorted(shards - set(weights))]
    if not weights:
        return defects or ["it has no weights in safetensors; save it with save_pretrained"]
    for name in weights:
        try:
            with safetensors.safe_open(folder / name, framework="pt") as tensors:
                values = ((key, tensors.get_tensor(key)) for key in tensors.keys())  # noqa: SIM118
                defects += [f"{name}: {key} is not finite" for key, v in values if not v.float().isfinite().all()]
        except safetensors.SafetensorError as error:
            defects.append(f"{name} is damaged ({error}); save the model again")
    # a damaged file has another digest too, which helps nobody
    return defects or _find_golden_defects(folder)


def _find_golden_defects(folder: Path) -> list[str]:
    if not (folder / GOLDEN).is_file():
        return []
    try:
        with safetensors.safe_open(folder / GOLDEN, framework="pt") as tensors:
            digests = dict(json.loads((tensors.metadata() or {}).get("weights", "{}")))
            if not {"output"} < set(tensors.keys()):
                raise ValueError("no inputs, or no output")
    except (safetensors.SafetensorError, *UNREADABLE) as error:
        return [f"{GOLDEN} is damaged ({error}); delete it"]
    return [
        f"{name} is not the file that was saved (its SHA-256 differs); if that is meant, delete {GOLDEN}"
        for name, known in digests.items()
        if (folder / name).is_file() and digest(folder / name) != known
    ]


def find_notes(folder: Path) -> list[str]:
    """Say what is odd about a folder but no defect: pickles, which are never opened, and code unlike the packages'."""
    pickles = [path.name for path in sorted(folder.iterdir()) if any(fnmatch(path.name, p) for p in PICKLES)]
    found = {
        "not opened, because a pickle can run code": pickles,
        "not the code of the installed packages; read it before you run it": find_strange_code(folder),
    }
    return [f"{', '.join(names)}: {note}" for note, names in found.items() if names]


def find_strange_code(folder: Path) -> list[str]:
    """Name the code files of a folder that are not the installed packages'."""
    root = Path(__file__).parent.parent
    ours = {
        path.name: path.read_bytes()
        for package in PACKAGES
        for path in (root / package).glob("*.py")
        if path.name.startswith(CODE_PREFIXES)
    }
    return [path.name for path in sorted(folder.glob("*.py")) if ours.get(path.name) != path.read_bytes()]
