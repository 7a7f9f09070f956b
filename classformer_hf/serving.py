"""Classifiers for other runtimes, by transformers' own exporters: ONNX Runtime, OpenVINO, or torch.export.

The schedule is fixed in the graph, batch size and length are dynamic. A classifier with length buckets or a cascade
gives a graph for each of their schedules, and a dispatcher chooses by the length of every text or by its margin, so
that no graph depends on data. The extras `onnx` and `openvino` install what they need.
"""

import copy
import importlib
import io
import json
import logging
import shutil
import warnings
from collections.abc import Sequence
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from .evaluation import load_classifier, load_processor, resolve_folder
from .folders import EXPORT_INDEX, is_export
from .modeling_classformer import count_tokens

CASCADE = "graph-cascade"
RUNTIMES = {"torch": (), "onnx": ("onnx", "onnxruntime", "onnxscript"), "openvino": ("openvino",)}
EXAMPLE_TOKENS = 32
# of a logit in float32
TOLERANCE = 1e-4
# of the check, odd ones among them
LENGTHS = (2, 7, 16, 33, 128, 512)


@torch.no_grad()
def export(folder: str | Path, runtime: str = "onnx", output: str | Path | None = None, int8: bool = False) -> Path:
    """Export a saved text classifier.

    Args:
        folder: A saved classifier with its tokenizer, of any architecture, or its name on the Hub.
        runtime: "onnx", "openvino" or "torch".
        output: Where to; by default a folder named like the runtime, inside `folder`.
        int8: Quantise weights to 8 bits, and activations while it runs (ONNX Runtime's dynamic quantisation).

    Returns:
        The folder, which [`ExportedClassifier`] opens: a graph per schedule, an index, the tokenizer.

    Raises:
        ValueError: The runtime is unknown or not installed, or the folder does not load.
    """
    check_runtime(runtime, int8)
    source = resolve_folder(str(folder))
    model, tokenizer = load_for_export(source), load_processor(source)
    output = Path(output) if output is not None else Path(folder) / (f"{runtime}-int8" if int8 else runtime)
    output.mkdir(parents=True, exist_ok=True)
    config = model.config
    names = ["input_ids", "attention_mask"]
    # where they say something, and the tokenizer makes them: of pairs, which text a token is of
    if getattr(config, "type_vocab_size", 1) > 1 and "token_type_ids" in tokenizer.model_input_names:
        names.append("token_type_ids")
    pad_token_id = config.pad_token_id or 0
    # RoBERTa's positions begin behind the padding's
    longest = config.max_position_embeddings - (pad_token_id + 1 if hasattr(model, "roberta") else 0)
    limits = [bucket["max_tokens"] for bucket in getattr(config, "length_buckets", None) or []]
    limits = [*(one for one in limits if one < longest), longest]
    schedules = {
        f"graph-{limit}": (limit, config.schedule_for(limit) if hasattr(config, "schedule_for") else None)
        for limit in limits
    }
    cascade = getattr(config, "cascade", None)
    if cascade:
        schedules[CASCADE] = (longest, (cascade["gamma"], cascade["eta"]))
    index = []
    for name, (limit, schedule) in schedules.items():
        single = _with_schedule(model, schedule)
        shortest = _shortest_general(single, longest)
        example = torch.full((2, max(shortest, min(EXAMPLE_TOKENS, limit))), pad_token_id + 1)
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
    config.save_pretrained(output)
    for path in source.glob("*.py"):
        shutil.copy(path, output)
    tokenizer.save_pretrained(output)
    for path in output.glob("graph-*"):
        # of an earlier export, of a model with other buckets
        if path.name not in schedules:
            shutil.rmtree(path)
    content = {"runtime": runtime, "int8": int8, "inputs": names, "graphs": index}
    (output / EXPORT_INDEX).write_text(json.dumps(content, indent=2) + "\n")
    return output


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


def check_runtime(runtime: str, int8: bool = False):
    """Refuse a runtime that is unknown or not installed.

    Raises:
        ValueError: Says which, and how to install it.
    """
    if runtime not in RUNTIMES:
        raise ValueError(f"`runtime` must be one of {', '.join(RUNTIMES)}, got {runtime!r}.")
    if int8 and runtime != "onnx":
        raise ValueError(f"`int8` is ONNX Runtime's quantisation; with {runtime} leave it out.")
    for name in RUNTIMES[runtime]:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ValueError(f"{runtime} needs {name}: pip install 'redundancy-hf[{runtime}]'.") from error


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


def _with_schedule(model: PreTrainedModel, schedule: tuple[list[int], int] | None) -> PreTrainedModel:
    """Give the same weights one schedule and no other; `None` for another architecture."""
    single = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    if schedule is not None:
        config: Any = copy.deepcopy(model.config)
        config.gamma, config.eta = schedule
        config.length_buckets = config.cascade = None
        for module in single.modules():
            if hasattr(module, "config"):
                module.config = config
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


class ExportedConfig(PreTrainedConfig):
    """Only registers the class below with transformers, whose pipelines know it then; a graph keeps its own config."""

    model_type = "exported_classifier"


