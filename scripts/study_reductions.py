r"""Fine-tune with one reduction at each layer in turn, and see where it hurts (thesis figure 5.17).

    python scripts/study_reductions.py --model_name_or_path FacebookAI/roberta-base --dataset_names mrpc \
        --factors 2 4 8 --num_train_epochs 3 --output_dir runs/reductions --results_file results/reductions.json \
        --figure docs/images/reductions.png

Every model starts from the same checkpoint without further pretraining. Scores are of the test split, which chooses
nothing. The same command resumes.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from classformer_hf import load_from_encoder
from classformer_hf.checkpoints import checkpoint_fingerprint
from classformer_hf.command import check_settings, parse_arguments, run_command, write_record
from classformer_hf.cost import hardware_fingerprint
from classformer_hf.data import Task, load_tasks, load_tokenizer
from classformer_hf.metrics import majority_score
from classformer_hf.training import ClassformerTrainingArguments, fine_tune_and_test


@dataclass
class ReductionArguments:
    model_name_or_path: str = field(metadata={"help": "Folder or Hub name of the checkpoint to start from."})
    dataset_names: list[str] = field(metadata={"help": "Tasks: GLUE names, folders or files."})
    factors: list[int] = field(default_factory=lambda: [2, 4, 8], metadata={"help": "Reductions to try."})
    max_length: int = field(default=128, metadata={"help": "Longer texts are cut to so many tokens."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on at most so many examples."})
    num_seeds: int = field(default=1, metadata={"help": "Fine-tunings of each, with --seed, --seed + 1, ..."})
    results_file: str | None = field(default=None, metadata={"help": "JSON file for the scores."})
    figure: str | None = field(default=None, metadata={"help": "PNG file for the picture."})


def list_reductions(num_layers: int, factors: list[int]) -> list[tuple[int | None, int]]:
    """Give layer and factor of every reduction; the first is none at all."""
    if min(factors) < 2:
        raise ValueError(f"--factors must be at least 2, got {factors}.")
    return [(None, 1), *((layer, factor) for factor in factors for layer in range(num_layers))]


def draw(rows: list[dict[str, Any]], tasks: list[Task], figure: Path):
    """Draw the score by the layer that reduces, a panel per task and a line per factor."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, panels = plt.subplots(1, len(tasks), figsize=(5.2 * len(tasks), 4.4), squeeze=False)
    for panel, task in zip(panels.flat, tasks, strict=True):
        own = [row for row in rows if row["dataset"] == task.name]
        full = [row["test_score"] for row in own if row["layer"] is None]
        panel.axhline(sum(full) / len(full), color="black", label="no reduction")
        panel.axhline(majority_score(task, "test"), color="0.6", linestyle=":", label="majority class")
        for factor in sorted({row["factor"] for row in own if row["layer"] is not None}):
            points: dict[int, list[dict]] = {}
            for row in own:
                if row["factor"] == factor:
                    points.setdefault(row["layer"], []).append(row)
            panel.errorbar(
                [layer + 1 for layer in points],
                [sum(row["test_score"] for row in group) / len(group) for group in points.values()],
                yerr=[max(row["test_standard_error"] for row in group) for group in points.values()],
                marker="o",
                capsize=2,
                label=f"{factor}x",
            )
        panel.set(title=task.name.upper(), xlabel="layer that reduces", ylabel=f"test {task.metric_name}")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    fig.tight_layout()
    figure.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(figure, dpi=110)
    print(f"wrote {figure}")


def main():
    arguments, training = parse_arguments((ReductionArguments, ClassformerTrainingArguments), __doc__)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    if arguments.num_seeds < 1:
        raise ValueError(f"--num_seeds must be at least 1, got {arguments.num_seeds}.")
    checkpoint, output = arguments.model_name_or_path, Path(str(training.output_dir))
    tokenizer = load_tokenizer(checkpoint)
    num_layers = load_from_encoder(checkpoint).config.num_hidden_layers
    reductions = list_reductions(num_layers, arguments.factors)
    tasks = load_tasks(arguments.dataset_names, tokenizer, arguments.max_length, arguments.max_train_samples)
    fingerprint = checkpoint_fingerprint(checkpoint)
    seeds = range(training.seed, training.seed + arguments.num_seeds)
    jobs = [(task, layer, factor, seed) for task in tasks for seed in seeds for layer, factor in reductions]
    rows = []
    for task, layer, factor, seed in tqdm(jobs, desc="fine-tuning", unit="model", disable=training.disable_tqdm):
        gamma = [factor if index == layer else 1 for index in range(num_layers)]

        def start(task: Task = task, gamma: list[int] = gamma) -> Any:
            return load_from_encoder(checkpoint, gamma=gamma, **task.head_config)

        folder = output / task.name / "-".join(map(str, gamma)) / f"seed-{seed}"
        settings = {"checkpoint": fingerprint, "dataset": task.fingerprint, "recipe": training.describe_recipe()}
        check_settings(folder / "settings.json", settings, is_writer=True)
        row = fine_tune_and_test(start, task, tokenizer, training, folder, seed)
        rows.append({"layer": layer, "factor": factor, **row})
        where = "no reduction" if layer is None else f"{factor}x at layer {layer + 1}"
        print(f"{task.name} {where} seed {seed}: test {task.metric_name} {row['test_score']:.4f}", flush=True)
    write_record(
        arguments.results_file,
        datasets={
            task.name: {
                "num_examples": {name: len(split) for name, split in task.splits.items()},
                "majority_score": majority_score(task, "test"),
            }
            for task in tasks
        },
        seeds=list(seeds),
        hardware=hardware_fingerprint(),
        rows=rows,
    )
    if arguments.figure is not None:
        draw(rows, tasks, Path(arguments.figure))


if __name__ == "__main__":
    run_command(main)
