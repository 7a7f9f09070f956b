"""Ways to batch the same texts, to compare how many a model classifies in a second.

- padded: in their order, every batch padded to the longest of all texts
- unsorted: in their order, every batch padded to its own longest text
- sorted: by length first, then as above
- bucketed: by the power of two that a text fits in, padded to it, so that there are few shapes
"""

import itertools

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


def make_batches(texts: list[list[int]], batching: str, size: int, pad_token_id: int) -> list[dict[str, torch.Tensor]]:
    """Cut texts into padded batches.

    Args:
        texts: Token ids of every text.
        batching: One of `BATCHINGS`.
        size: Texts per batch.
        pad_token_id: Of the model.

    Returns:
        Inputs of a model; all texts, each once.
    """
    longest = max(map(len, texts))

    def round_up(length: int) -> int:
        return min(1 << (length - 1).bit_length(), longest)

    if batching in ("sorted", "bucketed"):
        texts = sorted(texts, key=len)
    key = (lambda text: round_up(len(text))) if batching == "bucketed" else (lambda text: 0)
    batches = []
    for _, group in itertools.groupby(texts, key):
        members = list(group)
        for rows in (members[start : start + size] for start in range(0, len(members), size)):
            width = {"padded": longest, "bucketed": round_up(len(rows[-1]))}.get(batching, max(map(len, rows)))
            ids = torch.tensor([[*row, *[pad_token_id] * (width - len(row))] for row in rows])
            mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
            batches.append({"input_ids": ids, "attention_mask": mask})
    return batches


__all__ = ["BATCHINGS", "AllBatches", "make_batches"]
