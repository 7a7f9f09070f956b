"""Floating-point operations: of a Classformer by formula, of any model as torch counts them."""

from collections.abc import Iterable
from typing import Any

from torch.utils.flop_counter import FlopCounterMode

from .configuration_classformer import ClassformerConfig


def count_flops(config: ClassformerConfig, sequence_length: int) -> int:
    """Count the forward operations of `ClassformerForSequenceClassification` on one text.

    Only matrix products count, 2 operations per multiply-add. The number equals that of
    `torch.utils.flop_counter.FlopCounterMode` with eager attention; with SDPA on a CPU that counter misses the products
    inside the attention.

    Args:
        config: Its `gamma`, `eta` and `last_layer_cls_only` give the length of every layer.
        sequence_length: Length of the input, in tokens.

    Returns:
        Operations of one forward pass at batch size 1.

    Raises:
        ValueError: `sequence_length` is below 1.
    """
    if sequence_length < 1:
        raise ValueError(f"`sequence_length` counts tokens and must be >= 1, got {sequence_length}.")
    layer_lengths = config.layer_lengths(sequence_length, cls_only=config.last_layer_cls_only)
    return sum_flops(config, sequence_length, layer_lengths)


def sum_flops(config: ClassformerConfig, tokens_in: Any, layer_lengths: Iterable[Any]) -> Any:
    """Sum the operations of the layers and the head, for one text or, elementwise, for arrays of them.

    Args:
        config: Gives the widths.
        tokens_in: Length of the input, an integer or an array.
        layer_lengths: What leaves every layer, integers or arrays of that shape.
    """
    hidden, intermediate = config.hidden_size, config.intermediate_size
    multiply_adds = hidden * hidden + hidden * config.num_labels  # type: ignore[operator]
    for tokens_out in layer_lengths:
        keys_and_values = 2 * tokens_in * hidden * hidden
        queries_and_output = 2 * tokens_out * hidden * hidden
        scores_and_mixing = 2 * tokens_in * tokens_out * hidden
        feed_forward = 2 * tokens_out * hidden * intermediate
        multiply_adds = multiply_adds + keys_and_values + queries_and_output + scores_and_mixing + feed_forward
        tokens_in = tokens_out
    return 2 * multiply_adds


def count_executed_flops(model: Any, inputs: dict[str, Any], has_backward: bool = False) -> int:
    """Count the operations of a pass, two per multiply-add, in all matrix products and convolutions.

    Attention is counted in its plain form, because fused kernels are counted differently or not at all.

    Args:
        model: Any of transformers.
        inputs: Of its call.
        has_backward: Count the backward pass of its loss, too; the gradients are then forgotten.
    """
    implementation = model.config._attn_implementation
    if implementation is not None:
        model.set_attn_implementation("eager")
    try:
        # with gradients: without, the counter's bookkeeping fails where a module is called with a parameter (DeBERTa)
        with FlopCounterMode(display=False) as counter:
            outputs = model(**inputs)
            if has_backward:
                outputs.loss.backward()
    finally:
        if implementation is not None:
            model.set_attn_implementation(implementation)
        if has_backward:
            model.zero_grad()
    return counter.get_total_flops()


def count_step_flops(trainer: Any, batch: dict[str, Any]) -> int:
    """Count the operations of a Trainer's step on a batch of its collator, forward and backward."""
    model = trainer.accelerator.unwrap_model(trainer.model).train()
    return count_executed_flops(model, {name: value.to(model.device) for name, value in batch.items()}, True)
