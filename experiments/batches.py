"""Ways to batch the same texts; experiments/throughput.py says what they are."""

import itertools
from typing import Any

import numpy as np
import torch
from torch import nn

BATCHINGS = ("padded", "unsorted", "sorted", "bucketed")


class AllBatches(nn.Module):
    """A model that runs through prepared batches when it is called."""

    def __init__(self, model: nn.Module, batches: list[dict[str, torch.Tensor]]):
        super().__init__()
        self.model, self.batches = model, batches

    def forward(self):
        for batch in self.batches:
            self.model(**batch)


def draw_texts(split: Any, number: int) -> list[list[int]]:
    """Draw the token ids of so many texts at random."""
    return [split[int(row)]["input_ids"] for row in np.random.default_rng(0).permutation(len(split))[:number]]


def make_batches(texts: list[list[int]], batching: str, size: int, pad_token_id: int) -> list[dict[str, torch.Tensor]]:
    """Cut texts, as token ids, into padded inputs of a model, in one of the `BATCHINGS`; all texts, each once."""
    longest = max(map(len, texts))

    def round_up(length: int) -> int:
        return min(1 << (length - 1).bit_length(), longest)

    if batching in ("sorted", "bucketed"):
        texts = sorted(texts, key=len)
    batches = []
    for _, group in itertools.groupby(texts, lambda text: round_up(len(text)) if batching == "bucketed" else 0):
        members = list(group)
        for rows in (members[start : start + size] for start in range(0, len(members), size)):
            width = {"padded": longest, "bucketed": round_up(len(rows[-1]))}.get(batching, max(map(len, rows)))
            ids = torch.tensor([[*row, *[pad_token_id] * (width - len(row))] for row in rows])
            mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
            batches.append({"input_ids": ids, "attention_mask": mask})
    return batches
