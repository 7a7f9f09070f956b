"""No public call swallows an argument: every function with **kwargs refuses what it does not know, or hands it on."""

import ast
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import RobertaConfig, RobertaModel
from transformers.utils import TransformersKwargs

import avae_hf
import classformer_hf
import vision_hf
from avae_hf.analysis import pose_of
from avae_hf.training import AVAETrainer, AVAETrainingArguments
from classformer_hf.checkpoints import reconfigure
from classformer_hf.export import export
from classformer_hf.multitask import MultitaskClassformer
from classformer_hf.pretraining import build_objective
from classformer_hf.search.figures import picture
from redundancy_hf import register_classes
from redundancy_hf.cards import complete_card
from redundancy_hf.isolation import run_elsewhere
from redundancy_hf.metrics import TaskMetric
from redundancy_hf.runtimes import ExportedClassifier
from vision_hf.training import ImageTrainer

ROOT = Path(__file__).parent.parent
PACKAGES = ("redundancy_hf", "classformer_hf", "vision_hf", "avae_hf")
UNKNOWN = {"no_such_argument": 1}


def functions_with_keywords(tree, prefix=""):
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            name = f"{prefix}{node.name}"
            if isinstance(node, ast.FunctionDef) and node.args.kwarg is not None:
                yield name
            yield from functions_with_keywords(node, f"{name}.")


def is_public(name):
    return all(not part.startswith("_") or part == "__init__" for part in name.split("."))


def public_functions():
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for name in functions_with_keywords(ast.parse(path.read_text())):
                if is_public(name):
                    yield f"{path.relative_to(ROOT).with_suffix('')}:{name}"


def tiny_classifier(factor=2):
    config = classformer_hf.ClassformerConfig(
        vocab_size=40,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=20,
        gamma=[1, factor],
    )
    return classformer_hf.ClassformerForSequenceClassification(config).eval()


def tiny_language_model():
    return classformer_hf.ClassformerForMaskedLM(tiny_classifier().config).eval()


def tiny_convolutions():
    return vision_hf.SharedResNetConfig(
        stem_type="cifar", embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=2
    )


def tiny_autoencoder():
    config = avae_hf.AVAEConfig(image_size=8, encoder_channels=[2, 2, 2, 2], decoder_channels=[2, 2, 2], transforms=[])
    return avae_hf.AVAEModel(config).eval()


def tiny_export():
    index = {"runtime": "torch", "inputs": ["input_ids", "attention_mask"], "int8": False, "graphs": []}
    index["graphs"].append({"folder": "graph", "max_tokens": 8, "min_padded_tokens": 1})
    return ExportedClassifier(
        tiny_classifier().config, index, [lambda **inputs: SimpleNamespace(logits=torch.zeros(1, 2))], False, ()
    )


