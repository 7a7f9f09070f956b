"""What every training shares: its progress, its checkpoints, and an end where the loss is no number."""

import json
import logging
import math
import shutil
import time
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback
from transformers.dynamic_module_utils import custom_object_save
from transformers.trainer_utils import get_last_checkpoint

from .plan import Plan

logger = logging.getLogger(__name__)


class StopOnInvalidLoss(TrainerCallback):
    """Ends a run whose loss is no number any more, instead of training on."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        loss = (logs or {}).get("loss")
        if loss is not None and not math.isfinite(loss):
            half = ", or train without --fp16" if args.fp16 else ""
            raise FloatingPointError(
                f"the training loss became {loss} by step {state.global_step}; "
                f"lower --learning_rate (now {args.learning_rate:g}), or warm up longer{half}."
            )


class SaveCodeCallback(TrainerCallback):
    """Makes every push of a Trainer load, not only the last: puts the model's code beside the weights that it pushes.

    For any model of the three packages: `Trainer(..., callbacks=[SaveCodeCallback()])` with `push_to_hub=True`.
    """

    def on_push_begin(self, args, state, control, model=None, **kwargs):
        custom_object_save(model, args.output_dir)


class ReportProgress(TrainerCallback):
    """Tells a plan how far a training has come; where no stage of it runs, the training is one.

    Args:
        plan: The plan.
        tokens_per_step: Shows tokens per second too.
    """

    def __init__(self, plan: Plan, tokens_per_step: int | None = None):
        self.plan, self.tokens_per_step = plan, tokens_per_step
        self.is_stage = False
        self.scores: dict[str, str] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        self.is_stage = self.plan.current is None
        if self.is_stage:
            self.plan.begin("training")
        self.started, self.first_step = time.monotonic(), state.global_step
        if state.global_step:
            self.plan.report(state.global_step / state.max_steps, is_resumed=True)

    def on_step_end(self, args, state, control, **kwargs):
        shown = [f"step {state.global_step} of {state.max_steps}", *self.scores.values()]
        if self.tokens_per_step:
            tokens = self.tokens_per_step * (state.global_step - self.first_step)
            shown.append(f"{tokens / (time.monotonic() - self.started):,.0f} tokens a second")
        self.plan.report(state.global_step / state.max_steps, ", ".join(shown))

    def on_log(self, args, state, control, logs=None, **kwargs):
        names = {"loss": "loss", args.metric_for_best_model: "validation"}
        self.scores |= {key: f"{name} {logs[key]:.3f}" for key, name in names.items() if key in (logs or {})}

    def on_prediction_step(self, args, state, control, **kwargs):
        self.plan.show()

    def on_train_end(self, args, state, control, **kwargs):
        if self.is_stage:
            self.plan.end()


def show_progress(trainer: Trainer, plan: Plan | None = None, tokens_per_step: int | None = None):
    """Show how far a training has come instead of a dictionary per log; scores are in the trainer's state.

    Args:
        trainer: Changed in place.
        plan: By default one of its own.
        tokens_per_step: Shows tokens per second too.
    """
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    plan = plan or Plan(has_bars=not trainer.args.disable_tqdm)
    trainer.add_callback(ReportProgress(plan, tokens_per_step))


def check_weights(folder: Path):
    """Refuse a model folder whose weights are cut off.

    Raises:
        ValueError: A file is damaged; the message names it.
    """
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt"):
                pass
        except SafetensorError as error:
            raise ValueError(
                f"{path} is damaged ({error}); delete {folder} and train anew, or copy it again."
            ) from error


def find_checkpoint(folder: Path) -> str | None:
    """Find the last checkpoint that was written to its end; torn ones, of a full disk or a kill, are deleted.

    Of several processes all may call this, and one may make the folder later than another looks.
    """
    while folder.is_dir() and (checkpoint := get_last_checkpoint(str(folder))) is not None:
        try:
            json.loads(Path(checkpoint, "trainer_state.json").read_text())  # what the Trainer writes last
            check_weights(Path(checkpoint))
            logger.info("training goes on from %s.", checkpoint)
            return checkpoint
        except (OSError, ValueError):
            shutil.rmtree(checkpoint, ignore_errors=True)
            if Path(checkpoint).exists():
                return None
    return None
