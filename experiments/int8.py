r"""Measure what it costs that a graph in int8 takes one text at a time, and what answers owe to it.

    python experiments/int8.py runs/sst2/full --dataset_name sst2 --output_dir runs/int8 \
        --results_file results/int8_batches.json

The classifier is exported to ONNX Runtime in float32 and in int8, or what lies in OUTPUT_DIR is used again. Texts of
the test split, drawn at random, are classified alone and in batches, in any order and sorted by length; all ways take
turns, in processor time of the whole process, and float32 with one text at a time is the reference. Answers in int8 are
compared on the validation split.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from classformer_hf.export import export_once, load_for_export
from classformer_hf.parity import compare_export
from classformer_hf.throughput import AllBatches, make_batches
from redundancy_hf.command import parse_arguments, run_command, write_record
from redundancy_hf.data import load_task, tokenize
from redundancy_hf.evaluation import order_outputs
from redundancy_hf.limits import load_tokenizer
from redundancy_hf.runtimes import check_runtime, name_variant
from redundancy_hf.task import TaskArguments
from redundancy_hf.timing import hardware_fingerprint, measure_latency

REFERENCE = ("onnx", 1, "unsorted")


@dataclass
class Int8Arguments:
    folder: str = field(metadata={"help": "Saved classifier; also as first argument, without the flag."})
    output_dir: str = field(metadata={"help": "Folder for the exported graphs."})
    batch_sizes: list[int] = field(default_factory=lambda: [8, 32], metadata={"help": "Texts of a batch, beside 1."})
    num_texts: int = field(default=256, metadata={"help": "Texts that are timed."})
    max_compared: int = field(default=1000, metadata={"help": "Validation rows that answers are compared on, at most."})
    rounds: int = field(default=10, metadata={"help": "Rounds of interleaved timing."})
    results_file: str | None = field(default=None, metadata={"help": "JSON file for the table."})


def main():
    arguments, task_arguments = parse_arguments((Int8Arguments, TaskArguments), __doc__, positional="folder")
    check_runtime("onnx", int8=True)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(arguments.folder)
    task = tokenize(load_task(task_arguments), tokenizer, task_arguments.max_length)
    split = task.splits["test"]
    drawn = np.random.default_rng(0).permutation(len(split))[: arguments.num_texts]
    texts = [split[int(row)]["input_ids"] for row in drawn]
    runs, ways = {}, [(size, order) for size in arguments.batch_sizes for order in ("unsorted", "sorted")]
    pad_token_id = tokenizer.pad_token_id or 0
    for int8 in (False, True):
        name = name_variant("onnx", int8)
        exported = export_once(arguments.folder, "onnx", int8, Path(arguments.output_dir) / name)
        if int8:
            model = load_for_export(Path(arguments.folder))
            outputs = order_outputs(model.config, task, arguments.folder)
            report = compare_export(model, exported, tokenizer, task, arguments.max_compared, outputs)
            print(f"{name}: {report.verdict}; {report.batch_verdict}")
        exported.one_at_a_time = False
        for size, order in [REFERENCE[1:], *ways]:
            runs[name, size, order] = AllBatches(exported, make_batches(texts, order, size, pad_token_id))
    names = {" ".join(map(str, key)): key for key in runs}
    with tqdm(total=arguments.rounds + 1, desc="timing", unit="round") as bar:
        found = measure_latency(
            {name: runs[key] for name, key in names.items()},
            [{}],
            " ".join(map(str, REFERENCE)),
            arguments.rounds,
            1,
            bar.update,
            clock="process_cpu",
        )
    rows = []
    for name, (variant, size, order) in names.items():
        rows.append({"variant": variant, "batch_size": size, "order": order, **asdict(found[name])})
        print(f"{name:24} {1 / found[name].ratio:.2f}x")
    write_record(
        arguments.results_file,
        dataset=task.name,
        num_texts=len(texts),
        mean_tokens=sum(map(len, texts)) / len(texts),
        report=report.content,
        hardware=hardware_fingerprint(),
        rows=rows,
    )


if __name__ == "__main__":
    run_command(main)
