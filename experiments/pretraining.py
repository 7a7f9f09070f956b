r"""Fine-tune what every pretraining objective left, on several tasks with several seeds (thesis table 5.6).

    redundancy-hf pretrain --model_name_or_path sentence-transformers/all-MiniLM-L6-v2 \
        --dataset_name my/wikitext --gamma 2 1 2 1 1 1 --objectives first_k last_k gamma_th dense funnel distillation \
        --output_dir runs/pretraining
    python experiments/pretraining.py --model_name_or_path sentence-transformers/all-MiniLM-L6-v2 \
        --pretrained runs/pretraining --dataset_names stsb cola --seeds 2 --num_train_epochs 2 \
        --output_dir runs/study-pretraining --results_file results/pretraining.json

Compared are the checkpoint itself without reductions (full), with the schedule but no pretraining (none), and every
folder in --pretrained, also one of redundancy-hf multitask that is named multitask. A seed decides head, dropout and
order of the data. Scores are of the test split; only the number of epochs, fixed beforehand, could have been chosen by
it. The same command resumes.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from classformer_hf import ClassformerModel, load_from_encoder
from classformer_hf.checkpoints import checkpoint_fingerprint
from classformer_hf.pretraining import OBJECTIVES
from classformer_hf.training import ClassformerTrainingArguments, fine_tune_and_test
from redundancy_hf.command import check_settings, parse_arguments, run_command, write_record
from redundancy_hf.data import load_tasks
from redundancy_hf.limits import load_tokenizer
from redundancy_hf.metrics import compute_score, majority_score
from redundancy_hf.task import Task
from redundancy_hf.timing import hardware_fingerprint

NUM_RESAMPLES = 500
# the thesis' averages rise along it; the last is ours
ORDER = ("none", "last_k", "first_k", "dense", "funnel", "distillation")


@dataclass
class StudyArguments:
    model_name_or_path: str = field(metadata={"help": "The checkpoint that pretraining started from."})
    pretrained: str = field(metadata={"help": "Output folder of redundancy-hf pretrain."})
    dataset_names: list[str] = field(
        metadata={"help": "Tasks: GLUE names, folders, files or standard_library (embedded)."}
    )
    max_length: int = field(default=128, metadata={"help": "Longer texts are cut to so many tokens."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on at most so many examples."})
    seeds: int = field(default=2, metadata={"help": "Fine-tunings of each, with --seed, --seed + 1, ..."})
    results_file: str | None = field(default=None, metadata={"help": "JSON file for the scores."})


def read_pretrained(folder: Path, start: str) -> dict[str, dict[str, Any]]:
    """Give what every objective's pretraining, from a checkpoint, reported, and its peak learning rate."""
    paths = {name: folder / name / "pretrain_results.json" for name in (*OBJECTIVES, "multitask")}
    rows = {name: json.loads(path.read_text()) for name, path in paths.items() if path.is_file()}
    if not rows:
        raise ValueError(f"--pretrained {folder} holds no finished objective; run redundancy-hf pretrain.")
    for name, row in rows.items():
        settings = json.loads((folder / name / "settings.json").read_text())
        if settings["checkpoint"] != checkpoint_fingerprint(start):
            raise ValueError(f"{folder / name} was not pretrained from {start}; give what it started from.")
        row["learning_rate"] = float(settings["recipe"]["learning_rate"])
    return rows


def read_schedule(folder: Path, names: list[str]) -> dict[str, Any]:
    """Give the schedule that all were pretrained with."""
    configs = {name: json.loads((folder / name / "config.json").read_text()) for name in names}
    schedules = {name: {"gamma": config["gamma"], "eta": config["eta"]} for name, config in configs.items()}
    first = schedules[names[0]]
    other = [name for name in names if schedules[name] != first]
    if other:
        raise ValueError(
            f"{', '.join(other)} in {folder} has another schedule than {names[0]}; compare like with like."
        )
    return first


