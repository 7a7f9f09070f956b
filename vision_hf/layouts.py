"""Plain networks in the layouts of transformers and timm, and ours: the same numbers under other names."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from transformers import (
    EfficientNetConfig,
    EfficientNetForImageClassification,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
)

from .configuration_shared_efficientnet import SharedEfficientNetConfig
from .configuration_shared_resnet import SharedResNetConfig
from .expansion import expand_weights
from .modeling_shared_efficientnet import SharedEfficientNetForImageClassification
from .modeling_shared_resnet import SharedResNetForImageClassification

# settings of EfficientNet that transformers calls as we do
SAME = (
    *("num_channels", "width_coefficient", "depth_coefficient", "depth_divisor", "hidden_act", "kernel_sizes"),
    *("out_channels", "strides", "num_block_repeats", "expand_ratios", "squeeze_expansion_ratio", "batch_norm_eps"),
    "dropout_rate",
)


def from_transformers(model: Any) -> PreTrainedModel:
    """Turn an EfficientNet or ResNet classifier of transformers into our plain network with the same outputs.

    Raises:
        ValueError: It is another model, or it has a setting that ours has not.
    """
    theirs = model.config
    head = {"num_labels": theirs.num_labels, "id2label": theirs.id2label, "label2id": theirs.label2id}
    if isinstance(model, EfficientNetForImageClassification):
        ours: Any = SharedEfficientNetForImageClassification(_config_from_efficientnet(theirs, head))
    elif isinstance(model, ResNetForImageClassification):
        ours = SharedResNetForImageClassification(_config_from_resnet(theirs, head))
    else:
        raise ValueError(
            f"EfficientNetForImageClassification and ResNetForImageClassification can be converted, got "
            f"{type(model).__name__}."
        )
    _load_renamed(ours, model.state_dict(), TRANSFORMERS)
    return ours.to(model.device, model.dtype).eval()


def _config_from_efficientnet(theirs: EfficientNetConfig, head: dict) -> SharedEfficientNetConfig:
    if theirs.pooling_type != "mean":
        raise ValueError(f'only `pooling_type="mean"` can be converted, got {theirs.pooling_type!r}.')
    options = {name: getattr(theirs, name) for name in SAME}
    options = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
    return SharedEfficientNetConfig(
        **options,
        image_size=theirs.image_size if isinstance(theirs.image_size, int) else theirs.image_size[0],
        batch_norm_momentum=1 - theirs.batch_norm_momentum,  # theirs is Keras' number
        drop_path_rate=theirs.drop_connect_rate,
        padding_style="keras",
        symmetric_blocks=list(theirs.depthwise_padding),
        **head,
    )


def _symmetric_blocks(config: SharedEfficientNetConfig) -> list[int]:
    """List the blocks that get symmetric padding where an image of `image_size` is padded as TensorFlow does."""
    found, number, side = [], 0, -(-config.image_size // config.stem_stride)
    for blocks, stride in zip(config.num_block_repeats, config.strides, strict=True):
        if stride > 1 and side % 2:
            found.append(number)
        number, side = number + config.scale_depth(blocks), -(-side // stride)
    return found


def _config_from_resnet(theirs: ResNetConfig, head: dict) -> SharedResNetConfig:
    if theirs.downsample_in_first_stage or theirs.downsample_in_bottleneck or theirs.hidden_act != "relu":
        raise ValueError(
            "only ResNets with ReLU and the stride on the 3x3 convolution of all but the first stage can be converted; "
            "`downsample_in_first_stage` and `downsample_in_bottleneck` must be False."
        )
    return SharedResNetConfig(
        num_channels=theirs.num_channels,
        embedding_size=theirs.embedding_size,
        hidden_sizes=list(theirs.hidden_sizes or []),
        depths=list(theirs.depths or []),
        layer_type=theirs.layer_type,
        **head,
    )


def to_transformers(model: PreTrainedModel) -> PreTrainedModel:
    """Turn one of our EfficientNet or ResNet classifiers, expanded, into transformers' own with the same outputs.

    `padding_style="same"` depends on the size of the image and theirs does not: the outputs are the same for images of
    `image_size`.

    Raises:
        ValueError: transformers has no such network: an Xception, symmetric padding, or a stem for small images.
    """
    plain: Any = expand_weights(model)
    ours = plain.config
    head = {"num_labels": ours.num_labels, "id2label": ours.id2label, "label2id": ours.label2id}
    theirs: Any
    if isinstance(plain, SharedEfficientNetForImageClassification):
        fixed = {"stem_stride": 2, "stem_channels": 32, "head_channels": 1280}
        others = {name: getattr(ours, name) for name, value in fixed.items() if getattr(ours, name) != value}
        is_same = ours.padding_style == "same"
        if ours.padding_style == "symmetric" or (is_same and (ours.image_size % 2 or max(ours.strides) > 2)):
            others |= {"padding_style": ours.padding_style, "image_size": ours.image_size}
        if others or ours.divide_channels(list(ours.out_channels)) != list(ours.out_channels):
            raise ValueError(
                f"transformers' EfficientNet pads like TensorFlow and keeps all channels: it has {fixed}, got "
                f"{others or {'channel_divisor': ours.channel_divisor}}."
            )
        config: Any = EfficientNetConfig(
            **{name: getattr(ours, name) for name in SAME},
            image_size=ours.image_size,
            in_channels=[ours.stem_channels, *ours.out_channels[:-1]],
            hidden_dim=ours.scale_width(ours.head_channels),
            batch_norm_momentum=1 - ours.batch_norm_momentum,
            drop_connect_rate=ours.drop_path_rate,
            depthwise_padding=_symmetric_blocks(ours) if is_same else ours.symmetric_blocks or [],
            **head,
        )
        theirs = EfficientNetForImageClassification(config)
    elif isinstance(plain, SharedResNetForImageClassification):
        if ours.stem_type != "imagenet" or ours.batch_norm_eps != 1e-5:
            raise ValueError(
                'transformers\' ResNet has `stem_type="imagenet"` and `batch_norm_eps=1e-5`, got '
                f"{ours.stem_type!r} and {ours.batch_norm_eps:g}."
            )
        sizes = {"hidden_sizes": ours.divide_channels(list(ours.hidden_sizes)), "depths": ours.depths}
        config = ResNetConfig(
            num_channels=ours.num_channels,
            embedding_size=ours.embedding_size,
            layer_type=ours.layer_type,
            **sizes,
            **head,
        )
        theirs = ResNetForImageClassification(config)
    else:
        raise ValueError(f"transformers has no plain counterpart of {type(model).__name__}.")
    theirs.load_state_dict({rename_key(key, ours, TRANSFORMERS): value for key, value in plain.state_dict().items()})
    return theirs.to(plain.device, plain.dtype).train(model.training)


def from_timm(state: Mapping[str, torch.Tensor], config: Any) -> PreTrainedModel:
    """Build our plain classifier from a state dict in timm's layout (`efficientnet_b*` or `resnet*`).

    Args:
        state: Tensors by timm's names.
        config: Architecture; `padding_style` must be "same" for timm's `tf_` models.

    Raises:
        ValueError: The family is another one, or names or shapes do not fit the configuration.
    """
    classes: dict[str, type] = {
        "shared_efficientnet": SharedEfficientNetForImageClassification,
        "shared_resnet": SharedResNetForImageClassification,
    }
    if config.model_type not in classes:
        raise ValueError(f"timm's layout is known for {sorted(classes)}, got {config.model_type!r}.")
    model = classes[config.model_type](config)
    _load_renamed(model, state, TIMM)
    return model.eval()


def to_timm(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Give the expanded weights of an EfficientNet or ResNet classifier by timm's names.

    Raises:
        ValueError: The model is another one, or has no classifier.
    """
    if not isinstance(model, SharedEfficientNetForImageClassification | SharedResNetForImageClassification):
        raise ValueError(f"timm's layout is of EfficientNet and ResNet classifiers, got {type(model).__name__}.")
    plain = expand_weights(model)
    return {rename_key(key, plain.config, TIMM): value for key, value in plain.state_dict().items()}


