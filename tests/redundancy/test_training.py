"""A training with one seed: what is finished is read back, if it is whole."""

import pytest
import torch
from safetensors.torch import save_file
from transformers import TrainingArguments

from redundancy_hf.training import RecipeArguments, run_seed, run_seeds


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


def test_folders_of_another_training_are_refused_before_any_work(tmp_path):
    arguments = RecipeArguments(str(tmp_path), use_cpu=True, report_to="none", seed=7)
    done = []

    def train(own, folder, plan):
        done.append(own.seed)
        return {"seed": own.seed}

    assert run_seeds(train, arguments, 1, {"dataset": "a"}) == [{"seed": 7}]
    arguments.seed = 6
    # the second seed's folder is the one that is finished
    with pytest.raises(ValueError, match="seed-7 holds another training: "):
        run_seeds(train, arguments, 2, {"dataset": "b"}, lambda plan: done.append("estimate"))
    assert done == [7]
    # and nothing stands in the way of another one
    assert run_seeds(train, arguments, 2, {"dataset": "a"}) == [{"seed": 6}, {"seed": 7}]
