"""Export a saved text classifier to ONNX Runtime, OpenVINO or torch.export, and say how far its answers differ.

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

from pathlib import Path
from typing import Any, Literal

import torch

from redundancy_hf.command import parse_call
from redundancy_hf.data import load_task, tokenize
from redundancy_hf.evaluation import load_processor, order_outputs, resolve_folder
from redundancy_hf.readings import choose_arguments, open_model
from redundancy_hf.runtimes import ExportedClassifier, check_runtime, name_variant
from redundancy_hf.task import Task, TaskArguments, TaskFlags

from ..export import export, load_for_export
from ..parity import TOLERANCE, ExportReport, compare_export, largest_difference, write_report


def export_classifier(
    folder: str,
    runtime: Literal["torch", "onnx", "openvino"] = "onnx",
    int8: bool = False,
    output_dir: str | None = None,
    max_compared: int = 1000,
    task: TaskFlags = TaskFlags(),
) -> ExportReport:
    """Export a saved text classifier, and compare the result with it.

    Args:
        folder: Saved classifier or Hub name; also as first argument, without the flag.
        runtime: Where it shall run.
        int8: Quantise: ONNX Runtime's dynamic quantisation to 8 bits.
        output_dir: Folder for the result; by default one named like the runtime inside the model's.
        max_compared: Rows of the validation split that are compared, at most; drawn at random.
        task: Data to compare model and export on, if the model's `task.json` does not name them.

    Returns:
        What changes by the export; it is kept in the folder, too.

    Raises:
        ValueError: The runtime is not installed, the model does not load, the data cannot be read, or the export gives
            other outputs than the model.
    """
    if output_dir is None and not Path(folder).is_dir():
        raise ValueError(
            f"there is no folder {folder}; a model of the Hub needs --output_dir, a folder for the result."
        )
    if max_compared < 1:
        raise ValueError(f"--max_compared must be at least 1, got {max_compared}.")
    check_runtime(runtime, int8)
    source = resolve_folder(folder)
    model, tokenizer = load_for_export(source), load_processor(source)
    data = read_task(folder, source, tokenizer, task)
    outputs = None if data is None else order_outputs(model.config, data, folder)
    output = Path(output_dir or source / name_variant(runtime, int8))
    print(f"exporting {folder} to {runtime}, which takes a minute or two per graph ...")
    export(source, runtime, output, int8, model)
    print(f"comparing {output} with it ...")
    exported = ExportedClassifier.from_pretrained(output, num_threads=torch.get_num_threads())
    report = compare_export(model, exported, tokenizer, data, max_compared, outputs)
    write_report(report, output)
    print(f"{output}: {report.verdict}")
    print(f"  beside other texts instead of alone: {report.batch_verdict}")
    if int8:
        print("  so it takes one text at a time, unless it is opened with batch_int8=True")
    difference = largest_difference(model, exported)
    if not int8 and difference > TOLERANCE:
        raise ValueError(
            f"{output} differs from the model by {difference:.1e}, more than {TOLERANCE:g}; do not use it."
        )
    return report


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
    export_classifier(**parse_call(export_classifier, __doc__, positional="folder"))
