"""Turn RoBERTa-, BERT-, ELECTRA- and DistilBERT-family checkpoints into a Classformer, with no silent loss.

A Classformer that drops nothing is RoBERTa, and these families differ from RoBERTa in names, in where positions start
and in their heads. The stock class reads the checkpoint, a table per family renames, and every weight that is neither
used nor filled is named: at INFO what is left out, at WARNING what is fresh, as an error what nobody expects.

The stock BERT, ELECTRA and DistilBERT number positions by place, RoBERTa by counting tokens other than the padding
token: the outputs agree on inputs padded on the right. Heads agree in evaluation; in training Classformer's head drops
out before its first linear layer too, as RoBERTa's does.
"""

import copy
import dataclasses
import hashlib
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from redundancy_hf.failures import explain_failure, first_line, resolve_commit
from redundancy_hf.folders import is_export
from redundancy_hf.outputs import check_output_names, describe_assumption, find_label_order, name_outputs

from .configuration_classformer import ClassformerConfig
from .families import FAMILIES, Family
from .modeling_classformer import ClassformerForMaskedLM, ClassformerForSequenceClassification, ClassformerModel

logger = logging.getLogger(__name__)


class Head(NamedTuple):
    """A class that can be asked for, and where its head is found."""

    model_class: type[PreTrainedModel]
    stock_class: Any
    # endings in a checkpoint's `architectures` that mean this head
    architectures: tuple[str, ...]
    prefix: str


CLASSIFIER = Head(
    ClassformerForSequenceClassification,
    AutoModelForSequenceClassification,
    ("ForSequenceClassification",),
    "classifier.",
)
MASKED_LM = Head(ClassformerForMaskedLM, AutoModelForMaskedLM, ("ForMaskedLM", "BertForPreTraining"), "lm_head.")
BARE = Head(ClassformerModel, AutoModel, (), "pooler.")
# what a checkpoint may hold besides the encoder: heads, also of other tasks, and the pooler
HEAD_WEIGHTS = re.compile(
    r"(pooler|classifier|pre_classifier|cls|lm_head|qa_outputs|vocab_transform|vocab_layer_norm|vocab_projector|"
    r"discriminator_predictions|generator_predictions|generator_lm_head|sequence_summary)\."
)
# what a file that is cut short, missing or no checkpoint at all raises
READ_ERRORS = (OSError, SafetensorError, RuntimeError, ValueError, EOFError, UnpicklingError)
# the rest of its fields a Classformer sets itself: an encoder, without a cache, in the precision that is asked for
CARRIED_FIELDS = {field.name for field in dataclasses.fields(ClassformerConfig)} - {
    "architectures",
    "dtype",
    "transformers_version",
    "use_cache",
    "is_decoder",
    "add_cross_attention",
}


