"""What transformers' common model tests demand of every model, asked of every model of the three packages.

Not asked: attentions and embeddings of networks that have none.
"""

import copy
import inspect

import pytest
import torch
from transformers import AutoModel

from classformer_hf import (
    ClassformerConfig,
    ClassformerForMaskedLM,
    ClassformerForSequenceClassification,
    ClassformerModel,
)
from tests.test_hub_contract import BACKBONES, CONTRACTS

MODELS = [*CONTRACTS, *BACKBONES]
TEXT = [contract for contract in CONTRACTS if contract.name.startswith("classformer")]
WITH_LOSS = [contract for contract in CONTRACTS if contract.make_labels or contract.name.endswith(("vae", "3d"))]
WITH_CODE = [contract for contract in MODELS if not contract.name.startswith("codebook")]


def each(contracts):
    return pytest.mark.parametrize("contract", contracts, ids=lambda contract: contract.name)


@pytest.fixture
def built(contract, tiny_settings):
    """A model in evaluation mode and inputs for it."""
    torch.manual_seed(0)
    model = contract.build(dict(tiny_settings)).eval()
    return model, contract.make_inputs(model)


def pick(output, contract):
    """What the contract names; of a backbone's feature maps the last one."""
    value = output[contract.output_name]
    return value[-1] if isinstance(value, tuple) else value


@torch.no_grad()
def output_of(model, contract, inputs, **options):
    return pick(model(**inputs, **options), contract)


@each(MODELS)
def test_same_inputs_give_same_outputs(built, contract):
    model, inputs = built
    assert torch.equal(output_of(model, contract, inputs), output_of(model, contract, inputs))


@each(MODELS)
def test_batch_gives_what_single_inputs_give(built, contract):
    model, inputs = built
    together = output_of(model, contract, inputs)
    for row in range(len(together)):
        alone = output_of(model, contract, {name: values[row : row + 1] for name, values in inputs.items()})
        torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-5)


@each(MODELS)
def test_tuple_holds_what_the_dictionary_holds(built, contract):
    model, inputs = built
    with torch.no_grad():
        named, plain = model(**inputs), model(**inputs, return_dict=False)
    assert isinstance(plain, tuple) and len(plain) == len(named.to_tuple())
    for one, other in zip(plain, named.to_tuple(), strict=True):
        if isinstance(one, torch.Tensor):
            torch.testing.assert_close(one, other)


@each(MODELS)
def test_saved_and_loaded_gives_the_same(built, contract, tmp_path):
    model, inputs = built
    model.save_pretrained(tmp_path)
    again, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert again.training is False
    torch.testing.assert_close(output_of(again, contract, inputs), output_of(model, contract, inputs))


@each(MODELS)
def test_config_survives_json_and_copies(built, contract, tmp_path):
    config = built[0].config
    config.save_pretrained(tmp_path)
    for again in (
        type(config).from_pretrained(tmp_path),
        type(config).from_dict(config.to_dict()),
        copy.deepcopy(config),
    ):
        assert again.to_dict() == {**config.to_dict(), "architectures": again.architectures}
    assert type(config)().to_dict()["model_type"] == config.model_type


@each(MODELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_loads_in_any_dtype(built, contract, tmp_path, dtype):
    model, inputs = built
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, dtype=dtype)
    assert {parameter.dtype for parameter in again.parameters() if parameter.is_floating_point()} == {dtype}
    moved = {name: values.to(dtype) if values.is_floating_point() else values for name, values in inputs.items()}
    output = output_of(again, contract, moved)
    assert output.dtype == dtype and output.isfinite().all()


@each(MODELS)
@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}])
def test_loads_with_a_device_map(built, contract, tmp_path, device_map):
    model, inputs = built
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, device_map=device_map)
    torch.testing.assert_close(output_of(again, contract, inputs), output_of(model, contract, inputs))