class Study:
    """What is fine-tuned, and where what is left of it."""

    def __init__(self, arguments: StudyArguments, training: ClassformerTrainingArguments):
        self.arguments, self.training = arguments, training
        self.output = Path(str(training.output_dir))
        self.pretrained = read_pretrained(Path(arguments.pretrained), arguments.model_name_or_path)
        self.schedule = read_schedule(Path(arguments.pretrained), list(self.pretrained))
        self.fingerprints = {
            name: checkpoint_fingerprint(str(Path(arguments.pretrained) / name)) for name in self.pretrained
        }
        self.tokenizer = load_tokenizer(arguments.model_name_or_path)

    def start(self, objective: str, task: Task) -> Any:
        """Load what fine-tuning starts from."""
        if objective == "full":
            return load_from_encoder(self.arguments.model_name_or_path, **task.head_config)
        model: Any = load_from_encoder(self.arguments.model_name_or_path, **task.head_config, **self.schedule)
        if objective != "none":
            # the encoder only: heads start alike
            folder = Path(self.arguments.pretrained) / objective
            encoder: Any = ClassformerModel.from_pretrained(folder, add_pooling_layer=False)
            model.roberta.load_state_dict(encoder.state_dict())
        return model

    def folder(self, objective: str, task: Task, seed: int) -> Path:
        return self.output / task.name / objective / f"seed-{seed}"

    def run(self, objective: str, task: Task, seed: int) -> dict[str, Any]:
        """Fine-tune once and score; a finished one is read."""
        folder = self.folder(objective, task, seed)
        settings = {
            "checkpoint": checkpoint_fingerprint(self.arguments.model_name_or_path),
            "pretrained": self.fingerprints.get(objective),
            "schedule": self.schedule,
            "dataset": task.fingerprint,
            "recipe": self.training.describe_recipe(),
        }
        check_settings(folder / "settings.json", settings, is_writer=True)
        row = fine_tune_and_test(lambda: self.start(objective, task), task, self.tokenizer, self.training, folder, seed)
        if task.metric_name == "f1":  # which rises with the share of positive predictions alone
            predictions = np.load(folder / "predictions.npy")
            row["test_mcc"] = compute_score("matthews_correlation", predictions, task.splits["test"]["labels"])
        return {"objective": objective, **row}

    def compare(self, objective: str, reference: str, task: Task, seeds: range) -> dict[str, Any]:
        """Give how far an objective is above another, in the mean over seeds, with a 95 % interval.

        The interval is over test examples, by the bootstrap, and pairs the same examples and seeds.
        """
        references = np.asarray(task.splits["test"]["labels"])
        own, other = (
            [np.load(self.folder(name, task, seed) / "predictions.npy") for seed in seeds]
            for name in (objective, reference)
        )

        def differences(examples: np.ndarray) -> list[float]:
            """Give the difference of every seed."""
            return [
                compute_score(task.metric_name, one[examples], references[examples])
                - compute_score(task.metric_name, two[examples], references[examples])
                for one, two in zip(own, other, strict=True)
            ]

        generator = np.random.default_rng(0)
        num_examples = len(references)
        resampled = [
            np.mean(differences(generator.integers(num_examples, size=num_examples))) for _ in range(NUM_RESAMPLES)
        ]
        by_seed = differences(np.arange(num_examples))
        return {
            "objective": objective,
            "reference": reference,
            "dataset": task.name,
            "by_seed": by_seed,
            "mean": float(np.mean(by_seed)),
            "interval": np.quantile(resampled, [0.025, 0.975]).tolist(),
        }


def list_comparisons(objectives: list[str]) -> list[tuple[str, str]]:
    """Pair all with none, and each with the one before it in the order of the thesis."""
    ordered = [name for name in ORDER if name in objectives]
    pairs = [(objective, "none") for objective in objectives if objective != "none"]
    return pairs + [pair for pair in zip(ordered[1:], ordered, strict=False) if pair not in pairs]


def main():
    arguments, training = parse_arguments((StudyArguments, ClassformerTrainingArguments), __doc__)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    if arguments.seeds < 1:
        raise ValueError(f"--seeds must be at least 1, got {arguments.seeds}.")
    study = Study(arguments, training)
    tasks = load_tasks(arguments.dataset_names, study.tokenizer, arguments.max_length, arguments.max_train_samples)
    seeds = range(training.seed, training.seed + arguments.seeds)
    objectives = ["full", "none", *study.pretrained]
    jobs = [(objective, task, seed) for task in tasks for seed in seeds for objective in objectives]
    rows = []
    for objective, task, seed in tqdm(jobs, desc="fine-tuning", unit="model", disable=training.disable_tqdm):
        rows.append(study.run(objective, task, seed))
        print(f"{task.name} {objective} seed {seed}: test {task.metric_name} {rows[-1]['test_score']:.4f}")
    differences = [
        study.compare(objective, reference, task, seeds)
        for task in tasks
        for objective, reference in list_comparisons(objectives)
    ]
    for entry in differences:
        low, high = entry["interval"]
        print(
            f"{entry['dataset']} {entry['objective']} above {entry['reference']}: {entry['mean']:+.3f} "
            f"[{low:+.3f}, {high:+.3f}], 95 % over examples"
        )
    write_record(
        arguments.results_file,
        model=Path(arguments.model_name_or_path).name,
        schedule=study.schedule,
        pretraining=study.pretrained,
        datasets={
            task.name: {
                "num_examples": {name: len(split) for name, split in task.splits.items()},
                "majority_score": majority_score(task, "test"),
            }
            for task in tasks
        },
        differences=differences,
        seeds=list(seeds),
        hardware=hardware_fingerprint(),
        rows=rows,
    )


if __name__ == "__main__":
    run_command(main)
