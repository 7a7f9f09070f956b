"""The matrix products of a model alone, and interleaved timing of anything: what a pass could take at best."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from redundancy_hf.timing import time_in_turns


def list_products(model: Any, tokens_in: int, lengths: list[int]) -> list[tuple]:
    """Give the matrix products of the layers in their order, as (operations, bytes moved, function).

    Args:
        model: A Classformer classifier, whose weights are used.
        tokens_in: Tokens of the text.
        lengths: Tokens that leave each layer.
    """
    products: list[tuple] = []

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
        add_linear(layer.attention.output.dense, tokens_out)
        add_linear(layer.intermediate.dense, tokens_out)
        add_linear(layer.output.dense, tokens_out)
        tokens_in = tokens_out
    return products


def run_all(products: list[tuple]) -> Callable[[], None]:
    def run():
        for *_, call in products:
            call()

    return run


def measure(calls: dict[Any, Callable[[], Any]], rounds: int, what: str) -> dict[Any, np.ndarray]:
    """Give the processor time of every call in every round, in milliseconds, (rounds,)."""
    with torch.inference_mode(), tqdm(total=rounds + 2, desc=what, unit="round") as bar:
        times = time_in_turns([calls], rounds, clock="thread_cpu", on_round=bar.update)
    return {name: ticks[:, 0] for name, ticks in times.ticks.items()}


__all__ = ["list_products", "measure", "run_all"]
