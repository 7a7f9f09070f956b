"""Check that a checkpoint becomes an unreduced Classformer without loss: compare every hidden state with the original.

Example:

    python experiments/lossless.py --model_name_or_path sentence-transformers/all-MiniLM-L6-v2

Reads two padded text pairs with both models and prints the largest difference at positions that are not padding. The
exit code is 1 if it is above the tolerance.
"""

from dataclasses import dataclass, field

import torch
from transformers import AutoModel
from transformers.utils import logging as transformers_logging

from classformer_hf import ClassformerModel, load_from_encoder
from redundancy_hf.command import parse_arguments, run_command
from redundancy_hf.limits import load_tokenizer

PAIRS = [("A short text.", "Its pair."), ("A longer text, so that the first one is padded.", "It has a pair as well.")]


@dataclass
class ConversionArguments:
    model_name_or_path: str = field(metadata={"help": "Folder or Hub name of a checkpoint."})
    tolerance: float = field(default=1e-5, metadata={"help": "Largest difference that passes."})


@torch.inference_mode()
def main() -> int:
    (arguments,) = parse_arguments([ConversionArguments], __doc__)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    texts, pairs = map(list, zip(*PAIRS, strict=True))
    batch = load_tokenizer(arguments.model_name_or_path)(texts, pairs, padding=True, return_tensors="pt")
    original = AutoModel.from_pretrained(arguments.model_name_or_path, dtype=torch.float32).eval()
    converted = load_from_encoder(arguments.model_name_or_path, ClassformerModel)
    states = [model(**batch, output_hidden_states=True).hidden_states for model in (original, converted)]
    is_token = batch["attention_mask"].bool()
    difference = max((a - b)[is_token].abs().max().item() for a, b in zip(*states, strict=True))
    print(f"{len(states[0])} hidden states, largest difference {difference:.2e}")
    return int(difference > arguments.tolerance)


if __name__ == "__main__":
    run_command(main)
