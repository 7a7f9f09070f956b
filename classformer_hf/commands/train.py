r"""Fine-tune one architecture with several seeds, by the thesis' recipe (section 5.1.3), for 3 epochs unless told.

Train what a search found, from the base checkpoint, three times; or a schedule of your own:

    redundancy-hf train --model_name_or_path FacebookAI/roberta-base --config_name runs/mrpc/best \
        --dataset_name mrpc --seeds 3 --output_dir runs/mrpc-final
    redundancy-hf train --model_name_or_path FacebookAI/roberta-base --dataset_name mrpc \
        --gamma 1 1 2 1 2 1 1 1 1 1 1 1 --eta 1 --output_dir runs/mrpc-mine

Every seed leaves a model folder OUTPUT_DIR/seed-N; the same command resumes. Two processes on a CPU:
torchrun --nproc_per_node 2 -m redundancy_hf train ... --use_cpu (`accelerate launch --cpu` may start only one).
"""

import copy
import json
import shutil
import statistics
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from huggingface_hub import EvalResult
from transformers import set_seed
from transformers.utils import logging as transformers_logging

from redundancy_hf.cards import add_results, name_dataset
from redundancy_hf.command import FLAGS, check_settings, describe_flags, parse_arguments
from redundancy_hf.data import load_task, tokenize
from redundancy_hf.folders import save_folder
from redundancy_hf.limits import load_tokenizer
from redundancy_hf.plan import SEED_RESULTS, Plan, describe_lost_training, plan_seeds
from redundancy_hf.task import Task, TaskArguments

from ..checkpoints import checkpoint_fingerprint, choose_schedule, is_classifier, load_from_encoder
from ..training import ClassformerTrainingArguments, count_training_steps, fine_tune, time_step


@dataclass
class ModelArguments:
    model_name_or_path: str = field(metadata={"help": "Folder or Hub name of the checkpoint to start from."})
    config_name: str | None = field(
        default=None, metadata={"help": "Folder or config.json whose gamma and eta are trained, e.g. a search's best."}
    )
    gamma: list[int] | None = field(
        default=None, metadata={"help": "One reduction factor per layer, instead of --config_name."}
    )
    eta: int = field(default=0, metadata={"help": "Leading tokens that stay, together with --gamma."})
    seeds: int = field(default=1, metadata={"help": "Trainings, with --seed, --seed + 1, ..."})


def read_schedule(arguments: ModelArguments) -> dict:
    """Take gamma and eta from a config or from the flags; nothing given means no reduction."""
    if arguments.config_name is None:
        return choose_schedule(arguments.gamma, arguments.eta)
    if arguments.gamma is not None:
        raise ValueError("give --config_name or --gamma, not both.")
    if arguments.eta:
        raise ValueError("--config_name has an eta of its own: leave --eta out.")
    path = Path(arguments.config_name)
    path = path / "config.json" if path.is_dir() else path
    if not path.exists():
        raise ValueError(f"there is no {path}; --config_name is a folder or a config.json with gamma and eta.")
    try:
        config = json.loads(path.read_text())
        return {"gamma": config["gamma"], "eta": config["eta"]}
    except (OSError, json.JSONDecodeError, KeyError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} is no Classformer config with gamma and eta ({reason}).") from error


def train_seed(
    model_arguments: ModelArguments, task: Task, tokenizer, training, seed: int, plan: Plan, flags: dict
) -> dict:
    """Train one seed, a stage of the plan, and save its model folder; a finished one is left as it is.

    Raises:
        ValueError: The folder holds another training.
    """
    folder = Path(training.output_dir) / f"seed-{seed}"
    schedule = read_schedule(model_arguments)
    settings = {
        "checkpoint": checkpoint_fingerprint(model_arguments.model_name_or_path),
        "dataset": task.fingerprint,
        "schedule": schedule,
        "recipe": {**training.describe_recipe(), "seed": str(seed)},
        FLAGS: flags,
    }
    check_settings(folder / "settings.json", settings, training.process_index == 0)
    results = folder / SEED_RESULTS
    if results.exists():
        return json.loads(results.read_text())
    arguments = copy.copy(training)
    arguments.output_dir, arguments.seed = str(folder / "checkpoints"), seed
    arguments.restore_callback_states_from_checkpoint = True
    set_seed(seed)
    model = load_from_encoder(
        model_arguments.model_name_or_path,
        output_names=task.output_names,
        **task.head_config,
        **schedule,
    )
    if None in plan.waiting.values():
        plan.estimate(time_step(model, task, tokenizer, arguments) * count_training_steps(task, arguments))
        plan.announce(
            " Training may stop earlier, where validation no longer improves." * training.load_best_model_at_end
        )
    with plan.stage(f"seed {seed}", lost=describe_lost_training(training)):
        tuned = fine_tune(model, task, tokenizer, arguments, resume=True, plan=plan)
    row = {"seed": seed, task.metric_name: tuned.score, "epochs": tuned.num_epochs, "seconds": round(tuned.seconds, 1)}
    if training.process_index == 0:
        save_folder(model, folder, tokenizer, task.record)
        if task.record is not None:
            # where all seeds write down that they were tested
            task.record.write(folder.parent)
        result = EvalResult(
            task_type="text-classification",
            **name_dataset(task.name, task.record.arguments if task.record else {}),
            dataset_split="validation",
            metric_type=task.metric_name,
            metric_value=round(tuned.score, 4),
        )
        checkpoint = model_arguments.model_name_or_path
        # a card's base model is a name on the Hub
        base_model = None if Path(checkpoint).exists() else checkpoint
        add_results(folder, [result], base_model)
        results.write_text(json.dumps(row) + "\n")
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return row


def main():
    model_arguments, task_arguments, training = parse_arguments(
        (ModelArguments, TaskArguments, ClassformerTrainingArguments), __doc__
    )
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if model_arguments.seeds < 1:
        raise ValueError(f"--seeds must be at least 1, got {model_arguments.seeds}.")
    training.require_training()
    tokenizer = load_tokenizer(model_arguments.model_name_or_path)
    task = tokenize(load_task(task_arguments).without_test(), tokenizer, task_arguments.max_length)
    if task.record is not None:
        checkpoint = model_arguments.model_name_or_path
        is_trained = is_classifier(checkpoint, task.num_labels)
        record = task.record.after(checkpoint, Path(training.output_dir), is_trained=is_trained)
        # whoever takes a schedule from a search has read what that has
        task = replace(task, record=record.by_choice_of(model_arguments.config_name))
    seeds = range(training.seed, training.seed + model_arguments.seeds)
    plan = plan_seeds(seeds, training)
    flags = describe_flags(model_name_or_path=model_arguments.model_name_or_path, **asdict(task_arguments))
    rows = [train_seed(model_arguments, task, tokenizer, training, seed, plan, flags) for seed in seeds]
    if training.process_index != 0:
        return
    scores = [row[task.metric_name] for row in rows]
    (Path(training.output_dir) / SEED_RESULTS).write_text(json.dumps(rows, indent=2) + "\n")
    for row in rows:
        score = row[task.metric_name]
        print(f"seed {row['seed']}: validation {task.metric_name} {score:.4f} ({row['epochs']:g} epochs)")
    spread = f" +- {statistics.stdev(scores):.4f}" if len(scores) > 1 else ""
    print(f"mean of {len(scores)}: {statistics.mean(scores):.4f}{spread}; models in {training.output_dir}/seed-*")
