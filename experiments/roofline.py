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

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from frame import command_of, describe_hardware, format_table, interval, name_command
from torch.nn import functional as F
from tqdm import tqdm

from classformer_hf import ClassformerForSequenceClassification, load_from_encoder
from classformer_hf.architectures import build_stock
from classformer_hf.checkpoints import reconfigure
from classformer_hf.search import Schedule
from redundancy_hf.command import write_record
from redundancy_hf.timing import hardware_fingerprint, time_in_turns

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
# operations, bytes that are moved, and what computes it
Product = tuple[int, int, Callable[[], torch.Tensor]]


def list_products(model: Any, tokens_in: int, lengths: list[int]) -> list[Product]:
    """Give the matrix products of a classifier's layers in their order, for a text and the tokens that leave each."""
    products: list[Product] = []

    def add_linear(linear: torch.nn.Linear, rows: int):
        states, (width_out, width_in) = torch.randn(1, rows, linear.in_features), linear.weight.shape
        num_bytes = 4 * (width_out * width_in + rows * (width_in + width_out))
        products.append((2 * rows * width_in * width_out, num_bytes, lambda: F.linear(states, linear.weight)))

    def add_attention(queries: int, keys: int):
        heads = model.config.num_attention_heads
        width = model.config.hidden_size // heads
        query, key, value = (torch.randn(heads, tokens, width) for tokens in (queries, keys, keys))
        scores = torch.rand(heads, queries, keys)
        flops, num_bytes = 2 * heads * queries * keys * width, 4 * heads * (queries + keys) * width
        products.append((flops, num_bytes, lambda: query @ key.transpose(1, 2)))
        products.append((flops, num_bytes, lambda: scores @ value))

    for layer, tokens_out in zip(model.roberta.encoder.layer, lengths, strict=True):
        attention = layer.attention.self
        add_linear(attention.query, tokens_out)
        add_linear(attention.key, tokens_in)
        add_linear(attention.value, tokens_in)
        add_attention(tokens_out, tokens_in)
        for linear in (layer.attention.output.dense, layer.intermediate.dense, layer.output.dense):
            add_linear(linear, tokens_out)
        tokens_in = tokens_out
    return products


def run_all(products: list[Product]):
    for *_, call in products:
        call()


def measure(calls: dict[Any, Callable[[], Any]], rounds: int, what: str) -> dict[Any, np.ndarray]:
    """Give the processor time of every call in every round, in milliseconds, (rounds,)."""
    with torch.inference_mode(), tqdm(total=rounds + 2, desc=what, unit="round") as bar:
        times = time_in_turns([calls], rounds, clock="thread_cpu", on_round=bar.update)
    return {name: ticks[:, 0] for name, ticks in times.ticks.items()}


def summarise(values: np.ndarray) -> list[float]:
    """Median and quartiles."""
    return np.percentile(values, [50, 25, 75]).tolist()


def measure_machine(model: ClassformerForSequenceClassification, rounds: int) -> dict[str, Any]:
    """Measure rates of matrix products per shape, and the bandwidth of reading memory."""
    flops, calls = {}, {}
    layer = model.roberta.encoder.layer[0]
    for linear in (layer.attention.self.query, layer.intermediate.dense, layer.output.dense):
        # as many copies as the model has layers, or all would lie in a cache
        weights = [linear.weight.clone() for _ in model.roberta.encoder.layer]
        for rows in GRID:
            states = torch.randn(1, rows, linear.in_features)
            name = f"{rows} x {linear.in_features} x {linear.out_features}"
            flops[name] = 2 * rows * linear.weight.numel() * len(weights)
            calls[name] = lambda states=states, weights=weights: [F.linear(states, weight) for weight in weights]
    memory = torch.ones(2**26)  # 256 MiB, larger than any cache
    times = measure({**calls, "memory": memory.sum}, rounds, "machine")
    rates = {name: flops[name] / float(np.median(times[name])) / 1e6 for name in flops}
    read = 4 * memory.numel() / float(np.median(times["memory"])) / 1e6
    return {"rates_gflops": rates, "peak_gflops": max(rates.values()), "bandwidth_gb_per_s": read}


