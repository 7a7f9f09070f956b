"""What is searched: one reduction factor per layer and eta (thesis section 5.1.2: gamma_1..gamma_n and eta).

The thesis does not list the candidate values. Ours are 1, 2, 4, 8 and "first" (one token beside the first eta) for
gamma, and 0, 2, 4, 8, 16 for eta.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..configuration_classformer import shorten, shorten_by_layers


@dataclass(frozen=True, order=True)
class Schedule:
    """A point of the space, as it stands in a config: one factor per layer, and eta.

    Attributes:
        gamma: One factor per layer.
        eta: Number of leading tokens that stay.
        buckets: Other schedules for shorter inputs, shortest first: pairs of the longest input in tokens and the
            schedule. The search space has none; a length policy has.
    """

    gamma: tuple[int, ...]
    eta: int = 0
    buckets: tuple[tuple[int, "Schedule"], ...] = ()

    @property
    def key(self) -> str:
        """A short name that can be read and can name a folder, like `1-2-1-4-1-1_eta2`."""
        name = "-".join(map(str, self.gamma)) + f"_eta{self.eta}"
        return "__".join([*(f"{limit}t_{schedule.key}" for limit, schedule in self.buckets), name])

    @property
    def config(self) -> dict[str, Any]:
        """The same as keyword arguments of a [`ClassformerConfig`]."""
        config: dict[str, Any] = {"gamma": list(self.gamma), "eta": self.eta}
        if self.buckets:
            config["length_buckets"] = [{"max_tokens": limit, **schedule.config} for limit, schedule in self.buckets]
        return config

    @classmethod
    def from_key(cls, key: str) -> "Schedule":
        """Read a name such as `1-2-1-4-1-1_eta2`, without buckets.

        Raises:
            ValueError: It is no such name.
        """
        try:
            gamma, _, eta = key.partition("_eta")
            return cls(tuple(map(int, gamma.split("-"))), int(eta))
        except ValueError as error:
            raise ValueError(f"a schedule is named like 1-2-1_eta0, got {key}.") from error

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Schedule":
        """Read what `config` wrote."""
        buckets = tuple(
            (bucket["max_tokens"], cls(tuple(bucket["gamma"]), bucket["eta"]))
            for bucket in config.get("length_buckets") or []
        )
        return cls(tuple(config["gamma"]), config["eta"], buckets)


def layer_lengths(
    schedules: Sequence[Schedule], lengths: Sequence[int] | np.ndarray, cls_only: bool = False
) -> Iterator[np.ndarray]:
    """Count the tokens behind every layer, for many schedules and inputs at once.

    Args:
        schedules: S schedules without buckets.
        lengths: Tokens of N inputs.
        cls_only: Whether the last layer computes position 0 only.

    Yields:
        What leaves each layer, (S, N).
    """
    gamma = np.array([schedule.gamma for schedule in schedules]).T[:, :, None]  # (layers, S, 1)
    eta = np.array([schedule.eta for schedule in schedules])[:, None]
    return shorten_by_layers(np.asarray(lengths), gamma, eta, cls_only)


class SearchSpace:
    """All schedules over given options, each with one canonical form.

    Two schedules that keep the same positions of every text that is judged are the same model. The canonical form drops
    what makes no difference, so that nothing is evaluated twice; longer texts are then reduced as little as may be.

    Args:
        num_layers: Number of blocks.
        max_tokens: Longest input of the dataset, in tokens.
        gamma_options: Factors to choose from; `"first"` keeps one token beside the first eta.
        eta_options: Numbers of leading tokens that may stay.
        cls_only: Whether the last layer computes position 0 only, which makes its factor irrelevant.
        first_token_gamma: The factor that stands for `"first"`: at least the longest input the model can take.
        max_reduction: Of the longest input at least one position in so many reaches the last layer's keys; `None`
            sets no limit.
        judged_tokens: Longest text that is validated or timed, where that is shorter than the longest of the dataset.

    Raises:
        ValueError: An option is no positive integer, a value is missing (1 in gamma), or there is nothing to choose.
    """

    def __init__(
        self,
        num_layers: int,
        max_tokens: int,
        gamma_options: Iterable[int | str] = (1, 2, 4, 8, "first"),
        eta_options: Iterable[int] = (0, 2, 4, 8, 16),
        cls_only: bool = True,
        first_token_gamma: int = 512,
        max_reduction: float | None = None,
        judged_tokens: int | None = None,
    ):
        self.num_layers = num_layers
        self.max_tokens = max_tokens
        self.cls_only = cls_only
        self.max_reduction = max_reduction
        # no part of a study's identity: a search that was begun without it goes on
        self._judged_tokens = max_tokens if judged_tokens is None else min(judged_tokens, max_tokens)
        factors = [max(first_token_gamma, max_tokens) if option == "first" else option for option in gamma_options]
        self.gamma_options = sorted({_parse(one, 1, 'a gamma option is an integer >= 1 or "first"') for one in factors})
        self.eta_options = sorted({_parse(option, 0, "an eta option is an integer >= 0") for option in eta_options})
        if self.gamma_options[:1] != [1] or len(self.gamma_options) < 2:
            raise ValueError(f"gamma options need 1 (drop nothing) and something else, got {self.gamma_options}.")
        if not self.eta_options:
            raise ValueError("eta options are empty; give at least one number of leading tokens, such as 0.")
        if max_reduction is not None and max_reduction <= 1:
            raise ValueError(f"`max_reduction` must be above 1, or None for no limit, got {max_reduction}.")

    @property
    def full(self) -> Schedule:
        """The unreduced model."""
        return Schedule((1,) * self.num_layers, 0)

    @property
    def sizes(self) -> list[int]:
        """Number of options of every choice: one per layer, and one for eta."""
        return [len(self.gamma_options)] * self.num_layers + [len(self.eta_options)]

    @property
    def num_points(self) -> int:
        """Number of points before equal ones are merged."""
        return math.prod(self.sizes)

    def canonical(self, schedule: Schedule) -> Schedule:
        """Rewrite a schedule with the smallest options that keep the same positions of all texts that are judged.

        The longest of them tells two schedules apart if any does.

        What drops out: the last layer's factor where only position 0 is computed, factors of a layer that has nothing
        left to drop, sizes beyond what is left, and eta where nothing is reduced.

        Raises:
            ValueError: The schedule has another number of layers than the space.
        """
        if len(schedule.gamma) != self.num_layers:
            raise ValueError(f"the space has {self.num_layers} layers, got {len(schedule.gamma)}: {schedule.gamma}.")
        num_tokens, gamma = self._judged_tokens, []
        for layer, factor in enumerate(schedule.gamma):
            rest = max(num_tokens - schedule.eta, 0)
            if rest <= 1 or (self.cls_only and layer == self.num_layers - 1):
                factor = 1
            elif factor >= rest:
                factor = min((option for option in self.gamma_options if option >= rest), default=factor)
            num_tokens = shorten(num_tokens, factor, schedule.eta)
            gamma.append(factor)
        return Schedule(tuple(gamma), schedule.eta if any(factor > 1 for factor in gamma) else 0)

    def is_allowed(self, schedule: Schedule) -> bool:
        """Whether a schedule keeps enough positions for `max_reduction`."""
        if self.max_reduction is None:
            return True
        factors = schedule.gamma[: self.num_layers - self.cls_only]
        *_, num_tokens = self.max_tokens, *shorten_by_layers(self.max_tokens, factors, schedule.eta)
        return num_tokens * self.max_reduction >= self.max_tokens

    def enumerate(self, limit: int = 200_000) -> list[Schedule]:
        """List every canonical schedule that `max_reduction` allows, in order.

        Raises:
            ValueError: There are more than `limit`.
        """
        found: set[Schedule] = set()

        def extend(gamma: tuple[int, ...], num_tokens: int, eta: int):
            if len(found) > limit:
                raise ValueError(
                    f"the space has more than {limit:,} schedules, too many to list; lower `max_reduction` (now "
                    f"{self.max_reduction}) or give fewer options."
                )
            if len(gamma) == self.num_layers:
                found.add(self.canonical(Schedule(gamma, eta)))
                return
            is_last = self.cls_only and len(gamma) == self.num_layers - 1
            for factor in [1] if is_last or num_tokens - eta <= 1 else self.gamma_options:
                left = shorten(num_tokens, factor, eta)
                if self.max_reduction is None or left * self.max_reduction >= self.max_tokens:
                    extend((*gamma, factor), left, eta)

        for eta in self.eta_options:
            extend((), self.max_tokens, eta)
        return sorted(found)

    def log2_lengths(self, schedules: Sequence[Schedule], lengths: Sequence[int]) -> np.ndarray:
        """Describe schedules by how long the sequence is behind every layer that can be shortened.

        Args:
            schedules: S schedules.
            lengths: Input lengths in tokens that stand for the dataset.

        Returns:
            Mean over the inputs of the base-2 logarithm of the length, (S, layers); without the last layer where that
            computes position 0 only.
        """
        columns = [np.log2(num_tokens).mean(axis=1) for num_tokens in layer_lengths(schedules, lengths)]
        return np.stack(columns[: self.num_layers - self.cls_only], axis=1)

    def encode(self, schedule: Schedule) -> list[int]:
        """Give the index of every choice, one per layer and one for eta; the order of the options is kept.

        Raises:
            ValueError: A value is not among the options.
        """
        try:
            return [self.gamma_options.index(factor) for factor in schedule.gamma] + [
                self.eta_options.index(schedule.eta) if any(f > 1 for f in schedule.gamma) else 0
            ]
        except ValueError as error:
            raise ValueError(
                f"{schedule} is outside the space: gamma from {self.gamma_options}, eta from {self.eta_options}."
            ) from error

    def decode(self, indices: Iterable[int]) -> Schedule:
        """Turn indices into the canonical schedule."""
        *layers, eta = (int(index) for index in indices)
        return self.canonical(Schedule(tuple(self.gamma_options[i] for i in layers), self.eta_options[eta]))

    def sample(self, generator: np.random.Generator) -> Schedule:
        """Draw every choice uniformly and independently; under `max_reduction`, one of the allowed schedules uniformly.

        Few independent draws would be allowed: one in a thousand with 12 layers.
        """
        if self.max_reduction is not None:
            return self._allowed[int(generator.integers(len(self._allowed)))]
        return self.decode(generator.integers(self.sizes))

    @cached_property
    def _allowed(self) -> list[Schedule]:
        return self.enumerate()

    def neighbours(self, schedule: Schedule) -> list[Schedule]:
        """List the allowed schedules one step away in one choice."""
        point, steps = np.array(self.encode(schedule)), np.eye(self.num_layers + 1, dtype=int)
        moved = [point + sign * step for step in steps for sign in (-1, 1)]
        inside = [self.decode(one) for one in moved if (one >= 0).all() and (one < self.sizes).all()]
        return [schedule for schedule in inside if self.is_allowed(schedule)]

    def constrained(self, first_layer: int) -> Schedule:
        """Build the one-parameter schedule of section 5.2.5: three 2x reductions, evenly spaced to the output.

        Args:
            first_layer: Index of the first reduced layer, counted from 0; `num_layers` reduces nothing.
        """
        step, factor = (self.num_layers - first_layer) / 3, self.gamma_options[1]
        reduced = {first_layer + int(number * step) for number in range(3)}
        return self.canonical(Schedule(tuple(factor if layer in reduced else 1 for layer in range(self.num_layers))))


def _parse(option: int | str, smallest: int, name: str) -> int:
    try:
        value = int(option)
    except ValueError:
        value = smallest - 1
    if value < smallest:
        raise ValueError(f"{name}, got {option!r}.")
    return value
