"""The laws of the house: what a file may import, what travels to the Hub, and what stays out of a light import."""

import ast
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from redundancy_hf.__main__ import VERBS

ROOT = Path(__file__).resolve().parent.parent
BASE, PACKAGES = "redundancy_hf", ("classformer_hf", "vision_hf", "avae_hf")
ROLES = ("configuration_", "modeling_", "layers_", "pose_search_", "image_processing_")
ENTRY_ROLES = ("configuration_", "modeling_", "image_processing_")
TRAVELLING_LIBRARIES = {"torch", "transformers", "huggingface_hub"} | set(sys.stdlib_module_names)
HEAVY_LIBRARIES = ("datasets", "evaluate", "matplotlib", "optuna", "skopt", "sklearn")


def travelling_files(package):
    return sorted(path for path in (ROOT / package).glob("*.py") if path.name.startswith(ROLES))


def imports_of(tree):
    """Yield every import statement with whether a `try` that survives its failure encloses it."""

    def visit(node, is_guarded):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node, is_guarded
        for field, value in ast.iter_fields(node):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    guards = isinstance(node, ast.Try) and field == "body" and any(map(_survives, node.handlers))
                    yield from visit(child, is_guarded or guards)

    return list(visit(tree, False))


def _survives(handler):
    caught = {name.id for name in ast.walk(handler.type) if isinstance(name, ast.Name)} if handler.type else {"all"}
    return bool(caught & {"all", "Exception", "ImportError", "ModuleNotFoundError"})


def siblings_of(source):
    return {
        node.module for node, _ in imports_of(ast.parse(source)) if isinstance(node, ast.ImportFrom) and node.level == 1
    } - {None}


def find_violations(source, siblings):
    """Name each import by which a travelling file would not arrive; `siblings` are the modules that travel too."""
    violations = []
    for node, is_guarded in imports_of(ast.parse(source)):
        statement = ast.unparse(node)
        if isinstance(node, ast.ImportFrom) and node.level > 0:
            if node.level > 1 or node.module not in siblings:
                violations.append(statement)
            continue
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
        libraries = {name.split(".")[0] for name in names}
        if libraries & {BASE, *PACKAGES} or (not is_guarded and not libraries <= TRAVELLING_LIBRARIES):
            violations.append(statement)
    return violations


@pytest.mark.parametrize("package", PACKAGES)
def test_travelling_files_import_only_what_arrives(package):
    files = travelling_files(package)
    assert files, f"{package} has no file that travels"
    siblings = {path.stem for path in files}
    violations = {path.name: find_violations(path.read_text(), siblings) for path in files}
    assert not any(violations.values()), violations


BAD_IMPORTS = {
    "sibling as a module": "from . import layers_x",
    "subfolder": "from .layers.deep import X",
    "parent": "from ..shared import X",
    "file that stays home": "from .data import X",
    "own absolute name": "from classformer_hf.layers_x import X",
    "own package": "import classformer_hf",
    "another package": "import vision_hf.layers_x as layers",
    "third library": "import numpy as np",
    "third library among allowed ones": "import torch, sklearn.metrics",
    "third library in a function": "def forward():\n    from skopt import gp_minimize",
    "third library for type checkers": "if TYPE_CHECKING:\n    from datasets import Dataset",
    "third library after a try": "try:\n    import torch\nexcept ImportError:\n    import numpy",
    "try that survives something else": "try:\n    import numpy\nexcept ValueError:\n    numpy = None",
    "own package in a try": "try:\n    import classformer_hf\nexcept ImportError:\n    classformer_hf = None",
}


@pytest.mark.parametrize("source", BAD_IMPORTS.values(), ids=BAD_IMPORTS.keys())
def test_import_law_catches(source):
    assert find_violations(source, siblings={"layers_x"})


