"""What the documents claim, the repository has: commands, paths and options; and what it installs is pinned."""

import ast
import configparser
import re
import subprocess
import tarfile
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("redundancy_hf", "classformer_hf", "vision_hf", "avae_hf")


DOCUMENTS = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))


def make_targets():
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def find_wrong_claims(text, folder=ROOT):
    """Name each make target, path and option that `text` shows and the repository does not have."""
    code = re.findall(r"```.*?\n(.*?)```", text, flags=re.DOTALL) + re.findall(r"`([^`\n]+)`", text)
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    wrong = [f"[]({link})" for link in links if not (folder / link).exists()]
    for block in code:
        block = block.replace("\\\n", " ")
        for line in block.splitlines():
            targets = re.findall(r"\bmake ([a-z][a-z-]+)", line)
            wrong += [f"make {name}" for name in targets if name not in make_targets()]
            wrong += [path for path in _shown_paths(line) if not any(ROOT.glob(path))]
            if line.startswith("--"):  # those of whole commands are parsed by test_commands.py
                wrong += [option for option in re.findall(r"(?<!\S)--(\w+)", line) if option not in known_options()]
    return wrong


def _shown_paths(line):
    folders = "|".join([*PACKAGES, r"\.ci", "docs", "recipes", "results", "scripts", "experiments", "tests"])
    return [path.rstrip(".") for path in re.findall(rf"(?<![\w./-])(?:{folders})/[\w./*-]*", line)]


@cache
def known_options():
    from transformers import TrainingArguments

    files = [*(ROOT / "experiments").glob("*.py"), *(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))]
    options = {"help", *TrainingArguments.__dataclass_fields__}
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                options.add(node.target.id)
            elif isinstance(node, ast.FunctionDef):
                # a verb's or an experiment's signature is its command line
                options |= {argument.arg for argument in node.args.args if argument.annotation is not None}
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("--"):
                options.add(node.value[2:])
    return options


@pytest.mark.parametrize("document", DOCUMENTS)
def test_document_names_what_exists(document):
    path = ROOT / document
    assert find_wrong_claims(path.read_text(), path.parent) == []


def list_anchors(text):
    """Give the anchors that GitHub makes of headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_within_pages_lead_to_headings(document):
    path = ROOT / document
    links = re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", path.read_text())
    wrong = [f"{page}#{anchor}" for page, anchor in links if anchor not in list_anchors(_read_page(path, page))]
    assert wrong == []


def _read_page(path, page):
    return (path.parent / page if page else path).read_text()


def test_wrong_claims_are_caught():
    text = (
        "See [limits](docs/missing.md) and [code](tests/conftest.py), `make nothing`, `make test`.\n"
        "`--not_an_option 3 --seed 1` and `--required_performance`\n"
        "```bash\nmake missing-target\npython scripts/missing.py \\\n    --parsed_elsewhere 3\n```\n"
    )
    assert find_wrong_claims(text) == [
        "[](docs/missing.md)",
        "make missing-target",
        "scripts/missing.py",
        "make nothing",
        "not_an_option",
    ]


def test_readme_is_short_and_begins_with_code():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 120
    assert any(line.startswith("```") for line in lines[:15]), "the first code block begins after line 15"


def test_readme_links_to_nothing_that_only_a_clone_has():
    # a package index shows it without the files beside it
    assert re.findall(r"\]\((?!https://|#)[^)]*", (ROOT / "README.md").read_text()) == []


def test_makefile_documents_every_target():
    text = (ROOT / "Makefile").read_text()
    phony = set(re.search(r"^\.PHONY: (.*)$", text, flags=re.MULTILINE).group(1).split())
    assert phony == set(re.findall(r"^([a-z-]+):.*## \S", text, flags=re.MULTILINE))


def test_pins_are_exact_and_torch_is_first():
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    assert pins[0].startswith("torch==")
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    wanted = setup["options"]["install_requires"].split() + setup["options.extras_require"]["dev"].split()
    pinned = {pin.split("==")[0].lower() for pin in pins}
    assert {re.split("[><=]", name)[0].lower() for name in wanted} <= pinned


MACHINE_PATH = re.compile(r"(?<![\w.{}<>-])/(?:home|mnt|opt|root|tmp|Users|work)/\w")


def read_all(path):
    """Read a text, or what can be read as text in an archive."""
    if path.suffix != ".gz":
        return path.read_text()
    with tarfile.open(path) as archive:
        members = [archive.extractfile(member) for member in archive if member.isfile()]
        return "\n".join(member.read().decode(errors="ignore") for member in members)


def test_no_tracked_file_names_a_path_of_one_machine():
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode != 0:
        pytest.skip("this is not a git checkout")
    found = []
    for name in filter(None, listing.stdout.split("\0")):
        path = ROOT / name
        if path.suffix not in {".png", ".safetensors", ".parquet"} and path.is_file():
            found += [f"{name}: {line}" for line in read_all(path).splitlines() if MACHINE_PATH.search(line)]
    assert found == []


@pytest.mark.parametrize("folder", ["home", "root", "tmp", "Users"])
def test_path_of_one_machine_is_caught(folder):
    assert MACHINE_PATH.search(f'"--output_dir", "/{folder}/somebody/runs"')
    assert not MACHINE_PATH.search(f"https://example.org/{folder}/somebody")
