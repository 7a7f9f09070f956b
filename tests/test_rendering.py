"""The views behind the documents: what one table says of several records it says of each."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
from rendering import performance, pretraining  # noqa: E402


def read(pattern):
    records = {path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "results").glob(pattern))}
    assert len(records) > 1
    return records


@pytest.mark.parametrize(
    "view, pattern", [("cascade_table", "cascade_*.json"), ("throughput_table", "throughput_*.json")]
)
def test_every_command_is_named(view, pattern):
    records = read(pattern)
    text = getattr(performance, view)(records)
    for record in records.values():
        assert record["command"] in text and str(record["hardware"]["load_average"][0]) in text
        assert f"| {record['dataset'].upper()} |" in text
    if view == "cascade_table":
        assert all(f"{record['num_schedules']} ({record['dataset'].upper()})" in text for record in records.values())


def test_peers_summary_counts_by_hand():
    def point(method, ratio, score, setting="1-1_eta0", **front):
        return {"method": method, "ratio": ratio, "test_score": score, "setting": setting, **front}

    points = [
        point("full", 1.0, 0.9, is_on_front=True, below_front=0.0),
        point("classformer", 0.5, 0.8, is_on_front=True, below_front=0.0),
        point("merging", 0.6, 0.7, is_on_front=False, below_front=0.1),
        point("merging", 0.4, 0.75, is_on_front=True, below_front=0.0),
    ]
    text = performance.peers_summary({"peers_x": {"dataset": "x", "points": points, "majority_score": 0.5}})
    assert "| merging | **0** | 1 of 2 |" in text and "| **classformer** | **0** |  |" in text


def test_pretraining_table_says_what_is_above_none():
    row = {"metric_name": "accuracy", "dataset": "x", "seed": 1}
    record = {
        "model": "a-model",
        "schedule": {"gamma": [2, 1], "eta": 0},
        "command": "python scripts/study_pretraining.py",
        "seeds": [1],
        "hardware": {"threads": 1, "device_name": "a processor"},
        "datasets": {"stsb": {"num_examples": {"train": 5, "test": 7}}},
        "pretraining": {"dense": {"tokens": 2e6, "training_flops": 3e12, "loss_before": 9.0, "loss_after": 6.0}},
        "rows": [
            {**row, "dataset": "stsb", "objective": name, "test_score": score}
            for name, score in (("full", 0.9), ("none", 0.5), ("dense", 0.6))
        ],
        "differences": [
            {
                **{"objective": "dense", "reference": "none", "dataset": "stsb", "mean": 0.1},
                **{"interval": [0.05, 0.15], "by_seed": [0.1]},
            }
        ],
    }
    text = pretraining.pretraining_table(record)
    assert "| dense | 2.00 | 3 | 9 to 6 | 60.0 (10.0 [5.0, 15.0]) | 83.6 | 73.3 |" in text
    assert "| none |  |  |  | 50.0 | 78.2 | 69.3 |" in text
    assert "| dense - none | 10.0 [5.0, 15.0] | above, 1 of 1 seeds | +4.0 |" in pretraining.order_table(record)
    better = [{**entry, "test_score": 0.8} if entry["objective"] == "dense" else entry for entry in record["rows"]]
    more = {**record, "pretraining": {"dense": {"tokens": 4e6, "training_flops": 1e12}}, "rows": better}
    text = pretraining.tokens_table({"a": more, "b": record})
    # half of the way from 50 to 90
    assert "| 70.0 on STSB |" in text and text.index("missed") < text.index("reached")
