"""Compare the latency of saved classifiers on this machine, one input at a time or in batches.

The folders, or names on the Hub, may hold any classifier of texts or of images: a stock RoBERTa, a Classformer, or
another model with its code inside; or what `redundancy-hf export` has made of it. The first one is the reference:
every other model's time is given as a ratio to it (0.5 = twice as fast), median and quartiles over rounds in which all
models take turns on every input.

    redundancy-hf benchmark runs/full runs/search/best --results_file lengths.json --figure lengths.png
    redundancy-hf benchmark runs/full runs/search/best --dataset_name mrpc --results_file mrpc.json
    redundancy-hf benchmark runs/full --architectures bert distilbert funnel-small --lengths 128 512
    redundancy-hf benchmark runs/demo-vision/plain/seed-42 runs/demo-vision/shared/seed-42 --update_card

Texts are random token ids of the given lengths; with --dataset_name they are those of a data set, at evenly spaced
quantiles of its lengths, tokenised by the first model's tokenizer and cut as in its training.
Architectures are those of transformers with random weights and the sizes of their configurations: what they cost does
not depend on the weights. `--architecture_config` gives them other sizes, as those of your model.
With one thread (the default) the ratio is made of processor time, so other work on the machine hardly changes it. Wall
times of single texts stand beside it; those do depend on the machine's load, which the output records.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from redundancy_hf.cards import add_results, find_task, latency_results
from redundancy_hf.command import parse_call, write_record
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
from redundancy_hf.pictures import open_grid
from redundancy_hf.record import read_max_length
from redundancy_hf.runtimes import ExportedClassifier
from redundancy_hf.task import TaskArguments, TaskFlags
from redundancy_hf.timing import Target, measure_latency, measure_pass_memory, sample_inputs

from ..architectures import build_architectures
from ..flops import count_executed_flops

DEFAULT_LENGTHS = (16, 32, 64, 128, 256)
WARMUP = 5


def compare_latency(
    models: Sequence[str] = (),
    architectures: Sequence[str] = (),
    architecture_config: str = "{}",
    revision: str | None = None,
    trust_remote_code: bool = False,
    lengths: Sequence[int] | None = None,
    batch_size: int = 1,
    num_inputs: int = 16,
    results_file: str | None = None,
    figure: str | None = None,
    update_card: bool = False,
    task: TaskFlags = TaskFlags(),
    target: Target = Target(),
) -> dict[str, Any]:
    """Time saved classifiers and other architectures side by side.

    Args:
        models: Saved model folders or Hub names, also without the flag; the others are compared with the first one, or
            with the first architecture.
        architectures: Architectures with random weights: bert, roberta, distilbert, deberta-v3, funnel-small ...
        architecture_config: Settings of every architecture, as JSON: '{"num_hidden_layers": 6}'.
        revision: Branch, tag or commit of models on the Hub; pin one whose code you have read.
        trust_remote_code: Run code of a model on the Hub that is not the installed packages'.
        lengths: Input lengths in tokens; each is measured by itself on random token ids. By default those of 16, 32,
            64, 128 and 256 that every model can read.
        batch_size: Inputs of a pass, all of one length.
        num_inputs: Texts of the data set, at evenly spaced quantiles of its lengths.
        results_file: JSON file for numbers, hardware and command.
        figure: PNG of time against length (thesis figure 5.13).
        update_card: Write p50 and p90 into the model card of every folder, for the Hub.
        task: The data set to take texts from; of its splits the validation split is read.
        target: Where the models run.

    Returns:
        The record: "hardware" and, of "measurements", one per model and group of inputs.

    Raises:
        ValueError: There is nothing to measure, or the models and the inputs do not fit each other.
    """
    models = [models] if isinstance(models, str) else models
    check_choices(models, architectures, lengths, batch_size, num_inputs, update_card, task.dataset_name)
    check_device(target.device)
    with target.use_threads():
        loaded, kind = load_models(models, architectures, architecture_config, revision, trust_remote_code, target)
        if kind == IMAGE:
            if lengths or task.dataset_name or figure:
                raise ValueError(
                    "--lengths, --dataset_name and --figure are for models of texts; images are random pixels."
                )
            source, groups = "random pixels", make_random_images(loaded, batch_size, target.torch_dtype)
        elif task.dataset_name is None:
            source, groups = "random ids", make_random_texts(loaded, lengths, batch_size)
        else:
            source, folder = Path(task.dataset_name).name, resolve_folder(models[0], revision, trust_remote_code)
            groups = [make_dataset_inputs(loaded, folder, task, num_inputs)]
        hardware, records = target.hardware, measure(loaded, groups, source, batch_size, target)
    record = write_record(results_file, hardware=hardware, measurements=records)
    if figure is not None:
        Path(figure).parent.mkdir(parents=True, exist_ok=True)
        draw_lengths(records, hardware, Path(figure))
    if update_card:
        update_cards(models, kind, records, hardware)
    return record


def check_choices(
    models, architectures, lengths, batch_size: int, num_inputs: int, update_card: bool, dataset: str | None
):
    """Refuse what does not go together; arguments as of [`compare_latency`]."""
    if not models and not architectures:
        raise ValueError("there is nothing to measure: name model folders, or --architectures.")
    for name, given in (("models", models), ("architectures", architectures)):
        if len(set(given)) < len(given):
            raise ValueError(f"`{name}` must name every one once, got {' '.join(given)}.")
    for name, number in (("num_inputs", num_inputs), ("batch_size", batch_size)):
        if number < 1:
            raise ValueError(f"`{name}` must be >= 1, got {number}.")
    if dataset is not None and not models:
        raise ValueError("--dataset_name needs the tokenizer of a model; architectures have none.")
    if dataset is not None and batch_size > 1:
        raise ValueError("--batch_size is for --lengths; texts of a data set are measured one at a time.")
    if dataset is not None and lengths is not None:
        raise ValueError("--lengths and --dataset_name are two ways to choose inputs; give one of them.")
    if update_card and not all(Path(name).is_dir() for name in models):
        raise ValueError("--update_card changes folders; download the model first, or leave the flag out.")
    if min(lengths or [1]) < 1:
        raise ValueError(f"--lengths counts tokens, each must be >= 1, got {lengths}.")


def load_models(
    names: Sequence[str],
    architectures: Sequence[str],
    architecture_config: str,
    revision: str | None,
    trust: bool,
    target: Target,
) -> tuple[dict[str, PreTrainedModel], str]:
    """Load classifiers with the code in their folders, and build the architectures; names that clash keep their path.

    Returns:
        Models by label, those of folders first, and the kind of their pipeline.
    """
    dtype = target.torch_dtype
    folders = {name: resolve_folder(name, revision, trust) for name in names}
    # a base checkpoint has another head, or none, and costs as much with a classifier's
    kinds = {name: IMAGE if find_task(read_config(folder)) == IMAGE else TEXT for name, folder in folders.items()}
    kind = kinds[names[0]] if names else TEXT
    if set(kinds.values()) | ({TEXT} if architectures else set()) != {kind}:
        raise ValueError(f"--models must be all of texts, as architectures are, or all of images, got {kinds}.")
    short_names = [Path(name).name for name in names]
    labels = short_names if len({*short_names, *architectures}) == len(names) + len(architectures) else names
    clashing = set(labels) & set(architectures)
    if clashing:
        raise ValueError(f"a model and an architecture are both called {clashing.pop()}; rename the folder.")
    models = {}
    for label, folder in zip(labels, folders.values(), strict=True):
        models[label] = load_classifier(folder, kind, needs_head=False)
        if not isinstance(models[label], ExportedClassifier):
            models[label].to(dtype)
        elif target.device != "cpu" or dtype != torch.float32:
            raise ValueError(f"{label} is an export, which has its own number format and runs on the CPU.")
    return models | build_architectures(list(architectures), architecture_config, dtype), kind


def find_obstacle(model: PreTrainedModel, single: dict[str, torch.Tensor]) -> str | None:
    """Try an input on the CPU (a position out of range ends the process on a GPU); return why it fails, if it does."""
    try:
        with torch.inference_mode():
            model.eval()(**single)
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        return str(error).strip().splitlines()[0]
    return None


def make_random_texts(
    models: dict[str, PreTrainedModel], lengths: Sequence[int] | None, batch_size: int
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


def make_dataset_inputs(models: dict[str, PreTrainedModel], folder: Path, task: Any, num_inputs: int) -> list[dict]:
    """Return batch-1 inputs that stand for the lengths of a data set's validation split.

    Args:
        models: All of one vocabulary.
        folder: Of the first model, whose tokenizer and whose training's longest text count.
        task: Flags of the data set.
        num_inputs: Number of texts.
    """
    if len({model.config.vocab_size for model in models.values()}) > 1:
        raise ValueError("--dataset_name needs models with one vocabulary, these differ; use --lengths for them.")
    given = {name: value for name, value in vars(task).items() if value is not None}
    arguments = TaskArguments(**{"max_length": read_max_length(folder) or TaskArguments.max_length} | given)
    task, tokenizer = load_task(arguments).without_test(), load_processor(folder)
    inputs = sample_inputs(tokenize(task, tokenizer, arguments.max_length).splits["validation"], num_inputs)
    for name, model in models.items():
        obstacle = find_obstacle(model, inputs[-1])
        if obstacle:
            raise ValueError(
                f"{name} cannot read what the first model's tokenizer makes of {task.name}: {obstacle}; compare models "
                f"that share a tokenizer, or lower --max_length from {arguments.max_length}."
            )
    return inputs


def measure(
    models: dict[str, PreTrainedModel], groups: list[list[dict]], source: str, batch_size: int, target: Target
) -> list[dict]:
    """Return one record per group of inputs and model."""
    # before the models move: the counter needs no accelerator
    flops = [{name: count_mean_flops(model, inputs) for name, model in models.items()} for inputs in groups]
    for model in models.values():
        model.to(torch.device(target.device))  # type: ignore[arg-type]
    # other runtimes work in threads of their own
    are_exports = any(isinstance(model, ExportedClassifier) for model in models.values())
    clock = "process_cpu" if are_exports and target.threads == 1 else None
    records = []
    with tqdm(total=len(groups) * (WARMUP + target.rounds), unit="round") as bar:
        for inputs, counts in zip(groups, flops, strict=True):
            is_text = "input_ids" in inputs[0]
            tokens = sum(single["input_ids"].shape[1] for single in inputs) / len(inputs) if is_text else None
            bar.set_description(source if tokens is None else f"{source}, {tokens:.0f} tokens")
            times = measure_latency(models, inputs, next(iter(models)), target.rounds, WARMUP, bar.update, clock)
            records += [
                {
                    "input": source,
                    "tokens": tokens,
                    "model": name,
                    "batch_size": batch_size,
                    "flops_per_input": counts[name],
                    "weights_bytes": models[name].get_memory_footprint(),
                    "pass_bytes": measure_pass_memory(models[name], inputs[-1]),
                    "inputs_per_second": batch_size / latency.wall_p50_ms * 1000,
                    **asdict(latency),
                }
                for name, latency in times.items()
            ]
    return records


def count_mean_flops(model: PreTrainedModel, inputs: list[dict]) -> float | None:
    """Count the operations of a pass for the first of each batch; of an export they are unknown."""
    if isinstance(model, ExportedClassifier):
        return None
    firsts = [{name: values[:1] for name, values in batch.items()} for batch in inputs]
    return sum(count_executed_flops(model, first) for first in firsts) / len(firsts)


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
    by_processor = all(record["cpu_p50_ms"] is not None for record in records)
    with open_grid(path, 1, 1, 7.5, 4.5) as (_, ((axis,),)):
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
        where = f"{hardware['device_name']}, {hardware['threads']} thread(s), {hardware['dtype']}"
        axis.set_title(f"batch {records[0]['batch_size']}, {where}", fontsize=9)
        axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))


def update_cards(folders: Sequence[str], kind: str, records: list[dict], hardware: dict):
    """Write p50 and p90 into the cards of the folders, with what they were measured on."""
    labels = dict.fromkeys(record["model"] for record in records)
    for label, folder in zip(labels, folders, strict=False):
        for record in (record for record in records if record["model"] == label):
            length = "" if record["tokens"] is None else f", {record['tokens']:.0f} tokens"
            found = {quantile: record[f"wall_{quantile}_ms"] for quantile in ("p50", "p90")}
            results = latency_results(kind, record["input"] + length, found, hardware, record["batch_size"])
            add_results(Path(folder), results)
        print(f"{folder}/README.md tells the latency")


def main():
    print_table(compare_latency(**parse_call(compare_latency, __doc__, positional="models"))["measurements"])
