"""What was made before the packages stood on a base of their own still loads, resumes and evaluates.

`before_rooms.tar.gz` was made by the commit before: a finished search, a training that was stopped after one of two
epochs, a pretraining that was killed at its first of two checkpoints, and finished trainings of an image classifier and
of an autoencoder, by the commands below.
"""

import json
import tarfile
from pathlib import Path

import pytest
import torch

TEXTS = ("--dataset_name", "reviews.csv", "--validation_fraction", 0.25, "--max_length", 32, "--learning_rate", 1e-3)
TEXTS += ("--model_name_or_path", "checkpoint", "--use_cpu", "--disable_tqdm", "True")
SMALL = ("--max_train_samples", 64, "--max_validation_samples", 20, "--max_test_samples", 20, "--num_train_epochs", 1)
SMALL += ("--dataset_name", "digits", "--use_cpu", "--disable_tqdm", "True")


@pytest.fixture
def made_before(tmp_path, monkeypatch):
    with tarfile.open(Path(__file__).with_name("before_rooms.tar.gz")) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read_weights(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


def test_search_is_resumed_and_evaluated(run, made_before):
    journal, weights = (made_before / "search" / "trials.jsonl").read_text(), read_weights(made_before / "search")
    flags = ("--num_train_epochs", 1, "--max_trials", 3, "--num_winners", 1, "--rounds", 2, "--force")
    code, printed, words = run(
        "search_classformer", *TEXTS, *flags, "--required_performance", 0.5, "--output_dir", "search"
    )
    assert code == 0, words
    assert (made_before / "search" / "trials.jsonl").read_text().startswith(journal)
    assert read_weights(made_before / "search") == weights
    code, printed, words = run("evaluate_model", "search/full", "search/best")
    assert code == 0 and "reviews test: 16 examples" in printed, words


def test_stopped_training_goes_on(run, made_before, caplog):
    folder = made_before / "training" / "seed-42"
    arguments = torch.load(folder / "checkpoints" / "checkpoint-3" / "training_args.bin", weights_only=False)
    assert type(arguments).__module__ == "classformer_hf.training"
    caplog.set_level("INFO")
    code, _, words = run(
        "train_classformer", *TEXTS, "--num_train_epochs", 2, "--gamma", 1, 2, "--output_dir", "training"
    )
    assert code == 0, words
    assert any("training goes on from" in message for message in caplog.messages)
    assert json.loads((folder / "train_results.json").read_text())["seed"] == 42


def test_killed_pretraining_goes_on(run, made_before, caplog):
    caplog.set_level("INFO")
    flags = ("--dataset_name", "corpus.txt", "--block_size", 16, "--max_validation_blocks", 4, "--report_to", "none")
    flags += ("--model_name_or_path", "checkpoint", "--gamma", 1, 2, "--objectives", "funnel", "--max_steps", 6)
    flags += ("--save_strategy", "steps", "--save_steps", 3, "--eval_strategy", "no", "--output_dir", "pretraining")
    code, printed, words = run("pretrain_classformer", *flags, "--use_cpu", "--disable_tqdm", "True")
    assert code == 0, words
    assert any("training goes on from pretraining/funnel/checkpoints/checkpoint-3" in one for one in caplog.messages)
    # all six steps count, three of them before
    assert "funnel: validation loss 6.5229 -> 6.51" in printed and "1,536 tokens" in printed


def test_image_classifier_is_not_trained_again_and_evaluates(run, made_before):
    sizes = '{"hidden_sizes": [4, 4, 4], "depths": [1, 1, 1], "embedding_size": 4}'
    flags = ("--family", "resnet", "--preset", "resnet-18-cifar", "--config_overrides", sizes, "--sharing_factor", 2)
    weights = read_weights(made_before / "images")
    code, _, words = run("train_image_classifier", *flags, *SMALL, "--image_size", 8, "--output_dir", "images")
    assert code == 0, words
    assert read_weights(made_before / "images") == weights
    code, printed, words = run("evaluate_model", "images/seed-42")
    assert code == 0 and "20 examples" in printed, words


def test_autoencoder_is_not_trained_again_and_evaluates(run, made_before):
    sizes = '{"encoder_channels": [4, 4, 4, 4], "decoder_channels": [4, 4, 4]}'
    flags = ("--image_size", 16, "--latent_dim", 3, "--config_overrides", sizes, "--output_dir", "shapes")
    weights = read_weights(made_before / "shapes")
    code, _, words = run("train_avae", *flags, *SMALL)
    assert code == 0, words
    assert read_weights(made_before / "shapes") == weights
    code, printed, words = run("evaluate_avae", "--models", "shapes/seed-42")
    assert code == 0 and "n = 20" in printed, words
