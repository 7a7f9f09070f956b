"""What every training shares: seeds, progress, checkpoints, and an end where the loss is no number."""

import copy
import json
import logging
import math
import shutil
import statistics
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from safetensors import SafetensorError, safe_open
from transformers import (
    PreTrainedConfig,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.dynamic_module_utils import custom_object_save
from transformers.trainer_utils import get_last_checkpoint

from .command import check_settings
from .plan import SEED_RESULTS, Plan, describe_lost_training

logger = logging.getLogger(__name__)


@dataclass
class RecipeArguments(TrainingArguments):
    """[`TrainingArguments`] with what all our recipes have in common; every flag stays usable."""

    # settings that change what a training gives
    recipe: ClassVar[tuple[str, ...]] = (
        *("learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size"),
        *("gradient_accumulation_steps", "world_size", "weight_decay", "max_grad_norm", "warmup_steps"),
        *("lr_scheduler_type", "bf16", "fp16", "seed"),
    )

    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: no, steps or epoch."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save: no, steps or epoch."})
    logging_strategy: str = field(default="epoch", metadata={"help": "When to log: no, steps or epoch."})
    save_total_limit: int | None = field(default=1, metadata={"help": "Checkpoints to keep."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Hide NaN losses; we stop on them instead."})

    def describe_recipe(self) -> dict[str, str]:
        """List the settings that change what a training gives, so that only the same one is resumed."""
        return {name: str(getattr(self, name)) for name in self.recipe}


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


def load_folder(folder: str, auto_class: Any, trust_remote_code: bool = True) -> Any:
    """Load a saved model for evaluation.

    Raises:
        ValueError: There is no such folder, or its weights are cut off.
    """
    if not Path(folder, "config.json").is_file():
        raise ValueError(f"{folder} is no saved model: it has no config.json; train one first.")
    check_weights(Path(folder))
    return auto_class.from_pretrained(folder, trust_remote_code=trust_remote_code).eval()


def parse_overrides(config_overrides: str | None, config: PreTrainedConfig, flags: Collection[str]) -> dict[str, Any]:
    """Read settings of a configuration from JSON.

    Args:
        config_overrides: As JSON.
        config: Knows the settings.
        flags: Settings that are flags of their own.

    Raises:
        ValueError: It is no JSON, or a setting is unknown or a flag of its own.
    """
    try:
        overrides = json.loads(config_overrides or "{}")
    except json.JSONDecodeError as error:
        raise ValueError(f"`config_overrides` must be JSON in quotes, got {config_overrides!r}.") from error
    unknown = sorted(set(overrides) - set(config.to_dict()))
    if unknown:
        raise ValueError(f"`config_overrides` has unknown settings {unknown}; {type(config).__name__} documents them.")
    if doubled := sorted(set(overrides) & set(flags)):
        raise ValueError(
            f"`config_overrides` is for settings without a flag of their own, got {doubled}; "
            f"say {' and '.join(f'`{name}`' for name in doubled)} instead."
        )
    return overrides


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


def list_seeds(first: int, number: int) -> range:
    """List the seeds of several trainings.

    Raises:
        ValueError: There would be none.
    """
    if number < 1:
        raise ValueError(f"`seeds` must be at least 1, got {number}.")
    return range(first, first + number)


def run_seed(
    train: Callable[[Any, Path], dict[str, Any]], arguments: Any, folder: Path, seed: int, results: str = SEED_RESULTS
) -> dict[str, Any]:
    """Train with one seed; what is finished is read back.

    Args:
        train: Takes the training arguments of this seed, whose checkpoints lie in the folder, and the folder; loads the
            model, trains it, leaves in the folder what is to stay, and returns a row of results.
        arguments: The training arguments of all seeds.
        folder: Of this seed.
        seed: Of everything that is random.
        results: Name of the file that the row is written to.
    """
    if (folder / results).exists():
        check_weights(folder)
        return json.loads((folder / results).read_text())
    own = copy.copy(arguments)
    own.output_dir, own.seed = str(folder / "checkpoints"), seed
    own.restore_callback_states_from_checkpoint = False
    set_seed(seed)
    row = train(own, folder)
    if own.process_index == 0:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / results).write_text(json.dumps(row) + "\n")
        shutil.rmtree(own.output_dir, ignore_errors=True)
    return row


def run_seeds(
    train: Callable[[Any, Path, Plan], dict[str, Any]],
    arguments: Any,
    number: int,
    settings: dict[str, Any],
    estimate: Callable[[Plan], None] | None = None,
) -> list[dict[str, Any]]:
    """Train with several seeds, each in the folder `seed-N` of the output folder and a stage of one plan.

    Args:
        train: As for [`run_seed`], and takes the plan.
        arguments: Training arguments with `describe_recipe`; they name the output folder and the first seed.
        number: Of seeds.
        settings: What beside the recipe must be the same for a folder to go on.
        estimate: Tells the plan how long a training takes; not called where all are finished.

    Raises:
        ValueError: A folder holds another training, or there would be none.
    """
    folders = {seed: Path(arguments.output_dir, f"seed-{seed}") for seed in list_seeds(arguments.seed, number)}
    for seed, folder in folders.items():
        recipe = {"recipe": {**arguments.describe_recipe(), "seed": str(seed)}}
        check_settings(folder / "settings.json", {**settings, **recipe}, arguments.process_index == 0)
    unfinished = [seed for seed, folder in folders.items() if not (folder / SEED_RESULTS).exists()]
    plan = Plan({f"seed {seed}": None for seed in unfinished}, has_bars=not arguments.disable_tqdm)
    if unfinished and estimate is not None:
        estimate(plan)

    def train_stage(own: Any, folder: Path) -> dict[str, Any]:
        with plan.stage(f"seed {own.seed}", lost=describe_lost_training(arguments)):
            return train(own, folder, plan)

    return [run_seed(train_stage, arguments, folder, seed) for seed, folder in folders.items()]


def describe_mean(scores: list[float], arguments: Any, decimals: int = 4) -> str:
    """Give mean and standard deviation of what the seeds reached, and where their models are."""
    spread = f" +- {statistics.stdev(scores):.{decimals}f}" if len(scores) > 1 else ""
    mean = f"{statistics.mean(scores):.{decimals}f}"
    return f"mean of {len(scores)}: {mean}{spread}; models in {arguments.output_dir}/seed-*"