def test_import_law_allows():
    source = (
        "import math\nimport torch.nn.functional as F\nfrom huggingface_hub.dataclasses import strict\n"
        "from transformers.activations import ACT2FN\nfrom .layers_x import X\n"
        "try:\n    import numpy\nexcept (ImportError, ValueError):\n    numpy = None\n"
    )
    assert find_violations(source, siblings={"layers_x"}) == []


def find_unnamed_siblings(sources, entry):
    """Siblings that `entry` needs through another file without naming them; the Hub follows one level only."""
    direct = siblings_of(sources[entry])
    closure, queue = set(), list(direct)
    while queue:
        name = queue.pop()
        if name not in closure:
            closure.add(name)
            queue += siblings_of(sources.get(name, ""))
    return closure - direct - {entry}


@pytest.mark.parametrize("package", PACKAGES)
def test_entry_files_name_every_sibling(package):
    sources = {path.stem: path.read_text() for path in travelling_files(package)}
    for entry in sources:
        if entry.startswith(ENTRY_ROLES):
            assert find_unnamed_siblings(sources, entry) == set(), entry


def test_unnamed_sibling_is_caught():
    sources = {
        "modeling_x": "from .layers_x import X",
        "layers_x": "from .configuration_x import Y",
        "configuration_x": "",
    }
    assert find_unnamed_siblings(sources, "modeling_x") == {"configuration_x"}


@pytest.mark.parametrize("package", PACKAGES)
def test_text_in_a_travelling_file_is_no_import(package):
    # save_pretrained finds siblings by a regular expression, which docstrings match too
    from transformers.dynamic_module_utils import get_relative_imports

    for path in travelling_files(package):
        assert set(get_relative_imports(path)) == siblings_of(path.read_text()), path.name


@pytest.mark.parametrize("package", PACKAGES)
def test_one_word_files_stay_home_and_two_part_names_travel(package):
    travelling = set(travelling_files(package))
    for path in (ROOT / package).rglob("*.py"):
        # a verb may have two words
        if path.name != "__init__.py" and path.parent.name != "commands":
            is_one_word = re.fullmatch(r"[a-z0-9]+", path.stem) is not None
            assert is_one_word != (path in travelling), path.relative_to(ROOT)


# of the experiments; no experiment imports another
SHARED = ("frame", "record", "tuning", "methods")
# what the files of a folder may import of the project
MAY_IMPORT = {
    BASE: {BASE},
    **{package: {BASE, package} for package in PACKAGES},
    "scripts": {BASE},
    "experiments": {BASE, *PACKAGES, *SHARED},
}
OURS = (
    {"scripts", "experiments", "tests"} | {path.stem for path in (ROOT / "experiments").iterdir()} | {BASE, *PACKAGES}
)


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_folders_import_only_what_they_stand_on(folder):
    for path in (ROOT / folder).rglob("*.py"):
        assert imported_libraries(path.read_text()) & OURS <= MAY_IMPORT[folder], path.relative_to(ROOT)


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("scripts", "from classformer_hf.commands.search import main"),
        ("experiments", "import supernet"),
        ("experiments", "def run():\n    from scripts import publish"),
        (BASE, "import vision_hf.data as data"),
        (BASE, "if TYPE_CHECKING:\n    from classformer_hf import ClassformerConfig"),
        ("vision_hf", "from avae_hf import AVAEModel"),
        ("classformer_hf", "from experiments import frame"),
    ],
)
def test_import_between_folders_is_caught(folder, source):
    assert not imported_libraries(source) & OURS <= MAY_IMPORT[folder]


