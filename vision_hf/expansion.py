"""From shared networks to plain ones that compute exactly the same."""

import copy
from typing import Any

import torch
from transformers import PreTrainedModel

from .layers_codebook import CodebookConv2d
from .layers_shared_conv import SharedConv2d, SharedDepthwiseConv2d
from .modeling_shared_resnet import SharedConvNorm


def is_ours(model: Any) -> bool:
    """Say whether a model is of one of our families."""
    return str(getattr(model.config, "model_type", "")).startswith("shared_")


@torch.no_grad()
def expand_weights(model: PreTrainedModel) -> PreTrainedModel:
    """Build the plain network of the same class that computes exactly the same; codebooks are expanded too.

    Raises:
        ValueError: The model is none of a shared Xception, EfficientNet or ResNet.
    """
    if not is_ours(model):
        raise ValueError(f"only shared networks can be expanded, got {type(model).__name__}.")
    config: Any = copy.deepcopy(model.config)
    config.sharing_factor = config.pointwise_sharing_factor = 1
    config.codebooks = None
    if hasattr(config, "batch_norm_position"):
        config.batch_norm_position = "after"
    plain: Any = type(model)(config)
    plain.to(model.device, model.dtype)
    state = dict(model.state_dict())
    for name, module in model.named_modules():
        if isinstance(module, (SharedConv2d, SharedDepthwiseConv2d)):
            state[f"{name}.weight"] = module.expanded_weight()
        elif isinstance(module, CodebookConv2d):
            del state[f"{name}.codebook"], state[f"{name}.indices"]
            state[f"{name}.weight"] = module.expanded_weight()
    for name, module in model.named_modules():
        if isinstance(module, SharedConvNorm) and module.repeats > 1:
            for key in [key for key in state if key.startswith(f"{name}.") and state[key].ndim > 0]:
                state[key] = state[key].repeat(module.repeats, *[1] * (state[key].ndim - 1))
    plain.load_state_dict(state)
    return plain.train(model.training)
