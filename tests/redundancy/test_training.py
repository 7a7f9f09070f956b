"""A training with one seed: what is finished is read back, if it is whole."""

import pytest
import torch
from safetensors.torch import save_file
from transformers import TrainingArguments

from redundancy_hf.training import run_seed


def test_finished_seed_is_read_back_unless_its_weights_are_damaged(tmp_path):
    folder, seen = tmp_path / "seed-7", []

    def train(arguments, place):
        seen.append((arguments.seed, torch.initial_seed()))
        place.mkdir()
        save_file({"weight": torch.ones(3)}, place / "model.safetensors")
        return {"seed": arguments.seed, "score": 0.5}

    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    row = run_seed(train, arguments, folder, 7)
    assert row == run_seed(train, arguments, folder, 7) == {"seed": 7, "score": 0.5}
    assert seen == [(7, 7)] and arguments.seed == 42
    (folder / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged .*delete .*seed-7 and train anew"):
        run_seed(train, arguments, folder, 7)
