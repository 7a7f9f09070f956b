"""Affine variational autoencoder for Hugging Face: separates what an object is from how it lies, in 2D and 3D."""

from transformers import AutoConfig, AutoImageProcessor, AutoModel

from redundancy_hf import export_lazily

from .configuration_avae import AVAEConfig
from .image_processing_avae import AVAEImageProcessor
from .modeling_avae import AVAEModel

AutoConfig.register(AVAEConfig.model_type, AVAEConfig, exist_ok=True)
AutoModel.register(AVAEConfig, AVAEModel, exist_ok=True)
# save_pretrained then copies the code into the folder
AVAEConfig.register_for_auto_class()
AVAEModel.register_for_auto_class("AutoModel")
AVAEImageProcessor.register_for_auto_class("AutoImageProcessor")
AutoImageProcessor.register(AVAEConfig, slow_image_processor_class=AVAEImageProcessor, exist_ok=True)

# what a user runs
VERBS = {"evaluate_avae": "commands.evaluate_avae", "train_avae": "commands.train_avae"}
__getattr__ = export_lazily(__name__, VERBS)

__all__ = [*VERBS, "AVAEConfig", "AVAEImageProcessor", "AVAEModel"]
