"""Classformer for Hugging Face: RoBERTa with searched sequence-length bottlenecks."""

from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from redundancy_hf.timing import measure_latency

from .checkpoints import load_from_encoder
from .configuration_classformer import ClassformerConfig
from .flops import count_flops
from .modeling_classformer import ClassformerForMaskedLM, ClassformerForSequenceClassification, ClassformerModel

AutoConfig.register("classformer", ClassformerConfig, exist_ok=True)
for _auto_class, _model_class in (
    (AutoModel, ClassformerModel),
    (AutoModelForMaskedLM, ClassformerForMaskedLM),
    (AutoModelForSequenceClassification, ClassformerForSequenceClassification),
):
    _auto_class.register(ClassformerConfig, _model_class, exist_ok=True)
    # save_pretrained then copies the code into the folder
    _model_class.register_for_auto_class(_auto_class.__name__)
ClassformerConfig.register_for_auto_class()

__all__ = [
    "ClassformerConfig",
    "ClassformerForMaskedLM",
    "ClassformerForSequenceClassification",
    "ClassformerModel",
    "count_flops",
    "load_from_encoder",
    "measure_latency",
]
