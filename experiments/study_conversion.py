r"""Turn a trained plain network into shared ones by several methods, and measure what is kept.

    python experiments/study_conversion.py --models runs/plain/seed-0 --dataset_name uoft-cs/cifar10 \
        --num_train_epochs 1 --learning_rate 0.01 --results_file results/conversion.json

For every model, sharing factor and method: error of the weights; test accuracy at once, with batch norm's statistics
estimated anew on 1,200 training images, and after a short training with the kernels tied. Settings are the same for all
methods, so that nothing is chosen on the test split. Finished rows are in RESULTS_FILE; the same command goes on where
it was stopped.
"""

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import AutoImageProcessor, AutoModelForImageClassification, set_seed
from transformers.utils import logging as transformers_logging

import vision_hf
from redundancy_hf.command import describe_command, format_record, parse_arguments, run_command
from redundancy_hf.timing import hardware_fingerprint
from vision_hf.conversion import METHODS, weight_error
from vision_hf.data import ImageTask, ImageTaskArguments, load_task, transform_splits
from vision_hf.expansion import is_ours
from vision_hf.layouts import from_transformers
from vision_hf.training import ImageTrainer, ImageTrainingArguments, build_trainer, estimate_statistics, train


@dataclass
class StudyArguments:
    models: list[str] = field(
        metadata={"help": "Folders of trained networks that share nothing, ours or transformers' EfficientNet, ResNet."}
    )
    results_file: str = field(metadata={"help": "JSON file for what was measured."})
    sharing_factors: list[int] = field(default_factory=lambda: [2, 4, 8], metadata={"help": "Channels per kernel."})
    methods: list[str] = field(default_factory=lambda: list(METHODS), metadata={"help": "Ways to share."})
    num_statistics: int = field(default=1200, metadata={"help": "Training images that batch norm sees."})


def accuracy(trainer: ImageTrainer, test: Any) -> float:
    return trainer.evaluate(test, metric_key_prefix="test")["test_accuracy"]


def convert(plain: Any, factor: int, method: str, task: ImageTask, processor, task_arguments, training, number) -> dict:
    """Convert by one method and measure."""
    set_seed(0)
    shared = vision_hf.share_weights(plain, factor, method)
    splits = transform_splits(task, processor, task_arguments)
    trainer = build_trainer(shared, task.without_test(), processor, task_arguments, copy.copy(training))
    row = {"weight_error": weight_error(plain, factor, method), "parameters": shared.num_parameters()}
    row["zero_shot"] = accuracy(trainer, splits["test"])
    estimate_statistics(shared, task, processor, number)
    row["reestimated"] = accuracy(trainer, splits["test"])
    train(trainer)
    row["fine_tuned"] = accuracy(trainer, splits["test"])
    return row


def measure_plain(plain: Any, task: ImageTask, processor, task_arguments, training) -> dict:
    """Measure the network as it is, and after as much further training."""
    set_seed(0)
    trainer = build_trainer(copy.deepcopy(plain), task.without_test(), processor, task_arguments, copy.copy(training))
    test = transform_splits(task, processor, task_arguments)["test"]
    row = {"parameters": plain.num_parameters(), "accuracy": accuracy(trainer, test)}
    train(trainer)
    return {**row, "fine_tuned": accuracy(trainer, test)}


def main():
    study, task_arguments, training = parse_arguments(
        (StudyArguments, ImageTaskArguments, ImageTrainingArguments), __doc__
    )
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    training.eval_strategy = training.save_strategy = "no"
    training.disable_tqdm = True
    unknown = sorted(set(study.methods) - set(METHODS))
    if unknown:
        raise ValueError(f"--methods has unknown {unknown}; there are {METHODS}.")
    task = load_task(task_arguments)
    path = Path(study.results_file)
    settings = {
        "task": task.fingerprint,
        "sizes": {name: len(split) for name, split in task.splits.items()},
        "num_statistics": study.num_statistics,
        "recipe": training.describe_recipe(),
    }
    record = json.loads(path.read_text()) if path.exists() else {"settings": settings, "plain": {}, "rows": []}
    if record["settings"] != settings:
        raise ValueError(f"{path} holds a study with other settings; use another --results_file, or the old ones.")
    record |= {"command": describe_command(), "hardware": hardware_fingerprint()}
    cells = [(m, f, k) for m in study.models for f in study.sharing_factors for k in study.methods]
    for folder, factor, method in tqdm(cells, desc="conversions", unit="conversion"):
        plain: Any = AutoModelForImageClassification.from_pretrained(folder)
        plain = plain if is_ours(plain) else from_transformers(plain)
        processor = AutoImageProcessor.from_pretrained(folder)
        family = plain.config.family
        common = (task, processor, task_arguments, training)
        if family not in record["plain"]:
            record["plain"][family] = measure_plain(plain, *common)
        key = {"family": family, "sharing_factor": factor, "method": method}
        if not any(key.items() <= row.items() for row in record["rows"]):
            record["rows"].append({**key, **convert(plain, factor, method, *common, study.num_statistics)})
            path.write_text(format_record(record) + "\n")


if __name__ == "__main__":
    run_command(main)
