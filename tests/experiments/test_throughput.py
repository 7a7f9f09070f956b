"""Ways to batch, the front of a comparison, and weights under other settings."""

import pytest
import torch
from peers import mark_front
from throughput import BATCHINGS, AllBatches, make_batches

from classformer_hf import ClassformerConfig, ClassformerForSequenceClassification
from classformer_hf.checkpoints import reconfigure

TEXTS = [[length] * length for length in (3, 9, 2, 17, 5, 9, 4)]
WIDTHS = {
    "padded": [17, 17, 17, 17],
    "unsorted": [9, 17, 9, 4],
    "sorted": [3, 5, 9, 17],
    # 2 | 3, 4 | 5 | 9, 9 | 17, which is the longest
    "bucketed": [2, 4, 8, 16, 17],
}


@pytest.mark.parametrize("batching", BATCHINGS)
def test_batches_hold_every_text_once(batching):
    batches = make_batches(TEXTS, batching, 2, pad_token_id=1)
    assert [batch["input_ids"].shape[1] for batch in batches] == WIDTHS[batching]
    found = []
    for batch in batches:
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            length = int(mask.sum())
            assert mask[:length].all() and (ids[length:] == 1).all()
            found.append(ids[:length].tolist())
    assert sorted(found) == sorted(TEXTS)


def test_all_batches_run_at_once():
    seen = []
    runner = AllBatches(torch.nn.Identity(), [{"input": 1}, {"input": 2}])
    runner.model.forward = lambda input: seen.append(input)
    runner()
    assert seen == [1, 2]


def test_front_is_what_nothing_faster_reaches():
    points = [
        {"ratio": 1.0, "test_score": 0.9},
        {"ratio": 0.5, "test_score": 0.8},
        {"ratio": 0.6, "test_score": 0.7},
        {"ratio": 0.2, "test_score": 0.5},
    ]
    mark_front(points, majority=0.5)
    assert [point["is_on_front"] for point in points] == [True, True, False, False]
    assert [point["below_front"] for point in points] == pytest.approx([0, 0, 0.1, 0])


def test_weights_under_other_settings(tiny_settings):
    torch.manual_seed(0)
    model = ClassformerForSequenceClassification(ClassformerConfig(**tiny_settings)).eval()
    ids = torch.randint(5, 300, (2, 12))
    shorter = reconfigure(model, gamma=[4, 1], eta=0, num_hidden_layers=2)
    assert len(shorter.roberta.encoder.layer) == 2 and model.config.num_hidden_layers == 3
    expected = ClassformerForSequenceClassification(shorter.config).eval()
    expected.load_state_dict({name: model.state_dict()[name] for name in expected.state_dict()})
    with torch.no_grad():
        torch.testing.assert_close(shorter(input_ids=ids).logits, expected(input_ids=ids).logits)
    with pytest.raises(Exception, match="one factor per layer"):
        reconfigure(model, gamma=[4, 1])
