"""Compare the latency of saved model folders on this machine, one text at a time.

The folders may hold any sequence classifier: a stock RoBERTa, a Classformer, or another model with its code inside. The
first one is the reference: every other model's time is given as a ratio to it (0.5 = twice as fast), median and
quartiles over rounds in which all models take turns on every input.

    python scripts/benchmark_latency.py --models runs/full runs/search/best
    python scripts/benchmark_latency.py --models runs/full runs/search/best --dataset_name mrpc --output mrpc.json

With one thread (the default) the ratio is made of processor time, so other work on the machine hardly changes it. Wall
times of single texts stand beside it; those do depend on the machine's load, which the output records.
"""

import argparse
import json
import shlex
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm
from transformers import AutoModelForSequenceClassification, AutoTokenizer, HfArgumentParser, PreTrainedModel
from transformers.utils import logging

# Nothing of ours is imported up here: once it is, the Auto classes prefer our code to the code in a folder.

DEFAULT_LENGTHS = (16, 32, 64, 128, 256)
WARMUP = 5


@dataclass
class BenchmarkArguments:
    """What to compare, on which inputs, and how."""

    models: list[str] = field(
        metadata={"help": "Saved model folders (or Hub names); the first one is what the others are compared with."}
    )
    lengths: list[int] | None = field(
        default=None,
        metadata={
            "help": "Input lengths in tokens; each is measured by itself on random token ids. By default those of "
            f"{' '.join(map(str, DEFAULT_LENGTHS))} that every model can read."
        },
    )
    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Measure on this dataset's own token lengths instead: a GLUE task (mrpc), a Hub name, a folder or "
            "one file (parquet, csv, json). Its texts are tokenised by the first model's tokenizer."
        },
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    text_column: str | None = field(default=None, metadata={"help": "Column of the texts; inferred by default."})
    text_pair_column: str | None = field(default=None, metadata={"help": "Column of the second texts, if any."})
    label_column: str | None = field(default=None, metadata={"help": "Column of the labels; inferred by default."})
    max_length: int = field(
        default=128, metadata={"help": "Longer texts of the dataset are cut to so many tokens (%(default)s)."}
    )
    num_inputs: int = field(
        default=16, metadata={"help": "Texts of the dataset, at evenly spaced quantiles of its lengths (%(default)s)."}
    )
    rounds: int = field(default=20, metadata={"help": "Timed rounds; more rounds, narrower quartiles (%(default)s)."})
    num_threads: int = field(
        default=1, metadata={"help": "CPU threads (%(default)s); above 1 the ratio is made of wall time."}
    )
    device: str = field(default="cpu", metadata={"help": "cpu (the default), cuda, cuda:1, mps ..."})
    dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32", metadata={"help": "Number format of all models (%(default)s)."}
    )
    output: str | None = field(default=None, metadata={"help": "JSON file for numbers, hardware and command."})


def load_models(names: list[str], dtype: str) -> dict[str, PreTrainedModel]:
    """Load the models on the CPU, under short names where these are unique."""
    if len(set(names)) < len(names):
        raise ValueError(f"`--models` must name every folder once, got {' '.join(names)}.")
    short_names = [Path(name).name for name in names]
    labels = short_names if len(set(short_names)) == len(names) else names
    models = {}
    for name, label in zip(names, labels, strict=True):
        if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
            raise ValueError(f"`--models` must be saved model folders, but {name} has no config.json.")
        try:
            models[label] = AutoModelForSequenceClassification.from_pretrained(
                name, trust_remote_code=True, dtype=getattr(torch, dtype)
            )
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"`--models` must be saved model folders or Hub names, got {name}: {reason}") from error
    return models


def find_obstacle(model: PreTrainedModel, single: dict[str, torch.Tensor]) -> str | None:
    """Try an input on the CPU (a position out of range ends the process on a GPU); return why it fails, if it does."""
    try:
        with torch.inference_mode():
            model.eval()(**single)
    except (IndexError, RuntimeError, TypeError) as error:
        return str(error).strip().splitlines()[0]
    return None


