"""Schedules by input length: which one is taken, and that an example does not depend on its batchmates."""

import pytest
import torch
from transformers import AutoTokenizer, pipeline

from classformer_hf import ClassformerConfig, ClassformerForSequenceClassification, ClassformerModel, load_from_encoder
from classformer_hf.checkpoints import reconfigure

BUCKETS = [{"max_tokens": 8, "gamma": [1, 1, 1], "eta": 0}, {"max_tokens": 16, "gamma": [2, 1, 1], "eta": 1}]


@pytest.fixture
def model(tiny_settings):
    torch.manual_seed(0)
    config = ClassformerConfig(**tiny_settings, gamma=[4, 2, 1], eta=2, length_buckets=BUCKETS)
    return ClassformerForSequenceClassification(config).eval()


def logits_of(model, token_ids, **schedule):
    """Classify one text by itself with a fixed schedule."""
    single = ClassformerForSequenceClassification(ClassformerConfig(**{**model.config.to_dict(), **schedule})).eval()
    single.load_state_dict(model.state_dict())
    with torch.inference_mode():
        return single(input_ids=torch.tensor([token_ids])).logits[0]


def padded(texts, extra=0):
    longest = max(map(len, texts)) + extra
    ids = [[*text, *[1] * (longest - len(text))] for text in texts]
    mask = [[1] * len(text) + [0] * (longest - len(text)) for text in texts]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


@pytest.fixture
def texts():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(5, 300, (n,), generator=generator).tolist() for n in (30, 5, 8, 9, 16, 17, 12)]


def test_the_length_chooses_the_schedule(model):
    config = model.config
    assert config.schedule_for(1) == config.schedule_for(8) == ([1, 1, 1], 0)
    assert config.schedule_for(9) == config.schedule_for(16) == ([2, 1, 1], 1)
    assert config.schedule_for(17) == ([4, 2, 1], 2)
    assert config.layer_lengths(8) == [8, 8, 8]
    assert config.layer_lengths(17) == [6, 4, 4]


def test_every_example_gets_the_schedule_of_its_own_length(model, texts):
    with torch.inference_mode():
        logits = model(**padded(texts)).logits
    for row, text in enumerate(texts):
        gamma, eta = model.config.schedule_for(len(text))
        expected = logits_of(model, text, gamma=gamma, eta=eta, length_buckets=None)
        torch.testing.assert_close(logits[row], expected, atol=1e-5, rtol=1e-5)
    other = logits_of(model, texts[3], gamma=[1, 1, 1], eta=0, length_buckets=None)
    assert (logits[3] - other).abs().max() > 1e-2, "the schedules make a difference here"


def test_a_schedule_of_a_call_holds_for_all_lengths(model, texts):
    with torch.inference_mode():
        logits = model(**padded(texts), schedule=([2, 1, 2], 1)).logits
        shared = reconfigure(model, gamma=[2, 1, 2], eta=1)(**padded(texts)).logits
    assert torch.equal(logits, shared)
    for row, text in enumerate(texts):
        expected = logits_of(model, text, gamma=[2, 1, 2], eta=1, length_buckets=None)
        torch.testing.assert_close(logits[row], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("extra", [0, 1, 13])
def test_padding_changes_nothing(model, texts, extra):
    with torch.inference_mode():
        torch.testing.assert_close(
            model(**padded(texts[:4], extra)).logits, model(**padded(texts)).logits[:4], atol=1e-5, rtol=1e-5
        )


def test_base_model_goes_by_the_padded_length(tiny_settings):
    model = ClassformerModel(ClassformerConfig(**tiny_settings, gamma=[4, 1, 1], length_buckets=BUCKETS)).eval()
    lengths = [model(input_ids=torch.full((2, n), 7)).last_hidden_state.shape[1] for n in (8, 16, 17)]
    assert lengths == [8, 9, 5]


def test_training_reaches_all_parameters(model, texts):
    model.train()
    model(**padded(texts), labels=torch.arange(len(texts)) % 3).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_states_of_several_buckets_are_refused(model, texts):
    with pytest.raises(ValueError, match="several length buckets have different lengths"):
        model(**padded(texts), output_hidden_states=True)
    assert len(model(**padded(texts[1:3]), output_hidden_states=True).hidden_states) == 4


def test_saved_folder_keeps_the_policy_and_a_pipeline_batches_by_it(model, tiny_tokenizer, tmp_path):
    model.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    loaded = ClassformerForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.config.length_buckets == BUCKETS
    assert load_from_encoder(tmp_path).config.length_buckets == BUCKETS
    assert load_from_encoder(tmp_path, gamma=[4, 1, 1]).config.length_buckets is None
    classify = pipeline("text-classification", model=loaded, tokenizer=AutoTokenizer.from_pretrained(tmp_path))
    texts = ["good", "a warm and clever film " * 3, "the plot is a mess", "it works in every scene " * 6]
    alone = [classify(text)[0]["score"] for text in texts]
    together = [result["score"] for result in classify(texts, batch_size=4)]
    assert together == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize(
    ("buckets", "message"),
    [
        ([{"max_tokens": 8, "gamma": [1, 1], "eta": 0}], "one factor per layer, got 2 for 3"),
        ([{"max_tokens": 8, "gamma": [1, 1, 0], "eta": 0}], "integer >= 1"),
        ([{"max_tokens": 8, "gamma": [1, 1, 1], "eta": -1}], "must be >= 0, got -1"),
        (list(reversed(BUCKETS)), r"ascending order of max_tokens, each >= 1, got \[16, 8\]"),
        ([{"max_tokens": 8, "gamma": [1, 1, 1]}], "has max_tokens, gamma and eta"),
    ],
)
def test_bad_buckets_are_refused(tiny_settings, buckets, message):
    with pytest.raises(Exception, match=message):
        ClassformerConfig(**tiny_settings, length_buckets=buckets)


@pytest.mark.filterwarnings("ignore")
def test_buckets_are_no_single_graph(model, texts):
    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    for one, batch in ((model, padded(texts)), (model.roberta, {"input_ids": padded(texts)["input_ids"]})):
        with pytest.raises(Exception, match="length buckets is no single graph: classformer_hf.export.export makes"):
            torch.export.export(one, (), dict(batch), dynamic_shapes=dict.fromkeys(batch, dynamic))
        with pytest.raises(ValueError, match="length buckets is no single graph"):
            torch.jit.trace(one, example_kwarg_inputs=dict(batch))
    # every input of a fixed length has one schedule
    ids = padded(texts)["input_ids"]
    program = torch.export.export(model, (), {"input_ids": ids}).module()
    torch.testing.assert_close(program(input_ids=ids).logits, model(input_ids=ids).logits)