def load_from_encoder(
    name_or_path: str | Path,
    model_class: type[PreTrainedModel] = ClassformerForSequenceClassification,
    output_names: Sequence[str] | None = None,
    needs_head: bool = False,
    **config_overrides: Any,
) -> PreTrainedModel:
    """Load a pretrained encoder as a Classformer.

    A head of the kind that is asked for is carried; another kind is left out and a fresh head made. Labels that are
    given by `id2label` are found among the checkpoint's by name, and its outputs brought into their order; a head of as
    many other labels is left out too. BERT's pooler is the first layer of its classification head, so it also starts
    that layer where a BERT checkpoint is bare, as in BERT fine-tuning. The tokenizer is the checkpoint's own.

    Args:
        name_or_path: Folder or Hub name of a RoBERTa, XLM-R, CamemBERT, BERT, ELECTRA, DistilBERT or Classformer
            checkpoint: bare, classifier or masked LM.
        model_class: `ClassformerForSequenceClassification`, `ClassformerForMaskedLM` or `ClassformerModel`.
        output_names: The labels that are given, in the order of the checkpoint's outputs, where names do not say it.
        needs_head: Refuse to make a fresh classification head.
        config_overrides: Fields of [`ClassformerConfig`] (`gamma`, `eta`, `num_labels`, ...), `attn_implementation`,
            or `dtype`, the precision of the weights (float32 otherwise, whatever the checkpoint's).

    Returns:
        The model in evaluation mode on the CPU.

    Raises:
        OSError: The config or the weights cannot be read.
        ValueError: The checkpoint holds something that a Classformer cannot express, weights are missing, unexpected
            or of another shape than the config says, an override is unknown or invalid, or a head is needed and not
            there.
    """
    name = str(name_or_path)
    dtype = config_overrides.pop("dtype", torch.float32)
    head = _find_head(model_class)
    source_config = read_encoder_config(name)
    family = FAMILIES[source_config.model_type]
    config = _translate_config(name, source_config, family, config_overrides)
    order = None
    if head is CLASSIFIER:
        order = _order_outputs(name, source_config, config_overrides, config, output_names)

    source, missing, unused = _load_source(name, source_config, family, head)
    weights = _translate_weights(source, missing, family, config, head, order)
    if head is MASKED_LM and "lm_head.dense.weight" in weights:
        _complete_masked_lm_head(name, source_config, family, config, weights)

    model, info = _load_quietly(model_class, None, config=config, state_dict=weights, dtype=dtype)
    fresh, homeless = set(info["missing_keys"]), set(info["unexpected_keys"])
    misfits = _list_mismatches(info) or _list(key for key in fresh | homeless if not _is_head(key, model))
    if misfits:
        raise ValueError(f"overrides must fit the weights of `{name}`, got {config_overrides}; at odds: {misfits}.")
    model.name_or_path = model.config.name_or_path = name
    if fresh and needs_head:
        raise ValueError(
            f"`{name}` must be a classifier of {', '.join(name_outputs(config))}; it lacks {_list(fresh)}."
        )
    if fresh:
        logger.warning(
            "Fresh weights, which `%s` does not have in this shape and training must set: %s", name, _list(fresh)
        )
    if unused | homeless:
        logger.info("Weights of `%s` that are not used: %s", name, _list(unused | homeless))
    return model


def has_head(config: PreTrainedConfig, label_names: Sequence[str], output_names: Sequence[str] | None = None) -> bool:
    """Say whether a checkpoint is a classifier of these labels, so that it can be judged before any training."""
    return (
        _has_architecture(config, CLASSIFIER)
        and find_label_order(name_outputs(config), label_names, output_names) is not None
    )


def choose_schedule(gamma: Sequence[int] | None, eta: int) -> dict[str, Any]:
    """Give a configuration's settings of a schedule as it was asked for; none without `gamma`, for no reduction.

    Raises:
        ValueError: There is only an `eta`.
    """
    if gamma is None and eta:
        raise ValueError("`eta` is a part of a schedule: give `gamma` too.")
    return {} if gamma is None else {"gamma": list(gamma), "eta": eta}


def reconfigure(model: Any, **settings: Any) -> ClassformerForSequenceClassification:
    """Give a classifier's weights other settings: another schedule, a cascade, or fewer layers.

    Args:
        model: A Classformer classifier; it keeps its own settings, and the weights are shared.
        settings: Fields of its config; with `gamma` the model's own buckets and cascade go, unless they are given.

    Returns:
        A model in evaluation mode.

    Raises:
        ValueError: A setting is unknown.
        StrictDataclassError: The settings are not valid.
        RuntimeError: The weights do not suit them.
    """
    unknown = sorted(settings.keys() - CARRIED_FIELDS)
    if unknown:
        raise ValueError(f"settings must be fields of ClassformerConfig, got {unknown[0]!r}; check the spelling.")
    config = copy.deepcopy(model.config)
    config.update(({"length_buckets": None, "cascade": None} if "gamma" in settings else {}) | settings)
    with torch.device("meta"):
        # which may be that of a folder's own code
        other = type(model)(config)
    weights = model.state_dict()
    other.load_state_dict({name: weights[name] for name in other.state_dict()}, assign=True)
    # buffers that no state dict holds
    other.roberta.embeddings = model.roberta.embeddings
    return other.eval()


