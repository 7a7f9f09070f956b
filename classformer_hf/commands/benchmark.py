"""Compare the latency of saved classifiers on this machine, one input at a time or in batches.

The folders, or names on the Hub, may hold any classifier of texts or of images: a stock RoBERTa, a Classformer, or
another model with its code inside; or what `redundancy-hf export` has made of it. The first one is the reference:
every other model's time is given as a ratio to it (0.5 = twice as fast), median and quartiles over rounds in which all
models take turns on every input.

    redundancy-hf benchmark runs/full runs/search/best --results_file lengths.json --figure lengths.png
    redundancy-hf benchmark runs/full runs/search/best --dataset_name mrpc --results_file mrpc.json
    redundancy-hf benchmark runs/full --peers bert distilbert funnel-small --lengths 128 512
    redundancy-hf benchmark runs/demo-vision/plain/seed-42 runs/demo-vision/shared/seed-42 --update_card

Peers are architectures of transformers with random weights and the sizes of their configurations: what they cost does
not depend on the weights. `--peer_config` gives them other sizes, as those of your model.
With one thread (the default) the ratio is made of processor time, so other work on the machine hardly changes it. Wall
times of single texts stand beside it; those do depend on the machine's load, which the output records.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from redundancy_hf.cards import add_results, find_task, latency_results
from redundancy_hf.command import parse_arguments, write_record
from redundancy_hf.data import load_task, tokenize
from redundancy_hf.evaluation import (
    IMAGE,
    TEXT,
    check_device,
    load_classifier,
    load_processor,
    read_config,
    resolve_folder,
)
from redundancy_hf.isolation import make_inputs
from redundancy_hf.record import read_max_length
from redundancy_hf.runtimes import ExportedClassifier
from redundancy_hf.task import TaskArguments
from redundancy_hf.timing import hardware_fingerprint, measure_latency, measure_pass_memory, sample_inputs

from ..architectures import PEERS, build_peers, count_executed_flops

DEFAULT_LENGTHS = (16, 32, 64, 128, 256)
WARMUP = 5


@dataclass
class BenchmarkArguments:
    """What to compare, on which inputs, and how."""

    models: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Saved model folders or Hub names, also without the flag; the others are compared with the first "
            "one, or with the first peer."
        },
    )
    revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of models on the Hub; pin one whose code you have read."}
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run code of a model on the Hub that is not the installed packages'."}
    )
    peers: list[str] = field(
        default_factory=list, metadata={"help": f"Architectures with random weights: {', '.join(PEERS)}."}
    )
    peer_config: str = field(
        default="{}", metadata={"help": "Settings of every peer, as JSON: '{\"num_hidden_layers\": 6}'."}
    )
    batch_size: int = field(default=1, metadata={"help": "Inputs of a pass, all of one length."})
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
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Longer texts of the dataset are cut to so many tokens. Default: as in the training of the first "
            "model, if its task.json says so, else 128."
        },
    )
    num_inputs: int = field(
        default=16, metadata={"help": "Texts of the dataset, at evenly spaced quantiles of its lengths."}
    )
    rounds: int = field(default=20, metadata={"help": "Timed rounds; more rounds, narrower quartiles."})
    threads: int = field(default=1, metadata={"help": "CPU threads; above 1 the ratio is made of wall time."})
    device: str = field(default="cpu", metadata={"help": "cpu, cuda, cuda:1, mps ..."})
    dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32", metadata={"help": "Number format of all models."}
    )
    results_file: str | None = field(default=None, metadata={"help": "JSON file for numbers, hardware and command."})
    figure: str | None = field(default=None, metadata={"help": "PNG of time against length (thesis figure 5.13)."})
    update_card: bool = field(
        default=False, metadata={"help": "Write p50 and p90 into the model card of every folder, for the Hub."}
    )


def load_models(arguments: BenchmarkArguments) -> tuple[dict[str, PreTrainedModel], str]:
    """Load classifiers with the code in their folders, and build the peers; names that clash keep their path.

    Returns:
        Models by label, those of folders first, and the kind of their pipeline.
    """
    names, peers, dtype = arguments.models, arguments.peers, getattr(torch, arguments.dtype)
    folders = [resolve_folder(name, arguments.revision, arguments.trust_remote_code) for name in names]
    # a base checkpoint has another head, or none, and costs as much with a classifier's
    kinds = {
        name: IMAGE if find_task(read_config(folder)) == IMAGE else TEXT
        for name, folder in zip(names, folders, strict=True)
    }
    kind = kinds[names[0]] if names else TEXT
    if set(kinds.values()) | ({TEXT} if peers else set()) != {kind}:
        raise ValueError(f"--models must be all of texts, as peers are, or all of images, got {kinds}.")
    short_names = [Path(name).name for name in names]
    labels = short_names if len({*short_names, *peers}) == len(names) + len(peers) else names
    clashing = set(labels) & set(peers)
    if clashing:
        raise ValueError(f"a model and a peer are both called {clashing.pop()}; rename the folder.")
    models = {
        label: load_classifier(folder, kind, needs_head=False) for label, folder in zip(labels, folders, strict=True)
    }
    for label, model in models.items():
        if not isinstance(model, ExportedClassifier):
            model.to(dtype)
        elif arguments.device != "cpu" or dtype != torch.float32:
            raise ValueError(f"{label} is an export, which has its own number format and runs on the CPU.")
    return models | build_peers(peers, arguments.peer_config, dtype), kind


def find_obstacle(model: PreTrainedModel, single: dict[str, torch.Tensor]) -> str | None:
    """Try an input on the CPU (a position out of range ends the process on a GPU); return why it fails, if it does."""
    try:
        with torch.inference_mode():
            model.eval()(**single)
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        return str(error).strip().splitlines()[0]
    return None


def make_random_texts(
    models: dict[str, PreTrainedModel], lengths: list[int] | None, batch_size: int = 1
) -> list[list[dict]]:
    """Return a group of one batch per length, without those default lengths that a model cannot read."""
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
            raise ValueError(f"--lengths must fit every model, but {failed[0]}.")
    return groups


def make_random_images(models: dict[str, PreTrainedModel], batch_size: int, dtype: torch.dtype) -> list[list[dict]]:
    """Return one group of one batch of images, of the size of the models' configurations."""
    shapes = {name: make_inputs(model.config)["pixel_values"].shape[1:] for name, model in models.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"models of images must have one size of image to be compared, got {shapes}.")
    shape = next(iter(shapes.values()))
    images = torch.randn(batch_size, *shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return [[{"pixel_values": images}]]


def make_dataset_inputs(models: dict[str, PreTrainedModel], arguments: BenchmarkArguments) -> list[dict]:
    """Return batch-1 inputs that stand for the lengths of a dataset's validation split."""
    if len({model.config.vocab_size for model in models.values()}) > 1:
        raise ValueError("--dataset_name needs models with one vocabulary, these differ; use --lengths for them.")
    columns = ("dataset_name", "dataset_config_name", "text_column", "text_pair_column", "label_column")
    task = load_task(TaskArguments(**{name: getattr(arguments, name) for name in columns})).without_test()
    folder = resolve_folder(arguments.models[0], arguments.revision, arguments.trust_remote_code)
    tokenizer = load_processor(folder)
    max_length = arguments.max_length or read_max_length(folder) or TaskArguments.max_length
    inputs = sample_inputs(tokenize(task, tokenizer, max_length).splits["validation"], arguments.num_inputs)
    for name, model in models.items():
        obstacle = find_obstacle(model, inputs[-1])
        if obstacle:
            raise ValueError(
                f"{name} cannot read what the first model's tokenizer makes of {task.name}: {obstacle}; compare models "
                f"that share a tokenizer, or lower --max_length from {max_length}."
            )
    return inputs


def measure(
    models: dict[str, PreTrainedModel], groups: list[list[dict]], source: str, arguments: BenchmarkArguments
) -> list[dict]:
    """Return one record per group of inputs and model."""
    first, device = next(iter(models)), torch.device(arguments.device)
    # before the models move: the counter needs no accelerator
    flops = [
        {
            name: None
            if isinstance(model, ExportedClassifier)
            else sum(count_executed_flops(model, _first_row(x)) for x in inputs) / len(inputs)
            for name, model in models.items()
        }
        for inputs in groups
    ]
    for model in models.values():
        model.to(device)  # type: ignore[arg-type]
    # other runtimes work in threads of their own
    are_exports = any(isinstance(model, ExportedClassifier) for model in models.values())
    clock = "process_cpu" if are_exports and arguments.threads == 1 else None
    records = []
    with tqdm(total=len(groups) * (WARMUP + arguments.rounds), unit="round") as progress:
        for inputs, counts in zip(groups, flops, strict=True):
            is_text = "input_ids" in inputs[0]
            tokens = sum(single["input_ids"].shape[1] for single in inputs) / len(inputs) if is_text else None
            progress.set_description(source if tokens is None else f"{source}, {tokens:.0f} tokens")
            latencies = measure_latency(models, inputs, first, arguments.rounds, WARMUP, progress.update, clock)
            for name, latency in latencies.items():
                records.append(
                    {
                        "input": source,
                        "tokens": tokens,
                        "model": name,
                        "batch_size": arguments.batch_size,
                        "flops_per_input": counts[name],
                        "weights_bytes": models[name].get_memory_footprint(),
                        "pass_bytes": measure_pass_memory(models[name], inputs[-1]),
                        "inputs_per_second": arguments.batch_size / latency.wall_p50_ms * 1000,
                        **asdict(latency),
                    }
                )
    return records


def _first_row(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: values[:1] for name, values in batch.items()}


def print_table(records: list[dict]):
    first = records[0]
    width = max(len(record["model"]) for record in records)
    print(f"{first['input']}: time by {first['clock']} relative to {first['model']}, {first['rounds']} rounds")
    print(
        f"{'tokens':>6}  {'model':{width}}  {'ratio [quartiles]':20}  wall p50 ms  wall p90 ms  inputs/s   GFLOPs  "
        "weights, MB  pass, MB"
    )
    for record in records:
        ratio = f"{record['ratio']:.3f} [{record['ratio_low']:.3f} {record['ratio_high']:.3f}]"
        tokens = "" if record["tokens"] is None else f"{record['tokens']:.0f}"
        memory = "" if record["pass_bytes"] is None else f"{record['pass_bytes'] / 1e6:.1f}"
        flops = "" if record["flops_per_input"] is None else f"{record['flops_per_input'] / 1e9:.3f}"
        print(
            f"{tokens:>6}  {record['model']:{width}}  {ratio:20}  {record['wall_p50_ms']:11.2f}"
            f"  {record['wall_p90_ms']:11.2f}  {record['inputs_per_second']:8.1f}  "
            f"{flops:>7}  {record['weights_bytes'] / 1e6:11.1f}  {memory:>8}"
        )


def draw_lengths(records: list[dict], hardware: dict, path: Path) -> None:
    """Draw the time of a pass against the length (thesis figure 5.13).

    By processor time where there is one, which other work hardly changes; else wall time, with p90 as a thin line.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    by_processor = all(record["cpu_p50_ms"] is not None for record in records)
    figure, axis = plt.subplots(figsize=(7.5, 4.5))
    for index, name in enumerate(dict.fromkeys(record["model"] for record in records)):
        points = [record for record in records if record["model"] == name]
        lengths = [record["tokens"] for record in points]
        style: dict[str, Any] = {"color": f"C{index % 10}", "linestyle": "-" if index < 10 else "--"}
        times = [record["cpu_p50_ms" if by_processor else "wall_p50_ms"] for record in points]
        axis.plot(lengths, times, marker="o", markersize=4, label=name, **style)
        if not by_processor:
            axis.plot(lengths, [record["wall_p90_ms"] for record in points], linewidth=0.6, **style)
    label = "ms of processor time, p50" if by_processor else "ms, p50 (thin: p90)"
    axis.set(xlabel="tokens", ylabel=label, xscale="log", yscale="log")
    axis.set_xticks(sorted({record["tokens"] for record in records}), minor=False)
    axis.minorticks_off()
    axis.xaxis.set_major_formatter("{x:.0f}")
    axis.set_title(
        f"batch {records[0]['batch_size']}, {hardware['device_name']}, {hardware['threads']} thread(s), "
        f"{hardware['dtype']}",
        fontsize=9,
    )
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    figure.savefig(path, dpi=140)


def update_cards(arguments: BenchmarkArguments, kind: str, records: list[dict], hardware: dict):
    """Write p50 and p90 into the cards of the folders, with what they were measured on."""
    labels = dict.fromkeys(record["model"] for record in records)
    for label, folder in zip(labels, arguments.models, strict=False):
        for record in (record for record in records if record["model"] == label):
            dataset = (
                record["input"] if record["tokens"] is None else f"{record['input']}, {record['tokens']:.0f} tokens"
            )
            found = {quantile: record[f"wall_{quantile}_ms"] for quantile in ("p50", "p90")}
            add_results(Path(folder), latency_results(kind, dataset, found, hardware, arguments.batch_size))
        print(f"{folder}/README.md tells the latency")


def check_arguments(arguments: BenchmarkArguments):
    if not arguments.models and not arguments.peers:
        raise ValueError("there is nothing to measure: name model folders, or --peers.")
    for name in ("models", "peers"):
        if len(set(getattr(arguments, name))) < len(getattr(arguments, name)):
            raise ValueError(f"--{name} must name every one once, got {' '.join(getattr(arguments, name))}.")
    if arguments.dataset_name is not None and not arguments.models:
        raise ValueError("--dataset_name needs the tokenizer of a model; peers have none.")
    if arguments.batch_size > 1 and arguments.dataset_name is not None:
        raise ValueError("--batch_size is for --lengths; texts of a data set are measured one at a time.")
    if arguments.update_card and not all(Path(name).is_dir() for name in arguments.models):
        raise ValueError("--update_card changes folders; download the model first, or leave the flag out.")
    if arguments.lengths is not None and arguments.dataset_name is not None:
        raise ValueError("--lengths and --dataset_name are two ways to choose inputs; give one of them.")
    if min(arguments.lengths or [1]) < 1:
        raise ValueError(f"--lengths counts tokens, each must be >= 1, got {arguments.lengths}.")
    for name in ("threads", "rounds", "num_inputs", "batch_size"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name} must be >= 1, got {getattr(arguments, name)}.")
    check_device(arguments.device)


def make_groups(models: dict[str, PreTrainedModel], kind: str, arguments: BenchmarkArguments) -> tuple[str, list]:
    """Say what the inputs are, and give them in groups that are measured apart."""
    if kind == IMAGE:
        if arguments.lengths or arguments.dataset_name or arguments.figure:
            raise ValueError(
                "--lengths, --dataset_name and --figure are for models of texts; images are random pixels."
            )
        return "random pixels", make_random_images(models, arguments.batch_size, getattr(torch, arguments.dtype))
    if arguments.dataset_name is None:
        return "random ids", make_random_texts(models, arguments.lengths, arguments.batch_size)
    return Path(arguments.dataset_name).name, [make_dataset_inputs(models, arguments)]


def main():
    (arguments,) = parse_arguments((BenchmarkArguments,), __doc__, positional="models")
    check_arguments(arguments)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(arguments.threads)
    models, kind = load_models(arguments)
    source, groups = make_groups(models, kind, arguments)
    hardware = hardware_fingerprint(arguments.device, getattr(torch, arguments.dtype))
    records = measure(models, groups, source, arguments)
    print_table(records)
    write_record(arguments.results_file, hardware=hardware, measurements=records)
    if arguments.figure is not None:
        Path(arguments.figure).parent.mkdir(parents=True, exist_ok=True)
        draw_lengths(records, hardware, Path(arguments.figure))
    if arguments.update_card:
        update_cards(arguments, kind, records, hardware)
