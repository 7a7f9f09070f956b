"""What one trial costs and gives: fine-tune the schedule, validate it, measure its latency (thesis section 5.1.2)."""

import copy
import hashlib
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import (
    AutoConfig,
    BatchEncoding,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from ..checkpoints import load_from_encoder
from ..cost import count_flops, hardware_fingerprint, measure_latency, sample_inputs
from ..data import Task
from ..metrics import standard_error
from ..modeling_classformer import ClassformerForSequenceClassification
from ..training import ClassformerTrainingArguments, fine_tune
from .space import Schedule

# the arguments that change what a trial gives
RECIPE = (
    "learning_rate",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "optim",
    "weight_decay",
    "warmup_steps",
    "lr_scheduler_type",
    "early_stopping_patience",
    "load_best_model_at_end",
    "bf16",
    "fp16",
    "seed",
)


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
        # a head that was trained on this task can be judged before any fine-tuning
        self.has_head = any("SequenceClassification" in name for name in source.architectures or [])
        self.has_head &= source.num_labels == task.num_labels

    def load(self, schedule: Schedule) -> PreTrainedModel:
        """Load the checkpoint with a schedule; a new head is the same for every schedule."""
        set_seed(self.arguments.seed)
        names = dict(enumerate(self.task.label_names))
        return load_from_encoder(
            self.checkpoint,
            gamma=list(schedule.gamma),
            eta=schedule.eta,
            num_labels=self.task.num_labels,
            id2label=names,
            label2id={name: index for index, name in names.items()},
            problem_type=self.task.problem_type,
        )

    def model_folder(self, schedule: Schedule) -> Path:
        return self.output / "models" / schedule.key

    def identity(self) -> dict[str, Any]:
        """Say what a journal's trials depend on, so that only the same study is resumed."""
        return {
            "checkpoint": checkpoint_fingerprint(self.checkpoint),
            "dataset": self.task.fingerprint,
            "recipe": {name: str(getattr(self.arguments, name)) for name in RECIPE},
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
        try:
            result = fine_tune(model, self.task, self.tokenizer, arguments, evaluate_as_is=self.has_head)
        finally:
            state = PartialState()
            state.wait_for_everyone()
            if state.is_main_process:
                shutil.rmtree(arguments.output_dir, ignore_errors=True)
        measurement = {}
        if state.is_main_process:
            model.save_pretrained(self.model_folder(schedule))
            self.tokenizer.save_pretrained(self.model_folder(schedule))
            references = self.task.splits["validation"]["labels"]
            measurement = {
                "score": result.score,
                "score_as_is": result.score_as_is,
                "standard_error": standard_error(self.task.metric_name, result.predictions, references),
                "metric_name": self.task.metric_name,
                "num_examples": len(references),
                "num_epochs": result.num_epochs,
                "train_seconds": round(result.seconds, 1),
                "seed": self.arguments.seed,
                **self.measure(model),
            }
        # every process goes on with the main process' measurement
        (measurement,) = broadcast_object_list([measurement])
        return measurement

    def measure(self, model: PreTrainedModel) -> dict[str, Any]:
        """Time a model side by side with its unreduced references."""
        config: Any = model.config
        models: dict[str, Any] = {"candidate": model}
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
        steps = len(split) / batch_size * self.arguments.num_train_epochs
        validation = len(self.task.splits["validation"]) / batch_size / 3 * max(self.arguments.num_train_epochs, 1)
        return sorted(seconds)[1] * (steps + validation)


def checkpoint_fingerprint(name_or_path: str) -> str:
    """Tell checkpoints apart: by content for a folder, by commit for a Hub name."""
    folder = Path(name_or_path)
    if not folder.is_dir():
        return f"{name_or_path}@{AutoConfig.from_pretrained(name_or_path)._commit_hash}"
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin"), folder / "config.json"]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