def _load_renamed(model: Any, state: Mapping[str, torch.Tensor], layout: int):
    own = model.state_dict()
    names = {key: rename_key(key, model.config, layout) for key in own}
    # some layouts leave the counters out
    missing = sorted(t for k, t in names.items() if t not in state and not k.endswith("num_batches_tracked"))
    unexpected = sorted(set(state) - set(names.values()))
    shapes = [t for k, t in names.items() if t in state and state[t].shape != own[k].shape]
    if missing or unexpected or shapes:
        raise ValueError(
            f"the state dict does not fit the configuration: missing {missing[:3]}, unexpected {unexpected[:3]}, other "
            f"shapes {shapes[:3]}; check depths, widths and labels."
        )
    model.load_state_dict({key: state.get(theirs, own[key]) for key, theirs in names.items()})


# ours, transformers' and timm's; timm counts the layers of a block without expansion otherwise
MBCONV = (
    ("expand", "expansion.expand_conv", "conv_pw", None),
    ("expand_norm", "expansion.expand_bn", "bn1", None),
    ("depthwise", "depthwise_conv.depthwise_conv", "conv_dw", "conv_dw"),
    ("depthwise_norm", "depthwise_conv.depthwise_norm", "bn2", "bn1"),
    ("squeeze_excite.reduce", "squeeze_excite.reduce", "se.conv_reduce", "se.conv_reduce"),
    ("squeeze_excite.expand", "squeeze_excite.expand", "se.conv_expand", "se.conv_expand"),
    ("project", "projection.project_conv", "conv_pwl", "conv_pw"),
    ("project_norm", "projection.project_bn", "bn3", "bn2"),
)
ENDS = {
    "shared_efficientnet": (
        ("model.stem.conv", "efficientnet.embeddings.convolution", "conv_stem"),
        ("model.stem.norm", "efficientnet.embeddings.batchnorm", "bn1"),
        ("model.head.conv", "efficientnet.encoder.top_conv", "conv_head"),
        ("model.head.norm", "efficientnet.encoder.top_bn", "bn2"),
        ("classifier", "classifier", "classifier"),
    ),
    "shared_resnet": (
        ("model.stem.0.conv", "resnet.embedder.embedder.convolution", "conv1"),
        ("model.stem.0.norm", "resnet.embedder.embedder.normalization", "bn1"),
        ("classifier", "classifier.1", "fc"),
    ),
}
TRANSFORMERS, TIMM, TIMM_SEPARABLE = 1, 2, 3
BLOCK_KEY = re.compile(r"model\.stages\.(\d+)\.(\d+)\.(.+)")


