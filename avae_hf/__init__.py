"""Affine variational autoencoder for Hugging Face: separates what an object is from how it lies, in 2D and 3D."""

from transformers import AutoImageProcessor

from redundancy_hf import export_lazily, register_classes

from .configuration_avae import AVAEConfig
from .image_processing_avae import AVAEImageProcessor
from .modeling_avae import AVAEModel

register_classes(AVAEConfig, AutoModel=AVAEModel)
AVAEImageProcessor.register_for_auto_class("AutoImageProcessor")
AutoImageProcessor.register(AVAEConfig, slow_image_processor_class=AVAEImageProcessor, exist_ok=True)

# what a user runs, with its arguments
VERBS = {
    "AVAETrainingArguments": "training",
    "ShapeTaskArguments": "data",
    "ShapeTaskFlags": "data",
    "evaluate_avae": "commands.evaluate_avae",
    "train_avae": "commands.train_avae",
}
__getattr__ = export_lazily(__name__, VERBS)

__all__ = [*VERBS, "AVAEConfig", "AVAEImageProcessor", "AVAEModel"]