def find_foreign_names(source, packages):
    """Strings that name one of `packages` or a module of it, which could be imported unseen."""
    strings = (node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
    return [text for text in strings if isinstance(text, str) and text.partition(".")[0] in packages]


@pytest.mark.parametrize("folder", [BASE, *PACKAGES])
def test_packages_name_no_other_in_a_string(folder):
    for path in (ROOT / folder).rglob("*.py"):
        # a verb is the one module's name that the base may hold
        if path != ROOT / BASE / "__main__.py":
            assert find_foreign_names(path.read_text(), {*PACKAGES} - {folder}) == [], path.relative_to(ROOT)


@pytest.mark.parametrize(
    "source",
    [
        'def read():\n    return importlib.import_module("vision_hf.data")',
        'sys.modules["vision_hf"]',
        'import_module(f"vision_hf.{name}")',
        'KNOWN = {"images": ("vision_hf.data", "load_task")}',
    ],
)
def test_foreign_name_in_a_string_is_caught(source):
    assert find_foreign_names(source, PACKAGES)
    assert not find_foreign_names(source, {*PACKAGES} - {"vision_hf"})


DOOR = '''"""The command `redundancy-hf {verb}`, for whoever works in a clone."""

from redundancy_hf.__main__ import run_verb

if __name__ == "__main__":
    run_verb("{verb}")
'''


def is_door(source):
    return source in {DOOR.format(verb=verb) for verb in VERBS}


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").rglob("*.py")), ids=lambda path: path.stem)
def test_script_is_a_door(path):
    assert is_door(path.read_text())


@pytest.mark.parametrize(
    "source",
    [
        DOOR.format(verb="unheard-of"),
        DOOR.format(verb="train") + "    print()\n",
        DOOR.replace("{verb}", "train", 1).format(verb="search"),
    ],
)
def test_script_that_is_more_than_a_door_is_caught(source):
    assert not is_door(source)


DIGEST_HOLDERS = {
    "classformer_hf": "configuration_classformer.py",
    "vision_hf": "configuration_shared_conv.py",
    "avae_hf": "configuration_avae.py",
}


def digest_line(package):
    """The line by which a configuration file differs whenever another file that travels with it does."""
    digest = hashlib.sha256()
    for path in travelling_files(package):
        if not path.name.startswith("configuration_"):
            digest.update(path.name.encode() + path.read_bytes())
    return f"# digest of the code that travels with this file: {digest.hexdigest()[:16]}"


@pytest.mark.parametrize("package", PACKAGES)
def test_configuration_file_differs_whenever_other_code_does(package):
    # else transformers answers with the code of the first of two folders that have one configuration file
    path, line = ROOT / package / DIGEST_HOLDERS[package], digest_line(package)
    assert line in path.read_text().splitlines(), f"write into {path.relative_to(ROOT)}: {line}"
    for other in travelling_files(package):
        if other.name.startswith("configuration_") and other != path:
            assert path.stem in siblings_of(other.read_text()), other.name


def imported_libraries(source):
    libraries = set()
    for node, _ in imports_of(ast.parse(source)):
        if isinstance(node, ast.Import):
            libraries |= {alias.name.split(".")[0] for alias in node.names}
        elif node.level == 0:
            libraries.add(node.module.split(".")[0])
    return libraries


def heavy_libraries_after(statement):
    program = f"import json, sys\n{statement}\nprint(json.dumps([n for n in {HEAVY_LIBRARIES} if n in sys.modules]))"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_imports_are_light():
    """Of the base and of every package: nothing heavy is there when all of them are imported."""
    assert heavy_libraries_after(f"import {BASE}, {', '.join(PACKAGES)}") == []


def test_heavy_import_is_seen():
    assert heavy_libraries_after("import matplotlib") == ["matplotlib"]


def test_nothing_of_the_base_travels():
    assert travelling_files(BASE) == []
    names = {path.stem for path in (ROOT / BASE).glob("*.py")} - {"__init__", "__main__"}
    assert all(re.fullmatch(r"[a-z0-9]+", name) for name in names)


def test_commands_and_experiments_hold_no_metric_tokenizer_or_search():
    # what those need is imported from a package; a file that imports it itself has begun to hold it
    for path in sorted([*ROOT.glob("*_hf/commands/*.py"), *ROOT.glob("experiments/*.py")]):
        assert not imported_libraries(path.read_text()) & {"nltk", "skopt", "sklearn", "tokenizers"}, path.name
