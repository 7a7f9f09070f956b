"""The choice of a schedule per length bucket, on made-up answers and times."""

import numpy as np
import pytest

from classformer_hf.search.policy import choose_policy, merge_buckets
from classformer_hf.search.space import Schedule

FULL, HALF, SHORT = Schedule((1, 1)), Schedule((2, 1)), Schedule((8, 1))
SPEED = {FULL: 1.0, HALF: 0.6, SHORT: 0.2}


def milliseconds(schedules, lengths):
    return np.array([SPEED[schedule] * np.mean(lengths) for schedule in schedules])


@pytest.fixture
def answers():
    """The shortest schedule errs on short texts only, the middle one on 10 % everywhere."""
    generator = np.random.default_rng(0)
    lengths = np.repeat([8, 100], 500)
    references = generator.integers(0, 2, 1000)
    half = np.where(generator.random(1000) < 0.1, 1 - references, references)
    short = np.where((lengths == 8) & (generator.random(1000) < 0.5), 1 - references, references)
    return np.stack([references, half, short]), references, lengths


def choose(answers, required, limits=(16,), schedules=(FULL, HALF, SHORT)):
    predictions, references, lengths = answers
    return choose_policy(schedules, predictions, references, lengths, milliseconds, limits, "accuracy", required)


def test_every_bucket_gets_what_suits_it(answers):
    assert choose(answers, 1.0) == Schedule((8, 1), 0, ((16, FULL),))
    assert choose(answers, 0.95) in (Schedule((8, 1), 0, ((16, HALF),)), Schedule((8, 1), 0, ((16, FULL),)))


def test_one_schedule_where_nothing_is_required(answers):
    assert choose(answers, 0.0) == SHORT


def test_none_where_nothing_is_good_enough(answers):
    predictions, references, lengths = answers
    assert choose((1 - predictions, references, lengths), 0.9) is None


def test_bucket_without_examples_takes_its_neighbour(answers):
    policy = choose(answers, 1.0, limits=(4, 16, 50))
    assert policy == Schedule((8, 1), 0, ((16, FULL),))


def test_buckets_with_the_same_schedule_become_one():
    assert merge_buckets([HALF, HALF, SHORT], (8, 16)) == Schedule((8, 1), 0, ((16, HALF),))
    assert merge_buckets([HALF, HALF], (8,)) == HALF


def test_a_policy_has_a_key_and_a_config():
    policy = Schedule((8, 1), 0, ((16, HALF),))
    assert policy.key == "16t_2-1_eta0__8-1_eta0"
    assert Schedule.from_config(policy.config) == policy
    assert Schedule.from_config(HALF.config) == HALF


@pytest.mark.parametrize("limits", [(16, 8), (0, 4), (8, 8)])
def test_limits_must_ascend(answers, limits):
    with pytest.raises(ValueError, match="must ascend and be >= 1"):
        choose(answers, 0.9, limits)
