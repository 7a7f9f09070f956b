r"""Count how long the training texts of several tasks are, in tokens, and draw it (thesis figure 5.14).

    python experiments/lengths.py --model_name_or_path FacebookAI/roberta-base --dataset_names mrpc rte sst2 \
        --figure docs/images/lengths.png --results_file results/lengths.json

Short texts leave a schedule little to drop. Pairs count together, with their special tokens.
"""

from typing import Any

import numpy as np
from frame import command_of, format_table, name_command, open_panels, percent, save_figure

from redundancy_hf.command import write_record
from redundancy_hf.data import load_tasks
from redundancy_hf.limits import load_tokenizer

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
NUM_BINS = 40


def run(
    model_name_or_path: str,
    dataset_names: list[str],
    max_length: int = 512,
    figure: str | None = None,
    results_file: str | None = None,
) -> dict[str, Any] | None:
    """Count tokens.

    Args:
        model_name_or_path: Folder or Hub name of the checkpoint whose tokenizer counts.
        dataset_names: Tasks: GLUE names, folders, files or standard_library (embedded).
        max_length: Longer texts are cut to so many tokens.
        figure: PNG file with a histogram per task.
        results_file: JSON file for mean and quantiles.
    """
    described, lengths = {}, {}
    for task in load_tasks(dataset_names, load_tokenizer(model_name_or_path), max_length, None):
        counts = lengths[task.name] = np.array([len(ids) for ids in task.splits["train"]["input_ids"]])
        quantiles = dict(zip(map(str, QUANTILES), np.quantile(counts, QUANTILES).tolist(), strict=True))
        row = {"num_examples": len(counts), "mean": float(counts.mean()), "quantiles": quantiles}
        described[task.name] = row | {"share_cut": float((counts >= max_length).mean())}
    if figure is not None:
        draw_lengths(lengths, figure)
    return write_record(results_file, max_length=max_length, datasets=described)


def draw_lengths(lengths: dict[str, np.ndarray], path: str):
    """Draw a histogram per task; each has a scale of its own."""
    picture, panels = open_panels(len(lengths), 4, (3.6, 2.9))
    for panel, (name, values) in zip(panels, lengths.items(), strict=True):
        # bins of whole tokens
        width = max(1, int(np.ceil(np.quantile(values, 0.995) / NUM_BINS)))
        panel.hist(values, bins=np.arange(0.5, NUM_BINS * width + 1, width))
        panel.axvline(np.median(values), color="black", linestyle=":")
        panel.set(title=f"{name.upper()} (n = {len(values):,})", xlabel="tokens", yticks=[])
    save_figure(picture, path)


def table(record: dict) -> str:
    """How long the training texts of every task are."""
    rows = []
    for name, row in record["datasets"].items():
        quantiles = [f"{value:.0f}" for value in row["quantiles"].values()]
        mean, cut = f"{row['mean']:.1f}", percent(row["share_cut"])
        rows.append([name.upper(), f"{row['num_examples']:,}", mean, *quantiles, cut])
    header = ["task", "training texts", "mean tokens", *(f"{100 * float(share):g} %" for share in row["quantiles"])]
    return format_table([*header, f"at least {record['max_length']}, %"], rows, name_command(record))


main = command_of(run, __doc__, show=table)
