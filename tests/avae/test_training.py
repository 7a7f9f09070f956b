"""Training on the Trainer: it learns, the search runs inside, a resumed run equals an uninterrupted one."""

import copy

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from avae_hf.data import PoseDataset, ShapeTaskArguments
from avae_hf.training import AVAETrainingArguments, build_trainer, evaluate_model, summarise_terms, train

from .conftest import build, draw_shapes


@pytest.fixture
def make_trainer(tmp_path):
    def make(folder="run", transforms=("rotation",), dims=2, model=None, **settings):
        images, config = draw_shapes(24, dims), ShapeTaskArguments(augment=["rotation"]).pose_config(dims)
        labels = torch.arange(24) % 2
        model = build(transforms, dims) if model is None else model
        arguments = AVAETrainingArguments(
            **{"num_train_epochs": 2, "per_device_train_batch_size": 8, "learning_rate": 1e-2, **settings},
            output_dir=str(tmp_path / folder),
            use_cpu=True,
            disable_tqdm=True,
            report_to="none",
        )
        train_split = PoseDataset(images[:16], labels[:16], config)
        validation = PoseDataset(images[16:], labels[16:], config, seed=0)
        return build_trainer(model, train_split, validation, arguments, tmp_path / folder / "poses")

    return make


@pytest.mark.parametrize(
    ("dims", "transforms"), [(2, []), (2, ["rotation"]), pytest.param(3, ["rotation"], marks=pytest.mark.slow)]
)
def test_training_learns_and_reports(make_trainer, dims, transforms, tmp_path):
    trainer = make_trainer(transforms=transforms, dims=dims, num_train_epochs=4)
    trained = train(trainer)
    losses = [entry["eval_loss"] for entry in trained.history if "eval_loss" in entry]
    assert losses[-1] < losses[0] and trained.loss == pytest.approx(losses[-1], rel=1e-3)
    assert [entry["epoch"] for entry in trained.history] == [1, 2, 3, 4]
    saved = np.load(tmp_path / "run" / "poses" / "epoch-4.npz")
    assert saved["alpha"].shape == (8, len(transforms) * (1 if dims == 2 else 3)) and saved["terms"].shape == (8, 3)
    assert trained.squared_error == pytest.approx(summarise_terms(saved["terms"])["squared_error"], rel=1e-3)


class _StopAfter(TrainerCallback):
    def __init__(self, epochs):
        self.epochs = epochs

    def on_save(self, args, state, control, **kwargs):
        if state.epoch >= self.epochs:
            raise KeyboardInterrupt


def test_resumed_training_equals_an_uninterrupted_one(make_trainer, tmp_path):
    whole = make_trainer("whole", num_train_epochs=3)
    train(whole)
    stopped = make_trainer("stopped", num_train_epochs=3)
    stopped.add_callback(_StopAfter(2))
    with pytest.raises(KeyboardInterrupt):
        train(stopped)
    resumed = make_trainer("stopped", num_train_epochs=3)
    trained = train(resumed, get_last_checkpoint(str(tmp_path / "stopped")))
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], value, atol=1e-5, rtol=1e-4)
    assert len(trained.history) == 3


def test_the_search_runs_in_training_and_the_model_does_not_see_the_pose(make_trainer):
    trainer = make_trainer(num_train_epochs=1)
    seen = []
    forward = trainer.model.forward

    def record(*args, **kwargs):
        outputs = forward(*args, **kwargs)
        seen.append((set(kwargs), outputs.alpha.abs().sum().item(), trainer.model.training))
        return outputs

    trainer.model.forward = record
    train(trainer)
    assert all(names == {"pixel_values"} and moved > 0 for names, moved, _ in seen)
    assert {is_training for _, _, is_training in seen} == {True, False}


def test_a_plain_trainer_trains_it_too(tmp_path):
    model = build()
    before = copy.deepcopy(model.state_dict())
    examples = [{"pixel_values": image} for image in draw_shapes(8)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, use_cpu=True, report_to="none", disable_tqdm=True
    )
    Trainer(model, arguments, train_dataset=examples).train()
    assert any(not torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_evaluation_equals_the_trainer_s(make_trainer):
    trainer = make_trainer()
    scores = trainer.evaluate()
    found = evaluate_model(trainer.model.eval(), trainer.eval_dataset, batch_size=3)
    assert found["alpha"].shape == (8, 1) and found["latent"].shape == (8, 3) and len(found["labels"]) == 8
    assert summarise_terms(found["terms"])["squared_error"] == pytest.approx(scores["eval_squared_error"], rel=1e-4)
    loss = found["terms"][:, 1:].sum(1).mean()
    assert loss == pytest.approx(scores["eval_loss"], rel=1e-4)


def test_outputs_that_are_no_numbers_end_the_run(make_trainer):
    trainer = make_trainer()
    with torch.no_grad():
        trainer.model.encoder.mean.bias.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="lower --learning_rate"):
        trainer.evaluate()
