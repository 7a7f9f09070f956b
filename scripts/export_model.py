"""Export a saved text classifier to ONNX Runtime, OpenVINO or torch.export, and check it against the original.

    python scripts/export_model.py runs/mrpc/best --runtime onnx
    python scripts/export_model.py runs/mrpc/best --runtime onnx --int8
    python scripts/export_model.py runs/mrpc/best --runtime openvino --output served/mrpc

The result lies in a folder named like the runtime, inside the model's. To use it:

    from transformers import pipeline
    from classformer_hf.serving import ExportedClassifier

    model = ExportedClassifier.from_pretrained("runs/mrpc/best/onnx", num_threads=1)
    classify = pipeline("text-classification", model=model, tokenizer="runs/mrpc/best/onnx")
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from classformer_hf.command import parse_arguments, run_command
from classformer_hf.evaluation import load_classifier, resolve_folder
from classformer_hf.serving import RUNTIMES, TOLERANCE, ExportedClassifier, check_runtime, export, largest_difference


@dataclass
class ExportArguments:
    folder: str = field(metadata={"help": "Saved classifier or Hub name; also as first argument, without the flag."})
    runtime: str = field(default="onnx", metadata={"help": "Where it shall run.", "choices": list(RUNTIMES)})
    int8: bool = field(default=False, metadata={"help": "Quantise: ONNX Runtime's dynamic quantisation to 8 bits."})
    output: str | None = field(
        default=None,
        metadata={"help": "Folder for the result; by default one named like the runtime inside the model's."},
    )


def main():
    (arguments,) = parse_arguments((ExportArguments,), __doc__, positional="folder")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if arguments.output is None and not Path(arguments.folder).is_dir():
        raise ValueError(
            f"there is no folder {arguments.folder}; a model of the Hub needs --output, a folder for the result."
        )
    check_runtime(arguments.runtime, arguments.int8)
    print(f"exporting {arguments.folder} to {arguments.runtime}, which takes a minute or two per graph ...")
    output = export(arguments.folder, arguments.runtime, arguments.output, arguments.int8)
    model = load_classifier(resolve_folder(arguments.folder))
    torch.set_num_threads(1)
    difference = largest_difference(model, ExportedClassifier.from_pretrained(output, num_threads=1))
    print(f"{output}: largest difference of a logit {difference:.1e}")
    if not arguments.int8 and difference > TOLERANCE:
        raise ValueError(
            f"{output} differs from the model by {difference:.1e}, more than {TOLERANCE:g}; do not use it."
        )


if __name__ == "__main__":
    run_command(main)
