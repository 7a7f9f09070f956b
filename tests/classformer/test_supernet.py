"""One training for all schedules: what is drawn, what the loss is, and that shared evaluation changes nothing."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from classformer_hf import ClassformerConfig, ClassformerForSequenceClassification
from classformer_hf.checkpoints import reconfigure
from classformer_hf.search import Schedule, SearchSpace
from classformer_hf.search.supernet import (
    FlopsUniformSampler,
    SupernetTrainer,
    distillation_loss,
    mean_flops,
    predict_schedules,
    train_supernet,
)
from classformer_hf.training import ClassformerTrainingArguments, build_trainer
from redundancy_hf.data import tokenize
from redundancy_hf.evaluation import predict


@pytest.fixture
def space():
    return SearchSpace(3, 60, (1, 2, 4, 8), (0, 2), max_reduction=16)


@pytest.fixture
def tiny_task(tiny_task, tiny_tokenizer):
    return tokenize(tiny_task, tiny_tokenizer, 64)


@pytest.fixture
def model(tiny_settings, tiny_task):
    torch.manual_seed(0)
    return ClassformerForSequenceClassification(ClassformerConfig(**{**tiny_settings, **tiny_task.head_config}))


@pytest.fixture
def drawn(space, model):
    schedules = space.enumerate()
    flops = mean_flops(model.config, schedules, [10, 30])
    return FlopsUniformSampler(schedules, flops, space.log2_lengths(schedules, [10, 30]))


def recipe(folder, **settings):
    quiet = {"save_strategy": "no", "eval_strategy": "no", "load_best_model_at_end": False}
    settings = {"learning_rate": 1e-3, "num_train_epochs": 1, **quiet, **settings}
    return ClassformerTrainingArguments(
        output_dir=str(folder), use_cpu=True, disable_tqdm=True, report_to="none", **settings
    )


def test_flops_are_those_of_the_config(model):
    from classformer_hf import count_flops

    schedules = [Schedule((1, 1, 1)), Schedule((2, 4, 1), 2)]
    expected = []
    for schedule in schedules:
        config = reconfigure(model, **schedule.config).config
        expected.append((count_flops(config, 10) * 3 + count_flops(config, 40)) / 4)
    np.testing.assert_allclose(mean_flops(model.config, schedules, [10, 40, 10, 10]), expected)


def test_operations_are_drawn_evenly():
    # forty short schedules and one each at three, six and nine tenths
    schedules = [Schedule((number,)) for number in range(1, 44)]
    sampler = FlopsUniformSampler(schedules, np.array([*np.linspace(0, 0.01, 40), 0.3, 0.6, 0.9]), np.ones((43, 1)))
    generator = np.random.default_rng(0)
    drawn = [sampler.sample(generator) for _ in range(4000)]
    shares = [drawn.count(schedule) / 4000 for schedule in schedules[-3:]]
    assert shares == pytest.approx([0.25] * 3, abs=0.03)
    assert len(set(drawn)) == 43
    assert sampler.smallest == schedules[0]


def test_smallest_schedule_keeps_two_positions_on_average():
    schedules = [Schedule((number,)) for number in range(1, 5)]
    flops = np.array([4.0, 3.0, 2.0, 1.0])
    sampler = FlopsUniformSampler(schedules, flops, np.array([[3.0, 3.0], [3.0, 2.0], [3.0, 1.0], [3.0, 0.9]]))
    assert sampler.smallest == schedules[2]
    # where none does, the longest has to do
    assert FlopsUniformSampler(schedules, flops, np.array([[0.5], [0.4], [0.3], [0.2]])).smallest == schedules[0]


def test_distillation_is_forward_kl_with_a_detached_teacher():
    student = torch.tensor([[1.0, -1.0], [0.2, 0.1]], requires_grad=True)
    teacher = torch.tensor([[2.0, 0.0], [-1.0, 1.0]], requires_grad=True)
    loss = distillation_loss(student, teacher, "single_label_classification")
    p, q = functional.softmax(teacher / 2, dim=-1), functional.softmax(student / 2, dim=-1)
    assert loss.item() == pytest.approx(4 * (p * (p / q).log()).sum(dim=-1).mean().item(), abs=1e-6)
    loss.backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0


def test_distillation_of_values_and_of_several_labels():
    student, teacher = torch.tensor([[0.5], [1.0]]), torch.tensor([[1.0], [1.0]])
    assert distillation_loss(student, teacher, "regression").item() == pytest.approx(0.125)
    exact = distillation_loss(teacher, teacher, "multi_label_classification")
    assert distillation_loss(student, teacher, "multi_label_classification") > exact


def test_a_step_trains_the_full_the_smallest_and_random_schedules(model, tiny_task, tiny_tokenizer, drawn, tmp_path):
    trainer = build_trainer(model, tiny_task, tiny_tokenizer, recipe(tmp_path), SupernetTrainer)
    trainer.schedules, trainer.problem_type = drawn, tiny_task.problem_type
    batch = next(iter(trainer.get_train_dataloader()))
    seen = []
    original = model.forward
    model.forward = lambda **inputs: seen.append(inputs.get("schedule")) or original(**inputs)
    model.train()
    trainer.compute_loss(model, batch)
    again = len(seen)
    trainer.compute_loss(model, batch)
    assert len(seen) == 2 * again == 8
    assert seen[0] is None and seen[1] == (drawn.smallest.gamma, drawn.smallest.eta)
    assert seen[:4] == seen[4:], "the draw belongs to the step"
    trainer.state.global_step = 1
    trainer.compute_loss(model, batch)
    assert seen[8:10] == seen[:2] and seen[10:] != seen[2:4]


def test_labels_are_smoothed_for_every_schedule(model, tiny_task, tiny_tokenizer, drawn, tmp_path):
    arguments = recipe(tmp_path, label_smoothing_factor=0.3)
    trainer = build_trainer(model, tiny_task, tiny_tokenizer, arguments, SupernetTrainer)
    trainer.schedules, trainer.problem_type = drawn, tiny_task.problem_type
    batch = next(iter(trainer.get_train_dataloader()))
    generator = np.random.default_rng([arguments.seed, 0])
    schedules = [Schedule((1, 1, 1)), drawn.smallest, drawn.sample(generator), drawn.sample(generator)]
    model.train()
    with torch.no_grad():
        logits = []
        for schedule in schedules:
            logits.append(model(**batch, schedule=(schedule.gamma, schedule.eta)).logits)
        smoothed = [functional.cross_entropy(one, batch["labels"], label_smoothing=0.3) for one in logits]
        taught = [distillation_loss(one, logits[0], tiny_task.problem_type) for one in logits[1:]]
        loss, outputs = trainer.compute_loss(model, batch, return_outputs=True)
    assert loss.item() == pytest.approx((sum(smoothed) + sum(taught)).item() / 4, abs=1e-5)
    torch.testing.assert_close(outputs.logits, logits[0])


def test_training_improves_full_and_smallest(model, tiny_task, tiny_tokenizer, drawn, tmp_path):
    def loss(schedule):
        scheduled = reconfigure(model, **schedule.config)
        logits = torch.tensor(predict(scheduled, tiny_task.splits["train"], tiny_tokenizer))
        return functional.cross_entropy(logits, torch.tensor(tiny_task.splits["train"]["labels"])).item()

    full, smallest = Schedule((1, 1, 1)), drawn.smallest
    before = loss(full), loss(smallest)
    train_supernet(model, tiny_task, tiny_tokenizer, recipe(tmp_path, num_train_epochs=8), drawn)
    assert loss(full) < before[0] and loss(smallest) < before[1]
    assert model.config.gamma == [1, 1, 1], "its own schedule again"


def test_shared_evaluation_equals_one_by_one(model, space, tiny_task, tiny_tokenizer):
    schedules = space.enumerate()[::5]
    split = tiny_task.splits["train"]
    together = predict_schedules(model, schedules, split, tiny_tokenizer, batch_size=3)
    assert together.shape == (len(schedules), len(split), model.config.num_labels)
    for schedule, logits in zip(schedules, together, strict=True):
        alone = predict(reconfigure(model, **schedule.config), split, tiny_tokenizer)
        np.testing.assert_allclose(logits, alone, atol=1e-4)
    assert np.abs(together[0] - together[-1]).max() > 1e-2, "schedules make a difference"


def test_supernet_of_a_space_without_the_shortcut(tiny_settings, tiny_task, tiny_tokenizer):
    settings = {**tiny_settings, **tiny_task.head_config, "last_layer_cls_only": False}
    model = ClassformerForSequenceClassification(ClassformerConfig(**settings))
    schedules = [Schedule((1, 1, 2)), Schedule((1, 2, 4), 1)]
    together = predict_schedules(model, schedules, tiny_task.splits["train"], tiny_tokenizer)
    for schedule, logits in zip(schedules, together, strict=True):
        alone = predict(reconfigure(model, **schedule.config), tiny_task.splits["train"], tiny_tokenizer)
        np.testing.assert_allclose(logits, alone, atol=1e-4)
