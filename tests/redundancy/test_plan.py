"""The plan of a long command: what is left of all stages, what is shown, and what a Ctrl-C costs."""

import pickle

import pytest

from redundancy_hf import plan as plan_module
from redundancy_hf.plan import Plan, describe_seconds, stoppable


class Clock:
    """A clock that the test sets."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(plan_module, "time", clock)
    return clock


def test_what_is_left_is_of_all_stages(clock, capsys):
    plan = Plan({"training": 600, "timing": 120, "winners": 300})
    plan.announce(" More may follow.")
    assert capsys.readouterr().out == (
        "plan: about 17 minutes if the machine stays as it is (training 10 min, timing 2 min, winners 5 min). More "
        "may follow.\n"
    )
    with plan.stage("training"):
        assert "training begins | about 17 minutes left in all" in capsys.readouterr().out
        clock.now += 30
        plan.report(0.01)
        assert plan.left_seconds == pytest.approx(0.99 * 600 + 420), "too little was done to know better"
        clock.now += 270
        plan.report(0.25, "step 25 of 100")
        assert plan.left_seconds == pytest.approx(900 + 420), "its own pace: 300 seconds for a quarter"
        assert capsys.readouterr().out == "training: 25 % | step 25 of 100 | about 22 minutes left in all\n"
        clock.now += 900
        plan.update()
        assert plan.left_seconds == 420, "nothing of the stage is left, and not nothing in all"
    with plan.stage("timing", total=10):
        for _ in range(10):
            clock.now += 1
            plan.update()
    with plan.stage("winners", total=2):
        assert plan.left_seconds == 300


def test_a_resumed_stage_counts_what_it_does_itself(clock):
    plan = Plan({"trials": 90, "training": 100})
    with plan.stage("trials", total=50, done=5):
        assert plan.left_seconds == 190, "the estimate is of what is left"
        clock.now += 20
        plan.update(5)
        assert plan.left_seconds == pytest.approx(20 / 5 * 40 + 100)
    with plan.stage("training"):
        plan.report(0.5, is_resumed=True)
        assert plan.left_seconds == 50
        clock.now += 30
        plan.report(0.75)
        assert plan.left_seconds == 30


def test_stages_without_an_estimate_take_as_long_as_the_last(clock):
    plan = Plan({"seed 1": None, "seed 2": None, "seed 3": None})
    assert plan.left_seconds is None and plan.left == ""
    plan.begin("seed 1")
    clock.now += 10
    plan.report(0.5)
    assert plan.left_seconds == 10 + 2 * 20
    clock.now += 20
    plan.report(1)
    plan.end()
    assert plan.left_seconds == 60
    plan.estimate(7)
    assert plan.left_seconds == 14


def test_what_is_done_again_takes_as_long_as_before(clock):
    plan = Plan({"trials": 600})
    with plan.stage("trials", total=50):
        clock.now += 100
        plan.update(50)
    plan.repeat({"trials": 10, "never seen": 3})
    assert plan.left_seconds == 20


def test_stop_says_that_the_same_command_goes_on_and_what_is_lost():
    plan = Plan({"training": 1})
    with pytest.raises(KeyboardInterrupt, match="^the same command goes on; an hour of training is lost$"):
        with stoppable("other things"), plan.stage("training", lost="an hour of training"):
            raise KeyboardInterrupt
    assert plan.current is None
    with pytest.raises(KeyboardInterrupt, match="nothing is lost"), stoppable():
        raise KeyboardInterrupt


def test_a_worker_gets_a_plan_that_is_silent(capsys):
    plan = pickle.loads(pickle.dumps(Plan({"training": 600})))
    with plan.stage("training"):
        plan.say("something")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (29, "less than a minute"),
        (31, "about 1 minute"),
        (780, "about 13 minutes"),
        (7200, "about 2.0 hours"),
    ],
)
def test_times_in_words(seconds, words):
    assert describe_seconds(seconds) == words
