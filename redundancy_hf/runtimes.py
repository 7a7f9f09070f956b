"""Classifiers that `redundancy-hf export` has made graphs of, in ONNX Runtime, OpenVINO or torch.

A classifier with length buckets or a cascade is a graph for each of its schedules, and a dispatcher chooses by the
length of every text or by its margin, so that no graph depends on data. The extras `onnx` and `openvino` install what
they need.
"""

import copy
import importlib
import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import TransformersKwargs

from .failures import first_line
from .folders import EXPORT_INDEX, is_export

CASCADE = "graph-cascade"
RUNTIMES = {"torch": (), "onnx": ("onnx", "onnxruntime", "onnxscript"), "openvino": ("openvino",)}


def name_variant(runtime: str, int8: bool) -> str:
    """Give the name of a runtime with its precision, which is float32 if nothing is said."""
    return f"{runtime}-int8" if int8 else runtime


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


class ExportedConfig(PreTrainedConfig):
    """Only registers the class below with transformers, whose pipelines know it then; a graph keeps its own config."""

    model_type = "exported_classifier"


class ExportedClassifier(PreTrainedModel):
    """Runs the graphs of a classifier; a `pipeline("text-classification")` takes it for a model.

    It is opened by [`from_pretrained`], whose arguments are the `source` by which a copy or another process does it.
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
        self.variant = name_variant(index["runtime"], index["int8"])
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
            raise ValueError(f"{folder} holds no {EXPORT_INDEX}: it is no export; `redundancy-hf export` writes one.")
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

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Give the size of the graphs' files in bytes."""
        return sum(path.stat().st_size for path in self.source[0].glob("graph-*/*"))

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
            TypeError: An argument is unknown.
        """
        unknown = kwargs.keys() - TransformersKwargs.__annotations__.keys() - {"return_dict", "use_cache"}
        if unknown:
            raise TypeError(f"forward() got an unexpected keyword argument {min(unknown)!r}")
        ids = torch.as_tensor(input_ids).cpu()
        if ids.ndim != 2 or ids.numel() == 0:
            raise ValueError(f"`input_ids` must be (B, L), the batch is empty or of another form: {tuple(ids.shape)}.")
        mask = torch.ones_like(ids) if attention_mask is None else torch.as_tensor(attention_mask).cpu()
        types = torch.zeros_like(ids) if token_type_ids is None else torch.as_tensor(token_type_ids).cpu()
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        inputs = {name: inputs[name] for name in self.input_names}
        lengths = (torch.arange(1, mask.shape[1] + 1) * (mask != 0)).amax(dim=1)
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
        found = {bucket: (buckets == bucket).nonzero()[:, 0] for bucket in buckets.unique().tolist()}
        parts = [
            self._run(bucket, {name: value[rows] for name, value in inputs.items()}, lengths[rows])
            for bucket, rows in found.items()
        ]
        # in the order of the batch again
        return torch.cat(parts)[torch.cat([*found.values()]).argsort()]

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
    """

    def __init__(self, graph: Any):
        runner: Any = next(iter(graph.runners.values()))
        self.idle = [runner]
        self.open_another = partial(runner.__class__, runner.compiled_model, runner.metadata)

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
        raise ValueError(
            f"{folder} does not open, damaged or of another version ({first_line(error)[:200]}); export it again."
        ) from error


AutoModelForSequenceClassification.register(ExportedConfig, ExportedClassifier)