def checkpoint_fingerprint(name_or_path: str) -> str:
    """Tell checkpoints apart: by content for a folder, by commit for a Hub name.

    Without a connection a Hub name stands for the commit that is in the cache, as it does when the weights are loaded.

    Raises:
        OSError: There is no such checkpoint, or the Hub cannot be reached.
        ValueError: The checkpoint cannot become a Classformer.
    """
    folder = Path(name_or_path)
    read_encoder_config(name_or_path)
    if not folder.is_dir():
        return f"{name_or_path}@{resolve_commit(name_or_path)}"
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin"), folder / "config.json"]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def is_classifier(name_or_path: str, num_labels: int) -> bool:
    """Whether a checkpoint classifies into so many labels already, so that it may have been trained on a task's rows.

    Raises:
        ValueError: It is none that can be carried over.
        OSError: There is none.
    """
    config = read_encoder_config(name_or_path)
    return _has_architecture(config, CLASSIFIER) and config.num_labels == num_labels


def _find_head(model_class: type) -> Head:
    for head in (CLASSIFIER, MASKED_LM, BARE):
        if issubclass(model_class, head.model_class):
            return head
    raise ValueError(
        f"`model_class` must be ClassformerForSequenceClassification, ClassformerForMaskedLM or ClassformerModel, got "
        f"{model_class.__name__}."
    )


def read_encoder_config(name: str) -> PreTrainedConfig:
    """Read the config of a checkpoint, without any code of its own, and refuse what a Classformer cannot express.

    Raises:
        OSError: It cannot be read.
        ValueError: It is of another family, or has what a Classformer cannot express.
    """
    is_folder = Path(name).is_dir()
    if is_folder and not (Path(name) / "config.json").is_file():
        raise OSError(
            f"a checkpoint folder must hold config.json, `{name}` does not; give the folder of a saved model."
        )
    if is_folder and is_export(Path(name)):
        raise ValueError(f"`{name}` is an export, without weights; give the folder that it was made of.")
    try:
        values, _ = PreTrainedConfig.get_config_dict(name)
    except (OSError, ValueError) as error:
        if is_folder:
            raise OSError(f"config.json in `{name}` must be valid JSON; save or download it again.") from error
        raise OSError(explain_failure(name, error) or f"`{name}` cannot be read: {first_line(error)}") from error
    if not values:
        raise OSError(f"`{name}` on the Hub has no config.json; take a model that was saved with one.")
    model_type = values.get("model_type")
    if model_type not in FAMILIES:
        raise ValueError(f"`model_type` must be one of {_list(FAMILIES)}, got {model_type!r} in `{name}`.")
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except StrictDataclassError as error:
        raise ValueError(f"config.json in `{name}` must suit {model_type}: {error.__cause__}") from error
    for problem in _find_problems(config):
        raise ValueError(f"`{name}` cannot become a Classformer: {problem}.")
    return config


def _find_problems(config: PreTrainedConfig) -> Iterator[str]:
    """Say what a Classformer would not compute as the checkpoint does."""
    position_type = getattr(config, "position_embedding_type", "absolute")
    if position_type != "absolute":
        yield f'`position_embedding_type` is "{position_type}", and only absolute positions can be carried'
    if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
        yield "it is a decoder (`is_decoder` or `add_cross_attention`), and only encoders can be carried"
    embedding_size = getattr(config, "embedding_size", config.hidden_size)
    if embedding_size != config.hidden_size:
        yield f"`embedding_size` must equal `hidden_size`, got {embedding_size} and {config.hidden_size}"
    if getattr(config, "quantization_config", None) is not None:
        yield "its weights are quantized; take the checkpoint they were made from"
    auto_map = getattr(config, "auto_map", None) or {}
    if config.model_type != "classformer" and any(key.startswith("AutoModel") for key in auto_map):
        yield f"its own model code (`auto_map`) may not compute what {config.model_type} does"