@each(WITH_CODE)
def test_every_weight_that_is_missing_is_initialised(built, contract, tmp_path):
    # loading builds on the meta device, where a constructor's values are lost
    model, _ = built
    config = copy.deepcopy(model.config)
    again = type(model).from_pretrained(None, config=config, state_dict={})
    for name, value in [*again.named_parameters(), *again.named_buffers()]:
        assert value.device.type == "cpu" and value.float().isfinite().all(), name
    plain = type(model)(config)
    for (name, one), (_, other) in zip(plain.named_buffers(), again.named_buffers(), strict=True):
        torch.testing.assert_close(one, other, msg=name)
    for (name, one), (_, other) in zip(plain.named_parameters(), again.named_parameters(), strict=True):
        # constants as they are, random ones of the same spread, as far as so many numbers show it
        if one.numel() < 50 and one.std(correction=0) > 0:
            continue
        torch.testing.assert_close(one.std(correction=0), other.std(correction=0), rtol=0.6, atol=1e-2, msg=name)


@each(WITH_LOSS)
def test_training_reaches_every_parameter(built, contract):
    model, inputs = built
    model.train()
    if contract.make_labels:
        inputs["labels"] = contract.make_labels(model, inputs)
    loss = model(**inputs).loss
    assert loss.ndim == 0 and loss.isfinite()
    loss.backward()
    missing = [
        name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]
    assert missing == []


@each([contract for contract in WITH_LOSS if contract.make_labels and not contract.name.startswith("codebook")])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_gives_the_same_gradients(built, contract, use_reentrant):
    model, inputs = built
    if not model.supports_gradient_checkpointing:
        with pytest.raises(ValueError, match="does not support gradient checkpointing"):
            model.activation_checkpointing_enable()
        return
    inputs["labels"] = contract.make_labels(model, inputs)
    gradients = []
    for is_on in (False, True):
        trained = copy.deepcopy(model).train()
        if is_on:
            trained.activation_checkpointing_enable({"use_reentrant": use_reentrant})
            assert trained.is_activation_checkpointing
        # dropped paths are the same ones
        torch.manual_seed(1)
        trained(**inputs).loss.backward()
        gradients.append([parameter.grad for parameter in trained.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@each(MODELS)
def test_hidden_states_have_the_shapes_of_the_config(built, contract):
    model, inputs = built
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True)
    states = output.hidden_states
    if contract in TEXT:
        lengths = model.config.layer_lengths(12)
        shapes = [(4, length, model.config.hidden_size) for length in (12, *lengths)]
        if contract.name == "classformer_classifier":
            # its last layer computes the one position that it reads
            shapes[-1] = (4, 1, model.config.hidden_size)
        assert [tuple(state.shape) for state in states] == shapes
    elif model.config.model_type == "avae":
        assert [state.shape[1] for state in states] == model.config.encoder_channels
        assert states[0].shape[2:] == inputs["pixel_values"].shape[2:]
    else:
        assert len(states) == len(model.config.stage_names)
        sides = [state.shape[-1] for state in states]
        assert sides == sorted(sides, reverse=True) and states[0].shape[0] == 4
    model.config.output_hidden_states = True
    with torch.no_grad():
        assert len(model(**inputs).hidden_states) == len(states)


@each(TEXT)
def test_attentions_have_the_shapes_of_the_schedule(built, contract):
    model, inputs = built
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model(**inputs, output_attentions=True).attentions
    lengths = [12, *model.config.layer_lengths(12)]
    heads = model.config.num_attention_heads
    for layer, attention in enumerate(attentions[:-1]):
        assert tuple(attention.shape) == (4, heads, lengths[layer + 1], lengths[layer])
    torch.testing.assert_close(attentions[0].sum(-1), torch.ones(4, heads, lengths[1]))


@each(TEXT)
def test_sdpa_equals_eager(built, contract):
    model, inputs = built
    outputs = []
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        outputs.append(output_of(model, contract, inputs))
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)


