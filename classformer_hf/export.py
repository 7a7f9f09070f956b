"""Classifiers for other runtimes, by transformers' own exporters: ONNX Runtime, OpenVINO, or torch.export.

The schedule is fixed in the graph, batch size and length are dynamic; `serving.py` opens what is written here.
"""

import copy
import io
import json
import logging
import shutil
import warnings
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from redundancy_hf.evaluation import load_classifier, load_processor, resolve_folder
from redundancy_hf.folders import EXPORT_INDEX, is_export
from redundancy_hf.record import read_record
from redundancy_hf.runtimes import CASCADE, ExportedClassifier, check_runtime, name_variant

from .checkpoints import checkpoint_fingerprint, reconfigure

EXAMPLE_TOKENS = 32


@torch.no_grad()
def export(
    folder: str | Path,
    runtime: str = "onnx",
    output: str | Path | None = None,
    int8: bool = False,
    model: Any = None,
) -> Path:
    """Export a saved text classifier.

    Args:
        folder: A saved classifier with its tokenizer, of any architecture, or its name on the Hub.
        runtime: "onnx", "openvino" or "torch".
        output: Where to; by default a folder named like the runtime, inside `folder`.
        int8: Quantise weights to 8 bits, and activations while it runs (ONNX Runtime's dynamic quantisation).
        model: What [`load_for_export`] gives, where it is at hand.

    Returns:
        The folder, which [`ExportedClassifier`] opens: a graph per schedule, an index, the tokenizer.

    Raises:
        ValueError: The runtime is unknown or not installed, or the folder does not load.
    """
    check_runtime(runtime, int8)
    source = resolve_folder(str(folder))
    model = load_for_export(source) if model is None else model
    output = Path(output) if output is not None else Path(folder) / name_variant(runtime, int8)
    tokenizer = load_processor(source)
    output.mkdir(parents=True, exist_ok=True)
    names = _name_inputs(model.config, tokenizer)
    longest, schedules = _list_graphs(model)
    index = []
    for name, (limit, schedule) in schedules.items():
        single = _with_schedule(model, schedule)
        shortest = _shortest_general(single, longest)
        example = torch.full((2, max(shortest, min(EXAMPLE_TOKENS, limit))), (model.config.pad_token_id or 0) + 1)
        # each a tensor of its own: the exporter takes one that is given twice for one input
        inputs = {name: torch.ones_like(example) for name in names} | {"input_ids": example}
        with quiet():
            graph = _export_graph(single, inputs, runtime, int8)
            _forget_sources(graph.program)
            # the config beside the index is enough
            graph.config = None
            graph.save_pretrained(output / name)
        # only torch.export refuses shorter inputs than its graph was made for
        padded = shortest if runtime == "torch" else 1
        index.append({"folder": name, "max_tokens": limit, "min_padded_tokens": padded})
    model.config.save_pretrained(output)
    for path in source.glob("*.py"):
        shutil.copy(path, output)
    record = read_record(source)
    if record is not None:
        # so that it is evaluated, and certified, as the model is
        record.write(output)
    tokenizer.save_pretrained(output)
    for path in output.glob("graph-*"):
        # of an earlier export, of a model with other buckets
        if path.name not in schedules:
            shutil.rmtree(path)
    content = {"runtime": runtime, "int8": int8, "inputs": names, "graphs": index}
    (output / EXPORT_INDEX).write_text(json.dumps(content, indent=2) + "\n")
    return output


def _name_inputs(config: Any, tokenizer: Any) -> list[str]:
    names = ["input_ids", "attention_mask"]
    # where they say something, and the tokenizer makes them: of pairs, which text a token is of
    if getattr(config, "type_vocab_size", 1) > 1 and "token_type_ids" in tokenizer.model_input_names:
        names.append("token_type_ids")
    return names