IDS, PIXELS = torch.tensor([[0, 5, 6, 2]]), torch.rand(1, 3, 8, 8)
# a model and an input of its forward
FORWARDS = {
    "classformer_hf/modeling_classformer:ClassformerModel": lambda: (tiny_classifier().roberta, IDS),
    "classformer_hf/modeling_classformer:ClassformerForSequenceClassification": lambda: (tiny_classifier(), IDS),
    "classformer_hf/modeling_classformer:ClassformerForMaskedLM": lambda: (tiny_language_model(), IDS),
    "classformer_hf/multitask:MultitaskClassformer": lambda: (
        MultitaskClassformer(tiny_classifier().config, [2], [1.0]),
        (IDS, torch.ones_like(IDS), torch.tensor([0]), torch.tensor([1.0])),
    ),
    "classformer_hf/pretraining:FunnelClassformerForMaskedLM": lambda: (
        build_objective("funnel", tiny_language_model()),
        IDS,
    ),
    "classformer_hf/pretraining:DistilledClassformerForMaskedLM": lambda: (
        build_objective("distillation", tiny_language_model()),
        IDS,
    ),
    "redundancy_hf/runtimes:ExportedClassifier": lambda: (tiny_export(), IDS),
    "vision_hf/modeling_shared_conv:SharedConvModel": lambda: (
        vision_hf.SharedResNetModel(tiny_convolutions()),
        PIXELS,
    ),
    "vision_hf/modeling_shared_conv:SharedConvForImageClassification": lambda: (
        vision_hf.SharedResNetForImageClassification(tiny_convolutions()),
        PIXELS,
    ),
    "vision_hf/modeling_shared_conv:SharedConvBackbone": lambda: (
        vision_hf.SharedResNetBackbone(tiny_convolutions()),
        PIXELS,
    ),
    "avae_hf/modeling_avae:AVAEModel": lambda: (tiny_autoencoder(), torch.rand(1, 1, 8, 8)),
}
# a call with an argument that it does not know
CALLS = {
    "classformer_hf/checkpoints:load_from_encoder": lambda folder: classformer_hf.load_from_encoder(
        save_roberta(folder), **UNKNOWN
    ),
    "classformer_hf/checkpoints:reconfigure": lambda folder: reconfigure(tiny_classifier(), **UNKNOWN),
    "redundancy_hf/isolation:run_elsewhere": lambda folder: run_elsewhere("align", folder, inputs=[], **UNKNOWN),
    "classformer_hf/search/figures:picture": lambda folder: picture(folder / "x.png", 2.0, **UNKNOWN).__enter__(),
    "redundancy_hf/__init__:register_classes": lambda folder: register_classes(avae_hf.AVAEConfig, **UNKNOWN),
    "vision_hf/configuration_shared_conv:SharedConvConfig.from_preset": (
        lambda folder: vision_hf.SharedResNetConfig.from_preset("resnet-18", **UNKNOWN)
    ),
    "vision_hf/configuration_shared_xception:SharedXceptionConfig.from_preset": (
        lambda folder: vision_hf.SharedXceptionConfig.from_preset("author-cifar", **UNKNOWN)
    ),
    "vision_hf/training:ImageTrainer.__init__": lambda folder: ImageTrainer(**UNKNOWN),
    "avae_hf/training:AVAETrainer.__init__": lambda folder: AVAETrainer(None, AVAETrainingArguments(), **UNKNOWN),
    "avae_hf/analysis:pose_of": lambda folder: pose_of(avae_hf.AVAEConfig(), 1, **UNKNOWN),
    "avae_hf/image_processing_avae:AVAEImageProcessor.with_settings": (
        lambda folder: avae_hf.AVAEImageProcessor(8).with_settings(**UNKNOWN)
    ),
    "avae_hf/image_processing_avae:AVAEImageProcessor.preprocess": (
        lambda folder: avae_hf.AVAEImageProcessor(8)(torch.rand(8, 8), **UNKNOWN)
    ),
}
# what has no **kwargs of its own and could get some from a base class
PLAIN_CALLS = {
    "from_pretrained of a classifier": lambda folder: reopen(tiny_classifier(), folder),
    "from_pretrained of a language model": lambda folder: reopen(tiny_language_model(), folder),
    "from_pretrained of an autoencoder": lambda folder: reopen(tiny_autoencoder(), folder),
    "from_pretrained of an image classifier": (
        lambda folder: reopen(vision_hf.SharedResNetForImageClassification(tiny_convolutions()), folder)
    ),
    "TaskMetric": lambda folder: TaskMetric("accuracy", **UNKNOWN),
    "AVAEImageProcessor": lambda folder: avae_hf.AVAEImageProcessor(8, **UNKNOWN),
    "encode": lambda folder: tiny_autoencoder().encode(torch.rand(1, 1, 8, 8), **UNKNOWN),
    "share_weights": lambda folder: vision_hf.share_weights(torch.nn.Conv2d(4, 4, 3), 2, **UNKNOWN),
    "complete_card": lambda folder: complete_card(folder, "alice/x", **UNKNOWN),
    "export": lambda folder: export(folder, **UNKNOWN),
}
HANDED_ON = {
    "classformer_hf/modeling_classformer:ClassformerLayer.forward": "to attention, from ClassformerModel",
    "classformer_hf/modeling_classformer:ClassformerEncoder.forward": "to attention, from ClassformerModel",
    "classformer_hf/modeling_classformer:ClassformerEncoder.step": "to attention, from ClassformerModel",
    "classformer_hf/modeling_classformer:ClassformerForSequenceClassification.classify": "to ClassformerModel",
    "classformer_hf/modeling_classformer:ClassformerForSequenceClassification.classify_by_bucket": "to classify",
    "classformer_hf/modeling_classformer:ClassformerForSequenceClassification.classify_unsure_again": "to classify",
    "classformer_hf/modeling_classformer:ClassformerMask.forward": "sentence-transformers gives every module all",
    "classformer_hf/modeling_classformer:ClassformerMask.save": "sentence-transformers gives every module all",
    "classformer_hf/modeling_classformer:ClassformerMask.load": "sentence-transformers gives every module all",
    "redundancy_hf/command:write_record": "names of what is recorded",
    "redundancy_hf/command:describe_flags": "names of flags",
    "redundancy_hf/readings:record_reading": "names of what is recorded",
    "classformer_hf/search/executors:InlineExecutor.submit": "to the function",
    "classformer_hf/search/executors:LocalPool.submit": "to the function",
    "classformer_hf/search/executors:DaskExecutor.submit": "to the function",
    "classformer_hf/search/executors:DaskExecutor.__init__": "to Dask, which refuses what it does not know",
    "classformer_hf/search/supernet:SupernetTrainer.compute_loss": "to the Trainer",
    "redundancy_hf/runtimes:ExportedClassifier.save_pretrained": "refuses every call",
    "redundancy_hf/cards:write_card": "metadata, which a card may have any of",
    "redundancy_hf/pictures:open_grid": "to matplotlib, which refuses what it does not know",
    "vision_hf/configuration_shared_conv:SharedConvConfig.check_options": "names of settings",
    "avae_hf/analysis:put_alike": "to pose_of",
    "vision_hf/training:ImageTrainer.compute_loss": "to the Trainer",
    "vision_hf/training:ImageTrainer.evaluation_loop": "to the Trainer",
    "avae_hf/training:AVAETrainer.compute_loss": "from the Trainer",
    "avae_hf/image_processing_avae:AVAEImageProcessor.from_dict": "transformers gives what it gives any loader",
}