def _find_name(rows: tuple, name: str, layout: int) -> str | None:
    return next((row[layout] for row in rows if row[0] == name), None)


def rename_key(key: str, config: Any, layout: int) -> str:
    """Translate a name of our state dict into that of another layout, `TRANSFORMERS` or `TIMM`."""
    module, _, tensor = key.rpartition(".")
    if name := _find_name(ENDS[config.model_type], module, layout):
        return f"{name}.{tensor}"
    stage, block, part = BLOCK_KEY.fullmatch(module).groups()  # type: ignore[union-attr]
    rename = _rename_mbconv if config.model_type == "shared_efficientnet" else _rename_resnet
    return f"{rename(int(stage), int(block), part, config, layout)}.{tensor}"


def _rename_mbconv(stage: int, block: int, part: str, config: Any, layout: int) -> str:
    if layout == TRANSFORMERS:
        number = block + sum(config.scale_depth(blocks) for blocks in config.num_block_repeats[:stage])
        return f"efficientnet.encoder.blocks.{number}.{_find_name(MBCONV, part, layout)}"
    layout = TIMM_SEPARABLE if config.expand_ratios[stage] == 1 else TIMM
    return f"blocks.{stage}.{block}.{_find_name(MBCONV, part, layout)}"


def _rename_resnet(stage: int, block: int, part: str, config: Any, layout: int) -> str:
    if layout == TRANSFORMERS:
        part = part.replace("layers.", "layer.").replace("conv", "convolution").replace("norm", "normalization")
        return f"resnet.encoder.stages.{stage}.layers.{block}.{part}"
    if part.startswith("shortcut"):
        part = "downsample.0" if part.endswith("conv") else "downsample.1"
    else:
        _, number, kind = part.split(".")
        part = f"{kind.replace('norm', 'bn')}{int(number) + 1}"
    return f"layer{stage + 1}.{block}.{part}"