def _translate_config(
    name: str, source: PreTrainedConfig, family: Family, overrides: Mapping[str, Any]
) -> ClassformerConfig:
    unknown = set(overrides) - CARRIED_FIELDS - {"num_labels", "attn_implementation"}
    if unknown:
        raise ValueError(f"overrides must be fields of ClassformerConfig, got {_list(unknown)}; check the spelling.")
    source_names = {field: family.config_names.get(field, field) for field in CARRIED_FIELDS}
    values = {field: getattr(source, theirs) for field, theirs in source_names.items() if hasattr(source, theirs)}
    pad_token_id = overrides.get("pad_token_id", source.pad_token_id)
    if pad_token_id is None or pad_token_id < 0:
        raise ValueError(f"positions need a `pad_token_id` >= 0, got {pad_token_id} in `{name}`; pass the tokenizer's.")
    if family.starts_at_zero:
        values["max_position_embeddings"] += pad_token_id + 1
    if "gamma" in overrides:
        # of another schedule
        values.pop("cascade", None)
        values.pop("length_buckets", None)
    values |= {**family.constants, **_translate_labels(source, overrides), **overrides}
    try:
        return ClassformerConfig(**values)
    except (StrictDataclassError, ValueError) as error:
        raise ValueError(str(error.__cause__ or error)) from error