def _list_graphs(model: Any) -> tuple[int, dict[str, tuple[int, Any]]]:
    """Give the longest input, and for every graph by its name the longest of its own and its schedule."""
    config = model.config
    # RoBERTa's positions begin behind the padding's
    longest = config.max_position_embeddings - ((config.pad_token_id or 0) + 1 if hasattr(model, "roberta") else 0)
    limits = [bucket["max_tokens"] for bucket in getattr(config, "length_buckets", None) or []]
    graphs = {
        f"graph-{limit}": (limit, config.schedule_for(limit) if hasattr(config, "schedule_for") else None)
        for limit in [*(one for one in limits if one < longest), longest]
    }
    if cascade := getattr(config, "cascade", None):
        graphs[CASCADE] = (longest, (cascade["gamma"], cascade["eta"]))
    return longest, graphs


def load_for_export(folder: Path) -> Any:
    """Load a classifier in float32, whatever its folder holds: half precision on a processor is slow and rounds.

    Args:
        folder: What [`resolve_folder`] gives.

    Raises:
        ValueError: It does not load, or holds exported graphs.
    """
    if is_export(folder):
        raise ValueError(f"{folder} is an export itself; name the folder with the weights.")
    model = load_classifier(folder).float()
    model.config.dtype = torch.float32
    return model


def export_once(folder: str | Path, runtime: str, int8: bool, output: Path) -> ExportedClassifier:
    """Export to a folder and open it with one thread, unless it holds the graphs of these very weights and settings."""
    source, record = json.dumps(checkpoint_fingerprint(str(folder))), output / "source.json"
    if not record.is_file() or record.read_text() != source:
        export(folder, runtime, output, int8)
        record.write_text(source)
    return ExportedClassifier.from_pretrained(output, num_threads=1)


@contextmanager
def quiet():
    """Hide what the exporters and their libraries tell of every node, and of operators that no classifier has.

    Of the whole process, so not for what a server does.
    """
    disabled = logging.root.manager.disable
    logging.disable(max(logging.WARNING, disabled))
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _export_graph(model: PreTrainedModel, inputs: dict[str, Any], runtime: str, int8: bool) -> Any:
    from transformers import exporters

    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    options: dict[str, Any] = {"dynamic": True, "dynamic_shapes": dict.fromkeys(inputs, dynamic)}
    if runtime == "torch":
        return exporters.DynamoExporter().export(model, inputs, config=exporters.DynamoConfig(**options))
    if runtime == "openvino":
        return exporters.OpenVINOExporter().export(model, inputs, config=exporters.OpenVINOConfig(**options))
    options["ort_fusions"] = "cpu"
    if int8:
        # the weights of matrix products, in 7 bits, because processors without VNNI overflow with 8
        quantisation = exporters.OnnxRuntimeDynamicConfig(
            op_types_to_quantize=["MatMul"], per_channel=True, reduce_range=True
        )
        options["quantizer"] = exporters.OnnxRuntimeQuantizer(quantisation)
    return exporters.OnnxExporter().export(model, inputs, config=exporters.OnnxConfig(**options))


def _forget_sources(program: Any):
    """Take out what an exporter notes of every node: which line of which file of this machine made it."""
    if isinstance(program, torch.export.ExportedProgram):
        for module in program.graph_module.modules():
            if isinstance(module, torch.fx.GraphModule):
                for node in module.graph.nodes:
                    node.meta.pop("stack_trace", None)
    elif hasattr(program, "graphs"):
        for graph in program.graphs():
            for node in graph:
                node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)


def _with_schedule(model: Any, schedule: tuple[list[int], int] | None) -> Any:
    """Give the same weights one schedule and no other; `None` for another architecture."""
    if schedule is None:
        single = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    else:
        single = reconfigure(model, gamma=schedule[0], eta=schedule[1])
    # the exporters follow eager attention at every length
    single.set_attn_implementation("eager")
    return single.eval()


def _shortest_general(model: PreTrainedModel, longest: int) -> int:
    """Give the shortest input of which a general graph can be made.

    An exporter takes a length of 1 for a constant, so every layer must keep 2 positions beside the first eta, or as
    many as it ever keeps.
    """
    config: Any = model.config
    if not hasattr(config, "layer_lengths"):
        return 2
    enough = [min(config.eta + 2, length) for length in config.layer_lengths(longest)]
    lengths = range(2, longest + 1)
    return next(n for n in lengths if all(a >= b for a, b in zip(config.layer_lengths(n), enough, strict=True)))
