r"""Measure what it costs that a graph in int8 takes one text at a time, and what answers owe to it.

    python experiments/int8.py --folder runs/sst2/full --dataset_name sst2 --output_dir runs/int8 \
        --results_file results/int8_batches.json

The classifier is exported to ONNX Runtime in float32 and in int8, or what lies in OUTPUT_DIR is used again. Texts of
the test split, drawn at random, are classified alone and in batches, in any order and sorted by length; all ways take
turns, in processor time of the whole process, and float32 with one text at a time is the reference. Answers in int8 are
compared on the validation split.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from batches import AllBatches, draw_texts, make_batches
from frame import command_of, describe_hardware, format_table, name_command, speedup
from tuning import take_turns

from classformer_hf.export import export_once, load_for_export
from classformer_hf.parity import compare_export
from redundancy_hf.command import write_record
from redundancy_hf.data import load_task, tokenize
from redundancy_hf.evaluation import order_outputs
from redundancy_hf.limits import load_tokenizer
from redundancy_hf.runtimes import check_runtime, name_variant
from redundancy_hf.task import TaskArguments
from redundancy_hf.timing import hardware_fingerprint


def run(
    folder: str,
    output_dir: str,
    task: TaskArguments,
    batch_sizes: Sequence[int] = (8, 32),
    num_texts: int = 256,
    max_compared: int = 1000,
    rounds: int = 10,
    results_file: str | None = None,
) -> dict[str, Any]:
    """Export, compare answers and time all ways.

    Args:
        folder: Saved classifier.
        output_dir: Folder for the exported graphs.
        task: The data.
        batch_sizes: Texts of a batch, beside 1.
        num_texts: Texts that are timed.
        max_compared: Validation rows that answers are compared on, at most.
        rounds: Rounds of interleaved timing.
        results_file: JSON file for the table.
    """
    check_runtime("onnx", int8=True)
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(folder)
    data = tokenize(load_task(task), tokenizer, task.max_length)
    texts = draw_texts(data.splits["test"], num_texts)
    ways = [(1, "unsorted"), *((size, order) for size in batch_sizes for order in ("unsorted", "sorted"))]
    batches = {(size, order): make_batches(texts, order, size, tokenizer.pad_token_id or 0) for size, order in ways}
    graphs = {}
    for int8 in (False, True):
        name = name_variant("onnx", int8)
        graphs[name] = export_once(folder, "onnx", int8, Path(output_dir) / name)
    model = load_for_export(Path(folder))
    outputs = order_outputs(model.config, data, folder)
    report = compare_export(model, graphs[name], tokenizer, data, max_compared, outputs)
    for graph in graphs.values():
        graph.one_at_a_time = False
    jobs = {f"{name} {size} {order}": (name, size, order) for name in graphs for size, order in ways}
    runs = {job: AllBatches(graphs[name], batches[size, order]) for job, (name, size, order) in jobs.items()}
    rows = []
    for job, latency in take_turns(runs, [{}], "onnx 1 unsorted", rounds, 1, "process_cpu").items():
        rows.append(dict(zip(("variant", "batch_size", "order"), jobs[job], strict=True)) | latency)
    return write_record(
        results_file,
        dataset=data.name,
        num_texts=len(texts),
        mean_tokens=sum(map(len, texts)) / len(texts),
        report=report.content,
        hardware=hardware_fingerprint(),
        rows=rows,
    )


def table(record: dict) -> str:
    """Texts per second against float32 and one text at a time, by graph, batch size and order."""
    rows = {(row["variant"], row["batch_size"], row["order"]): row for row in record["rows"]}
    ways = list(dict.fromkeys(key[1:] for key in rows))
    variants = dict.fromkeys(key[0] for key in rows)
    lines = [[variant, *(speedup(rows[variant, *way]) for way in ways)] for variant in variants]
    header = ["graph", *("alone" if size == 1 else f"{size}, {order}" for size, order in ways)]
    report = record["report"]
    note = (
        f"{record['dataset'].upper()}: texts per second relative to float32 one text at a time, in the same rounds, "
        f"median and quartiles of {record['rows'][0]['rounds']} rounds of processor time over {record['num_texts']} "
        f"texts of {record['mean_tokens']:.0f} tokens in the mean. In int8 against the weights: {report['verdict']}. "
        f"Beside other texts instead of alone: {report['batch_verdict']}. {describe_hardware(record)}. "
        f"{name_command(record)}"
    )
    return format_table(header, lines, note)


main = command_of(run, __doc__, show=table)