def _translate_labels(source: PreTrainedConfig, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Settle what depends on the labels that are asked for: their names and the loss."""
    id2label = overrides.get("id2label")
    num_labels = overrides.get("num_labels", len(id2label) if id2label else source.num_labels)
    if not isinstance(num_labels, int) or num_labels < 1:
        raise ValueError(f"`num_labels` must be an integer >= 1, got {num_labels!r}; regression has 1.")
    changes: dict[str, Any] = {}
    if num_labels != source.num_labels:
        changes = {"num_labels": num_labels, "id2label": None, "label2id": None, "problem_type": None}
    if id2label is not None:
        if len(id2label) != num_labels:
            raise ValueError(f"`id2label` must name `num_labels` labels, got {len(id2label)} names for {num_labels}.")
        changes["label2id"] = {label: int(index) for index, label in id2label.items()}
    return changes


def _order_outputs(
    name: str,
    source: PreTrainedConfig,
    overrides: Mapping[str, Any],
    config: ClassformerConfig,
    output_names: Sequence[str] | None,
) -> list[int] | None:
    """Find the outputs of a checkpoint's classifier that mean the labels that are asked for; `None` where none do."""
    found, wanted = name_outputs(source), name_outputs(config)
    check_output_names(output_names, wanted)
    may_have_head = source.architectures is None or _has_architecture(source, CLASSIFIER)
    if len(found) != len(wanted) or not may_have_head:
        return None
    order = find_label_order(found, wanted if "id2label" in overrides else found, output_names)
    if order is None:
        logger.warning(
            "The labels of `%s` are %s and not %s: its head is left out; if they mean the same, say in which order by "
            "--label_order (`output_names`).",
            name,
            ", ".join(found),
            ", ".join(wanted),
        )
        return None
    if order.is_assumed:
        logger.info(describe_assumption(name, found, wanted))
    return order.outputs


def _has_architecture(config: PreTrainedConfig, head: Head) -> bool:
    return any(architecture.endswith(head.architectures) for architecture in config.architectures or [])


def _load_quietly(model_class: Any, name: str | None, **kwargs: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Call `from_pretrained` without its bar and its report, which names stock keys; the caller reads `info`."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    hook = transformers_logging.set_tqdm_hook(lambda tqdm, args, kwargs: tqdm(*args, **{**kwargs, "disable": True}))
    try:
        return model_class.from_pretrained(name, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs)
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.set_tqdm_hook(hook)


def _load_source(
    name: str, config: PreTrainedConfig, family: Family, head: Head
) -> tuple[PreTrainedModel, set[str], set[str]]:
    """Load a checkpoint with its stock class, with the head that is asked for where the checkpoint has it.

    Returns:
        The model; the names of its weights that the checkpoint lacks; and of the checkpoint's that it has no place for.
    """
    # a config that does not say is searched for the head
    may_have_head = config.architectures is None or _has_architecture(config, head)
    stock_class = head.stock_class if may_have_head else AutoModel
    try:
        source, info = _load_quietly(stock_class, name, config=config, dtype=torch.float32, trust_remote_code=False)
    except READ_ERRORS as error:
        reason = None if Path(name).is_dir() else explain_failure(name, error)
        damaged = f"the weights of `{name}` cannot be read; copy or download them again ({first_line(error)})."
        raise OSError(reason or damaged) from error
    if info["mismatched_keys"]:
        raise ValueError(f"weights must have the shapes that config.json in `{name}` says: {_list_mismatches(info)}.")
    missing, unexpected = set(info["missing_keys"]), set(info["unexpected_keys"])
    lost = _list(key for key in missing if not _is_head(key, source))
    if lost:
        raise ValueError(f"the encoder in `{name}` must be complete, but it lacks {lost}.")
    # where the head that is asked for was looked for, all of it must have found its place
    unknown = _list(
        key
        for key in unexpected
        if not _is_head(key, source) or (may_have_head and family.rename(_strip(key, source)).startswith(head.prefix))
    )
    if unknown:
        raise ValueError(f"`{name}` must hold weights of {type(source).__name__} only, but it has {unknown} too.")
    return source, missing, unexpected


def _translate_weights(
    source: PreTrainedModel,
    missing: set[str],
    family: Family,
    config: ClassformerConfig,
    head: Head,
    order: list[int] | None,
) -> dict[str, torch.Tensor]:
    """Bring weights under a Classformer's names and shapes; without an order of its outputs a classifier has none."""
    weights = {
        family.rename(_strip(key, source)): weight for key, weight in source.state_dict().items() if key not in missing
    }
    if family.starts_at_zero:
        positions = weights["embeddings.position_embeddings.weight"]
        padding = positions.new_zeros((config.pad_token_id or 0) + 1, source.config.hidden_size)
        weights["embeddings.position_embeddings.weight"] = torch.cat([padding, positions])
    if "type_vocab_size" in family.constants:
        no_types = torch.zeros(config.type_vocab_size, source.config.hidden_size)
        weights["embeddings.token_type_embeddings.weight"] = no_types
    if family.has_pooler_head and head is CLASSIFIER:
        weights = {re.sub(r"^pooler\.", "classifier.", key): weight for key, weight in weights.items()}
    for key in [key for key in weights if key.startswith("classifier.out_proj.")]:
        weight = weights.pop(key)
        if order is not None:
            weights[key] = weight[order]
    if head is BARE:
        return weights
    return {re.sub(r"^(embeddings|encoder|pooler)\.", r"roberta.\1.", key): weight for key, weight in weights.items()}


def _complete_masked_lm_head(
    name: str, source: PreTrainedConfig, family: Family, config: ClassformerConfig, weights: dict[str, torch.Tensor]
) -> None:
    """Refuse an activation that the head cannot have, and untie what differs in the checkpoint."""
    activation = getattr(source, family.mlm_activation) if family.mlm_activation else "gelu"
    if activation != "gelu":
        raise ValueError(
            f'a masked-LM head must have the activation "gelu", got "{activation}" in `{name}`; another `model_class` '
            "leaves the head out."
        )
    if "lm_head.decoder.bias" in weights:
        weights.setdefault("lm_head.bias", weights["lm_head.decoder.bias"])
    tied = ClassformerForMaskedLM._tied_weights_keys.items()
    pairs = [(key, other_key) for key, other_key in tied if key in weights and other_key in weights]
    if config.tie_word_embeddings and not all(torch.equal(weights[key], weights[other]) for key, other in pairs):
        logger.warning("`tie_word_embeddings` is set to False, because the weights to tie differ in `%s`", name)
        config.tie_word_embeddings = False
    if not config.tie_word_embeddings:
        # what shares memory is saved once
        weights.update({key: weights[key].clone() for key, _ in pairs})


def _is_head(key: str, model: PreTrainedModel) -> bool:
    return HEAD_WEIGHTS.match(_strip(key, model)) is not None


def _strip(key: str, model: PreTrainedModel) -> str:
    return key.removeprefix(f"{model.base_model_prefix}.")


def _list(names: Iterable[str], max_names: int = 12) -> str:
    names = sorted(names)
    num_more = len(names) - max_names
    return ", ".join(names[:max_names]) + (f" and {num_more} more" if num_more > 0 else "")


def _list_mismatches(info: Mapping[str, Any]) -> str:
    return _list(f"{key} {tuple(found)} instead of {tuple(wanted)}" for key, found, wanted in info["mismatched_keys"])
