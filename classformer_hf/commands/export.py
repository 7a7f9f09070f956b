"""Export a saved text classifier to ONNX Runtime, OpenVINO or torch.export, and say what changes by it.

    redundancy-hf export runs/mrpc/best --runtime onnx
    redundancy-hf export runs/mrpc/best --runtime onnx --int8
    redundancy-hf export your-name/model --runtime openvino --dataset_name mrpc --output_dir served/mrpc

The result lies in a folder named like the runtime, inside the model's. Labels and score are compared on the validation
split that the model's `task.json` or the flags name; without either, logits on random texts. To use it:

    from transformers import pipeline
    from redundancy_hf.runtimes import ExportedClassifier

    model = ExportedClassifier.from_pretrained("runs/mrpc/best/onnx", num_threads=1)
    classify = pipeline("text-classification", model=model, tokenizer="runs/mrpc/best/onnx")
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from redundancy_hf.command import parse_arguments
from redundancy_hf.data import load_task, tokenize
from redundancy_hf.evaluation import load_processor, order_outputs, resolve_folder
from redundancy_hf.readings import choose_arguments, open_model
from redundancy_hf.record import make_flags
from redundancy_hf.runtimes import RUNTIMES, ExportedClassifier, check_runtime, name_variant
from redundancy_hf.task import Task, TaskArguments

from ..export import load_for_export, write_export
from ..parity import TOLERANCE, compare_export, largest_difference, write_report


@dataclass
class ExportArguments:
    folder: str = field(metadata={"help": "Saved classifier or Hub name; also as first argument, without the flag."})
    runtime: str = field(default="onnx", metadata={"help": "Where it shall run.", "choices": list(RUNTIMES)})
    int8: bool = field(default=False, metadata={"help": "Quantise: ONNX Runtime's dynamic quantisation to 8 bits."})
    output_dir: str | None = field(
        default=None,
        metadata={"help": "Folder for the result; by default one named like the runtime inside the model's."},
    )
    max_compared: int = field(
        default=1000, metadata={"help": "Rows of the validation split that are compared, at most; drawn at random."}
    )


def read_task(name: str, source: Path, tokenizer: Any, flags: Any) -> Task | None:
    """Load what model and export are compared on, tokenised; `None`, and a note, where nothing says which or where.

    Raises:
        ValueError: The flags name data that cannot be read.
    """
    model, typed = open_model(name, source), {key: value for key, value in vars(flags).items() if value is not None}
    if model.record is None and "dataset_name" not in typed:
        if typed:
            raise ValueError(f"{name} has no task.json, so that --{next(iter(typed))} needs --dataset_name beside it.")
        print("note: neither a task.json nor --dataset_name says what the model is for: random texts are compared")
        return None
    try:
        arguments = choose_arguments(TaskArguments, [model], typed)
        return tokenize(load_task(arguments).without_test(), tokenizer, arguments.max_length)
    except (ValueError, OSError) as error:
        if typed:
            raise
        print(f"note: {error} Random texts are compared instead.")
        return None


def main():
    arguments, flags = parse_arguments((ExportArguments, make_flags(TaskArguments)), __doc__, positional="folder")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if arguments.output_dir is None and not Path(arguments.folder).is_dir():
        raise ValueError(
            f"there is no folder {arguments.folder}; a model of the Hub needs --output_dir, a folder for the result."
        )
    if arguments.max_compared < 1:
        raise ValueError(f"--max_compared must be at least 1, got {arguments.max_compared}.")
    check_runtime(arguments.runtime, arguments.int8)
    source = resolve_folder(arguments.folder)
    model, tokenizer = load_for_export(source), load_processor(source)
    task = read_task(arguments.folder, source, tokenizer, flags)
    outputs = None if task is None else order_outputs(model.config, task, arguments.folder)
    output = Path(arguments.output_dir or source / name_variant(arguments.runtime, arguments.int8))
    print(f"exporting {arguments.folder} to {arguments.runtime}, which takes a minute or two per graph ...")
    write_export(source, model, output, arguments.runtime, arguments.int8)
    print(f"comparing {output} with it ...")
    exported = ExportedClassifier.from_pretrained(output, num_threads=torch.get_num_threads())
    report = compare_export(model, exported, tokenizer, task, arguments.max_compared, outputs)
    write_report(report, output)
    print(f"{output}: {report.verdict}")
    print(f"  beside other texts instead of alone: {report.batch_verdict}")
    if arguments.int8:
        print("  so it takes one text at a time, unless it is opened with batch_int8=True")
    difference = largest_difference(model, exported)
    if not arguments.int8 and difference > TOLERANCE:
        raise ValueError(
            f"{output} differs from the model by {difference:.1e}, more than {TOLERANCE:g}; do not use it."
        )
