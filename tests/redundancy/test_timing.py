"""Times of calls in turns become ratios with quartiles."""

import numpy as np
import pytest

from redundancy_hf.timing import Target, Times


def test_ratio_is_the_median_of_rounds_between_its_quartiles():
    # (rounds, groups); a round counts by its mean over groups
    base = np.array([[1.0, 3.0]] * 5)
    ticks = {"full": base, "half": np.array([[1.0, 1.0], [0.5, 1.1], [2.0, 2.0], [3.0, 3.0], [0.1, 0.3]])}
    wall = {name: 2 * values for name, values in ticks.items()}
    found = Times(wall, ticks, "thread_cpu").compare("full")
    half = found["half"]
    assert (half.ratio_low, half.ratio, half.ratio_high) == pytest.approx((0.4, 0.5, 1.0))
    assert half.cpu_p50_ms == pytest.approx(1.05) and half.wall_p50_ms == pytest.approx(2.1) and half.rounds == 5
    assert found["full"].ratio == found["full"].ratio_low == found["full"].ratio_high == 1
    assert Times(wall, ticks, "wall").compare("full")["half"].cpu_p50_ms is None


@pytest.mark.parametrize("name", ["threads", "rounds"])
def test_target_needs_one_of_each(name):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got 0"):
        Target(**{name: 0})
