"""The last step of the demo: a folder classifies in a process that has nothing but that folder."""

import json
import re
import shutil


def test_folder_classifies_far_from_the_project(run, tiny_classifier_folder, monkeypatch):
    # the path is made absolute before the other process starts in a directory of its own
    monkeypatch.chdir(tiny_classifier_folder.parent)
    code, printed, _ = run("classify_elsewhere", tiny_classifier_folder.name, "--texts", "a dull film", "a joy " * 200)
    printed = printed.splitlines()
    labels = json.loads((tiny_classifier_folder / "config.json").read_text()).get("id2label", {}).values()
    assert code == 0 and len(printed) == 3
    for line, text in zip(printed[1:], ("a dull film", "a joy a joy"), strict=True):
        label, score, *_ = line.split()
        assert label in (labels or {"LABEL_0", "LABEL_1", "LABEL_2"})
        assert 1 / 3 <= float(score) <= 1
        assert text in line


def test_folder_that_needs_our_package_is_reported(run, tiny_classifier_folder, tmp_path):
    folder = shutil.copytree(tiny_classifier_folder, tmp_path / "model")
    code = folder / "modeling_classformer.py"
    code.write_text("import classformer_hf\n" + code.read_text())
    code, _, message = run("classify_elsewhere", folder)
    assert code == 1
    assert re.search("does not load or run without this project's packages: .*classformer_hf", message)


def test_missing_folder_is_reported(run, tmp_path):
    code, _, message = run("classify_elsewhere", tmp_path / "nowhere")
    assert code == 1 and "nowhere does not exist; train or search one" in message


def test_folder_without_a_model_is_reported(run, tmp_path):
    code, _, message = run("classify_elsewhere", tmp_path)
    assert code == 1 and "has no config.json" in message
