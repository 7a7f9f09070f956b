"""The folder contract: what `save_pretrained` writes opens anywhere, with every Auto class, and gives the same outputs.

One fresh process opens the folders of all rows; a new model adds a row to `CONTRACTS`.
"""

import ast
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers
from transformers import Trainer, TrainingArguments

from classformer_hf import (
    ClassformerConfig,
    ClassformerForMaskedLM,
    ClassformerForSequenceClassification,
    ClassformerModel,
)

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Contract:
    """One kind of saved folder."""

    name: str
    build: Callable  # tiny_settings -> a model
    make_inputs: Callable  # model -> arguments of its forward
    auto_class: str
    auto_classes: tuple[str, ...]  # what else opens the folder
    output_name: str
    make_labels: Callable | None = None  # (model, inputs) -> labels, for a head that computes a loss
    processor: str | None = None  # fixture of the tokenizer or image processor that lies in the folder
    task: str | None = None  # a pipeline that runs on the folder and ...
    examples: tuple = ()  # ... its input
    bfloat16_tolerance: float = 0.2


def build_classformer(model_class):
    def build(settings):
        return model_class(ClassformerConfig(**settings, gamma=[1, 2, 2], eta=1))

    return build


def token_inputs(model):
    input_ids = torch.randint(5, model.config.vocab_size, (4, 12))
    attention_mask = torch.ones_like(input_ids)
    input_ids[0, 7:], attention_mask[0, 7:] = model.config.pad_token_id, 0
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def class_labels(model, inputs):
    return torch.randint(0, model.config.num_labels, (4,))


def token_labels(model, inputs):
    return torch.randint(5, model.config.vocab_size, (4, model.config.layer_lengths(12)[-1]))


CLASSFORMER = {
    "make_inputs": token_inputs,
    "auto_classes": ("AutoModel", "AutoModelForMaskedLM", "AutoModelForSequenceClassification"),
    "processor": "tiny_tokenizer",
}
CONTRACTS = [
    Contract(
        "classformer",
        build=build_classformer(ClassformerModel),
        auto_class="AutoModel",
        output_name="last_hidden_state",
        **CLASSFORMER,
    ),
    Contract(
        "classformer_masked_lm",
        build=build_classformer(ClassformerForMaskedLM),
        auto_class="AutoModelForMaskedLM",
        output_name="logits",
        make_labels=token_labels,
        bfloat16_tolerance=0.5,
        **CLASSFORMER,
    ),
    Contract(
        "classformer_classifier",
        build=build_classformer(ClassformerForSequenceClassification),
        auto_class="AutoModelForSequenceClassification",
        output_name="logits",
        make_labels=class_labels,
        task="text-classification",
        examples=("a warm and clever film", "the plot is a mess"),
        **CLASSFORMER,
    ),
]
CHECKS = (
    "saved",
    "sharded",
    "checkpoint",
    "every_auto_class",
    "saved_again",
    "from_config",
    "bfloat16",
    "unknown_setting",
    "code_needs_trust",
    "pipeline",
    "packages_stay_away",
)
each_contract = pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.name)


@torch.no_grad()
def write_golden(path, model, contract, inputs):
    model.eval()
    output, encoder = model(**inputs)[contract.output_name], model.base_model(**inputs)[0]
    torch.save({"inputs": inputs, "output": output, "encoder": encoder}, path)


def train_two_steps(model, contract, inputs, folder):
    labels = contract.make_labels(model, inputs)
    examples = [{name: values[i] for name, values in {**inputs, "labels": labels}.items()} for i in range(len(labels))]
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=2,
        save_steps=2,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        use_cpu=True,
        disable_tqdm=True,
    )
    Trainer(model, arguments, train_dataset=examples).train()
    return folder / "checkpoint-2"


