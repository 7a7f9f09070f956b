"""Check that a checkpoint becomes an unreduced Classformer without loss: compare every hidden state with the original.

    python experiments/lossless.py --model_name_or_path sentence-transformers/all-MiniLM-L6-v2

Reads two padded text pairs with both models and compares positions that are not padding.
"""

import torch
from frame import command_of
from transformers import AutoModel

from classformer_hf import ClassformerModel, load_from_encoder
from redundancy_hf.limits import load_tokenizer

PAIRS = [("A short text.", "Its pair."), ("A longer text, so that the first one is padded.", "It has a pair as well.")]


@torch.inference_mode()
def run(model_name_or_path: str, tolerance: float = 1e-5) -> float:
    """Give the largest difference of a hidden state.

    Args:
        model_name_or_path: Folder or Hub name of a checkpoint.
        tolerance: Largest difference that passes.

    Raises:
        ValueError: The difference is larger.
    """
    texts, pairs = map(list, zip(*PAIRS, strict=True))
    batch = load_tokenizer(model_name_or_path)(texts, pairs, padding=True, return_tensors="pt")
    original = AutoModel.from_pretrained(model_name_or_path, dtype=torch.float32).eval()
    converted = load_from_encoder(model_name_or_path, ClassformerModel)
    states = [model(**batch, output_hidden_states=True).hidden_states for model in (original, converted)]
    is_token = batch["attention_mask"].bool()
    difference = max((a - b)[is_token].abs().max().item() for a, b in zip(*states, strict=True))
    print(f"{len(states[0])} hidden states, largest difference {difference:.2e}")
    if difference > tolerance:
        raise ValueError(f"hidden states may differ by {tolerance:g}, got {difference:.2e}.")
    return difference


main = command_of(run, __doc__)