@each(TEXT)
def test_embeddings_are_resized(built, contract):
    model, inputs = built
    before = output_of(model, contract, inputs)
    vocab_size, embeddings = model.config.vocab_size, model.get_input_embeddings()
    assert embeddings.weight.shape == (vocab_size, model.config.hidden_size)
    for size in (vocab_size + 10, vocab_size + 3):
        model.resize_token_embeddings(size)
        assert model.config.vocab_size == size and model.get_input_embeddings().weight.shape[0] == size
        after = output_of(model, contract, inputs)
        torch.testing.assert_close(after[..., : before.shape[-1]], before, rtol=1e-4, atol=1e-5)
    head = model.get_output_embeddings()
    if head is not None:
        assert head.weight.shape[0] == vocab_size + 3 and head.weight is model.get_input_embeddings().weight


@each(TEXT)
def test_embeddings_instead_of_ids(built, contract):
    model, inputs = built
    ids = inputs["input_ids"]
    # positions come from the ids, where there are any, and so must be given
    position_ids = model.base_model.embeddings.create_position_ids_from_input_ids(ids, model.config.pad_token_id)
    vectors = {"inputs_embeds": model.get_input_embeddings()(ids), "attention_mask": inputs["attention_mask"]}
    torch.testing.assert_close(
        output_of(model, contract, vectors, position_ids=position_ids), output_of(model, contract, inputs)
    )
    with pytest.raises(ValueError, match="inputs_embeds"):
        model(input_ids=ids, inputs_embeds=vectors["inputs_embeds"])


def test_head_and_encoder_load_each_other(tmp_path, tiny_config):
    head = ClassformerForSequenceClassification(tiny_config).eval()
    head.save_pretrained(tmp_path / "head")
    encoder, info = ClassformerModel.from_pretrained(tmp_path / "head", output_loading_info=True)
    for name, value in encoder.state_dict().items():
        if not name.startswith("pooler"):
            torch.testing.assert_close(value, head.base_model.state_dict()[name])
    assert all(key.startswith("pooler") for key in info["missing_keys"])
    encoder.save_pretrained(tmp_path / "encoder")
    _, info = ClassformerForSequenceClassification.from_pretrained(tmp_path / "encoder", output_loading_info=True)
    assert info["missing_keys"] and all(key.startswith("classifier") for key in info["missing_keys"])


@pytest.mark.parametrize("name", ["shared_xception", "shared_efficientnet", "shared_resnet"])
def test_image_head_and_encoder_load_each_other(tmp_path, tiny_settings, name):
    contracts = {contract.name: contract for contract in CONTRACTS}
    head, encoder = (contracts[key].build(tiny_settings).eval() for key in (f"{name}_classifier", name))
    head.save_pretrained(tmp_path / "head")
    loaded = AutoModel.from_pretrained(tmp_path / "head")
    for key, value in loaded.state_dict().items():
        torch.testing.assert_close(value, head.base_model.state_dict()[key])
    encoder.save_pretrained(tmp_path / "encoder")
    _, info = type(head).from_pretrained(tmp_path / "encoder", output_loading_info=True)
    assert info["missing_keys"] and all("classifier" in key for key in info["missing_keys"])


@each(MODELS)
def test_inputs_are_not_changed(built, contract):
    model, inputs = built
    before = {name: values.clone() for name, values in inputs.items()}
    output_of(model, contract, inputs)
    for name, values in inputs.items():
        assert torch.equal(values, before[name]), name


@each(MODELS)
def test_runs_with_its_weights_on_disk(built, contract, tmp_path):
    model, inputs = built
    model.save_pretrained(tmp_path / "model")
    again = type(model).from_pretrained(tmp_path / "model", device_map={"": "disk"}, offload_folder=tmp_path / "disk")
    assert next(again.parameters()).device.type == "meta"
    torch.testing.assert_close(output_of(again, contract, inputs), output_of(model, contract, inputs))


