"""Compare the latency of saved model folders on this machine, one text at a time or in batches.

The folders may hold any sequence classifier: a stock RoBERTa, a Classformer, or another model with its code inside. The
first one is the reference: every other model's time is given as a ratio to it (0.5 = twice as fast), median and
quartiles over rounds in which all models take turns on every input.

    python scripts/benchmark_latency.py runs/full runs/search/best --output lengths.json --plot lengths.png
    python scripts/benchmark_latency.py runs/full runs/search/best --dataset_name mrpc --output mrpc.json
    python scripts/benchmark_latency.py runs/full --peers bert distilbert funnel-small --lengths 128 512

Peers are architectures of transformers with random weights and the sizes of their configurations: what they cost does
not depend on the weights. `--peer_config` gives them other sizes, as those of your model.
With one thread (the default) the ratio is made of processor time, so other work on the machine hardly changes it. Wall
times of single texts stand beside it; those do depend on the machine's load, which the output records.
"""

import argparse
import functools
import json
import shlex
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    HfArgumentParser,
    PreTrainedModel,
)
from transformers.utils import logging

# Nothing of ours is imported up here: once it is, the Auto classes prefer our code to the code in a folder.

DEFAULT_LENGTHS = (16, 32, 64, 128, 256)
WARMUP = 5
# model type, and what differs from its configuration's defaults
PEERS = {
    **{
        name: (name, {})
        for name in ("bert", "roberta", "distilbert", "squeezebert", "mobilebert", "modernbert", "deberta")
    },
    "deberta-v2": ("deberta-v2", {}),
    "funnel-small": ("funnel", {"block_sizes": [4, 4, 4]}),
    "funnel-medium": ("funnel", {"block_sizes": [6, 3, 3], "block_repeats": [1, 2, 2]}),
}


@dataclass
class BenchmarkArguments:
    """What to compare, on which inputs, and how."""

    models: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Saved model folders (or Hub names), also without the flag; the others are compared with the first "
            "one, or with the first peer."
        },
    )
    peers: list[str] = field(
        default_factory=list, metadata={"help": f"Architectures with random weights: {', '.join(PEERS)}."}
    )
    peer_config: str = field(
        default="{}", metadata={"help": "Settings of every peer that has them, as JSON: '{\"num_hidden_layers\": 6}'."}
    )
    batch_size: int = field(default=1, metadata={"help": "Inputs of a pass, all of one length (%(default)s)."})
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
    plot: str | None = field(default=None, metadata={"help": "PNG of time against length (thesis figure 5.13)."})
    update_card: bool = field(
        default=False, metadata={"help": "Write p50 and p90 into the model card of every folder, for the Hub."}
    )


def load_models(names: list[str], peers: list[str], dtype: str) -> dict[str, PreTrainedModel]:
    """Load the models on the CPU, under short names where these are unique."""
    if len(set(names)) < len(names):
        raise ValueError(f"`--models` must name every folder once, got {' '.join(names)}.")
    short_names = [Path(name).name for name in names]
    labels = short_names if len({*short_names, *peers}) == len(names) + len(peers) else names
    if set(labels) & set(peers):
        raise ValueError(
            f"a model and a peer are both called {next(iter(set(labels) & set(peers)))}; rename the folder."
        )
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


def build_peers(names: list[str], settings: str, dtype: str) -> dict[str, PreTrainedModel]:
    """Build architectures with random weights."""
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        raise ValueError(f"`--peers` knows {', '.join(PEERS)}, got {unknown[0]}.")
    try:
        overrides = dict(json.loads(settings))
    except (json.JSONDecodeError, TypeError, ValueError) as error:
        raise ValueError(f"`--peer_config` must be a JSON object, got {settings}: {error}.") from error
    peers = {}
    for name in names:
        model_type, differences = PEERS[name]
        default = AutoConfig.for_model(model_type)
        known = {*default.to_dict(), *default.attribute_map}
        settings_of = {**differences, **{key: value for key, value in overrides.items() if key in known}}
        try:
            config = AutoConfig.for_model(model_type, **settings_of)
            peers[name] = AutoModelForSequenceClassification.from_config(config, dtype=getattr(torch, dtype)).eval()
        except (ValueError, TypeError, AssertionError, StrictDataclassError) as error:
            raise ValueError(f"`--peer_config` does not suit {name}: {error}") from error
    return peers


