r"""Draw how long the training texts of several tasks are, in tokens (thesis figure 5.14).

    python experiments/lengths.py --model_name_or_path FacebookAI/roberta-base --dataset_names mrpc rte sst2 \
        --figure docs/images/lengths.png --results_file results/lengths.json

Short texts leave a schedule little to drop. Pairs count together, with their special tokens.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from frame import open_panels, save_figure

from redundancy_hf.command import parse_arguments, run_command, write_record
from redundancy_hf.data import load_tasks
from redundancy_hf.limits import load_tokenizer

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
NUM_BINS = 40


@dataclass
class DrawArguments:
    model_name_or_path: str = field(metadata={"help": "Folder or Hub name of the checkpoint whose tokenizer counts."})
    dataset_names: list[str] = field(
        metadata={"help": "Tasks: GLUE names, folders, files or standard_library (embedded)."}
    )
    figure: str = field(metadata={"help": "PNG file."})
    results_file: str | None = field(default=None, metadata={"help": "JSON file for mean and quantiles."})
    max_length: int = field(default=512, metadata={"help": "Longer texts are cut to so many tokens."})


def describe_lengths(lengths: np.ndarray, max_length: int) -> dict[str, Any]:
    return {
        "num_examples": len(lengths),
        "mean": float(lengths.mean()),
        "quantiles": {str(share): float(np.quantile(lengths, share)) for share in QUANTILES},
        "share_cut": float((lengths >= max_length).mean()),
    }


def draw(lengths: dict[str, np.ndarray], path: str):
    """Draw a histogram per task; each has a scale of its own."""
    figure, panels = open_panels(len(lengths), 4, (3.6, 2.9))
    for panel, (name, values) in zip(panels, lengths.items(), strict=True):
        # bins of whole tokens
        width = max(1, int(np.ceil(np.quantile(values, 0.995) / NUM_BINS)))
        panel.hist(values, bins=np.arange(0.5, NUM_BINS * width + 1, width))
        panel.axvline(np.median(values), color="black", linestyle=":")
        panel.set(title=f"{name.upper()} (n = {len(values):,})", xlabel="tokens", yticks=[])
    save_figure(figure, path)


def main():
    (arguments,) = parse_arguments((DrawArguments,), __doc__)
    tokenizer = load_tokenizer(arguments.model_name_or_path)
    tasks = load_tasks(arguments.dataset_names, tokenizer, arguments.max_length, None)
    lengths = {task.name: np.array([len(ids) for ids in task.splits["train"]["input_ids"]]) for task in tasks}
    described = {name: describe_lengths(values, arguments.max_length) for name, values in lengths.items()}
    for name, row in described.items():
        print(f"{name}: {row['num_examples']:,} texts, mean {row['mean']:.1f}, median {row['quantiles']['0.5']:.0f}")
    write_record(arguments.results_file, max_length=arguments.max_length, datasets=described)
    draw(lengths, arguments.figure)


if __name__ == "__main__":
    run_command(main)
