r"""Fine-tune one architecture with several seeds, by the thesis' recipe (section 5.1.3), 3 epochs by default.

Train what a search found, from the base checkpoint, three times; or a schedule of your own:

    redundancy-hf train --model_name_or_path FacebookAI/roberta-base --config_name runs/mrpc/best \
        --dataset_name mrpc --seeds 3 --output_dir runs/mrpc-final
    redundancy-hf train --model_name_or_path FacebookAI/roberta-base --dataset_name mrpc \
        --gamma 1 1 2 1 2 1 1 1 1 1 1 1 --eta 1 --output_dir runs/mrpc-mine

Every seed leaves a model folder OUTPUT_DIR/seed-N; the same command resumes. Two processes on a CPU:
torchrun --nproc_per_node 2 -m redundancy_hf train ... --use_cpu (`accelerate launch --cpu` may start only one).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult
from transformers import set_seed

from redundancy_hf.cards import add_results, name_dataset
from redundancy_hf.command import FLAGS, describe_flags, parse_call
from redundancy_hf.data import load_task, tokenize
from redundancy_hf.folders import save_folder
from redundancy_hf.limits import load_tokenizer
from redundancy_hf.plan import SEED_RESULTS, Plan
from redundancy_hf.task import Task, TaskArguments
from redundancy_hf.training import describe_mean, run_seeds

from ..checkpoints import checkpoint_fingerprint, choose_schedule, is_classifier, load_from_encoder
from ..training import ClassformerTrainingArguments, count_training_steps, fine_tune, time_step

EARLIER = " Training may stop earlier, where validation no longer improves."


def train_classformer(
    model_name_or_path: str,
    task: TaskArguments,
    training: ClassformerTrainingArguments,
    config_name: str | None = None,
    gamma: Sequence[int] | None = None,
    eta: int = 0,
    seeds: int = 1,
) -> list[dict[str, Any]]:
    """Fine-tune one schedule with several seeds, each into a model folder `seed-N`; what is finished is read back.

    Args:
        model_name_or_path: Folder or Hub name of the checkpoint to start from.
        task: The data set.
        training: The recipe; it names the output folder and the first seed.
        config_name: Folder or config.json whose gamma and eta are trained, e.g. a search's best.
        gamma: One reduction factor per layer, instead of --config_name.
        eta: Leading tokens that stay, together with --gamma.
        seeds: Number of trainings, with seeds counted from --seed.

    Returns:
        A row per seed: "seed", the task's metric on the validation split, "epochs", "seconds".

    Raises:
        ValueError: The data or the checkpoint cannot be read, arguments do not fit, or a folder holds another training.
    """
    training.require_training()
    tokenizer, output = load_tokenizer(model_name_or_path), Path(str(training.output_dir))
    data = tokenize(load_task(task).without_test(), tokenizer, task.max_length)
    data = note_origin(data, model_name_or_path, output, config_name)
    schedule = choose_schedule(gamma, eta) if config_name is None else read_schedule(config_name, gamma, eta)
    settings = {
        "checkpoint": checkpoint_fingerprint(model_name_or_path),
        "dataset": data.fingerprint,
        "schedule": schedule,
        FLAGS: describe_flags(model_name_or_path=model_name_or_path, **asdict(task)),
    }

    def load() -> Any:
        return load_from_encoder(model_name_or_path, output_names=data.output_names, **data.head_config, **schedule)

    def estimate(plan: Plan):
        set_seed(training.seed)
        plan.estimate(time_step(load(), data, tokenizer, training) * count_training_steps(data, training))
        plan.announce(EARLIER * training.load_best_model_at_end)

    def train(own: ClassformerTrainingArguments, folder: Path, plan: Plan) -> dict[str, Any]:
        # how long validation has not improved, too
        own.restore_callback_states_from_checkpoint = True
        model = load()
        tuned = fine_tune(model, data, tokenizer, own, resume=True, plan=plan)
        if own.process_index == 0:
            save_folder(model, folder, tokenizer, data.record)
            write_card(folder, data, tuned.score, model_name_or_path)
        row = {"seed": own.seed, data.metric_name: tuned.score}
        return row | {"epochs": tuned.num_epochs, "seconds": round(tuned.seconds, 1)}

    rows = run_seeds(train, training, seeds, settings, estimate)
    if training.process_index == 0:
        (output / SEED_RESULTS).write_text(json.dumps(rows, indent=2) + "\n")
        scores = [row[data.metric_name] for row in rows]
        for row, score in zip(rows, scores, strict=True):
            print(f"seed {row['seed']}: validation {data.metric_name} {score:.4f} ({row['epochs']:g} epochs)")
        print(describe_mean(scores, training))
    return rows


def note_origin(task: Task, checkpoint: str, output: Path, search: str | None) -> Task:
    """Put into a task's record what the checkpoint, and the search that a schedule is of, have read."""
    if task.record is None:
        return task
    record = task.record.after(checkpoint, output, is_trained=is_classifier(checkpoint, task.num_labels))
    # whoever takes a schedule from a search has read what that has
    return replace(task, record=record.by_choice_of(search))


def read_schedule(config_name: str, gamma: Sequence[int] | None, eta: int) -> dict[str, Any]:
    """Take gamma and eta from a configuration.

    Raises:
        ValueError: They are given besides, or it has none.
    """
    if gamma is not None:
        raise ValueError("give --config_name or --gamma, not both.")
    if eta:
        raise ValueError("--config_name has an eta of its own: leave --eta out.")
    path = Path(config_name)
    path = path / "config.json" if path.is_dir() else path
    if not path.exists():
        raise ValueError(f"there is no {path}; --config_name is a folder or a config.json with gamma and eta.")
    try:
        config = json.loads(path.read_text())
        return {"gamma": config["gamma"], "eta": config["eta"]}
    except (OSError, json.JSONDecodeError, KeyError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} is no Classformer config with gamma and eta ({reason}).") from error


def write_card(folder: Path, task: Task, score: float, checkpoint: str):
    """Put the validation score into a model's card, and into the record of all seeds what they have read."""
    if task.record is not None:
        # where all seeds write down that they were tested
        task.record.write(folder.parent)
    result = EvalResult(
        task_type="text-classification",
        **name_dataset(task.name, task.record.arguments if task.record else {}),
        dataset_split="validation",
        metric_type=task.metric_name,
        metric_value=round(score, 4),
    )
    # a card's base model is a name on the Hub
    add_results(folder, [result], None if Path(checkpoint).exists() else checkpoint)


def main():
    train_classformer(**parse_call(train_classformer, __doc__))
