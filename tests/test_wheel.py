"""The wheel by itself: built, installed away from the repository, and used from an empty directory."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from redundancy_hf.__main__ import VERBS
from tests.documents import ROOT

# what a message or a help may not send its reader to
ONLY_IN_A_CLONE = ("scripts/", "experiments/", "recipes/", "docs/")


def call(arguments, **settings):
    done = subprocess.run([*map(str, arguments)], capture_output=True, text=True, timeout=600, **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    # a build leaves files beside its sources
    source = tmp_path_factory.mktemp("source")
    for path in (*ROOT.glob("*_hf"), *map(ROOT.joinpath, ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"))):
        copy = shutil.copytree if path.is_dir() else shutil.copy
        copy(path, source / path.name)
    command = [sys.executable, "-c", "import setuptools.build_meta as b, sys; print(b.build_wheel(sys.argv[1]))"]
    name = call([*command, source / "dist"], cwd=source).split()[-1]
    return source / "dist" / name


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder that holds the installed packages, and nothing else of the project."""
    folder = tmp_path_factory.mktemp("site")
    call([sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target", folder, wheel])
    return folder


@pytest.mark.slow
def test_wheel_holds_the_packages_and_nothing_else(wheel):
    names = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    packages = {path.name for path in ROOT.glob("*_hf")}
    assert {name for name in names if not name.endswith(".dist-info")} == packages
    held = set(zipfile.ZipFile(wheel).namelist())
    tracked = [path.relative_to(ROOT).as_posix() for package in packages for path in (ROOT / package).rglob("*")]
    assert {name for name in tracked if name.endswith((".py", ".md", ".html"))} <= held


@pytest.mark.slow
def test_installed_command_searches_evaluates_exports_and_publishes(
    installed, hub, tmp_path, tiny_roberta_two_labels, tiny_text_file
):
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = os.environ | hub.environment(tmp_path / "home", "hf_alice") | {"PYTHONPATH": str(installed)}

    def redundancy_hf(*arguments):
        return call([sys.executable, installed / "bin" / "redundancy-hf", *arguments], cwd=empty, env=environment)

    place = call(
        [sys.executable, "-c", "import redundancy_hf; print(redundancy_hf.__file__)"], cwd=empty, env=environment
    )
    assert Path(place.strip()).is_relative_to(installed)
    listed = redundancy_hf()
    assert all(f"\n  {verb} " in listed for verb in VERBS)
    texts = ("--dataset_name", tiny_text_file, "--validation_fraction", 0.25, "--max_length", 64)
    printed = redundancy_hf(
        *("search", "--model_name_or_path", tiny_roberta_two_labels, *texts, "--max_trials", 3, "--num_winners", 1),
        *("--num_train_epochs", 1, "--required_performance", 0.5, "--force", "--rounds", 2, "--use_cpu"),
        *("--results_file", "search.json", "--output_dir", "run"),
    )
    assert json.loads((empty / "search.json").read_text())["program"] == "redundancy-hf search"
    printed += redundancy_hf("evaluate", "run/full", "run/best")
    assert "reviews test: 16 examples" in printed
    printed += redundancy_hf("export", "run/best", "--runtime", "onnx")
    assert (empty / "run" / "best" / "onnx" / "graphs.json").is_file()
    printed += redundancy_hf("publish", "run/best", "--repo_id", "alice/fast", "--license", "mit")
    assert "read back: " in printed
    assert not [name for name in ONLY_IN_A_CLONE if name in printed]
    card = (empty / "run" / "best" / "README.md").read_text()
    assert not [name for name in ONLY_IN_A_CLONE if name in card]
