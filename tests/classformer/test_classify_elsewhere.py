"""The last step of the demo: a folder classifies in a process that has nothing but that folder."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "classify_elsewhere.py"


@pytest.fixture
def classify(monkeypatch):
    """Run the script in this process; the process it starts is a real one."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        runpy.run_path(str(SCRIPT), run_name="__main__")

    return run


def test_folder_classifies_far_from_the_project(classify, tiny_classifier_folder, capsys, monkeypatch):
    # the path is made absolute before the other process starts in a directory of its own
    monkeypatch.chdir(tiny_classifier_folder.parent)
    classify(tiny_classifier_folder.name, "--texts", "a dull film", "a joy " * 200)
    printed = capsys.readouterr().out.splitlines()
    labels = json.loads((tiny_classifier_folder / "config.json").read_text()).get("id2label", {}).values()
    assert len(printed) == 3
    for line, text in zip(printed[1:], ("a dull film", "a joy a joy"), strict=True):
        label, score, *_ = line.split()
        assert label in (labels or {"LABEL_0", "LABEL_1", "LABEL_2"})
        assert 1 / 3 <= float(score) <= 1
        assert text in line


def test_folder_that_needs_our_package_is_reported(classify, tiny_classifier_folder, tmp_path):
    folder = shutil.copytree(tiny_classifier_folder, tmp_path / "model")
    code = folder / "modeling_classformer.py"
    code.write_text("import classformer_hf\n" + code.read_text())
    with pytest.raises(SystemExit, match="does not load or run without this project's packages: .*classformer_hf"):
        classify(folder)


def test_missing_folder_is_reported(classify, tmp_path):
    with pytest.raises(SystemExit, match="nowhere does not exist; train or search one first"):
        classify(tmp_path / "nowhere")


def test_folder_without_a_model_is_reported(classify, tmp_path):
    with pytest.raises(SystemExit, match="has no config.json"):
        classify(tmp_path)
