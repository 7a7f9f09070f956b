r"""Fine-tune fixed schedules, without a search: what each keeps and saves (thesis figures 5.6, 5.7, 5.12 and 5.17).

    python experiments/schedules.py --model_name_or_path FacebookAI/roberta-base --dataset_names mrpc rte \
        --families single constrained random_weights --factors 4 --num_train_epochs 2 --output_dir runs/schedules \
        --results_file results/schedules.json
    python experiments/draw_schedules.py --records results/schedules.json --last_layers docs/images/last_layers.png

Families, all beside the full model:

- single: one reduction, by each of --factors at each layer in turn; figure 5.17. Reduced at the n-th layer from the end
  is what figures 5.6 and 5.7 call the last n layers.
- constrained: three reductions by 2, the first at each layer in turn, the others evenly spaced to the output; figure
  5.12.
- random_weights: no reduction, and nothing pretrained; table 5.1.

Every model starts from the same checkpoint without further pretraining. Scores are of the test split, which chooses
nothing. With --rounds all schedules are timed together, batch 1, on texts of the test split. The same command
resumes, and one with more tasks or families adds them.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from classformer_hf import ClassformerForSequenceClassification, load_from_encoder
from classformer_hf.checkpoints import checkpoint_fingerprint
from classformer_hf.search.space import Schedule, SearchSpace
from classformer_hf.training import ClassformerTrainingArguments, fine_tune_and_test
from redundancy_hf.command import check_settings, parse_arguments, run_command, write_record
from redundancy_hf.data import load_tasks
from redundancy_hf.limits import load_tokenizer
from redundancy_hf.metrics import majority_score
from redundancy_hf.task import Task
from redundancy_hf.timing import hardware_fingerprint, measure_latency, sample_inputs

FAMILIES = ("single", "constrained", "random_weights")
WARMUP = 2


@dataclass
class StudyArguments:
    model_name_or_path: str = field(metadata={"help": "Folder or Hub name of the checkpoint to start from."})
    dataset_names: list[str] = field(
        metadata={"help": "Tasks: GLUE names, folders, files or standard_library (embedded)."}
    )
    families: list[str] = field(
        default_factory=lambda: ["single"], metadata={"help": f"What to fine-tune: {', '.join(FAMILIES)}."}
    )
    factors: list[int] = field(default_factory=lambda: [2, 4, 8], metadata={"help": "Of the family single."})
    max_length: int = field(default=128, metadata={"help": "Longer texts are cut to so many tokens."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on at most so many examples."})
    seeds: int = field(default=1, metadata={"help": "Fine-tunings of each, with --seed, --seed + 1, ..."})
    rounds: int = field(default=0, metadata={"help": "Rounds of interleaved timing; 0 times nothing."})
    num_inputs: int = field(default=16, metadata={"help": "Texts that are timed, at evenly spaced lengths."})
    results_file: str | None = field(default=None, metadata={"help": "JSON file for the scores."})


class Variant(NamedTuple):
    """What is fine-tuned; `layer` is the index of the first one that reduces, from 0."""

    family: str
    schedule: Schedule
    layer: int | None = None
    factor: int = 1


def list_variants(arguments: StudyArguments, num_layers: int, max_tokens: int) -> list[Variant]:
    """List the full model and what the families hold.

    No reduction is at the last layer, where a classifier computes position 0 only.

    Raises:
        ValueError: A family or a factor is out of range.
    """
    unknown = sorted(set(arguments.families) - set(FAMILIES))
    if unknown:
        raise ValueError(f"--families has unknown {', '.join(unknown)}; there are {', '.join(FAMILIES)}.")
    if min(arguments.factors) < 2:
        raise ValueError(f"--factors must be at least 2, got {arguments.factors}.")
    if arguments.rounds < 0 or arguments.num_inputs < 1:
        raise ValueError("--rounds must be at least 0 and --num_inputs at least 1.")
    full = Schedule((1,) * num_layers)
    variants = [Variant("full", full)]
    if "single" in arguments.families:
        for factor in sorted(set(arguments.factors)):
            for layer in range(num_layers - 1):
                gamma = tuple(factor if index == layer else 1 for index in range(num_layers))
                variants.append(Variant("single", Schedule(gamma), layer, factor))
    if "constrained" in arguments.families:
        space = SearchSpace(num_layers, max_tokens)
        variants += [Variant("constrained", space.constrained(layer), layer, 2) for layer in range(num_layers - 1)]
    if "random_weights" in arguments.families:
        variants.append(Variant("random_weights", full))
    return variants


class Study:
    """What every fine-tuning shares."""

    def __init__(self, arguments: StudyArguments, training: ClassformerTrainingArguments):
        self.arguments, self.training = arguments, training
        self.checkpoint = arguments.model_name_or_path
        self.fingerprint = checkpoint_fingerprint(self.checkpoint)
        self.tokenizer = load_tokenizer(self.checkpoint)

    def start(self, variant: Variant, task: Task) -> Any:
        """Load what fine-tuning starts from."""
        model: Any = load_from_encoder(self.checkpoint, **variant.schedule.config, **task.head_config)
        return ClassformerForSequenceClassification(model.config) if variant.family == "random_weights" else model

    def run(self, variant: Variant, task: Task, seed: int) -> dict[str, Any]:
        """Fine-tune once and score; a finished one is read."""
        name = "random-weights" if variant.family == "random_weights" else variant.schedule.key
        folder = Path(str(self.training.output_dir)) / task.name / name / f"seed-{seed}"
        settings = {
            "checkpoint": self.fingerprint,
            "dataset": task.fingerprint,
            "recipe": self.training.describe_recipe(),
        }
        check_settings(folder / "settings.json", settings, is_writer=True)
        row = fine_tune_and_test(lambda: self.start(variant, task), task, self.tokenizer, self.training, folder, seed)
        schedule = variant.schedule
        return {**variant._asdict(), "schedule": schedule.key, "gamma": list(schedule.gamma), **row}

    def time(self, variants: list[Variant], task: Task) -> dict[str, Any]:
        """Time all schedules together; the weights do not matter."""
        models: dict[str, Any] = {
            variant.schedule.key: self.start(variant, task).eval()
            for variant in variants
            if variant.family != "random_weights"
        }
        inputs = sample_inputs(task.splits["test"], self.arguments.num_inputs)
        rounds = self.arguments.rounds
        with tqdm(total=rounds + WARMUP, desc=f"timing {task.name}", disable=self.training.disable_tqdm) as bar:
            found = measure_latency(models, inputs, variants[0].schedule.key, rounds, WARMUP, on_round=bar.update)
        return {name: asdict(latency) for name, latency in found.items()}


def describe_task(task: Task) -> dict[str, Any]:
    """Say what a score of the task is measured against."""
    lengths = [len(ids) for ids in task.splits["train"]["input_ids"]]
    return {
        "num_examples": {name: len(split) for name, split in task.splits.items()},
        "majority_score": majority_score(task, "test"),
        "metric_name": task.metric_name,
        "mean_length": float(np.mean(lengths)),
    }


def main():
    arguments, training = parse_arguments((StudyArguments, ClassformerTrainingArguments), __doc__)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    if arguments.seeds < 1:
        raise ValueError(f"--seeds must be at least 1, got {arguments.seeds}.")
    study = Study(arguments, training)
    config = load_from_encoder(study.checkpoint).config
    variants = list_variants(arguments, config.num_hidden_layers, config.max_position_embeddings)
    tasks = load_tasks(arguments.dataset_names, study.tokenizer, arguments.max_length, arguments.max_train_samples)
    seeds = range(training.seed, training.seed + arguments.seeds)
    jobs = [(task, variant, seed) for task in tasks for seed in seeds for variant in variants]
    rows = []
    for task, variant, seed in tqdm(jobs, desc="fine-tuning", unit="model", disable=training.disable_tqdm):
        row = study.run(variant, task, seed)
        rows.append(row)
        what = f"{variant.family} {variant.schedule.key} seed {seed}"
        print(f"{task.name} {what}: test {task.metric_name} {row['test_score']:.4f}", flush=True)
    has_times = arguments.rounds > 0
    write_record(
        arguments.results_file,
        model=Path(study.checkpoint).name,
        datasets={task.name: describe_task(task) for task in tasks},
        latency={task.name: study.time(variants, task) for task in tasks} if has_times else None,
        seeds=list(seeds),
        hardware=hardware_fingerprint(),
        rows=rows,
    )


if __name__ == "__main__":
    run_command(main)