def count_passes(model: PreTrainedModel, single: dict[str, torch.Tensor]) -> int:
    """Count the operations of one input's pass, two per multiply-add, as torch counts them."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model.eval()(**{name: values[:1].to(model.device) for name, values in single.items()})
    return counter.get_total_flops()


def find_obstacle(model: PreTrainedModel, single: dict[str, torch.Tensor]) -> str | None:
    """Try an input on the CPU (a position out of range ends the process on a GPU); return why it fails, if it does."""
    try:
        with torch.inference_mode():
            model.eval()(**single)
    except (IndexError, RuntimeError, TypeError) as error:
        return str(error).strip().splitlines()[0]
    return None


def make_random_inputs(
    models: dict[str, PreTrainedModel], lengths: list[int] | None, batch_size: int = 1
) -> list[list[dict]]:
    """Return a group of one batch per length, without those default lengths that a model cannot read."""
    if lengths is not None and min(lengths) < 1:
        raise ValueError(f"`--lengths` counts tokens, each must be >= 1, got {lengths}.")
    vocab_size = min(model.config.vocab_size for model in models.values())
    generator = torch.Generator().manual_seed(0)
    groups = []
    for length in lengths or DEFAULT_LENGTHS:
        # padding and its like have low ids
        input_ids = torch.randint(vocab_size // 2, vocab_size, (batch_size, length), generator=generator)
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
                if models[name].config.model_type == "classformer":
                    count = functools.partial(count_flops, models[name].config)
                    flops = sum(count(single["input_ids"].shape[1]) for single in inputs) / len(inputs)
                else:
                    flops = sum(count_passes(models[name], single) for single in inputs) / len(inputs)
                record = {"input": source, "mean_tokens": mean_tokens, "model": name, "mean_flops": flops}
                record |= {"batch_size": arguments.batch_size, **measure_memory(models[name], inputs[-1])}
                record["throughput"] = arguments.batch_size / latency.wall_p50_ms * 1000
                records.append(record | asdict(latency))
    return records


def measure_memory(model: PreTrainedModel, single: dict[str, torch.Tensor]) -> dict[str, int | None]:
    """Count the bytes of the weights and, on a CUDA device, those that a pass takes beside them at most."""
    tensors = [*model.parameters(), *model.buffers()]
    peak = None
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
        before = torch.cuda.memory_allocated(model.device)
        with torch.inference_mode():
            model(**{name: values.to(model.device) for name, values in single.items()})
        peak = torch.cuda.max_memory_allocated(model.device) - before
    return {"weights_bytes": sum(t.numel() * t.element_size() for t in tensors), "peak_bytes": peak}


def print_table(records: list[dict]) -> None:
    first = records[0]
    width = max(len(record["model"]) for record in records)
    print(f"{first['input']}: time by {first['clock']} relative to {first['model']}, {first['rounds']} rounds")
    print(
        f"{'tokens':>6}  {'model':{width}}  {'ratio [quartiles]':20}  wall p50 ms  wall p90 ms  inputs/s   GFLOPs  "
        "weights, MB"
    )
    for record in records:
        ratio = f"{record['ratio']:.3f} [{record['ratio_low']:.3f} {record['ratio_high']:.3f}]"
        print(
            f"{record['mean_tokens']:6.0f}  {record['model']:{width}}  {ratio:20}  {record['wall_p50_ms']:11.2f}"
            f"  {record['wall_p90_ms']:11.2f}  {record['throughput']:8.1f}  {record['mean_flops'] / 1e9:7.3f}"
            f"  {record['weights_bytes'] / 1e6:11.1f}"
        )


def draw_lengths(records: list[dict], hardware: dict, path: Path) -> None:
    """Draw the time of a pass against the length, with p90 as a thin line above (thesis figure 5.13)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 4))
    for name in dict.fromkeys(record["model"] for record in records):
        points = [record for record in records if record["model"] == name]
        lengths = [record["mean_tokens"] for record in points]
        (line,) = axis.plot(lengths, [record["wall_p50_ms"] for record in points], marker="o", label=name)
        axis.plot(lengths, [record["wall_p90_ms"] for record in points], linewidth=0.6, color=line.get_color())
    axis.set(xlabel="tokens", ylabel="ms, p50 (thin: p90)", xscale="log", yscale="log")
    axis.set_xticks(sorted({record["mean_tokens"] for record in records}), minor=False)
    axis.xaxis.set_major_formatter("{x:.0f}")
    axis.set_title(
        f"batch {records[0]['batch_size']}, {hardware['device_name']}, {hardware['threads']} thread(s), "
        f"{hardware['dtype']}",
        fontsize=9,
    )
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=140)


