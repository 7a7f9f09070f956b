"""Classformer under training and deployment: checkpointing, dtypes, compilation, export, several processes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainingArguments

from classformer_hf import ClassformerConfig, ClassformerForMaskedLM, ClassformerForSequenceClassification

ROOT = Path(__file__).resolve().parents[2]


def build(settings, model_class=ClassformerForSequenceClassification, **changes):
    torch.manual_seed(1)
    return model_class(ClassformerConfig(**{**settings, "gamma": [1, 2, 2], "eta": 1, **changes})).eval()


def make_batch(batch_size=3, length=12):
    input_ids = torch.randint(5, 300, (batch_size, length))
    input_ids[0, length // 2 :] = 1
    return {"input_ids": input_ids, "attention_mask": (input_ids != 1).long()}


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing_keeps_the_gradients(tiny_settings, use_reentrant):
    model, batch, labels = build(tiny_settings).train(), make_batch(), torch.tensor([0, 1, 2])
    gradients, calls = [], []
    model.roberta.encoder.layer[0].intermediate.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(2):
        model.zero_grad()
        model(**batch, labels=labels).loss.backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
        model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    assert len(calls) == 3, "the second backward pass did not compute the layer again"
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=1e-6)


def test_bfloat16_is_close(tiny_settings):
    # the initial weights of practice: large ones also enlarge the rounding of bfloat16
    model, batch = build(tiny_settings, initializer_range=0.1), make_batch()
    with torch.no_grad():
        expected = model(**batch).logits
        logits = model.to(torch.bfloat16)(**batch).logits
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), expected, rtol=0.05, atol=0.05)


def test_autocast_trains(tiny_settings):
    model = build(tiny_settings).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**make_batch(), labels=torch.tensor([0, 1, 2])).loss
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@torch.no_grad()
def test_compiles_as_one_graph(tiny_settings):
    # two layers, because reasoning about symbolic lengths is what takes long here
    model = build(tiny_settings, num_hidden_layers=2, gamma=[2, 1], eta=2)
    # any data-dependent control flow would break the graph
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=True)
    for batch_size, length in ((3, 12), (2, 17)):
        batch = make_batch(batch_size, length)
        torch.testing.assert_close(compiled(**batch).logits, model(**batch).logits, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@torch.no_grad()
def test_compiled_code_gives_the_same_outputs(tiny_settings):
    model = build(tiny_settings, num_hidden_layers=2, gamma=[2, 1], eta=2)
    compiled = torch.compile(model)
    for batch_size, length in ((3, 12), (2, 9)):
        batch = make_batch(batch_size, length)
        torch.testing.assert_close(compiled(**batch).logits, model(**batch).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("gamma, eta", [([1, 2, 2], 0), ([2, 1], 2)], ids=str)
@torch.no_grad()
def test_exports_with_dynamic_batch_and_length(tiny_settings, gamma, eta):
    model = build(tiny_settings, num_hidden_layers=len(gamma), gamma=gamma, eta=eta)
    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    shapes = {"input_ids": dynamic, "attention_mask": dynamic}
    # torch.export takes a length of 1 for a constant, so the example is long enough to leave 2 positions everywhere
    exported = torch.export.export(model, (), make_batch(3, 24), dynamic_shapes=shapes).module()
    for batch_size, length in ((2, 12), (5, 17), (4, 33), (2, 18)):
        batch = make_batch(batch_size, length)
        torch.testing.assert_close(exported(**batch).logits, model(**batch).logits, rtol=0, atol=1e-6)


# tracing is deprecated, and warns of every comparison with a shape
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_class", [ClassformerForSequenceClassification, ClassformerForMaskedLM])
@pytest.mark.parametrize("gamma, eta, length", [([2, 1, 2], 0, 12), ([1, 3, 2], 2, 12), ([4, 2, 1], 8, 5)], ids=str)
@torch.no_grad()
def test_a_trace_is_right_at_other_lengths(tiny_settings, model_class, gamma, eta, length):
    model = build(tiny_settings, model_class, gamma=gamma, eta=eta, return_dict=False)
    traced = torch.jit.trace(model, example_kwarg_inputs=make_batch(2, length))
    for batch_size, other in ((2, length), (3, 33), (1, 2)):
        batch = make_batch(batch_size, other)
        torch.testing.assert_close(traced(**batch)[0], model(**batch)[0], rtol=0, atol=1e-6)


def test_evaluation_is_deterministic_and_training_drops_out(tiny_settings):
    model, batch = build(tiny_settings, hidden_dropout_prob=0.5), make_batch()
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, model(**batch).logits)
        model.train()
        assert not torch.equal(model(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize("model_class", [ClassformerForSequenceClassification, ClassformerForMaskedLM])
def test_trainer_leaves_the_loss_alone(tiny_settings, model_class, tmp_path):
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert Trainer(build(tiny_settings, model_class), arguments).model_accepts_loss_kwargs is False


EVALUATE = """
import json, sys
import torch
from transformers import Trainer, TrainingArguments
from classformer_hf import ClassformerForSequenceClassification

torch.set_num_threads(1)
model = ClassformerForSequenceClassification.from_pretrained("model")
arguments = TrainingArguments("out", use_cpu=True, per_device_eval_batch_size=2, disable_tqdm=True)
loss = Trainer(model, arguments, eval_dataset=torch.load("examples.pt")).evaluate()["eval_loss"]
if arguments.process_index == 0:
    with open("answer.json", "w") as file:
        json.dump({"processes": arguments.world_size, "loss": loss}, file)
# a process that ends with the group open is aborted now and then
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_give_the_evaluation_loss_of_one(tiny_settings, tmp_path):
    model = build(tiny_settings)
    model.save_pretrained(tmp_path / "model")
    examples = [{"input_ids": torch.randint(5, 300, (10,)), "labels": label % 3} for label in range(8)]
    torch.save(examples, tmp_path / "examples.pt")
    (tmp_path / "evaluate_loss.py").write_text(EVALUATE)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "evaluate_loss.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert answer["processes"] == 2
    with torch.no_grad():
        input_ids = torch.stack([example["input_ids"] for example in examples])
        expected = model(input_ids, labels=torch.tensor([example["labels"] for example in examples])).loss
    assert answer["loss"] == pytest.approx(expected.item(), rel=1e-5)
