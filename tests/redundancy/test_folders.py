"""Saved model folders: who may read them."""

import os
import stat
from pathlib import Path

import pytest

from classformer_hf import ClassformerForSequenceClassification
from redundancy_hf.folders import GOLDEN, save_folder

ROOT = Path(__file__).parents[2]
FILES = [*ROOT.glob("*_hf/commands/*.py"), *ROOT.glob("experiments/*.py")]


def list_modes(folder):
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_saved_folders_follow_the_umask(tiny_config, tiny_tokenizer, tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        save_folder(ClassformerForSequenceClassification(tiny_config), tmp_path / "model", tiny_tokenizer)
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    modes = list_modes(tmp_path / "model")
    assert modes["model.safetensors"] == modes["config.json"] == modes[GOLDEN.split("/")[-1]] == mode
    assert set(modes.values()) == {mode}


def test_scripts_save_models_by_save_folder():
    # whose folders nobody else reads: one is deleted again, one is only weighed
    private = {"parity.py", "learned_sharing.py"}
    others = {path.name for path in FILES if "model.save_pretrained(" in path.read_text()}
    assert others <= private