class ExportedClassifier(PreTrainedModel):
    """Runs the graphs of a classifier; a `pipeline("text-classification")` takes it for a model.

    Args:
        config: Of the classifier.
        index: Content of `graphs.json`.
        graphs: As many callables.
        batch_int8: As for [`from_pretrained`].
        source: Arguments of [`from_pretrained`], by which a copy or another process opens the same.
    """

    config_class = ExportedConfig

    def __init__(
        self, config: PreTrainedConfig, index: dict[str, Any], graphs: list[Any], batch_int8: bool, source: tuple
    ):
        config = copy.deepcopy(config)
        # nothing here attends, and PreTrainedModel would ask how
        config._attn_implementation = "eager"
        super().__init__(config)
        self.runtime, self.input_names = index["runtime"], index["inputs"]
        by_length = [entry for entry in index["graphs"] if entry["folder"] != CASCADE]
        self.limits = torch.tensor([entry["max_tokens"] for entry in by_length])
        # the graph of a cascade is the last one
        self.has_cascade = len(by_length) < len(index["graphs"])
        self.shortest = [entry["min_padded_tokens"] for entry in index["graphs"]]
        self.graphs, self.source = graphs, source
        # one scale for all of a batch's activations lets an answer depend on the texts beside it
        self.one_at_a_time = index["int8"] and not batch_int8
        self.pad_token_id = config.pad_token_id or 0

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, folder: str | Path, num_threads: int | None = None, batch_int8: bool = False
    ) -> "ExportedClassifier":
        """Open what [`export`] wrote.

        Args:
            folder: Local.
            num_threads: Of the runtime, for one call; its own choice by default.
            batch_int8: Let a graph in int8 take a whole batch at once, which is faster; ONNX Runtime scales activations
                by the largest of the batch, so that an answer then depends on the other texts. By default such a graph
                takes one text at a time.

        Raises:
            ValueError: The folder holds no graphs, they are damaged, their runtime is not installed, or `num_threads`
                is below 1.
        """
        from transformers import AutoConfig

        if num_threads is not None and num_threads < 1:
            raise ValueError(f"`num_threads` must be at least 1, got {num_threads}.")
        if not is_export(Path(folder)):
            raise ValueError(f"{folder} holds no {EXPORT_INDEX}: it is no export; scripts/export_model.py writes one.")
        try:
            index = json.loads((Path(folder) / EXPORT_INDEX).read_text())
            paths = [Path(folder) / entry["folder"] for entry in index["graphs"]]
            check_runtime(index["runtime"])
            assert all({"max_tokens", "min_padded_tokens"} <= set(entry) for entry in index["graphs"])
            assert index["inputs"] and isinstance(index["int8"], bool)
        except (json.JSONDecodeError, KeyError, TypeError, AssertionError) as error:
            raise ValueError(f"{folder}/{EXPORT_INDEX} is damaged ({error!r}); export the model again.") from error
        config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
        graphs = [_open_graph(path, index["runtime"], num_threads) for path in paths]
        return cls(config, index, graphs, batch_int8, (Path(folder).resolve(), num_threads, batch_int8))

    def __reduce__(self):
        # what a runtime has opened cannot be copied or sent to another process: that opens the folder itself
        return ExportedClassifier.from_pretrained, self.source

    def save_pretrained(self, *args, **kwargs):
        """Refuse, because graphs are files of their own.

        Raises:
            ValueError: Always.
        """
        raise ValueError("an exported classifier is saved by copying its folder.")

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    @torch.no_grad()
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        **kwargs,
    ) -> SequenceClassifierOutput:
        """Classify a batch that is padded on the right.

        Args:
            input_ids: Token ids, (B, L).
            attention_mask: 1 for tokens and 0 for padding, (B, L).
            token_type_ids: Which text of a pair a token is of, (B, L); read where the model has types.

        Raises:
            ValueError: The batch is empty or padded on the left, or a text is longer than the model reads.
        """
        ids = torch.as_tensor(input_ids).cpu()
        if ids.ndim != 2 or ids.numel() == 0:
            raise ValueError(f"`input_ids` must be (B, L), the batch is empty or of another form: {tuple(ids.shape)}.")
        mask = torch.ones_like(ids) if attention_mask is None else torch.as_tensor(attention_mask).cpu()
        types = torch.zeros_like(ids) if token_type_ids is None else torch.as_tensor(token_type_ids).cpu()
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        inputs = {name: inputs[name] for name in self.input_names}
        lengths = count_tokens(mask)
        assert lengths is not None, "the mask is (B, L)"
        if ((mask[:, 0] == 0) & (lengths > 0)).any():
            raise ValueError('the model reads position 0, so pad on the right: set tokenizer.padding_side = "right".')
        if lengths.max() > self.limits[-1]:
            raise ValueError(f"the model reads at most {self.limits[-1]} tokens, got {int(lengths.max())}.")
        if not self.has_cascade:
            return SequenceClassifierOutput(logits=self._run_by_bucket(inputs, lengths))
        logits = self._run(-1, inputs, lengths)
        best, second = logits.softmax(-1).topk(2).values.unbind(-1)
        unsure = (best - second < self.config.cascade["margin"]).nonzero()[:, 0]
        if len(unsure) > 0:
            again = {name: values[unsure] for name, values in inputs.items()}
            logits[unsure] = self._run_by_bucket(again, lengths[unsure])
        return SequenceClassifierOutput(logits=logits)

    def _run_by_bucket(self, inputs: dict[str, torch.Tensor], lengths: torch.Tensor) -> torch.Tensor:
        buckets = torch.bucketize(lengths, self.limits)
        logits: torch.Tensor | None = None
        for bucket in buckets.unique().tolist():
            rows = (buckets == bucket).nonzero()[:, 0]
            part = self._run(bucket, {name: value[rows] for name, value in inputs.items()}, lengths[rows])
            if logits is None:
                logits = part.new_empty(len(lengths), part.shape[1])
            logits[rows] = part
        assert logits is not None
        return logits

    def _run(self, bucket: int, inputs: dict[str, torch.Tensor], lengths: torch.Tensor) -> torch.Tensor:
        step = 1 if self.one_at_a_time else len(lengths)
        parts = [
            self._run_graph(
                bucket, {name: value[n : n + step] for name, value in inputs.items()}, int(lengths[n : n + step].max())
            )
            for n in range(0, len(lengths), step)
        ]
        return torch.cat(parts)

    def _run_graph(self, bucket: int, inputs: dict[str, torch.Tensor], longest: int) -> torch.Tensor:
        missing = max(self.shortest[bucket] - longest, 0)
        cut = {name: torch.nn.functional.pad(value[:, :longest], (0, missing)) for name, value in inputs.items()}
        # what stands under the mask is padding to RoBERTa's embeddings too, which count positions by the ids
        cut["input_ids"] = torch.where(cut["attention_mask"] == 1, cut["input_ids"], self.pad_token_id)
        # callers copy it, because a runtime may keep its buffer
        return torch.as_tensor(self.graphs[bucket](**cut).logits)