def save_folders(contract, settings, processor, folder):
    """Save a model plainly, in shards and from a Trainer, each beside the outputs it has here."""
    torch.manual_seed(0)
    model = contract.build(settings)
    model.config.somebodys_note = {"kept": True}
    inputs = contract.make_inputs(model)
    golden = folder / "golden"
    golden.mkdir()
    folders = {"saved": folder / "saved", "sharded": folder / "sharded"}
    write_golden(golden / "saved.pt", model, contract, inputs)
    model.save_pretrained(folders["saved"])
    files = sorted(path.name for path in folders["saved"].iterdir())
    model.save_pretrained(folders["sharded"], max_shard_size="20KB")
    if processor is not None:
        processor.save_pretrained(folders["saved"])
    if contract.make_labels is not None:
        folders["checkpoint"] = train_two_steps(model, contract, inputs, folder / "training")
        write_golden(golden / "checkpoint.pt", model, contract, inputs)
    return {
        "name": contract.name,
        "model_type": model.config.model_type,
        "model_class": type(model).__name__,
        "package": type(model).__module__.split(".")[0],
        "folders": {kind: str(path) for kind, path in folders.items()},
        "golden": str(golden),
        "files": files,
        **{name: getattr(contract, name) for name in ("auto_class", "output_name", "task", "bfloat16_tolerance")},
        "auto_classes": list(contract.auto_classes),
        "examples": list(contract.examples),
    }


@pytest.fixture(scope="module")
def rows(request, tmp_path_factory, tiny_settings):
    result = {}
    for contract in CONTRACTS:
        processor = request.getfixturevalue(contract.processor) if contract.processor else None
        result[contract.name] = save_folders(contract, tiny_settings, processor, tmp_path_factory.mktemp(contract.name))
    return result


@pytest.fixture(scope="module")
def results(rows, tmp_path_factory):
    """What the fresh process found, from an empty directory and with an empty cache of modules."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "empty").mkdir()
    (folder / "rows.json").write_text(json.dumps(list(rows.values())))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment.update(HF_HOME=str(folder / "home"), HF_MODULES_CACHE=str(folder / "home" / "modules"))
    command = [sys.executable, str(HERE / "fresh_process.py"), str(folder / "rows.json"), str(folder / "results.json")]
    process = subprocess.run(
        command, cwd=folder / "empty", env=environment, capture_output=True, text=True, timeout=300
    )
    assert process.returncode == 0, process.stderr
    found = json.loads((folder / "results.json").read_text())
    assert all(set(checks) == set(CHECKS) for checks in found.values()), found
    return found


@pytest.mark.parametrize("check", CHECKS)
@each_contract
def test_fresh_process(results, contract, check):
    assert results[contract.name][check] == "", results[contract.name][check]


def closure_of(package, modules):
    """File names of travelling modules and all that they import from their own folder."""
    folder = Path(importlib.import_module(package).__file__).parent
    names, queue = set(), list(modules)
    while queue:
        name = queue.pop()
        if name not in names:
            names.add(name)
            tree = ast.parse((folder / f"{name}.py").read_text())
            queue += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1]
    return {f"{name}.py" for name in names}


@each_contract
def test_folder_holds_weights_config_and_the_code_it_needs(rows, contract):
    row = rows[contract.name]
    auto_map = json.loads(Path(row["folders"]["saved"], "config.json").read_text())["auto_map"]
    assert set(auto_map) == {"AutoConfig", *contract.auto_classes}
    code = closure_of(row["package"], {reference.split(".")[0] for reference in auto_map.values()})
    assert set(row["files"]) == code | {"config.json", "model.safetensors"}


@each_contract
def test_shards_and_checkpoints_hold_the_code_too(rows, contract):
    row = rows[contract.name]
    code = {name for name in row["files"] if name.endswith(".py")}
    files = {kind: {path.name for path in Path(folder).iterdir()} for kind, folder in row["folders"].items()}
    assert "model.safetensors.index.json" in files["sharded"]
    for kind, names in files.items():
        assert code <= names, kind


@each_contract
def test_installed_package_needs_no_remote_code(rows, contract):
    row = rows[contract.name]
    for auto_class in contract.auto_classes:
        model = getattr(transformers, auto_class).from_pretrained(row["folders"]["saved"])
        assert type(model).__module__.startswith(f"{row['package']}."), type(model)
    model = getattr(transformers, contract.auto_class).from_pretrained(row["folders"]["saved"]).eval()
    assert type(model).__name__ == row["model_class"]
    golden = torch.load(Path(row["golden"]) / "saved.pt")
    with torch.no_grad():
        output = model(**golden["inputs"])[contract.output_name]
    torch.testing.assert_close(output, golden["output"], rtol=0, atol=1e-6)