def save_roberta(folder):
    config = RobertaConfig(vocab_size=40, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    RobertaModel(config).save_pretrained(folder)
    return folder


def reopen(model, folder):
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder, **UNKNOWN)


def is_callback(name):
    """A Trainer gives its callbacks all that it has."""
    return name.rpartition(".")[2].startswith("on_")


def test_every_function_with_keywords_is_known_here():
    """A new one is called below with an argument it does not know, or handed on for a reason."""
    found = [name for name in public_functions() if not is_callback(name)]
    assert len(found) > 30
    known = {f"{name}.forward" for name in FORWARDS} | set(CALLS) | set(HANDED_ON)
    assert set(found) == known, set(found) ^ known


@pytest.mark.parametrize("call", [*CALLS.values(), *PLAIN_CALLS.values()], ids=[*CALLS, *PLAIN_CALLS])
def test_unknown_argument_is_an_error_that_names_it(call, tmp_path):
    with pytest.raises((TypeError, ValueError, AttributeError, RuntimeError), match="no_such_argument"):
        call(tmp_path)


@pytest.mark.parametrize("make", FORWARDS.values(), ids=FORWARDS)
def test_forward_refuses_what_it_does_not_know(make):
    model, inputs = make()
    named = inputs if isinstance(inputs, dict) else {}
    positional = () if named else inputs if isinstance(inputs, tuple) else (inputs,)
    with pytest.raises(TypeError, match="unexpected keyword argument 'no_such_argument'"):
        model(*positional, **named, **UNKNOWN)
    # what transformers gives to any model
    known = dict.fromkeys(name for name in TransformersKwargs.__annotations__ if name != "is_causal")
    with torch.no_grad():
        expected, found = model(*positional, **named), model(*positional, **named, **known)
    assert type(found) is type(expected)