def update_cards(arguments: BenchmarkArguments, records: list[dict], hardware: dict) -> None:
    """Write p50 and p90 into the cards of the folders, with what they were measured on."""
    from huggingface_hub import EvalResult

    from classformer_hf.publishing import add_results

    where = f"{hardware['device_name']}, {hardware['dtype']}, {hardware['threads']} thread(s)"
    names = dict(zip(dict.fromkeys(record["model"] for record in records), arguments.models, strict=False))
    for label, folder in names.items():
        results = [
            EvalResult(
                task_type="text-classification",
                dataset_type=record["input"].replace(" ", "_"),
                dataset_name=f"{record['input']}, {record['mean_tokens']:.0f} tokens, batch {record['batch_size']}",
                metric_type=f"latency_{quantile}_milliseconds",
                metric_name=f"latency {quantile}, ms, on {where}",
                metric_value=round(record[f"wall_{quantile}_ms"], 3),
            )
            for record in records
            if record["model"] == label
            for quantile in ("p50", "p90")
        ]
        add_results(Path(folder), results)
        print(f"{folder}/README.md tells the latency")


def check_arguments(arguments: BenchmarkArguments) -> None:
    if not arguments.models and not arguments.peers:
        raise ValueError("there is nothing to measure: name model folders, or `--peers`.")
    if arguments.batch_size > 1 and arguments.dataset_name is not None:
        raise ValueError("`--batch_size` is for `--lengths`; texts of a data set are measured one at a time.")
    if arguments.update_card and not all(Path(name).is_dir() for name in arguments.models):
        raise ValueError("`--update_card` changes folders; download the model first, or leave the flag out.")
    if arguments.lengths is not None and arguments.dataset_name is not None:
        raise ValueError("`--lengths` and `--dataset_name` are two ways to choose inputs; give one of them.")
    for name in ("num_threads", "rounds", "num_inputs", "batch_size"):
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
    # models may stand first, without their flag
    words = sys.argv[1:]
    words = ["--models", *words] if words and not words[0].startswith("-") else words
    (arguments,) = parser.parse_args_into_dataclasses(words)
    check_arguments(arguments)
    torch.set_num_threads(arguments.num_threads)
    logging.disable_progress_bar()

    if len(set(arguments.peers)) < len(arguments.peers):
        raise ValueError("`--peers` must name every architecture once.")
    models = load_models(arguments.models, arguments.peers, arguments.dtype)
    models |= build_peers(arguments.peers, arguments.peer_config, arguments.dtype)
    if arguments.dataset_name is None:
        groups = make_random_inputs(models, arguments.lengths, arguments.batch_size)
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
    if arguments.plot is not None:
        Path(arguments.plot).parent.mkdir(parents=True, exist_ok=True)
        draw_lengths(records, hardware, Path(arguments.plot))
    if arguments.update_card:
        update_cards(arguments, records, hardware)


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
