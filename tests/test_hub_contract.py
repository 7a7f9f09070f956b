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

import PIL.Image
import pytest
import torch
import transformers
from transformers import Trainer, TrainingArguments

import avae_hf
import vision_hf
from classformer_hf import (
    ClassformerConfig,
    ClassformerForMaskedLM,
    ClassformerForSequenceClassification,
    ClassformerModel,
)
from vision_hf.priors import NearestBasisLoss, quantise

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
    make_examples: Callable = lambda folder: []  # ... its input, written to a folder if it is files
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
        make_examples=lambda folder: ["a warm and clever film", "the plot is a mess"],
        **CLASSFORMER,
    ),
]

TINY_VISION = {
    "Xception": {
        "stem_channels": [8, 8],
        "stage_channels": [16, 16],
        "stage_strides": [1, 2],
        "stage_blocks": [1, 2],
        "block_depths": [2, 2],
        "grows_late": [True, False],
        "exit_channels": [24],
        "stem_strides": [1, 1],
    },
    "EfficientNet": {
        "stem_channels": 8,
        "out_channels": [8, 16],
        "kernel_sizes": [3, 5],
        "strides": [1, 2],
        "num_block_repeats": [1, 2],
        "expand_ratios": [1, 4],
        "head_channels": 24,
    },
    "ResNet": {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 2]},
}


def build_vision(family, suffix):
    def build(settings):
        config = getattr(vision_hf, f"Shared{family}Config")(
            **TINY_VISION[family], image_size=16, sharing_factor=2, num_labels=3
        )
        model = getattr(vision_hf, f"Shared{family}{suffix}")(config)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                # at their start the running statistics would hide that they are lost
                torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
                torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
        return model

    return build


def build_codebook(settings):
    """A network that stores codebooks and indices instead of weights."""
    plain = vision_hf.SharedXceptionConfig(**TINY_VISION["Xception"], image_size=16, num_labels=3)
    model = vision_hf.SharedXceptionForImageClassification(plain)
    return quantise(model, NearestBasisLoss(model, 4))


def image_inputs(model):
    return {"pixel_values": torch.randn(4, 3, 16, 16)}


def write_images(folder):
    paths = [folder / "first.png", folder / "second.png"]
    for path in paths:
        pixels = torch.randint(0, 256, (20, 24, 3), dtype=torch.uint8)
        PIL.Image.fromarray(pixels.numpy()).save(path)
    return [str(path) for path in paths]


VISION = {
    "make_inputs": image_inputs,
    "auto_classes": ("AutoModel", "AutoModelForImageClassification", "AutoBackbone"),
    "processor": "tiny_image_processor",
    "bfloat16_tolerance": 1.0,
}
for _family in TINY_VISION:
    CONTRACTS += [
        Contract(
            f"shared_{_family.lower()}",
            build=build_vision(_family, "Model"),
            auto_class="AutoModel",
            output_name="last_hidden_state",
            **VISION,
        ),
        Contract(
            f"shared_{_family.lower()}_classifier",
            build=build_vision(_family, "ForImageClassification"),
            auto_class="AutoModelForImageClassification",
            output_name="logits",
            make_labels=class_labels,
            task="image-classification",
            make_examples=write_images,
            **VISION,
        ),
    ]
CONTRACTS.append(
    Contract(
        "codebook_classifier",
        build=build_codebook,
        auto_class="AutoModelForImageClassification",
        output_name="logits",
        make_labels=class_labels,
        task="image-classification",
        make_examples=write_images,
        **VISION,
    )
)


def build_avae(dims, transforms):
    def build(settings):
        config = avae_hf.AVAEConfig(
            spatial_dims=dims,
            image_size=16,
            transforms=transforms,
            latent_dim=3,
            encoder_channels=[4, 4, 6, 4],
            decoder_channels=[6, 4, 4],
            num_rotations=2,
        )
        model = avae_hf.AVAEModel(config)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm3d):
                torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
                torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
        torch.nn.init.uniform_(model.centre, -0.1, 0.1)
        return model

    return build


def posed_inputs(model):
    """Inputs with poses: what a search finds may depend on the last bit."""
    shape = (4, 1, *[16] * model.config.spatial_dims)
    return {"pixel_values": torch.rand(shape), "alpha": torch.rand(4, model.config.pose_dim)}


CONTRACTS += [
    Contract(
        name,
        build=build_avae(dims, transforms),
        make_inputs=posed_inputs,
        auto_class="AutoModel",
        auto_classes=("AutoModel",),
        output_name="reconstruction",
        processor=f"tiny_shape_processor_{dims}d",
    )
    for name, dims, transforms in (
        ("vae", 2, []),
        ("avae", 2, ["rotation", "translation"]),
        ("avae_3d", 3, ["rotation"]),
    )
]
# beside the others because transformers' AutoBackbone opens no folder of theirs
BACKBONES = [
    Contract(
        f"shared_{family.lower()}_backbone",
        build=build_vision(family, "Backbone"),
        auto_class="AutoBackbone",
        output_name="feature_maps",
        **VISION,
    )
    for family in TINY_VISION
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
    "code_of_its_own",
    "code_needs_trust",
    "pipeline",
    "image_processor",
    "packages_stay_away",
)
each_contract = pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.name)


@torch.no_grad()
def write_golden(path, model, contract, inputs):
    model.eval()
    golden = {"inputs": inputs, "output": model(**inputs)[contract.output_name]}
    golden["encoder"] = model.base_model(**inputs)[0]
    if "AutoBackbone" in contract.auto_classes:
        golden["feature_map"] = model.base_model(**inputs, output_hidden_states=True).hidden_states[-1]
    torch.save(golden, path)


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
    model.save_pretrained(folders["sharded"], max_shard_size="4KB")
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
        "examples": contract.make_examples(folder),
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
        if auto_class == "AutoBackbone":
            # transformers 5.23 asks the Hub whether it has AutoBackbone's argument, so that no folder opens
            config = transformers.AutoConfig.from_pretrained(row["folders"]["saved"])
            model = transformers.AutoBackbone.from_config(config)
            type(model).from_pretrained(row["folders"]["saved"])
        else:
            model = getattr(transformers, auto_class).from_pretrained(row["folders"]["saved"])
        assert type(model).__module__.startswith(f"{row['package']}."), type(model)
    model = getattr(transformers, contract.auto_class).from_pretrained(row["folders"]["saved"]).eval()
    assert type(model).__name__ == row["model_class"]
    golden = torch.load(Path(row["golden"]) / "saved.pt")
    with torch.no_grad():
        output = model(**golden["inputs"])[contract.output_name]
    torch.testing.assert_close(output, golden["output"], rtol=0, atol=1e-6)
