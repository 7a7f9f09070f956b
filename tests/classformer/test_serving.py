"""Exported graphs: one per length bucket, and the same logits as the model at every length."""

import pytest
import torch

from classformer_hf import ClassformerConfig, ClassformerForSequenceClassification
from classformer_hf.serving import GraphDispatcher, export_graphs

BUCKETS = [{"max_tokens": 8, "gamma": [1, 1, 1], "eta": 0}, {"max_tokens": 20, "gamma": [2, 1, 1], "eta": 1}]


def make_batch(lengths):
    longest = max(lengths)
    ids = torch.randint(5, 300, (len(lengths), longest))
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": torch.where(mask == 1, ids, 1), "attention_mask": mask}


@pytest.fixture(scope="module", params=[None, BUCKETS], ids=["one graph", "buckets"])
def exported(request, tiny_settings, tmp_path_factory):
    torch.manual_seed(0)
    config = ClassformerConfig(**tiny_settings, gamma=[4, 2, 1], eta=2, length_buckets=request.param)
    model = ClassformerForSequenceClassification(config).eval()
    folder = tmp_path_factory.mktemp("graphs")
    paths = export_graphs(model, folder)
    assert len(paths) == 1 + len(request.param or [])
    assert model.config.gamma == [4, 2, 1] and model.config.length_buckets == request.param
    return model, GraphDispatcher(folder)


@pytest.mark.parametrize(
    "lengths", [[64], [2], [8, 9], [20, 21, 3, 60], [5, 5], [33] * 5, [1, 64]], ids=lambda lengths: str(lengths)
)
def test_graphs_equal_the_model(exported, lengths):
    model, dispatcher = exported
    batch = make_batch(lengths)
    with torch.no_grad():
        torch.testing.assert_close(dispatcher(**batch), model(**batch).logits, atol=1e-4, rtol=1e-4)


def test_too_long_a_text_is_refused(exported):
    with pytest.raises(ValueError, match="reads at most 64 tokens, got 65"):
        exported[1](**make_batch([65]))


def test_folder_without_graphs_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no graphs.json"):
        GraphDispatcher(tmp_path)