@each([contract for contract in CONTRACTS if contract.name.endswith("classifier")])
def test_head_of_another_size_is_refused_or_new(built, contract, tmp_path):
    model, inputs = built
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="size mismatch|mismatched"):
        type(model).from_pretrained(tmp_path, num_labels=42)
    again = type(model).from_pretrained(tmp_path, num_labels=42, ignore_mismatched_sizes=True)
    assert output_of(again, contract, inputs).shape[-1] == 42


@each(MODELS)
def test_hidden_states_and_attentions_are_part_of_the_graph(built, contract):
    model, inputs = built
    options = {"output_hidden_states": True}
    if contract in TEXT:
        model.set_attn_implementation("eager")
        options["output_attentions"] = True
    output = model(**inputs, **options)
    kept = [output.hidden_states[0], *(output["attentions"][:1] if "attentions" in output else [])]
    for value in kept:
        value.retain_grad()
    pick(output, contract).flatten()[0].backward()
    assert all(value.grad is not None for value in kept)


@pytest.mark.parametrize(
    "problem_type, num_labels",
    [("regression", 1), ("single_label_classification", 3), ("multi_label_classification", 3)],
)
def test_every_problem_type_has_a_loss(tiny_settings, problem_type, num_labels):
    (contract,) = [contract for contract in CONTRACTS if contract.name == "classformer_classifier"]
    model = contract.build({**tiny_settings, "num_labels": num_labels, "problem_type": problem_type})
    labels = {
        "regression": torch.rand(4),
        "single_label_classification": torch.randint(0, 3, (4,)),
        "multi_label_classification": torch.randint(0, 2, (4, 3)).float(),
    }
    loss = model(**contract.make_inputs(model), labels=labels[problem_type]).loss
    loss.backward()
    assert loss.ndim == 0 and loss.isfinite()


@each(MODELS)
def test_first_argument_is_the_main_input(built, contract):
    model, inputs = built
    assert list(inspect.signature(type(model).forward).parameters)[1] == model.main_input_name
    assert model.main_input_name in inputs


@each(MODELS)
def test_is_built_on_the_device_at_hand(built, contract):
    model, _ = built
    with torch.device("meta"):
        empty = type(model)(copy.deepcopy(model.config))
    assert {value.device.type for value in empty.state_dict().values()} == {"meta"}
    assert {name: value.shape for name, value in empty.state_dict().items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }


@each([contract for contract in MODELS if contract.make_labels])
def test_tuple_begins_with_the_loss(built, contract):
    model, inputs = built
    inputs["labels"] = contract.make_labels(model, inputs)
    with torch.no_grad():
        named, plain = model(**inputs), model(**inputs, return_dict=False)
    torch.testing.assert_close(plain[0], named.loss)
    torch.testing.assert_close(plain[1], named.logits)


@each(MODELS)
def test_running_changes_neither_config_nor_weights(built, contract):
    model, inputs = built
    config, weights = model.config.to_dict(), {name: value.clone() for name, value in model.state_dict().items()}
    output_of(model, contract, inputs, output_hidden_states=True)
    assert model.config.to_dict() == config
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name]), name


@each(MODELS)
def test_frozen_copy_and_original_are_apart(built, contract):
    model, inputs = built
    before = output_of(model, contract, inputs)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(output_of(model, contract, inputs), before)


def test_untied_embeddings_are_resized(tiny_settings):
    settings = {**tiny_settings, "gamma": [1, 2, 1], "eta": 1, "tie_word_embeddings": False}
    model = ClassformerForMaskedLM(ClassformerConfig(**settings))
    model.resize_token_embeddings(settings["vocab_size"] + 7)
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    assert head.weight is not embeddings.weight
    assert len(head.weight) == len(embeddings.weight) == len(head.bias) == settings["vocab_size"] + 7
    assert model(torch.arange(4, 14)[None]).logits.shape[-1] == settings["vocab_size"] + 7