def compare_with_bounds(
    model: Any, scheduled: dict[str, Any], lengths: Sequence[int], rounds: int, machine: dict[str, Any]
) -> list[dict]:
    """Time models, plain RoBERTa and their products, and compare with what the bounds promise."""
    num_layers = model.config.num_hidden_layers
    stock, outside = build_stock(model), build_stock(model, 0)
    grid = sorted({*(n for n in GRID if n <= max(lengths)), *lengths})
    calls: dict[Any, Callable] = {}
    for n in grid:
        inputs = make_inputs(model, n)
        calls["stock", n], calls["outside", n] = partial(stock, **inputs), partial(outside, **inputs)
        calls["stock products", n] = partial(run_all, list_products(model, n, [n] * num_layers))
    leaving, products = {}, {}
    for key, own in scheduled.items():
        for n in lengths:
            leaving[key, n] = own.config.layer_lengths(n, cls_only=own.config.last_layer_cls_only)
            products[key, n] = list_products(model, n, leaving[key, n])
            calls[key, n] = partial(own, **make_inputs(model, n))
            calls[key, n, "products"] = partial(run_all, products[key, n])
    times = measure(calls, rounds, "passes")
    # (rounds, grid): what a layer of plain RoBERTa takes beyond its products
    overhead = np.stack(
        [(times["stock", n] - times["outside", n] - times["stock products", n]) / num_layers for n in grid], axis=1
    )
    rows = []
    for (key, n), kept in leaving.items():
        at_lengths = np.array([np.interp(kept, grid, of_round) for of_round in overhead])
        bound, outer, whole = times[key, n, "products"], times["outside", n], times[key, n]
        predicted = outer + bound + at_lengths.sum(axis=1)
        peak, bandwidth = 1e6 * machine["peak_gflops"], 1e6 * machine["bandwidth_gb_per_s"]
        rows.append(
            {
                "schedule": key,
                "tokens": n,
                "layer_lengths": kept,
                "gflops": sum(flops for flops, *_ in products[key, n]) / 1e9,
                "roofline_ms": sum(max(flops / peak, size / bandwidth) for flops, size, _ in products[key, n]),
                "products_ms": float(np.median(bound)),
                "measured_ms": float(np.median(whole)),
                "overhead_per_layer_us": summarise(1000 * (whole - outer - bound) / num_layers),
                "stock_overhead_per_layer_us": summarise(1000 * at_lengths.mean(axis=1)),
                "speedup": summarise(times["stock", n] / whole),
                "predicted_speedup": summarise(times["stock", n] / predicted),
                "reached": summarise(predicted / whole),
            }
        )
    return rows


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
    num_operators = sum(event.count for event in events) / passes
    return {"tokens": inputs["input_ids"].shape[1], "shares": shares, "num_operators": num_operators}


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


def run(
    model_name_or_path: str,
    schedules: list[str],
    lengths: Sequence[int] = (64, 128, 256, 512),
    rounds: int = 20,
    results_file: str | None = None,
) -> dict[str, Any] | None:
    """Measure the machine, then schedules against their bounds.

    Args:
        model_name_or_path: Checkpoint whose shape and weights are taken.
        schedules: As a search names them: 1-2-1_eta0.
        lengths: Tokens of the texts.
        rounds: Rounds of interleaved timing.
        results_file: JSON file for the tables.
    """
    torch.set_num_threads(1)
    model: Any = load_from_encoder(model_name_or_path, ClassformerForSequenceClassification, num_labels=2).eval()
    scheduled = {key: reconfigure(model, **Schedule.from_key(key).config) for key in schedules}
    machine = measure_machine(model, rounds)
    rows = compare_with_bounds(model, scheduled, lengths, rounds, machine)
    inputs = make_inputs(model, sorted(lengths)[len(lengths) // 2])
    models = {"plain RoBERTa": build_stock(model), **scheduled}
    return write_record(
        results_file,
        model=Path(model_name_or_path).name,
        rounds=rounds,
        hardware=hardware_fingerprint(),
        **machine,
        weight_megabytes=sum(p.numel() for p in model.roberta.encoder.parameters()) * 4 / 1e6,
        rows=rows,
        profiles={name: profile(one, inputs) for name, one in models.items()},
        joined_projections=compare_joined_projections(model, rounds),
    )


def table(record: dict) -> str:
    """Measured speed-up of schedules against what the machine's rates promise."""
    rows = []
    for row in record["rows"]:
        bounds = [f"{100 * row[f'{bound}_ms'] / row['measured_ms']:.0f}" for bound in ("roofline", "products")]
        speedups = [interval(*row[name]) for name in ("speedup", "predicted_speedup")]
        reached = interval(*(100 * value for value in row["reached"]), digits=0)
        overheads = [interval(*row[f"{who}overhead_per_layer_us"], digits=0) for who in ("", "stock_")]
        about = [f"`{row['schedule']}`", row["tokens"], f"{row['gflops']:.2f}"]
        rows.append([*about, *bounds, *speedups, reached, *overheads])
    header = ["schedule", "tokens", "GFLOP", "roofline, %", "products, %", "x stock", "promised", "reached, %"]
    note = (
        f"{record['model']}, batch 1, median and quartiles of {record['rounds']} rounds of processor time, "
        f"{describe_hardware(record)}. Measured: {record['peak_gflops']:.0f} GFLOP/s at best, "
        f"{record['bandwidth_gb_per_s']:.1f} GB/s reading, {record['weight_megabytes']:.0f} MB of weights in the "
        "layers. Roofline and products: share of the time that the bound, or the matrix products alone, would take. "
        "Promised: what the products' own times and plain RoBERTa's overhead at the lengths that leave each layer "
        f"give. Overhead: of a layer, in microseconds, beside that of plain RoBERTa's layers at the lengths that leave "
        f"each layer. {name_command(record)}"
    )
    return format_table([*header, "overhead", "of plain layers"], rows, note)


def profile_table(record: dict) -> str:
    """What the time of a pass goes into."""
    profiles = record["profiles"]
    first = next(iter(profiles.values()))
    rows = [
        [name, *(f"{100 * profiled['shares'][name]:.1f}" for profiled in profiles.values())]
        for name in sorted(first["shares"], key=lambda name: -first["shares"][name])
    ]
    rows.append(["operators in a pass", *(f"{profiled['num_operators']:.0f}" for profiled in profiles.values())])
    header = ["share of the time, %", *(name if " " in name else f"`{name}`" for name in profiles)]
    joined = ", ".join(f"{interval(*ratios)} at {n} tokens" for n, ratios in record["joined_projections"].items())
    note = (
        f"torch.profiler, {first['tokens']} tokens, batch 1. One matrix product for queries, keys and values takes "
        f"{joined} of the time of three.\n"
    )
    return format_table(header, rows, note)


main = command_of(run, __doc__, show=table)