def make_random_inputs(models: dict[str, PreTrainedModel], lengths: list[int] | None) -> list[list[dict]]:
    """Return a group of one batch-1 input per length, without those default lengths that a model cannot read."""
    if lengths is not None and min(lengths) < 1:
        raise ValueError(f"`--lengths` counts tokens, each must be >= 1, got {lengths}.")
    vocab_size = min(model.config.vocab_size for model in models.values())
    generator = torch.Generator().manual_seed(0)
    groups = []
    for length in lengths or DEFAULT_LENGTHS:
        # padding and its like have low ids
        input_ids = torch.randint(vocab_size // 2, vocab_size, (1, length), generator=generator)
        single = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
        obstacles = {name: find_obstacle(model, single) for name, model in models.items()}
        failed = [f"{name} cannot read {length} tokens: {obstacle}" for name, obstacle in obstacles.items() if obstacle]
        if not failed:
            groups.append([single])
        elif lengths is not None or not groups:
            raise ValueError(f"`--lengths` must fit every model, but {failed[0]}.")
    return groups


def make_dataset_inputs(models: dict[str, PreTrainedModel], arguments: BenchmarkArguments) -> list[dict]:
    """Return batch-1 inputs that stand for the lengths of a dataset's validation split."""
    from classformer_hf.cost import sample_inputs
    from classformer_hf.data import TaskArguments, load_task, tokenize

    folder = Path(arguments.models[0])
    if folder.is_dir() and not (folder / "tokenizer_config.json").is_file():
        raise ValueError(f"`--dataset_name` needs a tokenizer, but {folder} has no tokenizer_config.json.")
    if len({model.config.vocab_size for model in models.values()}) > 1:
        raise ValueError("`--dataset_name` needs models with one vocabulary, these differ; use `--lengths` for them.")
    columns = ("dataset_name", "dataset_config_name", "text_column", "text_pair_column", "label_column")
    task = load_task(TaskArguments(**{name: getattr(arguments, name) for name in columns})).without_test()
    tokenizer = AutoTokenizer.from_pretrained(arguments.models[0], trust_remote_code=True)
    inputs = sample_inputs(tokenize(task, tokenizer, arguments.max_length).splits["validation"], arguments.num_inputs)
    for name, model in models.items():
        obstacle = find_obstacle(model, inputs[-1])
        if obstacle:
            raise ValueError(
                f"{name} cannot read what the first model's tokenizer makes of {task.name}: {obstacle}; compare models "
                f"that share a tokenizer, or lower `--max_length` from {arguments.max_length}."
            )
    return inputs


def measure(models: dict[str, PreTrainedModel], groups: list[list[dict]], arguments: BenchmarkArguments) -> list[dict]:
    """Return one record per group of inputs and model."""
    from classformer_hf.cost import count_flops, measure_latency

    for model in models.values():
        model.to(arguments.device)
    source = "random ids" if arguments.dataset_name is None else Path(arguments.dataset_name).name
    records = []
    with tqdm(total=len(groups) * (WARMUP + arguments.rounds), unit="round") as progress:
        for inputs in groups:
            lengths = [single["input_ids"].shape[1] for single in inputs]
            mean_tokens = sum(lengths) / len(lengths)
            progress.set_description(f"{source}, {mean_tokens:.0f} tokens")
            latencies = measure_latency(
                models, inputs, next(iter(models)), arguments.rounds, WARMUP, on_round=progress.update
            )
            for name, latency in latencies.items():
                flops = None
                if models[name].config.model_type == "classformer":
                    flops = sum(count_flops(models[name].config, length) for length in lengths) / len(lengths)
                record = {"input": source, "mean_tokens": mean_tokens, "model": name, "mean_flops": flops}
                records.append(record | asdict(latency))
    return records


def print_table(records: list[dict]) -> None:
    first = records[0]
    width = max(len(record["model"]) for record in records)
    print(f"{first['input']}: time by {first['clock']} relative to {first['model']}, {first['rounds']} rounds")
    print(f"{'tokens':>6}  {'model':{width}}  {'ratio [quartiles]':20}  wall p50 ms  wall p90 ms   GFLOPs")
    for record in records:
        ratio = f"{record['ratio']:.3f} [{record['ratio_low']:.3f} {record['ratio_high']:.3f}]"
        gflops = "-" if record["mean_flops"] is None else f"{record['mean_flops'] / 1e9:.3f}"
        print(
            f"{record['mean_tokens']:6.0f}  {record['model']:{width}}  {ratio:20}  {record['wall_p50_ms']:11.2f}"
            f"  {record['wall_p90_ms']:11.2f}  {gflops:>7}"
        )


def check_arguments(arguments: BenchmarkArguments) -> None:
    if arguments.lengths is not None and arguments.dataset_name is not None:
        raise ValueError("`--lengths` and `--dataset_name` are two ways to choose inputs; give one of them.")
    for name in ("num_threads", "rounds", "num_inputs"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"`--{name}` must be >= 1, got {getattr(arguments, name)}.")
    try:
        torch.zeros(1, device=arguments.device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"`--device` must be one that torch can use here, got {arguments.device}: {reason}") from error


def main() -> None:
    parser = HfArgumentParser(
        BenchmarkArguments, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    (arguments,) = parser.parse_args_into_dataclasses()
    check_arguments(arguments)
    torch.set_num_threads(arguments.num_threads)
    logging.disable_progress_bar()

    models = load_models(arguments.models, arguments.dtype)
    if arguments.dataset_name is None:
        groups = make_random_inputs(models, arguments.lengths)
    else:
        groups = [make_dataset_inputs(models, arguments)]

    from classformer_hf.cost import hardware_fingerprint

    hardware = hardware_fingerprint(arguments.device, getattr(torch, arguments.dtype))
    records = measure(models, groups, arguments)
    print_table(records)
    if arguments.output is not None:
        command = shlex.join(["python", "scripts/benchmark_latency.py", *sys.argv[1:]])
        content = {"command": command, "hardware": hardware, "measurements": records}
        Path(arguments.output).parent.mkdir(parents=True, exist_ok=True)
        Path(arguments.output).write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
