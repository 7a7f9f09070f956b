"""Weight sharing inside convolutions for Hugging Face: fewer stored kernels, and sometimes fewer operations."""

from transformers import AutoBackbone, AutoConfig, AutoModel, AutoModelForImageClassification

from redundancy_hf import export_lazily

from .configuration_shared_efficientnet import SharedEfficientNetConfig
from .configuration_shared_resnet import SharedResNetConfig
from .configuration_shared_xception import SharedXceptionConfig
from .conversion import share_weights
from .expansion import expand_weights
from .layers_shared_conv import SharedConv2d, SharedDepthwiseConv2d, SharedSeparableConv2d
from .modeling_shared_efficientnet import (
    SharedEfficientNetBackbone,
    SharedEfficientNetForImageClassification,
    SharedEfficientNetModel,
)
from .modeling_shared_resnet import SharedResNetBackbone, SharedResNetForImageClassification, SharedResNetModel
from .modeling_shared_xception import (
    SharedXceptionBackbone,
    SharedXceptionForImageClassification,
    SharedXceptionModel,
)

for _config_class, _model_classes in (
    (SharedXceptionConfig, (SharedXceptionModel, SharedXceptionForImageClassification, SharedXceptionBackbone)),
    (
        SharedEfficientNetConfig,
        (SharedEfficientNetModel, SharedEfficientNetForImageClassification, SharedEfficientNetBackbone),
    ),
    (SharedResNetConfig, (SharedResNetModel, SharedResNetForImageClassification, SharedResNetBackbone)),
):
    AutoConfig.register(_config_class.model_type, _config_class, exist_ok=True)
    _config_class.register_for_auto_class()
    _auto_classes = (AutoModel, AutoModelForImageClassification, AutoBackbone)
    for _auto_class, _model_class in zip(_auto_classes, _model_classes, strict=True):
        _auto_class.register(_config_class, _model_class, exist_ok=True)
        # save_pretrained then copies the code into the folder
        _model_class.register_for_auto_class(_auto_class.__name__)

# what a user runs
VERBS = {
    "compare_image_classifiers": "commands.compare_images",
    "explain_images": "commands.explain_images",
    "share_image_classifier": "commands.share",
    "train_image_classifier": "commands.train_images",
}
__getattr__ = export_lazily(__name__, VERBS)

__all__ = [
    *VERBS,
    "SharedConv2d",
    "SharedDepthwiseConv2d",
    "SharedEfficientNetBackbone",
    "SharedEfficientNetConfig",
    "SharedEfficientNetForImageClassification",
    "SharedEfficientNetModel",
    "SharedResNetBackbone",
    "SharedResNetConfig",
    "SharedResNetForImageClassification",
    "SharedResNetModel",
    "SharedSeparableConv2d",
    "SharedXceptionBackbone",
    "SharedXceptionConfig",
    "SharedXceptionForImageClassification",
    "SharedXceptionModel",
    "expand_weights",
    "share_weights",
]
