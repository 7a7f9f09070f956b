"""The fine-tuning recipe: which epoch is kept, when it stops, what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import RobertaConfig, RobertaForSequenceClassification

from classformer_hf import ClassformerForSequenceClassification
from classformer_hf import training as training_module
from classformer_hf.search import Schedule
from classformer_hf.search.objective import FineTuneObjective
from classformer_hf.training import ClassformerTrainingArguments, build_trainer, fine_tune
from redundancy_hf.data import load_task, tokenize
from redundancy_hf.evaluation import predict
from redundancy_hf.labels import MULTI_LABEL, REGRESSION
from redundancy_hf.task import TaskArguments
from redundancy_hf.timing import Target
from redundancy_hf.training import SaveCodeCallback, find_checkpoint


@pytest.fixture
def task(tiny_task, tiny_tokenizer):
    return tokenize(tiny_task, tiny_tokenizer, 64)


@pytest.fixture
def model(tiny_config, task):
    tiny_config.num_labels = task.num_labels
    return ClassformerForSequenceClassification(tiny_config)


@pytest.fixture
def arguments(tmp_path):
    return ClassformerTrainingArguments(
        output_dir=str(tmp_path / "run"), use_cpu=True, disable_tqdm=True, num_train_epochs=6, report_to="none"
    )


@pytest.fixture
def force_scores(monkeypatch):
    """Let the epochs have given scores, whatever the model does."""

    def force(scores):
        left = iter(scores)
        monkeypatch.setattr(training_module, "build_compute_metrics", lambda task: lambda _: {"accuracy": next(left)})

    return force


def test_torn_checkpoints_are_deleted_and_the_last_whole_one_is_found(tmp_path):
    assert find_checkpoint(tmp_path / "none") is None
    for step, state in ((2, "{}"), (5, None), (7, "{}"), (9, '{"glob')):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        save_file({"weight": torch.zeros(2)}, folder / "model.safetensors")
        if step == 7:
            (folder / "model.safetensors").write_bytes(b"torn")
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert find_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


def test_predictions_are_in_the_order_of_the_examples(model, task, tiny_tokenizer, arguments):
    lengths = [len(ids) for ids in task.splits["validation"]["input_ids"]]
    assert lengths != sorted(lengths), "the Trainer batches by length"
    result = fine_tune(model, task, tiny_tokenizer, arguments)
    split = task.splits["validation"]
    expected = [int(model(input_ids=torch.tensor([ids])).logits.argmax()) for ids in split["input_ids"]]
    assert result.predictions.tolist() == expected and len(set(expected)) > 1
    assert result.score == np.mean(np.array(expected) == split["labels"])


def test_defaults_are_the_thesis_recipe_but_shorter(arguments):
    assert arguments.optim.value.startswith("adamw") and arguments.lr_scheduler_type == "linear"
    defaults = ClassformerTrainingArguments()
    assert (defaults.num_train_epochs, defaults.warmup_steps, defaults.early_stopping_patience) == (3, 0.1, 2)
    for given, expected in ((None, 10), (3, 3)):
        followed = ClassformerTrainingArguments(num_train_epochs=given)
        followed.follow_thesis()
        assert followed.num_train_epochs == expected


@pytest.mark.parametrize(
    ("scores", "best", "epochs"),
    [([0.2, 0.9, 0.3, 0.1], 0.9, 4), ([0.9, 0.5, 0.5], 0.9, 3), ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 0.6, 6)],
)
def test_best_epoch_and_stopping_go_by_the_score(
    model, task, tiny_tokenizer, arguments, force_scores, scores, best, epochs
):
    force_scores(scores)
    trainer = build_trainer(model, task, tiny_tokenizer, arguments)
    trainer.train()
    assert trainer.state.best_metric == best
    assert trainer.state.epoch == epochs
    assert trainer.state.best_model_checkpoint.endswith(f"-{trainer.state.max_steps // 6 * (scores.index(best) + 1)}")


def test_a_metric_that_was_asked_for_is_kept(model, task, tiny_tokenizer, tmp_path):
    arguments = ClassformerTrainingArguments(output_dir=str(tmp_path), metric_for_best_model="loss")
    build_trainer(model, task, tiny_tokenizer, arguments)
    assert arguments.metric_for_best_model == "loss" and arguments.greater_is_better is False


def test_code_is_put_beside_what_is_pushed(model, task, tiny_tokenizer, arguments, tmp_path):
    arguments.output_dir = str(tmp_path)
    trainer = build_trainer(model, task, tiny_tokenizer, arguments)
    trainer.add_callback(SaveCodeCallback())
    trainer.callback_handler.on_push_begin(arguments, trainer.state, trainer.control)
    assert {path.name for path in tmp_path.glob("*.py")} == {
        "configuration_classformer.py",
        "modeling_classformer.py",
    }


def test_interrupted_training_resumes(model, task, tiny_tokenizer, arguments, force_scores, monkeypatch):
    force_scores([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    arguments.num_train_epochs = 3
    trainer = build_trainer(model, task, tiny_tokenizer, arguments)

    class Interrupt(training_module.TrainerCallback):
        def on_epoch_begin(self, args, state, control, **kwargs):
            if state.epoch and state.epoch >= 2:
                raise KeyboardInterrupt

    trainer.add_callback(Interrupt())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    steps = []
    monkeypatch.setattr(
        training_module.StopOnInvalidLoss, "on_step_end", lambda self, *args, **kwargs: steps.append(1), raising=False
    )
    fine_tune(model, task, tiny_tokenizer, arguments, resume=True)
    assert len(steps) == trainer.state.max_steps // 3


@pytest.mark.parametrize(
    ("change", "message"),
    [("padding_side", 'tokenizer.padding_side = "right"'), ("labels", "the model has 3 labels and the task 2")],
)
def test_what_cannot_be_trained_is_refused(
    tiny_config, model, task, tiny_tokenizer, arguments, monkeypatch, change, message
):
    if change == "padding_side":
        monkeypatch.setattr(tiny_tokenizer, "padding_side", "left")
    else:
        tiny_config.num_labels = 3
        model = ClassformerForSequenceClassification(tiny_config)
    with pytest.raises(ValueError, match=message):
        build_trainer(model, task, tiny_tokenizer, arguments)


@pytest.mark.parametrize(("kind", "message"), [(REGRESSION, "a regression"), (MULTI_LABEL, "several labels")])
def test_labels_that_are_no_classes_are_not_smoothed(model, task, tiny_tokenizer, arguments, kind, message):
    arguments.label_smoothing_factor = 0.1
    build_trainer(model, task, tiny_tokenizer, arguments)
    with pytest.raises(ValueError, match=f"--label_smoothing_factor must be 0 for .*{message}.*, got 0.1"):
        build_trainer(model, replace(task, problem_type=kind), tiny_tokenizer, arguments)


def test_mixed_precision_does_not_change_the_measured_latency(tiny_roberta_folder, task, tiny_tokenizer, tmp_path):
    arguments = ClassformerTrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, bf16=True, num_train_epochs=1, disable_tqdm=True
    )
    objective = FineTuneObjective(
        str(tiny_roberta_folder), task.without_test(), tiny_tokenizer, arguments, Target(rounds=40)
    )
    objective(Schedule((1, 1, 1)))
    measurement = objective.meter.measure(Schedule((1, 1, 1)))
    assert measurement["latency_ratio"] == pytest.approx(1, abs=0.12)
    saved = ClassformerForSequenceClassification.from_pretrained(tmp_path / "models" / "1-1-1_eta0")
    assert saved.dtype == torch.float32


def save_with_labels(folder, names, **settings):
    """Save a stock classifier whose outputs have these names; its head tells them apart."""
    config = RobertaConfig(**{**settings, "num_labels": len(names)}, id2label=dict(enumerate(names)))
    model = RobertaForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    ("names", "order", "said"),
    [
        (["positive", "negative"], [1, 0], None),
        (["POS", "NEG"], [1, 0], None),
        (["LABEL_0", "LABEL_1"], [0, 1], "LABEL_0 is negative, LABEL_1 is positive; --label_order gives another"),
        (["ham", "spam"], None, "its head is left out"),
        (["negative", "positive", "neutral"], None, None),
    ],
)
def test_search_keeps_a_head_whose_labels_are_known(
    task, tiny_settings, tiny_tokenizer, tmp_path, caplog, names, order, said
):
    model = save_with_labels(tmp_path / "model", names, **tiny_settings)
    arguments = ClassformerTrainingArguments(output_dir=str(tmp_path / "run"), use_cpu=True)
    objective = FineTuneObjective(str(tmp_path / "model"), task.without_test(), tiny_tokenizer, arguments)
    with caplog.at_level("INFO", logger="classformer_hf.checkpoints"):
        loaded = objective.load(Schedule((1, 1, 1)))
    assert objective.has_head == (order is not None)
    assert loaded.config.id2label == {0: "negative", 1: "positive"}
    if order is not None:
        split = task.splits["validation"]
        wanted = predict(model, split, tiny_tokenizer)[:, order]
        np.testing.assert_allclose(predict(loaded, split, tiny_tokenizer), wanted, atol=1e-5)
        assert "Fresh weights" not in caplog.text
    else:
        assert loaded.classifier.out_proj.weight.std() < 1.5 * tiny_settings["initializer_range"]
        # the same for every schedule
        again = objective.load(Schedule((1, 2, 1)))
        assert torch.equal(again.classifier.out_proj.weight, loaded.classifier.out_proj.weight)
        assert "Fresh weights" in caplog.text
    assert said is None or said in caplog.text


def test_order_that_the_user_gives_counts_where_names_say_nothing(
    tiny_text_file, tiny_settings, tiny_tokenizer, tmp_path
):
    model = save_with_labels(tmp_path / "model", ["ham", "spam"], **tiny_settings)
    arguments = TaskArguments(
        dataset_name=str(tiny_text_file), validation_fraction=0.25, label_order=["positive", "negative"]
    )
    task = tokenize(load_task(arguments), tiny_tokenizer, 64)
    training = ClassformerTrainingArguments(output_dir=str(tmp_path / "run"), use_cpu=True)
    objective = FineTuneObjective(str(tmp_path / "model"), task.without_test(), tiny_tokenizer, training)
    loaded = objective.load(Schedule((1, 1, 1)))
    assert objective.has_head and loaded.config.id2label == {0: "negative", 1: "positive"}
    assert torch.equal(loaded.classifier.out_proj.weight, model.classifier.out_proj.weight[[1, 0]])
