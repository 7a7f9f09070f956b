"""Training of image classifiers: optimisers against their formulas, schedules, averages, resuming, refusals."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from transformers import TrainerCallback

import vision_hf
from redundancy_hf.images import load_task
from vision_hf.data import ImageTaskArguments, build_image_processor, transform_splits
from vision_hf.priors import NearestBasisLoss
from vision_hf.training import (
    ImageTrainingArguments,
    RMSpropTF,
    average_weights,
    build_trainer,
    measure_accuracy,
    train,
)


@pytest.fixture
def make_trainer(tmp_path, image_parquet, xception_settings):
    task_arguments = ImageTaskArguments(dataset_name=str(image_parquet))
    task = load_task(task_arguments).without_test()
    processor = build_image_processor(task_arguments, 12)

    def make(folder="run", regulariser=None, model=None, **settings):
        torch.manual_seed(0)
        config = vision_hf.SharedXceptionConfig(**xception_settings)
        model = vision_hf.SharedXceptionForImageClassification(config) if model is None else model
        defaults = {"num_train_epochs": 2, "per_device_train_batch_size": 8, "learning_rate": 0.05}
        arguments = ImageTrainingArguments(
            **{**defaults, **settings},
            output_dir=str(tmp_path / folder),
            use_cpu=True,
            disable_tqdm=True,
            report_to="none",
        )
        loss = None if regulariser is None else regulariser(model)
        return build_trainer(model, task, processor, task_arguments, arguments, loss)

    return make


def test_rmsprop_is_tensorflow_s():
    """Three steps by hand: squares start at 1, epsilon inside the root, learning rate inside the momentum."""
    weight = nn.Parameter(torch.tensor([2.0]))
    optimizer = RMSpropTF([weight], lr=0.1, alpha=0.9, eps=0.01, momentum=0.5)
    value, squares, update = 2.0, 1.0, 0.0
    for gradient in (3.0, -1.0, 0.5):
        weight.grad = torch.tensor([gradient])
        optimizer.step()
        squares = 0.9 * squares + 0.1 * gradient**2
        update = 0.5 * update + 0.1 * gradient / math.sqrt(squares + 0.01)
        value -= update
        assert weight.item() == pytest.approx(value, rel=1e-6)


def test_rmsprop_decays_by_the_gradient_and_leaves_what_has_none():
    first, second = nn.Parameter(torch.tensor([2.0])), nn.Parameter(torch.tensor([5.0]))
    optimizer = RMSpropTF([first, second], lr=0.1, alpha=0.9, eps=0.0, momentum=0.0, weight_decay=0.5)
    first.grad = torch.tensor([0.0])
    optimizer.step()
    assert first.item() == pytest.approx(2 - 0.1 / math.sqrt(1.0 * 0.9 + 0.1)) and second.item() == 5


def test_average_follows_slower_and_slower():
    update = average_weights(0.99)
    for number, decay in ((0, 0.1), (10, 0.55), (10**6, 0.99)):
        assert update(torch.zeros(1), torch.ones(1), torch.tensor(number)).item() == pytest.approx(1 - decay)
    assert update(torch.tensor(0), torch.tensor(7), torch.tensor(10**6)) == 7, "counters are copied"


def test_learning_rate_warms_up_and_falls_by_steps(make_trainer):
    trainer = make_trainer(num_train_epochs=6, lr_decay_epochs=2, lr_decay_factor=0.2, warmup_steps=3)
    steps_per_epoch = 4  # 32 images in batches of 8
    trainer.create_optimizer_and_scheduler(num_training_steps=24)
    rates = []
    for _ in range(24):
        rates.append(trainer.lr_scheduler.get_last_lr()[0])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert rates[:4] == pytest.approx([0.0125, 0.025, 0.0375, 0.05])
    for epoch, factor in ((1, 1), (2, 0.2), (3, 0.2), (4, 0.04), (5, 0.04)):
        assert rates[epoch * steps_per_epoch] == pytest.approx(0.05 * factor)


@pytest.mark.parametrize(("optimizer", "kind"), [("sgd", torch.optim.SGD), ("rmsprop_tf", RMSpropTF)])
def test_optimizer_is_the_recipe_s_and_spares_biases_and_norms(make_trainer, optimizer, kind):
    trainer = make_trainer(optimizer=optimizer, momentum=0.8, weight_decay=0.1)
    trainer.create_optimizer_and_scheduler(num_training_steps=4)
    groups = trainer.optimizer.param_groups
    assert type(getattr(trainer.optimizer, "optimizer", trainer.optimizer)) is kind
    assert {group["momentum"] for group in groups} == {0.8}
    decayed = {id(weight) for group in groups if group["weight_decay"] > 0 for weight in group["params"]}
    for name, weight in trainer.model.named_parameters():
        assert (id(weight) in decayed) == (weight.ndim > 1), name


def test_settings_of_adamw_reach_it(make_trainer):
    trainer = make_trainer(optimizer="adamw", adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-6)
    trainer.create_optimizer_and_scheduler(num_training_steps=4)
    (group, *_) = trainer.optimizer.param_groups
    assert (group["betas"], group["eps"]) == ((0.8, 0.95), 1e-6)
    recipe = trainer.args.describe_recipe()
    assert recipe["adam_beta1"] == "0.8" and "adam_beta1" not in make_trainer().args.describe_recipe()


def test_training_learns_and_validation_is_the_only_other_split(make_trainer, image_parquet):
    trainer = make_trainer(num_train_epochs=8)
    trained = train(trainer)
    assert trained.accuracy == 1.0 and trained.top5_accuracy is None and trained.seconds > 0
    arguments = ImageTaskArguments(dataset_name=str(image_parquet))
    test = transform_splits(load_task(arguments), trainer.processing_class, arguments)["test"]
    scores = measure_accuracy(trainer.model.eval(), test, batch_size=5)
    assert scores == {"accuracy": 1.0, "standard_error": 0.0}


def test_average_is_what_is_evaluated_and_kept(make_trainer):
    trainer = make_trainer(ema_decay=0.9, num_train_epochs=3)
    weights = []
    trainer.add_callback(_Record(weights))
    train(trainer)
    last = weights[-1]
    kept = trainer.model.state_dict()
    assert any(not torch.equal(kept[name], value) for name, value in last.items())
    average = weights[0]
    decays = [min(0.9, (1 + n) / (10 + n)) for n in range(1, len(weights))]
    name = "classifier.weight"
    expected = average[name]
    for state, decay in zip(weights[1:], decays, strict=True):
        expected = decay * expected + (1 - decay) * state[name]
    torch.testing.assert_close(kept[name], expected, atol=1e-5, rtol=1e-4)


def test_best_checkpoint_has_its_own_average(make_trainer):
    trainer = make_trainer(
        ema_decay=0.5, num_train_epochs=3, load_best_model_at_end=True, metric_for_best_model="loss", save_total_limit=3
    )
    trainer.args.greater_is_better = True  # so that the first epoch is the best
    losses = []
    evaluate = trainer.evaluate
    trainer.evaluate = lambda *args, **kwargs: losses.append(evaluate(*args, **kwargs)) or losses[-1]
    train(trainer)
    assert losses[0]["eval_loss"] == max(loss["eval_loss"] for loss in losses[:3])
    assert losses[-1]["eval_loss"] == pytest.approx(losses[0]["eval_loss"])


class _Record(TrainerCallback):
    """Keeps the weights after every step."""

    def __init__(self, weights):
        self.weights = weights

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.weights.append({name: value.clone() for name, value in model.state_dict().items()})


class _StopAfter(TrainerCallback):
    def __init__(self, epochs):
        self.epochs = epochs

    def on_epoch_end(self, args, state, control, **kwargs):
        control.should_save = True

    def on_save(self, args, state, control, **kwargs):
        if state.epoch >= self.epochs:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "settings",
    [
        {"lr_decay_epochs": 1},
        {"optimizer": "rmsprop_tf", "learning_rate": 0.01, "ema_decay": 0.9},
        {"regulariser": lambda model: NearestBasisLoss(model, 4, tau=0.01)},
    ],
    ids=["sgd", "rmsprop and average", "learned bases"],
)
def test_resumed_training_equals_an_uninterrupted_one(make_trainer, settings):
    whole = make_trainer("whole", num_train_epochs=3, **settings)
    train(whole)
    stopped = make_trainer("stopped", num_train_epochs=3, **settings)
    stopped.add_callback(_StopAfter(2))
    with pytest.raises(KeyboardInterrupt):
        train(stopped)
    resumed = make_trainer("stopped", num_train_epochs=3, **settings)
    train(resumed)
    for name, value in whole.model.state_dict().items():
        assert torch.allclose(resumed.model.state_dict()[name], value, atol=1e-6, rtol=1e-5), name
    if whole.regulariser is not None:
        for first, second in zip(whole.regulariser.values, resumed.regulariser.values, strict=True):
            torch.testing.assert_close(first, second, atol=1e-6, rtol=1e-5)


def test_loss_of_the_weights_pulls_them_together(make_trainer):
    def spread(trainer):
        return NearestBasisLoss(trainer.model, 4, tau=1.0)().item()

    free = make_trainer("free", num_train_epochs=8)
    train(free)
    pulled = make_trainer("pulled", num_train_epochs=8, regulariser=lambda m: NearestBasisLoss(m, 4, tau=0.1))
    train(pulled)
    assert pulled.regulariser().item() / 0.1 < 0.4 * spread(free)


def test_nan_loss_ends_the_run_with_advice(make_trainer):
    with pytest.raises(FloatingPointError, match="lower --learning_rate"):
        train(make_trainer(learning_rate=1e20, max_grad_norm=0.0, num_train_epochs=5))


def test_mean_and_sum_of_gradients_differ_under_sgd_by_the_learning_rate(make_trainer, xception_settings):
    """Thesis section 3.2 averages the gradients of tied weights, its code sums them."""
    weights = {}
    for reduction in ("mean", "sum"):
        torch.manual_seed(0)
        config = vision_hf.SharedXceptionConfig(**xception_settings, sharing_factor=4, grad_reduction=reduction)
        model = vision_hf.SharedXceptionForImageClassification(config)
        layer = model.model.stages[0][0].units[0].conv.depthwise
        before = layer.weight.detach().clone()
        settings = {"momentum": 0.0, "weight_decay": 0.0, "max_grad_norm": 0.0, "max_steps": 1}
        train(make_trainer(reduction, model=model, **settings))
        weights[reduction] = layer.weight.detach() - before
    assert weights["mean"].abs().max() > 0
    torch.testing.assert_close(weights["sum"], 4 * weights["mean"], atol=1e-6, rtol=1e-3)


def test_labels_that_do_not_fit_are_refused(make_trainer, xception_settings, image_parquet):
    config = vision_hf.SharedXceptionConfig(**{**xception_settings, "num_labels": 2})
    model = vision_hf.SharedXceptionForImageClassification(config)
    with pytest.raises(ValueError, match="the model has 2 labels and the task 3"):
        make_trainer(model=model)
    arguments = ImageTaskArguments(dataset_name=str(image_parquet))
    test = transform_splits(load_task(arguments), build_image_processor(arguments, 12), arguments)["test"]
    with pytest.raises(ValueError, match="the model has 2 labels, and the data the label 2"):
        measure_accuracy(model, test)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "lamb"}, "`optimizer` must be one of"),
        ({"lr_decay_epochs": -1}, "`lr_decay_epochs` must not be negative"),
        ({"lr_decay_factor": 0}, "`lr_decay_factor` must be above 0"),
        ({"ema_decay": 1.0}, "`ema_decay` must be at least 0 and below 1, got 1.0"),
    ],
)
def test_bad_setting_is_one_clear_error(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        ImageTrainingArguments(output_dir=str(tmp_path), **settings)


def test_top5_accuracy_counts_the_five_best():
    logits = np.tile(np.arange(8.0), (4, 1))
    scores = vision_hf.training.compute_accuracy(
        vision_hf.training.EvalPrediction(predictions=logits, label_ids=np.array([7, 3, 2, 0]))
    )
    assert scores == {"accuracy": 0.25, "top5_accuracy": 0.5}
