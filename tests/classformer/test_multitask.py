"""Several tasks at once: losses by hand, one task's examples do not touch another's head."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments

from classformer_hf import ClassformerConfig, ClassformerModel
from classformer_hf.multitask import MultitaskClassformer, guessing_loss, mix_tasks
from redundancy_hf.labels import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from redundancy_hf.task import Task


def make_task(name, labels, problem_type=SINGLE_LABEL, num_labels=1):
    rows = {"input_ids": [[0, 5 + index, 2] for index in range(len(labels))], "labels": labels}
    rows["attention_mask"] = [[1, 1, 1]] * len(labels)
    names = [str(index) for index in range(num_labels)]
    return Task(name, DatasetDict(train=Dataset.from_dict(rows)), ("text",), problem_type, names, "accuracy")


@pytest.fixture
def tasks():
    return [make_task("three", [0, 2, 1], num_labels=3), make_task("value", [1.0, 4.0], REGRESSION)]


@pytest.fixture
def model(tasks):
    torch.manual_seed(0)
    config = ClassformerConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=20,
        gamma=[2, 1],
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.2,
    )
    return MultitaskClassformer.from_encoder(ClassformerModel(config), tasks).eval()


def as_batch(mixed):
    return {name: torch.tensor(np.array(mixed[name])) for name in mixed.column_names}


def test_losses_by_hand(model, tasks):
    assert guessing_loss(tasks[0]) == pytest.approx(math.log(3)) and guessing_loss(tasks[1]) == pytest.approx(2.25)
    batch = as_batch(mix_tasks(tasks))
    assert batch["task_ids"].tolist() == [0, 0, 0, 1, 1]
    states = model.roberta(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    classes = F.cross_entropy(model.heads[0](states[:3]), torch.tensor([0, 2, 1]), reduction="sum") / math.log(3)
    values = (model.heads[1](states[3:])[:, 0] - torch.tensor([1.0, 4.0])).square().sum() / 2.25
    torch.testing.assert_close(model(**batch).loss, (classes + values) / 5)
    # the order of a batch does not matter
    shuffled = {name: value[[3, 1, 4, 0, 2]] for name, value in batch.items()}
    torch.testing.assert_close(model(**shuffled).loss, model(**batch).loss)


def test_guessing_costs_one(model, tasks):
    for head in model.heads:
        torch.nn.init.zeros_(head.out_proj.weight)
        torch.nn.init.zeros_(head.out_proj.bias)
    model.heads[1].out_proj.bias.data.fill_(2.5)
    assert model(**as_batch(mix_tasks(tasks))).loss.item() == pytest.approx(1)


def test_a_head_learns_from_its_task_only(model, tasks):
    model(**as_batch(mix_tasks(tasks[:1]))).loss.backward()
    assert model.heads[0].out_proj.weight.grad.abs().sum() > 0
    assert model.heads[1].out_proj.weight.grad is None or not model.heads[1].out_proj.weight.grad.any()
    assert model.roberta.embeddings.word_embeddings.weight.grad.abs().sum() > 0


def test_the_trained_encoder_is_whole(model, tasks, tmp_path):
    encoder = ClassformerModel(model.config)
    pooler = {name: weight.clone() for name, weight in encoder.pooler.state_dict().items()}
    with torch.no_grad():
        model.roberta.embeddings.word_embeddings.weight.add_(1)
    model.copy_to(encoder).save_pretrained(tmp_path)
    read, info = ClassformerModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    for name, weight in model.roberta.state_dict().items():
        torch.testing.assert_close(read.state_dict()[name], weight)
    torch.testing.assert_close(dict(read.pooler.state_dict()), pooler)


def test_several_labels_per_example_are_refused(tasks):
    with pytest.raises(ValueError, match="several labels"):
        mix_tasks([tasks[0], make_task("many", [[1, 0], [0, 1]], MULTI_LABEL, 2)])


def test_the_trainer_keeps_token_types(tasks, model, tmp_path):
    config = copy.deepcopy(model.config)
    config.type_vocab_size = 2
    pairs = [
        replace(task, splits=DatasetDict(train=task.splits["train"].add_column("token_type_ids", types)))
        for task, types in zip(tasks, ([[0, 0, 1]] * 3, [[0, 1, 1]] * 2), strict=True)
    ]
    mixed = mix_tasks(pairs)
    torch.manual_seed(0)
    paired = MultitaskClassformer.from_encoder(ClassformerModel(config), pairs).eval()
    arguments = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True)
    batch = next(iter(Trainer(paired, arguments, train_dataset=mixed).get_train_dataloader()))
    assert sorted(batch["token_type_ids"].sum(1).tolist()) == [1, 1, 1, 2, 2]
    batch = as_batch(mixed)
    assert paired(**batch).loss != paired(**{**batch, "token_type_ids": torch.zeros(5, 3, dtype=torch.long)}).loss
