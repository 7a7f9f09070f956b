"""Weight sharing inside convolutions for Hugging Face: fewer stored kernels, and sometimes fewer operations."""

from redundancy_hf import export_lazily, register_classes

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

register_classes(
    SharedXceptionConfig,
    AutoModel=SharedXceptionModel,
    AutoModelForImageClassification=SharedXceptionForImageClassification,
    AutoBackbone=SharedXceptionBackbone,
)
register_classes(
    SharedEfficientNetConfig,
    AutoModel=SharedEfficientNetModel,
    AutoModelForImageClassification=SharedEfficientNetForImageClassification,
    AutoBackbone=SharedEfficientNetBackbone,
)
register_classes(
    SharedResNetConfig,
    AutoModel=SharedResNetModel,
    AutoModelForImageClassification=SharedResNetForImageClassification,
    AutoBackbone=SharedResNetBackbone,
)

# what a user runs, with its arguments
VERBS = {
    "ImageTaskArguments": "data",
    "ImageTaskFlags": "data",
    "ImageTrainingArguments": "training",
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
