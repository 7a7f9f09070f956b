"""The search space: canonical forms, encoding, and the errors of bad options."""

import numpy as np
import pytest

from classformer_hf.search import Schedule, SearchSpace

NUM_LAYERS, MAX_TOKENS = 4, 24


def kept_positions(schedule: Schedule, num_tokens: int) -> list[list[int]]:
    """Follow the definition position by position: what leaves every layer but the last, which computes position 0."""
    positions, kept = list(range(num_tokens)), []
    for factor in schedule.gamma[:-1]:
        positions = [p for i, p in enumerate(positions) if i < schedule.eta or (i - schedule.eta) % factor == 0]
        kept.append(positions)
    return kept


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return SearchSpace(NUM_LAYERS, MAX_TOKENS, first_token_gamma=64)


def draw(space: SearchSpace, count: int) -> list[Schedule]:
    generator = np.random.default_rng(0)
    gammas = generator.choice(space.gamma_options, size=(count, NUM_LAYERS)).tolist()
    return [Schedule(tuple(gamma), int(generator.choice(space.eta_options))) for gamma in gammas]


def test_canonical_form_keeps_the_same_positions_for_all_lengths(space):
    for schedule in draw(space, 300):
        canonical = space.canonical(schedule)
        for num_tokens in range(1, MAX_TOKENS + 1):
            assert kept_positions(canonical, num_tokens) == kept_positions(schedule, num_tokens), schedule


def test_equal_models_have_one_canonical_form(space):
    by_positions = {}
    for schedule in draw(space, 2000):
        positions = str([kept_positions(schedule, n) for n in range(1, MAX_TOKENS + 1)])
        by_positions.setdefault(positions, set()).add(space.canonical(schedule))
    assert len(by_positions) > 100
    assert all(len(forms) == 1 for forms in by_positions.values())


def test_canonical_form_drops_what_is_irrelevant(space):
    assert space.canonical(Schedule((1, 1, 1, 8), 4)) == space.full
    assert space.canonical(Schedule((64, 8, 2, 1), 0)) == Schedule((64, 1, 1, 1), 0)
    assert space.canonical(Schedule((4, 8, 1, 1), 0)) == space.canonical(Schedule((4, 64, 1, 1), 0))


@pytest.mark.parametrize("judged", [9, 17])
def test_what_no_judged_text_tells_apart_is_one_schedule(space, judged):
    """One long text of the training split makes no difference to what is validated and timed."""
    cut = SearchSpace(NUM_LAYERS, MAX_TOKENS, first_token_gamma=64, max_reduction=8, judged_tokens=judged)
    everything = cut.enumerate()
    positions = {str([kept_positions(schedule, n) for n in range(1, judged + 1)]) for schedule in everything}
    assert len(positions) == len(everything)
    whole = SearchSpace(NUM_LAYERS, MAX_TOKENS, first_token_gamma=64, max_reduction=8).enumerate()
    assert len(everything) < len(whole) and {cut.canonical(schedule) for schedule in whole} == set(everything)
    for schedule in whole:
        canonical = cut.canonical(schedule)
        assert cut.is_allowed(canonical) and cut.canonical(canonical) == canonical
        # of texts that nobody judged the gentler one drops less
        assert len(kept_positions(canonical, MAX_TOKENS)[-1]) >= len(kept_positions(schedule, MAX_TOKENS)[-1])


def test_last_layer_counts_without_the_shortcut():
    space = SearchSpace(NUM_LAYERS, MAX_TOKENS, cls_only=False)
    assert space.canonical(Schedule((1, 1, 1, 8), 4)) == Schedule((1, 1, 1, 8), 4)


def test_encode_decode_round_trip(space):
    for schedule in draw(space, 200):
        canonical = space.canonical(schedule)
        assert space.decode(space.encode(canonical)) == canonical


def test_neighbours_are_canonical_and_differ(space):
    schedule = space.canonical(Schedule((1, 2, 4, 1), 2))
    neighbours = space.neighbours(schedule)
    assert len(neighbours) >= 6
    assert all(space.canonical(n) == n for n in neighbours)
    assert Schedule((2, 2, 4, 1), 2) in neighbours


@pytest.mark.parametrize(
    ("num_layers", "first_layer", "gamma"),
    [(12, 0, (2, 1, 1, 1, 2, 1, 1, 1, 2, 1, 1, 1)), (12, 6, (1,) * 6 + (2, 1, 2, 1, 2, 1)), (6, 6, (1,) * 6)],
)
def test_constrained_schedule_has_three_evenly_spaced_reductions(num_layers, first_layer, gamma):
    assert SearchSpace(num_layers, 512).constrained(first_layer) == Schedule(gamma, 0)


def test_key_is_readable():
    assert Schedule((1, 2, 8), 4).key == "1-2-8_eta4"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma_options": [1, 0]}, 'integer >= 1 or "first", got 0'),
        ({"gamma_options": ["1", "half"]}, "got 'half'"),
        ({"gamma_options": [2, 4]}, r"need 1 \(drop nothing\)"),
        ({"gamma_options": [1]}, "and something else"),
        ({"eta_options": [-1]}, "integer >= 0, got -1"),
        ({"eta_options": []}, "eta options are empty"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SearchSpace(4, 32, **options)


def test_wrong_number_of_layers_is_refused(space):
    with pytest.raises(ValueError, match="4 layers, got 2"):
        space.canonical(Schedule((1, 1)))


def test_value_outside_the_options_is_refused(space):
    with pytest.raises(ValueError, match="outside the space"):
        space.encode(Schedule((3, 1, 1, 1)))


def test_keys_are_read_back():
    for schedule in (Schedule((1, 2, 512), 0), Schedule((8,), 16)):
        assert Schedule.from_key(schedule.key) == schedule
    for bad in ("fast", "1-2-1", "1-x_eta0", "1-2_etax"):
        with pytest.raises(ValueError, match=f"a schedule is named like 1-2-1_eta0, got {bad}"):
            Schedule.from_key(bad)
