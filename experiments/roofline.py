r"""Compare what a schedule takes with the least it could take on this machine.

    python experiments/roofline.py --model_name_or_path sentence-transformers/all-MiniLM-L6-v2 \
        --schedules 1-1-2-1-2-1_eta0 1-2-2-1-1-1_eta0 --lengths 64 128 256 512 --results_file results/roofline.json

For every schedule and length, side by side in every round: the model, plain RoBERTa with the same weights, and the
matrix products of both alone: same shapes and weights, nothing in between. Products alone are the bound by measured
rates. The roofline (Williams et al. 2009) is longer of operations by the best rate of any shape and weights by the
bandwidth, product by product. What a pass takes beyond its products and beyond a model without layers is the layers'
overhead; a schedule should be as much faster as its products and plain RoBERTa's overhead at its lengths promise. A
profile says what the time goes into, and a last comparison whether joining the projections to queries, keys and values
would pay.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers.utils import logging as transformers_logging

from classformer_hf import ClassformerForSequenceClassification, load_from_encoder
from classformer_hf.architectures import build_stock
from classformer_hf.checkpoints import reconfigure
from classformer_hf.roofline import list_products, measure, run_all
from classformer_hf.search import Schedule
from redundancy_hf.command import parse_arguments, run_command, write_record
from redundancy_hf.timing import hardware_fingerprint

# of plain RoBERTa, between which its overhead is interpolated
GRID = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
GROUPS = {
    "matrix products of linear layers": ("aten::addmm", "aten::mm"),
    "attention": ("aten::_scaled_dot_product_flash_attention_for_cpu",),
    "GELU": ("aten::gelu",),
    "layer norm": ("aten::native_layer_norm",),
    "residual sums": ("aten::add",),
    "copies (biases of products among them)": ("aten::copy_",),
    "choosing positions": ("aten::index_select", "aten::arange", "aten::cat"),
    "masks": ("aten::all", "aten::eq", "aten::ne", "aten::cumsum", "aten::_to_copy"),
}
LAST = "views and the rest"


@dataclass
class RooflineArguments:
    model_name_or_path: str = field(metadata={"help": "Checkpoint whose shape and weights are taken."})
    schedules: list[str] = field(metadata={"help": "As a search names them: 1-2-1_eta0."})
    lengths: list[int] = field(default_factory=lambda: [64, 128, 256, 512], metadata={"help": "Tokens of the texts."})
    rounds: int = field(default=20, metadata={"help": "Rounds of interleaved timing."})
    results_file: str | None = field(default=None, metadata={"help": "JSON file for the tables."})


def measure_machine(model: ClassformerForSequenceClassification, rounds: int) -> dict[str, Any]:
    """Measure rates of matrix products per shape, and the bandwidth of reading memory."""
    shapes, calls = {}, {}
    layer = model.roberta.encoder.layer[0]
    for linear in (layer.attention.self.query, layer.intermediate.dense, layer.output.dense):
        # as many copies as the model has layers, or all would lie in a cache
        weights = [linear.weight.clone() for _ in model.roberta.encoder.layer]
        for rows in GRID:
            states = torch.randn(1, rows, linear.in_features)
            name = f"{rows} x {linear.in_features} x {linear.out_features}"
            shapes[name] = 2 * rows * linear.weight.numel() * len(weights)
            calls[name] = lambda states=states, weights=weights: [F.linear(states, weight) for weight in weights]
    memory = torch.ones(2**26)  # 256 MiB, larger than any cache
    times = measure({**calls, "memory": memory.sum}, rounds, "machine")
    rates = {name: shapes[name] / float(np.median(times[name])) / 1e6 for name in shapes}
    read = 4 * memory.numel() / float(np.median(times["memory"])) / 1e6
    return {"rates_gflops": rates, "peak_gflops": max(rates.values()), "bandwidth_gb_per_s": read}


def compare_with_bounds(arguments: RooflineArguments, model: Any, machine: dict[str, Any]) -> list[dict]:
    """Time models, plain RoBERTa and their products, and compare with what the bounds promise."""
    num_layers, longest = model.config.num_hidden_layers, max(arguments.lengths)
    stock, outside = build_stock(model), build_stock(model, 0)
    grid = sorted({*(n for n in GRID if n <= longest), *arguments.lengths})
    calls: dict[Any, Callable] = {}
    for n in grid:
        inputs = make_inputs(model, n)
        calls["stock", n] = lambda inputs=inputs: stock(**inputs)
        calls["outside", n] = lambda inputs=inputs: outside(**inputs)
        calls["stock products", n] = run_all(list_products(model, n, [n] * num_layers))
    products, lengths_of = {}, {}
    for key in arguments.schedules:
        schedule = Schedule.from_key(key)
        scheduled = reconfigure(model, **schedule.config)
        for n in arguments.lengths:
            inputs = make_inputs(model, n)
            lengths = scheduled.config.layer_lengths(n, cls_only=scheduled.config.last_layer_cls_only)
            lengths_of[key, n], products[key, n] = lengths, list_products(model, n, lengths)
            calls[key, n] = lambda scheduled=scheduled, inputs=inputs: scheduled(**inputs)
            calls[key, n, "products"] = run_all(products[key, n])
    times = measure(calls, arguments.rounds, "passes")
    # (rounds, grid): what a layer of plain RoBERTa takes beyond its products
    overhead = np.stack(
        [(times["stock", n] - times["outside", n] - times["stock products", n]) / num_layers for n in grid], axis=1
    )
    rows = []
    for (key, n), lengths in lengths_of.items():
        at_lengths = np.array([[np.interp(tokens, grid, of_round) for tokens in lengths] for of_round in overhead])
        own = (times[key, n] - times["outside", n] - times[key, n, "products"]) / num_layers
        predicted = times["outside", n] + times[key, n, "products"] + at_lengths.sum(axis=1)
        peak, bandwidth = 1e6 * machine["peak_gflops"], 1e6 * machine["bandwidth_gb_per_s"]
        roofline = sum(max(flops / peak, num_bytes / bandwidth) for flops, num_bytes, _ in products[key, n])
        rows.append(
            {
                "schedule": key,
                "tokens": n,
                "layer_lengths": lengths,
                "gflops": sum(flops for flops, *_ in products[key, n]) / 1e9,
                "roofline_ms": roofline,
                "products_ms": float(np.median(times[key, n, "products"])),
                "measured_ms": float(np.median(times[key, n])),
                "overhead_per_layer_us": summarise(1000 * own),
                "stock_overhead_per_layer_us": summarise(1000 * at_lengths.mean(axis=1)),
                "speedup": summarise(times["stock", n] / times[key, n]),
                "predicted_speedup": summarise(times["stock", n] / predicted),
                "reached": summarise(predicted / times[key, n]),
            }
        )
    return rows


def summarise(values: np.ndarray) -> list[float]:
    """Median and quartiles."""
    return [float(value) for value in np.percentile(values, [50, 25, 75])]


def make_inputs(model: Any, num_tokens: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(model.config.vocab_size // 2, model.config.vocab_size, (1, num_tokens))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def profile(model: Any, inputs: dict[str, torch.Tensor], passes: int = 20) -> dict[str, Any]:
    """Give the share of every group of operators, and how many run in a pass."""
    with torch.inference_mode():
        for _ in range(3):
            model(**inputs)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            for _ in range(passes):
                model(**inputs)
    events = profiler.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    group_of = {name: group for group, names in GROUPS.items() for name in names}
    shares = dict.fromkeys([*GROUPS, LAST], 0.0)
    for event in events:
        shares[group_of.get(event.key, LAST)] += event.self_cpu_time_total / total
    return {
        "tokens": inputs["input_ids"].shape[1],
        "shares": shares,
        "num_operators": sum(event.count for event in events) / passes,
    }


def compare_joined_projections(model: Any, rounds: int) -> dict[int, list[float]]:
    """Give the time of one product for queries, keys and values relative to three, by the number of tokens."""
    layers = [layer.attention.self for layer in model.roberta.encoder.layer]
    parts = [[(one.weight, one.bias) for one in (a.query, a.key, a.value)] for a in layers]
    joined = [(torch.cat([w for w, _ in three]), torch.cat([b for _, b in three])) for three in parts]
    calls: dict[Any, Callable] = {}
    for tokens in (8, 32, 128):
        states = torch.randn(1, tokens, model.config.hidden_size)
        calls[tokens, "apart"] = lambda states=states: [F.linear(states, *one) for three in parts for one in three]
        calls[tokens, "joined"] = lambda states=states: [F.linear(states, *one).chunk(3, -1) for one in joined]
    times = measure(calls, 3 * rounds, "projections")
    return {tokens: summarise(times[tokens, "joined"] / times[tokens, "apart"]) for tokens in (8, 32, 128)}


def main():
    (arguments,) = parse_arguments((RooflineArguments,), __doc__)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    model: Any = load_from_encoder(arguments.model_name_or_path, ClassformerForSequenceClassification, num_labels=2)
    model.eval()
    scheduled = {key: reconfigure(model, **Schedule.from_key(key).config) for key in arguments.schedules}
    stock = build_stock(model)
    machine = measure_machine(model, arguments.rounds)
    print(f"peak {machine['peak_gflops']:.0f} GFLOP/s, reading {machine['bandwidth_gb_per_s']:.1f} GB/s")
    rows = compare_with_bounds(arguments, model, machine)
    for row in rows:
        print(
            f"{row['schedule']} at {row['tokens']}: {row['speedup'][0]:.2f}x, predicted "
            f"{row['predicted_speedup'][0]:.2f}x, reached {100 * row['reached'][0]:.0f} %; overhead per layer "
            f"{row['overhead_per_layer_us'][0]:.0f} us, plain RoBERTa {row['stock_overhead_per_layer_us'][0]:.0f} us"
        )
    inputs = make_inputs(model, sorted(arguments.lengths)[len(arguments.lengths) // 2])
    profiles = {"plain RoBERTa": profile(stock, inputs)}
    profiles.update({key: profile(one, inputs) for key, one in scheduled.items()})
    write_record(
        arguments.results_file,
        model=Path(arguments.model_name_or_path).name,
        rounds=arguments.rounds,
        hardware=hardware_fingerprint(),
        **machine,
        weight_megabytes=sum(p.numel() for p in model.roberta.encoder.parameters()) * 4 / 1e6,
        rows=rows,
        profiles=profiles,
        joined_projections=compare_joined_projections(model, arguments.rounds),
    )


if __name__ == "__main__":
    run_command(main)