class OpenVINOGraph:
    """Runs a graph with an infer request for every call at a time.

    A request holds the inputs and outputs of one call, so that threads which share one get each other's answers.

    Args:
        graph: As it was opened, with its one request.
    """

    def __init__(self, graph: Any):
        self.idle = [next(iter(graph.runners.values()))]
        self.open_another = partial(type(self.idle[0]), self.idle[0].compiled_model, self.idle[0].metadata)

    def __call__(self, **inputs):
        try:
            runner = self.idle.pop()
        except IndexError:
            runner = self.open_another()
        try:
            return runner(**inputs)
        finally:
            self.idle.append(runner)


def _open_graph(folder: Path, runtime: str, num_threads: int | None) -> Any:
    from transformers.exporters import ExportedModel

    options: dict[str, Any] = {}
    if runtime == "onnx" and num_threads is not None:
        import onnxruntime

        options["session_options"] = onnxruntime.SessionOptions()
        options["session_options"].intra_op_num_threads = num_threads
        options["session_options"].inter_op_num_threads = 1
    if runtime == "openvino":
        # the processor's own choice may be bfloat16
        options["config"] = {"INFERENCE_PRECISION_HINT": "f32"}
        if num_threads is not None:
            options["config"]["INFERENCE_NUM_THREADS"] = num_threads
    if not folder.is_dir():
        raise ValueError(f"{folder} is missing; export the model again.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = ExportedModel.from_pretrained(folder, device="cpu", trust_remote_code=True, **options)
            return OpenVINOGraph(graph) if runtime == "openvino" else graph
    except MemoryError:
        raise
    # of as many kinds as there are runtimes
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        raise ValueError(
            f"{folder} does not open, damaged or of another version ({reason}); export it again."
        ) from error


@torch.no_grad()
def largest_difference(model: PreTrainedModel, exported: ExportedClassifier, lengths: Sequence[int] = LENGTHS) -> float:
    """Compare logits on random texts, single and in padded batches.

    Args:
        model: The original.
        exported: What was made of it.
        lengths: In tokens; longer ones than the model reads are left out.

    Returns:
        The largest difference of a logit.
    """
    config: Any = model.config
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    fitting = [length for length in lengths if length <= int(exported.limits[-1])]
    for length in fitting:
        # alone, and as the longest of a batch
        for batch in ([length], [length, max(1, length // 2), 2]):
            ids = torch.randint(config.vocab_size // 2, config.vocab_size, (len(batch), length), generator=generator)
            mask = (torch.arange(length) < torch.tensor(batch)[:, None]).long()
            inputs = {"input_ids": torch.where(mask == 1, ids, config.pad_token_id or 0), "attention_mask": mask}
            if "token_type_ids" in exported.input_names:
                types = torch.randint(config.type_vocab_size, ids.shape, generator=generator)
                inputs["token_type_ids"] = types * mask
            expected, found = model(**inputs).logits, exported(**inputs).logits
            largest = max(largest, (found - expected).abs().max().item())
    return largest


AutoModelForSequenceClassification.register(ExportedConfig, ExportedClassifier)

__all__ = ["RUNTIMES", "TOLERANCE", "ExportedClassifier", "check_runtime", "export", "largest_difference"]
