"""What one trial costs and gives: fine-tune the schedule, validate it, measure its latency (thesis section 5.1.2)."""

import copy
import logging
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, extract_model_from_parallel
from transformers import (
    AutoConfig,
    BatchEncoding,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from ..checkpoints import checkpoint_fingerprint, load_from_encoder
from ..cost import count_flops, hardware_fingerprint, measure_latency, sample_inputs
from ..data import Task
from ..metrics import standard_error
from ..modeling_classformer import ClassformerForSequenceClassification
from ..training import ClassformerTrainingArguments, FineTuned, fine_tune
from .space import Schedule

logger = logging.getLogger(__name__)


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
    """

    def __init__(
        self,
        checkpoint: str,
        task: Task,
        tokenizer: PreTrainedTokenizerBase,
        arguments: ClassformerTrainingArguments,
        device: str = "cpu",
        latency_threads: int = 1,
        latency_rounds: int = 20,
    ):
        self.checkpoint = checkpoint
        self.task = task
        self.tokenizer = tokenizer
        self.arguments = arguments
        self.output = Path(str(arguments.output_dir))
        self.device = device
        self.latency_threads = latency_threads
        self.latency_rounds = latency_rounds
        self.inputs = sample_inputs(task.splits["validation"])
        source = AutoConfig.from_pretrained(checkpoint)
        names = [source.id2label[index] for index in range(source.num_labels)]
        generic = [f"LABEL_{index}" for index in range(task.num_labels)]
        is_classifier = any("SequenceClassification" in name for name in source.architectures or [])
        # a head that was trained on this task can be judged before any fine-tuning
        self.has_head = is_classifier and names in (list(task.label_names), generic)
        # a head of as many other labels would be carried and mean something else
        self.is_foreign_head = is_classifier and not self.has_head and len(names) == task.num_labels
        if self.is_foreign_head:
            logger.warning("the checkpoint's labels %s are not the task's %s: fresh head.", names, task.label_names)

    def load(self, schedule: Schedule) -> PreTrainedModel:
        """Load the checkpoint with a schedule; a new head is the same for every schedule."""
        set_seed(self.arguments.seed)
        if self.model_folder(schedule).parent.exists():
            # what is fresh has been said before the first trial
            logging.getLogger(load_from_encoder.__module__).setLevel(logging.ERROR)
        model: Any = load_from_encoder(
            self.checkpoint, gamma=list(schedule.gamma), eta=schedule.eta, **self.task.head_config
        )
        if self.is_foreign_head:
            torch.nn.init.normal_(model.classifier.out_proj.weight, std=model.config.initializer_range)
            torch.nn.init.zeros_(model.classifier.out_proj.bias)
        return model

    def model_folder(self, schedule: Schedule) -> Path:
        return self.output / "models" / schedule.key

    def identity(self) -> dict[str, Any]:
        """Say what a journal's trials depend on, so that only the same study is resumed."""
        return {
            "checkpoint": checkpoint_fingerprint(self.checkpoint),
            "dataset": self.task.fingerprint,
            "recipe": self.arguments.describe_recipe(),
            "latency": {"device": self.device, "threads": self.latency_threads},
        }

    def __call__(self, schedule: Schedule) -> dict[str, Any]:
        """Fine-tune, validate and time one schedule; keeps the trained model.

        Returns:
            Plain data for the journal: `score`, `score_as_is`, `standard_error`, `latency_ratio` (to `full`),
            `stock_latency_ratio` (of `stock` to `full`), `latency` (statistics of all three), `flops_ratio`, ...

        Raises:
            FloatingPointError: The training loss became NaN.
        """
        model = self.load(schedule)
        arguments = copy.copy(self.arguments)
        arguments.output_dir = str(self.output / "current_trial")
        arguments.save_only_model = True
        is_main = PartialState().is_main_process
        try:
            result = fine_tune(model, self.task, self.tokenizer, arguments, evaluate_as_is=self.has_head)
        finally:
            if is_main:
                shutil.rmtree(arguments.output_dir, ignore_errors=True)
        measurement, error = None, None
        if is_main:
            try:
                measurement = self.record(schedule, model, result)
            except Exception as exception:  # the other processes wait for an answer
                error = exception
        # every process goes on with what the main process saw
        measurement, error = broadcast_object_list([measurement, error])
        if error is not None:
            raise error
        return measurement

    def record(self, schedule: Schedule, model: PreTrainedModel, result: FineTuned) -> dict[str, Any]:
        """Save a trained model, measure it and put everything into plain data."""
        # mixed precision leaves its wrapper on the model, which must not be saved or timed with it
        model = extract_model_from_parallel(model, keep_fp32_wrapper=False)
        model.save_pretrained(self.model_folder(schedule))
        self.tokenizer.save_pretrained(self.model_folder(schedule))
        references = self.task.splits["validation"]["labels"]
        return {
            "score": result.score,
            "score_as_is": result.score_as_is,
            "standard_error": standard_error(self.task.metric_name, result.predictions, references),
            "metric_name": self.task.metric_name,
            "num_examples": len(references),
            "num_epochs": result.num_epochs,
            "train_seconds": round(result.seconds, 1),
            "seed": self.arguments.seed,
            **self.measure(model.config),
        }

    def measure(self, config: Any) -> dict[str, Any]:
        """Time an architecture side by side with its unreduced references; time does not depend on the weights."""
        models: dict[str, Any] = {"candidate": ClassformerForSequenceClassification(config)}
        for name, cls_only in (("full", True), ("stock", False)):
            reference = copy.deepcopy(config)
            reference.gamma, reference.eta = [1] * config.num_hidden_layers, 0
            reference.last_layer_cls_only = cls_only
            models[name] = ClassformerForSequenceClassification(reference)
        num_threads = torch.get_num_threads()
        torch.set_num_threads(self.latency_threads)
        try:
            models = {name: module.to(self.device).eval() for name, module in models.items()}
            inputs = [{name: value.to(self.device) for name, value in row.items()} for row in self.inputs]
            latency = measure_latency(models, inputs, reference="full", rounds=self.latency_rounds)
            hardware = hardware_fingerprint(self.device)
        finally:
            torch.set_num_threads(num_threads)
        lengths = [row["input_ids"].shape[1] for row in self.inputs]
        flops = {name: sum(count_flops(models[name].config, n) for n in lengths) for name in models}
        return {
            "latency_ratio": latency["candidate"].ratio,
            "stock_latency_ratio": latency["stock"].ratio,
            "latency_milliseconds": latency["candidate"].wall_p50_ms,
            "latency": {name: vars(value) for name, value in latency.items()},
            "flops_ratio": flops["candidate"] / flops["full"],
            "hardware": hardware,
        }

    def estimate_seconds(self) -> float:
        """Estimate the longest time that one trial can take, from a few training steps of the unreduced model."""
        split = self.task.splits["train"]
        batch_size = min(self.arguments.per_device_train_batch_size, len(split))
        rows = split.shuffle(seed=0).select(range(batch_size))
        batch = BatchEncoding(DataCollatorWithPadding(self.tokenizer)(list(rows))).to(self.arguments.device)
        num_layers = AutoConfig.from_pretrained(self.checkpoint).num_hidden_layers
        model: Any = self.load(Schedule((1,) * num_layers))
        model.to(self.arguments.device).train()
        seconds = []
        for _ in range(3):
            started = time.perf_counter()
            model(**batch).loss.backward()
            seconds.append(time.perf_counter() - started)
        single = self.inputs[len(self.inputs) // 2]
        started = time.perf_counter()
        with torch.inference_mode():
            model.eval()(**{name: value.to(self.arguments.device) for name, value in single.items()})
        latency = (time.perf_counter() - started) * 3 * len(self.inputs) * (self.latency_rounds + 5)
        steps = len(split) / batch_size * self.arguments.num_train_epochs
        validation = len(self.task.splits["validation"]) / batch_size / 3 * max(self.arguments.num_train_epochs, 1)
        return sorted(seconds)[1] * (steps + validation) + latency
