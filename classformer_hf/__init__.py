"""Classformer for Hugging Face: RoBERTa with searched sequence-length bottlenecks."""

from redundancy_hf import export_lazily, register_classes
from redundancy_hf.timing import Target, measure_latency

from .checkpoints import load_from_encoder
from .configuration_classformer import ClassformerConfig
from .flops import count_flops
from .modeling_classformer import ClassformerForMaskedLM, ClassformerForSequenceClassification, ClassformerModel

register_classes(
    ClassformerConfig,
    AutoModel=ClassformerModel,
    AutoModelForMaskedLM=ClassformerForMaskedLM,
    AutoModelForSequenceClassification=ClassformerForSequenceClassification,
)

# what a user runs, with its arguments
VERBS = {
    "ClassformerTrainingArguments": "training",
    "MultitaskTrainingArguments": "commands.multitask",
    "PretrainingArguments": "commands.pretrain",
    "SearchSettings": "search.settings",
    "TextArguments": "texts",
    "choose_cascade": "commands.cascade",
    "compare_latency": "commands.benchmark",
    "export_classifier": "commands.export",
    "pretrain_classformer": "commands.pretrain",
    "search_classformer": "commands.search",
    "train_classformer": "commands.train",
    "train_multitask": "commands.multitask",
    "write_latency_table": "commands.latency_table",
}
__getattr__ = export_lazily(__name__, VERBS)

__all__ = [
    *VERBS,
    "ClassformerConfig",
    "ClassformerForMaskedLM",
    "ClassformerForSequenceClassification",
    "ClassformerModel",
    "Target",
    "count_flops",
    "load_from_encoder",
    "measure_latency",
]
