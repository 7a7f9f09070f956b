"""Exported classifiers: a static graph per length bucket, and a dispatcher that chooses between them.

The schedule of a bucket is fixed in its graph, so that no graph depends on data. A classifier without length buckets
gives one graph.
"""

import copy
import json
from pathlib import Path
from typing import Any

import torch

from .configuration_classformer import ClassformerConfig
from .modeling_classformer import ClassformerForSequenceClassification

INDEX = "graphs.json"


class LogitsOnly(torch.nn.Module):
    """A classifier that returns a tensor."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


@torch.no_grad()
def export_graphs(model: ClassformerForSequenceClassification, folder: str | Path) -> list[Path]:
    """Write a graph per length bucket, with dynamic batch size and length (torch.export).

    Args:
        model: A classifier; it is not changed.
        folder: Gets `graph-<longest input>.pt2` files and `graphs.json`.

    Returns:
        The graphs, for the shortest inputs first.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config: ClassformerConfig = model.config
    pad_token_id = config.pad_token_id or 0
    longest = config.max_position_embeddings - pad_token_id - 1
    limits = [bucket["max_tokens"] for bucket in config.length_buckets or []]
    index: list[dict[str, Any]] = []
    for limit in [*(one for one in limits if one < longest), longest]:
        gamma, eta = config.schedule_for(limit)
        single = _with_schedule(model, gamma, eta)
        # torch.export takes a length of 1 for a constant: shorter texts are padded until every layer keeps 2 positions
        # beside the first eta
        shortest = next((n for n in range(2, longest) if min(single.config.layer_lengths(n)) >= eta + 2), longest)
        example = torch.full((2, max(limit, shortest)), pad_token_id + 1)
        # two tensors: the exporter takes one that is given twice for one input
        example_inputs = (example, torch.ones_like(example))
        dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
        program = torch.export.export(LogitsOnly(single), example_inputs, dynamic_shapes=(dynamic, dynamic))
        index.append(
            {
                "file": f"graph-{limit}.pt2",
                "max_tokens": limit,
                "min_padded_tokens": shortest,
                "pad_token_id": pad_token_id,
            }
        )
        torch.export.save(program, folder / index[-1]["file"])
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return [folder / entry["file"] for entry in index]


def _with_schedule(model: Any, gamma: list[int], eta: int) -> Any:
    """Give the same weights a fixed schedule."""
    single = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    config = copy.deepcopy(model.config)
    config.gamma, config.eta, config.length_buckets = list(gamma), eta, None
    # the exporter follows eager attention at every length
    config._attn_implementation = "eager"
    for module in single.modules():
        if hasattr(module, "config"):
            module.config = config
    return single.eval()


class GraphDispatcher:
    """Runs the graph of every example's length bucket.

    Args:
        folder: What `export_graphs` wrote.

    Raises:
        ValueError: The folder holds no graphs.
    """

    def __init__(self, folder: str | Path):
        try:
            index = json.loads((Path(folder) / INDEX).read_text())
        except OSError as error:
            raise ValueError(f"{folder} holds no {INDEX}; write it with `export_graphs`.") from error
        self.pad_token_id = index[0]["pad_token_id"]
        self.shortest = [entry["min_padded_tokens"] for entry in index]
        self.limits = torch.tensor([entry["max_tokens"] for entry in index])
        self.graphs = [torch.export.load(Path(folder) / entry["file"]).module() for entry in index]

    @torch.no_grad()
    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Classify a batch that is padded on the right.

        Args:
            input_ids: Token ids, (B, L).
            attention_mask: 1 for tokens and 0 for padding, (B, L).

        Returns:
            Logits, (B, num_labels).

        Raises:
            ValueError: A text is longer than the model reads.
        """
        lengths = attention_mask.sum(dim=1)
        if lengths.max() > self.limits[-1]:
            raise ValueError(f"the model reads at most {self.limits[-1]} tokens, got {int(lengths.max())}.")
        buckets = torch.bucketize(lengths, self.limits)
        logits: torch.Tensor | None = None
        for bucket in buckets.unique().tolist():
            rows = (buckets == bucket).nonzero()[:, 0]
            longest = int(lengths[rows].max())
            missing = max(self.shortest[bucket] - longest, 0)
            ids, mask = (
                torch.nn.functional.pad(tensor[rows, :longest], (0, missing)) for tensor in (input_ids, attention_mask)
            )
            # what stands under the mask is padding to RoBERTa's embeddings too, which count positions by the ids
            part = self.graphs[bucket](torch.where(mask == 1, ids, self.pad_token_id), mask)
            if logits is None:
                logits = part.new_empty(len(lengths), part.shape[1])
            logits[rows] = part
        if logits is None:
            raise ValueError("the batch is empty.")
        return logits


__all__ = ["GraphDispatcher", "export_graphs"]
