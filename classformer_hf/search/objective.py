"""What one trial costs and gives: fine-tune the schedule, validate it, measure its latency (thesis section 5.1.2)."""

import copy
import logging
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from redundancy_hf.command import FLAGS
from redundancy_hf.plan import Plan
from redundancy_hf.task import Task
from redundancy_hf.timing import Target, sample_inputs

from ..checkpoints import checkpoint_fingerprint, has_head, load_from_encoder, read_encoder_config
from ..training import ClassformerTrainingArguments, fine_tune
from .models import TrainedModels
from .reference import choose_reference
from .space import Schedule
from .target import LatencyMeter

# entries of a trial's measurement that training gives, not timing
TRAINED: tuple[str, ...] = ("score", "score_as_is", "standard_error", "paired_standard_error", "metric_name")
TRAINED += ("num_examples", "num_epochs", "train_seconds", "seed", "reference", "supernet_score")


class FineTuneObjective:
    """Fine-tunes and validates schedules of one checkpoint on one task; nothing of it depends on a requirement.

    Args:
        checkpoint: Folder or Hub name of a RoBERTa- or BERT-family encoder or classifier.
        task: Tokenised task without its test split.
        tokenizer: Pads the batches.
        arguments: The fine-tuning recipe; its `output_dir` holds the trained models as `models/<schedule>`.
        target: Where the result shall be fast, by default on one thread of the processor; training stays in float32
            (or as `arguments` say).

    Attributes:
        models: The trained models.
        meter: Times schedules, by default on the validation split's own lengths.
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
        target: Target = Target(),
    ):
        self.checkpoint, self.task, self.tokenizer, self.arguments = checkpoint, task, tokenizer, arguments
        self.output = Path(str(arguments.output_dir))
        self.target = target
        self.plan = Plan(has_bars=not arguments.disable_tqdm)
        self.has_loaded = False
        self.flags: dict[str, Any] = {}
        self.adopted: dict[Schedule, dict[str, Any]] = {}
        source = read_encoder_config(checkpoint)
        self.full = Schedule((1,) * source.num_hidden_layers)
        # a head that was trained on this task can be judged before any fine-tuning
        self.has_head = has_head(source, task.label_names, task.output_names)
        self.models = TrainedModels(self.output / "models", task, tokenizer, self.full, self.target)
        inputs = sample_inputs(task.splits["validation"])
        self.meter = LatencyMeter(self.full, self.load_config, inputs, self.target, self.plan)

    def load(self, schedule: Schedule) -> PreTrainedModel:
        """Load the checkpoint with a schedule; a new head is the same for every schedule."""
        set_seed(self.arguments.seed)
        loader = logging.getLogger(load_from_encoder.__module__)
        level = loader.level
        if self.has_loaded or self.models.root.exists():
            # what is fresh has been said
            loader.setLevel(logging.ERROR)
        self.has_loaded, names = True, self.task.output_names
        try:
            return load_from_encoder(self.checkpoint, output_names=names, **schedule.config, **self.task.head_config)
        finally:
            loader.setLevel(level)

    def load_config(self) -> Any:
        """The configuration of the unreduced classifier."""
        return self.load(self.full).config

    def for_checkpoint(self, checkpoint: str, arguments: ClassformerTrainingArguments) -> "FineTuneObjective":
        """Make the same objective for other weights of the same model, and another recipe."""
        other = FineTuneObjective(checkpoint, self.task, self.tokenizer, arguments, self.target)
        other.meter, other.plan, other.flags = self.meter, self.plan, self.flags
        return other

    def adopt(self, schedule: Schedule, measurement: dict[str, Any], model: Path):
        """Take over what an earlier study's fine-tuning of a schedule gave, so that it is not trained again.

        Args:
            schedule: The schedule.
            measurement: Of the earlier trial; what was timed there is left out.
            model: Folder of the trained model; it is copied.
        """
        self.models.adopt(schedule, model)
        self.adopted[schedule] = {name: measurement[name] for name in TRAINED if name in measurement}

    def identity(self) -> dict[str, Any]:
        """Say what a journal's trials depend on, so that only the same study is resumed."""
        return {
            FLAGS: self.flags,
            "checkpoint": checkpoint_fingerprint(self.checkpoint),
            "dataset": self.task.fingerprint,
            "recipe": self.arguments.describe_recipe(),
            "latency": {
                "device": self.target.device,
                "threads": self.target.threads,
                "dtype": str(self.target.torch_dtype),
                "mean_tokens": sum(self.meter.lengths) / len(self.meter.lengths),
            },
        }

    def __call__(self, schedule: Schedule) -> dict[str, Any]:
        """Fine-tune and validate; keeps the trained model. `meter` gives the other half of a trial.

        Returns:
            Plain data for the journal: `score`, `score_as_is`, `standard_error`, ...

        Raises:
            FloatingPointError: The training loss became NaN.
        """
        if schedule in self.adopted:
            return dict(self.adopted[schedule])
        if schedule == self.full and self.original is not None:
            measured = choose_reference(self, self.original)
        else:
            measured = self.fine_tune(schedule)
        return {**measured, "seed": self.arguments.seed}

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
        return self.models.keep(schedule, model, result)
