"""What one trial costs and gives: fine-tune the schedule, validate it, measure its latency (thesis section 5.1.2)."""

import copy
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, extract_model_from_parallel
from datasets import Dataset
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from redundancy_hf.command import FLAGS
from redundancy_hf.evaluation import predict
from redundancy_hf.folders import save_folder
from redundancy_hf.metrics import compute_score, paired_standard_error, predictions_from_logits, standard_error
from redundancy_hf.plan import Plan
from redundancy_hf.task import Task
from redundancy_hf.timing import hardware_fingerprint, measure_latency, sample_inputs

from ..checkpoints import checkpoint_fingerprint, has_head, load_from_encoder, read_encoder_config
from ..flops import count_flops
from ..modeling_classformer import ClassformerForSequenceClassification
from ..training import ClassformerTrainingArguments, FineTuned, fine_tune
from .reference import choose_reference
from .space import Schedule

logger = logging.getLogger(__name__)

PREDICTIONS = "validation_predictions.npy"
# entries of a trial's measurement that training gives, not timing
TRAINED: tuple[str, ...] = ("score", "score_as_is", "standard_error", "paired_standard_error", "metric_name")
TRAINED += ("num_examples", "num_epochs", "train_seconds", "seed", "reference", "supernet_score")


class FineTuneObjective:
    """Evaluates schedules of one checkpoint on one task.

    Accuracy and latency of a trial do not depend on any requirement. Latency is measured with batch 1 on the
    validation set's own lengths, interleaved with two references of the same size: `full`, which reduces nothing and
    computes only position 0 in the last layer, and `stock`, which is plain RoBERTa.

    Args:
        checkpoint: Folder or Hub name of a RoBERTa- or BERT-family encoder or classifier.
        task: Tokenised task without its test split.
        tokenizer: Pads the batches.
        arguments: The fine-tuning recipe; its `output_dir` holds the trained models as `models/<schedule>`.
        device: Where latency is measured: "cpu" or "cuda".
        latency_threads: CPU threads while latency is measured.
        latency_rounds: Rounds of interleaved measurement.
        dtype: Of the weights where the result shall run; training stays in float32 (or as `arguments` say).

    Attributes:
        flags: Of the command that chose checkpoint and data, for errors.
        original: Has the checkpoint that was given, which may be the full model as it is (see `choose_reference`);
            `None`: the full model is fine-tuned like every schedule, as in the thesis.
    """

    original: "FineTuneObjective | None" = None

    def __init__(
        self,
        checkpoint: str,
        task: Task,
        tokenizer: PreTrainedTokenizerBase,
        arguments: ClassformerTrainingArguments,
        device: str = "cpu",
        latency_threads: int = 1,
        latency_rounds: int = 20,
        dtype: torch.dtype = torch.float32,
    ):
        self.checkpoint = checkpoint
        self.task = task
        self.tokenizer = tokenizer
        self.arguments = arguments
        self.output = Path(str(arguments.output_dir))
        self.device = device
        self.latency_threads = latency_threads
        self.latency_rounds = latency_rounds
        self.dtype = dtype
        self.plan = Plan(has_bars=not arguments.disable_tqdm)
        self.inputs = sample_inputs(task.splits["validation"])
        self.has_loaded = False
        self.flags: dict[str, Any] = {}
        self.adopted: dict[Schedule, dict[str, Any]] = {}
        source = read_encoder_config(checkpoint)
        self.full = Schedule((1,) * source.num_hidden_layers)
        # a head that was trained on this task can be judged before any fine-tuning
        self.has_head = has_head(source, task.label_names, task.output_names)

    def load(self, schedule: Schedule) -> PreTrainedModel:
        """Load the checkpoint with a schedule; a new head is the same for every schedule."""
        set_seed(self.arguments.seed)
        loader = logging.getLogger(load_from_encoder.__module__)
        level = loader.level
        if self.has_loaded or self.model_folder(schedule).parent.exists():
            # what is fresh has been said
            loader.setLevel(logging.ERROR)
        self.has_loaded, names = True, self.task.output_names
        try:
            return load_from_encoder(self.checkpoint, output_names=names, **schedule.config, **self.task.head_config)
        finally:
            loader.setLevel(level)

    def model_folder(self, schedule: Schedule) -> Path:
        return self.output / "models" / schedule.key

    def use_lengths(self, lengths: Sequence[int]):
        """Measure latency on texts of these token lengths instead of the validation split's."""
        self.inputs = sample_inputs(Dataset.from_dict({"input_ids": [[5] * length for length in lengths]}))

    def for_checkpoint(self, checkpoint: str, arguments: ClassformerTrainingArguments) -> "FineTuneObjective":
        """Make the same objective for another checkpoint and recipe."""
        other = FineTuneObjective(
            checkpoint,
            self.task,
            self.tokenizer,
            arguments,
            self.device,
            self.latency_threads,
            self.latency_rounds,
            self.dtype,
        )
        other.inputs, other.plan, other.flags = self.inputs, self.plan, self.flags
        return other

    def adopt(self, schedule: Schedule, measurement: dict[str, Any], model: Path):
        """Take over what an earlier study's fine-tuning of a schedule gave, so that it is not trained again.

        Args:
            schedule: The schedule.
            measurement: Of the earlier trial; what was timed there is left out.
            model: Folder of the trained model; it is copied.
        """
        folder, record = self.model_folder(schedule), self.task.record

        def copy():
            shutil.copytree(model, folder, dirs_exist_ok=True)
            if record is not None:
                record.write(folder)

        if not folder.exists():
            on_main_process(copy)
        self.adopted[schedule] = {name: measurement[name] for name in TRAINED if name in measurement}

    def identity(self) -> dict[str, Any]:
        """Say what a journal's trials depend on, so that only the same study is resumed."""
        return {
            FLAGS: self.flags,
            "checkpoint": checkpoint_fingerprint(self.checkpoint),
            "dataset": self.task.fingerprint,
            "recipe": self.arguments.describe_recipe(),
            "latency": {
                "device": self.device,
                "threads": self.latency_threads,
                "dtype": str(self.dtype),
                "mean_tokens": sum(self.lengths) / len(self.lengths),
            },
        }

    @cached_property
    def config(self) -> Any:
        """The configuration of the unreduced classifier."""
        return self.load(self.full).config

    @property
    def hardware(self) -> dict[str, Any]:
        """What latency is measured on."""
        return hardware_fingerprint(self.device, self.dtype) | {"threads": self.latency_threads}

    @property
    def lengths(self) -> list[int]:
        """Token lengths that stand for the dataset's."""
        return [row["input_ids"].shape[1] for row in self.inputs]

    def __call__(self, schedule: Schedule) -> dict[str, Any]:
        """Fine-tune and validate; keeps the trained model. `measure` gives the other half of a trial.

        Returns:
            Plain data for the journal: `score`, `score_as_is`, `standard_error`, ...

        Raises:
            FloatingPointError: The training loss became NaN.
        """
        if schedule in self.adopted:
            return dict(self.adopted[schedule])
        if schedule == self.full and self.original is not None:
            return choose_reference(self, self.original)
        return self.fine_tune(schedule)

    def fine_tune(self, schedule: Schedule) -> dict[str, Any]:
        """Fine-tune and validate a schedule; see `__call__`."""
        model = self.load(schedule)
        arguments = copy.copy(self.arguments)
        folder = self.output / "current_trial" / schedule.key
        arguments.output_dir = str(folder)
        arguments.save_only_model = True
        try:
            result = fine_tune(model, self.task, self.tokenizer, arguments, self.has_head, plan=self.plan)
        finally:
            if PartialState().is_main_process:
                shutil.rmtree(folder, ignore_errors=True)
                with suppress(OSError):  # another worker trains there
                    folder.parent.rmdir()
        return self.keep(schedule, model, result)

    def keep(self, schedule: Schedule, model: PreTrainedModel, result: FineTuned) -> dict[str, Any]:
        """Save a model as that of a schedule, in the main process, and put its validation into plain data."""
        return on_main_process(lambda: self.record(schedule, model, result))

    def record(self, schedule: Schedule, model: PreTrainedModel, result: FineTuned) -> dict[str, Any]:
        """Save a trained model and put its validation into plain data."""
        # mixed precision leaves its wrapper on the model, which must not be saved with it
        trained: Any = extract_model_from_parallel(model, keep_fp32_wrapper=False)
        predictions, score = result.predictions, result.score
        references = self.task.splits["validation"]["labels"]
        if self.dtype != torch.float32:
            logits = predict(trained.to(self.dtype), self.task.splits["validation"], self.tokenizer)
            predictions = predictions_from_logits(self.task.problem_type, logits)
            score = compute_score(self.task.metric_name, predictions, np.asarray(references))
        folder = self.model_folder(schedule)
        save_folder(trained, folder, self.tokenizer, self.task.record)
        np.save(folder / PREDICTIONS, predictions)
        return {
            "score": score,
            "score_as_is": result.score_as_is,
            "standard_error": standard_error(self.task.metric_name, predictions, references),
            "paired_standard_error": self.paired_standard_error(predictions),
            "metric_name": self.task.metric_name,
            "num_examples": len(references),
            "num_epochs": result.num_epochs,
            "train_seconds": round(result.seconds, 1),
            "seed": self.arguments.seed,
        }

    def paired_standard_error(self, predictions: np.ndarray) -> float | None:
        """Standard error of the share of the full model's score; `None` where its predictions are gone."""
        path = self.model_folder(self.full) / PREDICTIONS
        if not path.exists():
            return None
        references = self.task.splits["validation"]["labels"]
        return paired_standard_error(self.task.metric_name, predictions, np.load(path), references)

    def measure(self, schedule: Schedule) -> dict[str, Any]:
        """Time a schedule side by side with its unreduced references; time does not depend on the weights.

        Returns:
            `latency_ratio` (to `full`), `stock_latency_ratio` (of `stock` to `full`), `latency` (statistics of all
            three), `flops_ratio`, `hardware`, ...
        """
        return on_main_process(lambda: self._measure(schedule))

    def _measure(self, schedule: Schedule) -> dict[str, Any]:
        with self.ready_to_time() as (build, inputs):
            models = {"candidate": build(schedule), "full": build(self.full), "stock": build(self.full, cls_only=False)}
            latency = measure_latency(models, inputs, "full", self.latency_rounds, on_round=self.plan.show)
        flops = {name: sum(count_flops(models[name].config, n) for n in self.lengths) for name in models}
        return {
            "latency_ratio": latency["candidate"].ratio,
            "stock_latency_ratio": latency["stock"].ratio,
            "latency_milliseconds": latency["candidate"].wall_p50_ms,
            "latency": {name: vars(value) for name, value in latency.items()},
            "flops_ratio": flops["candidate"] / flops["full"],
            "hardware": self.hardware,
        }

    @contextmanager
    def ready_to_time(self) -> Iterator[tuple[Callable[..., Any], list[dict[str, torch.Tensor]]]]:
        """Set the number of threads; gives a function that builds a model of a schedule, and the inputs."""

        def build(schedule: Schedule, cls_only: bool = True) -> Any:
            config = copy.deepcopy(self.config)
            for name, value in schedule.config.items():
                setattr(config, name, value)
            config.last_layer_cls_only = cls_only
            model: Any = ClassformerForSequenceClassification(config)
            return model.to(self.device, self.dtype).eval()

        num_threads = torch.get_num_threads()
        torch.set_num_threads(self.latency_threads)
        try:
            yield build, [{name: value.to(self.device) for name, value in row.items()} for row in self.inputs]
        finally:
            torch.set_num_threads(num_threads)


def on_main_process(function: Callable[[], Any]) -> Any:
    """Run something in the main process; every process goes on with what it returned or raised."""
    result, error = None, None
    if PartialState().is_main_process:
        try:
            result = function()
        except Exception as exception:  # the other processes wait for an answer
            error = exception
    result, error = broadcast_object_list([result, error])
    if error is not None:
        raise error
    return result
