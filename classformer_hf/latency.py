"""How long any schedule takes on this machine, from timings of single layers (`latency_table.json`).

A layer's time depends only on the number of tokens that enter and leave it, so a grid of such pairs predicts every
schedule, as the look-up tables of Wang et al. 2020 ("HAT", section 3.2) do for other choices. What a grid point holds:

- every layer of the stack runs on the same input and the time is divided by their number, so that no layer finds its
  weights in a cache where the whole model would not;
- every grid point takes turns with one anchor (the full model on a middle length), and the median over rounds of time
  relative to the anchor is kept: other work on the machine slows both;
- what is no layer (embedding, head, the Python around them) is timed as a pass of a model without layers.
"""

import copy
import dataclasses
import datetime
import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from redundancy_hf.command import format_record
from redundancy_hf.timing import Target, Times, is_same_hardware, ready_to_time, time_in_turns

from .configuration_classformer import ClassformerConfig, shorten
from .modeling_classformer import ClassformerForSequenceClassification

if TYPE_CHECKING:
    from .search.space import Schedule

GRID_TOKENS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
SHAPE_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_hidden_layers",
    "hidden_act",
    "last_layer_cls_only",
)
# in a round: these layers are in nearly every schedule, and the full model, which all are compared with, has no others
KEEP_TIMINGS = 2
ANCHOR = "anchor"
LARGEST_MEAN_DRIFT = 0.05
SMALLEST_GAP = 0.05
FORMAT_VERSION = 2


class Entry(NamedTuple):
    """The time of one part of the model.

    Attributes:
        part: "keep" is a layer that drops nothing, "reduce" one that drops positions, "first" a last layer that
            computes position 0 only; "mask" is what the first layer does beside, finding that one text has no padding;
            "outside" is a pass without layers.
        tokens_in: Tokens that enter.
        tokens_out: Tokens that leave.
        ms: Median time, in milliseconds.
        ms_low: First quartile over rounds.
        ms_high: Third quartile over rounds.
    """

    part: str
    tokens_in: int
    tokens_out: int
    ms: float
    ms_low: float
    ms_high: float


@dataclass(frozen=True)
class LatencyTable:
    """Times of a model's parts on one machine, for one dtype, device and number of threads.

    Between grid points times are linear: in both lengths at once (bilinear), in a plane next to the diagonal, where a
    layer cannot put out more tokens than it gets.

    Attributes:
        shape: What a model must have in common with the measured one.
        hardware: As `hardware_fingerprint` gives it.
        clock: What the times are made of: "thread_cpu", "wall" or "cuda_event".
        anchor_tokens: Length of the input on which the full model was timed beside every grid point.
        anchor_ms: Median of that time.
        rounds: Timed rounds.
        build_seconds: What the build took.
        created: When it ended, UTC.
        entries: The times.
    """

    shape: dict[str, Any]
    hardware: dict[str, Any]
    clock: str
    anchor_tokens: int
    anchor_ms: float
    rounds: int
    build_seconds: float
    created: str
    entries: tuple[Entry, ...]

    @property
    def max_tokens(self) -> int:
        """The longest input whose time is known."""
        return max(entry.tokens_in for entry in self.entries)

    def predict(self, schedule: "Schedule", lengths: Sequence[int]) -> float:
        """Predict the mean time of a schedule over token lengths, in milliseconds; see `predict_many`."""
        return float(self.predict_many([schedule], lengths)[0])

    def predict_many(self, schedules: Sequence["Schedule"], lengths: Sequence[int]) -> np.ndarray:
        """Predict the time of every schedule for one text, averaged over token lengths.

        Args:
            schedules: S schedules.
            lengths: Token lengths that stand for the dataset, such as `sample_inputs` chooses.

        Returns:
            Milliseconds as the machine was when the table was built, (S,); ratios carry over better.

        Raises:
            ValueError: A length is not covered by the table, or a schedule has another number of layers.
        """
        num_layers = self.shape["num_hidden_layers"]
        if any(len(schedule.gamma) != num_layers for schedule in schedules):
            raise ValueError(f"the latency table is of {num_layers} layers; every schedule needs as many factors.")
        gamma = np.array([schedule.gamma for schedule in schedules], np.int64).reshape(-1, num_layers)
        eta = np.array([schedule.eta for schedule in schedules], np.int64)
        return self._add_up(gamma, eta[:, None], lengths)

    def predict_ratios(self, schedules: Sequence["Schedule"], lengths: Sequence[int]) -> np.ndarray:
        """Predict times relative to the full model's, (S,); see `predict_many`."""
        full = self._add_up(np.ones((1, self.shape["num_hidden_layers"]), np.int64), np.zeros((1, 1), int), lengths)
        return self.predict_many(schedules, lengths) / full

    def _add_up(self, gamma: np.ndarray, eta: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
        """Add up the parts for factors (S, layers) and etas (S, 1); returns (S,)."""
        if len(lengths) == 0 or min(lengths) < 1 or max(lengths) > self.max_tokens:
            raise ValueError(f"the latency table knows inputs of 1 to {self.max_tokens} tokens, got {list(lengths)}.")
        values, counts = np.unique(np.asarray(lengths, np.int64), return_counts=True)
        time_of = self._dense
        tokens = np.broadcast_to(values, (len(gamma), len(values)))
        total = time_of["outside"][tokens] + time_of["mask"]
        for layer in range(gamma.shape[1]):
            if self.shape["last_layer_cls_only"] and layer == gamma.shape[1] - 1:
                total = total + time_of["first"][tokens]
                break
            factor = gamma[:, layer, None]
            left = shorten(tokens, factor, eta)
            total = total + np.where(factor == 1, time_of["keep"][tokens], time_of["reduce"][tokens, left])
            tokens = left
        return np.average(total, axis=1, weights=counts)

    @functools.cached_property
    def _dense(self) -> dict[str, Any]:
        """Times by part for every length, index 0 unused: (N,), for "reduce" (N, N), for "mask" one number."""
        ms = {entry[:3]: entry.ms for entry in self.entries}
        grid = sorted({tokens_in for part, tokens_in, _ in ms if part == "keep"})
        pairs = np.zeros((len(grid), len(grid)))
        for i, tokens_in in enumerate(grid):
            for j, tokens_out in enumerate(grid[: i + 1]):
                pairs[i, j] = ms["reduce", tokens_in, tokens_out]
        # no such layers, but their plane makes the triangle below the diagonal a square
        for i in range(len(grid) - 1):
            pairs[i, i + 1] = pairs[i, i] + pairs[i + 1, i + 1] - pairs[i + 1, i]
        every = np.arange(self.max_tokens + 1)
        weights = np.stack([np.interp(every, grid, row) for row in np.eye(len(grid))], axis=1)  # (N, grid)
        rows = {
            "keep": [ms["keep", n, n] for n in grid],
            "first": [ms["first", n, 1] for n in grid],
            "outside": [ms["outside", n, 1] for n in grid],
        }
        return {part: weights @ np.array(row) for part, row in rows.items()} | {
            "reduce": weights @ pairs @ weights.T,
            "mask": ms["mask", grid[-1], grid[-1]],
        }

    def check_fits(self, config: ClassformerConfig, max_tokens: int):
        """Refuse to speak for another model or for longer inputs.

        Raises:
            ValueError: The config has another shape, or `max_tokens` is more than the table knows.
        """
        for name, value in describe_shape(config).items():
            if self.shape.get(name) != value:
                raise ValueError(
                    f"the latency table must be of the model's shape, but it has {name} {self.shape.get(name)} and the "
                    f"model {value}; build one for this model."
                )
        if max_tokens > self.max_tokens:
            raise ValueError(
                f"the latency table ends at {self.max_tokens} tokens, inputs have up to {max_tokens}; build another."
            )

    def describes_this_machine(self, target: Target = Target()) -> bool:
        """Whether the table was built for a target, on hardware and with libraries like those that run now."""
        return is_same_hardware(self.hardware, target.hardware)

    def save(self, path: str | Path):
        """Write the table as JSON, one entry a line."""
        path, entries = Path(path), [entry._asdict() for entry in self.entries]
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.with_name(path.name + ".part")  # a reader never sees half a table
        content = {"format_version": FORMAT_VERSION, **dataclasses.asdict(self), "entries": entries}
        whole.write_text(format_record(content) + "\n")
        whole.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> "LatencyTable":
        """Read what `save` wrote.

        Raises:
            ValueError: The file is missing, damaged or something else.
        """
        advice = "build one with `redundancy-hf latency-table`"
        try:
            content = json.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise ValueError(f"the latency table {path} cannot be read ({error}); {advice}.") from error
        try:
            version = content.pop("format_version")
            entries = tuple(Entry(**entry) for entry in content.pop("entries"))
            table = cls(**content, entries=entries)
            table.predict_ratios([], [1])  # adds up every part, so none is missing
        except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no latency table, or a damaged one; {advice}.") from error
        if version != FORMAT_VERSION:
            raise ValueError(f"{path} is a latency table of format {version}, not {FORMAT_VERSION}; {advice}.")
        return table


def describe_shape(config: ClassformerConfig) -> dict[str, Any]:
    """Give what decides the time of a model's layers, as `LatencyTable.shape` holds it."""
    # transformers takes SDPA where nothing is chosen
    attention = {"attn_implementation": config._attn_implementation or "sdpa"}
    return {name: getattr(config, name) for name in SHAPE_FIELDS} | attention


def choose_grid(max_tokens: int) -> list[int]:
    """List the lengths of the grid, up to the longest input."""
    return [tokens for tokens in GRID_TOKENS if tokens < max_tokens] + [max_tokens]


def count_passes(max_tokens: int, rounds: int) -> int:
    """Count the passes, of a model or as long as one, that `build_latency_table` makes at most."""
    num_lengths = len(choose_grid(max_tokens))
    return 2 * (1 + rounds) * (num_lengths * (num_lengths + 1) // 2 + (2 + KEEP_TIMINGS) * num_lengths + 1)


def build_latency_table(
    config: ClassformerConfig,
    max_tokens: int,
    target: Target = Target(rounds=30),
    max_seconds: float = 150.0,
    on_round: Callable[[], Any] | None = None,
) -> LatencyTable:
    """Time the parts of a model with random weights: their values make no difference.

    Args:
        config: Gives the shape of the model; its own schedule is ignored.
        max_tokens: Longest input that shall be predicted.
        target: What is timed on; its rounds are timed passes over the grid.
        max_seconds: No round starts that would probably end later.
        on_round: Called after every pass over the grid, one before the timed ones included.

    Raises:
        ValueError: `max_tokens` is below 1, or more than the model can read.
    """
    longest = config.max_position_embeddings - (config.pad_token_id or 0) - 1
    if not 1 <= max_tokens <= longest:
        raise ValueError(f"the model reads 1 to {longest} tokens, got `max_tokens` = {max_tokens}.")
    started, config = time.monotonic(), copy.deepcopy(config)
    config.gamma, config.eta = [1] * config.num_hidden_layers, 0
    model: Any = target.place(ClassformerForSequenceClassification(config))
    anchor_tokens = max(max_tokens // 4, 1)
    anchor = _make_pass(model, anchor_tokens)
    with target.use_threads(), ready_to_time({"": model}, model.device):
        jobs = _list_jobs(model, choose_grid(max_tokens))
        jobs += [job for job in jobs if job.part == "keep"] * (KEEP_TIMINGS - 1)
        groups = [{ANCHOR: anchor, "part": job.call} for job in jobs]
        deadline = started + max_seconds
        times = time_in_turns(groups, target.rounds, 1, device=model.device, on_round=on_round, deadline=deadline)
    return LatencyTable(
        shape=describe_shape(model.config),
        hardware=target.hardware,
        clock=times.clock,
        anchor_tokens=anchor_tokens,
        anchor_ms=float(np.median(times.ticks[ANCHOR])),
        rounds=len(times.ticks[ANCHOR]),
        build_seconds=round(time.monotonic() - started, 1),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        entries=tuple(_summarise(jobs, times)),
    )


class _Job(NamedTuple):
    """A part to time: `call` runs it `repeats` times."""

    part: str
    tokens_in: int
    tokens_out: int
    call: Callable[[], Any]
    repeats: int = 1


def _make_pass(model: Any, num_tokens: int) -> Callable[[], Any]:
    input_ids = torch.full((1, num_tokens), model.config.vocab_size - 1, device=model.device)
    return functools.partial(model, input_ids=input_ids, attention_mask=torch.ones_like(input_ids))


def _list_jobs(model: Any, grid: Sequence[int]) -> list[_Job]:
    encoder, dtype, device = model.roberta.encoder, model.dtype, model.device
    layers = len(encoder.layer)

    def stack(state: Any, gamma: int, eta: int, cls_only: bool = False) -> Callable[[], Any]:
        def call():
            for layer in encoder.layer:
                encoder.step(layer, state, gamma, eta, cls_only)

        return call

    outside = _without_layers(model)
    jobs = []
    for n in grid:
        hidden_states = torch.randn(1, n, model.config.hidden_size, device=device).to(dtype)
        input_ids = torch.full((1, n), model.config.vocab_size - 1, device=device)
        state = encoder.start(hidden_states, torch.ones_like(input_ids))
        make_mask = functools.partial(encoder.create_layer_mask, state, hidden_states, 1, 0, False)
        state = state._replace(layer_mask=make_mask())
        jobs += [
            _Job("keep", n, n, stack(state, 1, 0), layers),
            _Job("first", n, 1, stack(state, 1, 0, cls_only=True), layers),
            _Job("outside", n, 1, _make_pass(outside, n)),
        ]
        # a factor that leaves one token beside the first m - 1; above 1, because 1 drops nothing
        jobs += [_Job("reduce", n, m, stack(state, max(n, 2), m - 1), layers) for m in grid if m <= n]
    return [*jobs, _Job("mask", grid[-1], grid[-1], make_mask)]


def _without_layers(model: Any) -> Any:
    """Return a model that shares the embedding and the head and has nothing in between."""
    config = copy.deepcopy(model.config)
    config.num_hidden_layers, config.gamma, config.vocab_size = 0, [], 8
    outside: Any = type(model)(config)
    outside.roberta.embeddings, outside.classifier = model.roberta.embeddings, model.classifier
    return outside.eval()


def _summarise(jobs: Sequence[_Job], times: Times) -> Iterator[Entry]:
    """Give median and quartiles in milliseconds of the median anchor, which ran beside every job."""
    ratios = times.ticks["part"] / times.ticks[ANCHOR]  # (rounds, jobs)
    for job in dict.fromkeys(jobs):
        own = ratios[:, [index for index, other in enumerate(jobs) if other == job]]
        low, middle, high = (np.median(times.ticks[ANCHOR]) * np.percentile(own, [25, 50, 75]) / job.repeats).tolist()
        yield Entry(job.part, job.tokens_in, job.tokens_out, middle, low, high)


def compare_latencies(predicted: np.ndarray, direct: np.ndarray) -> dict[str, Any]:
    """Say how well predicted latencies agree with measured ones.

    Returns:
        Mean and largest relative error, and Kendall's tau over the pairs whose measured latencies are more than 5 %
        apart (closer ones a second measurement may order otherwise); tau is `None` where there is no such pair.
    """
    errors = np.abs(predicted / direct - 1)
    first, second = np.triu_indices(len(direct), k=1)
    is_apart = np.abs(np.log(direct[first] / direct[second])) > np.log(1 + SMALLEST_GAP)
    first, second = first[is_apart], second[is_apart]
    agrees = np.sign(direct[first] - direct[second]) * np.sign(predicted[first] - predicted[second])
    return {
        "mean_relative_error": float(errors.mean()),
        "max_relative_error": float(errors.max()),
        "kendall_tau": float(agrees.mean()) if len(agrees) else None,
        "num_pairs": len(agrees),
    }


def drift(table: LatencyTable, measured: Mapping["Schedule", float], lengths: Sequence[int]) -> dict[str, Any]:
    """Compare predictions with direct measurements.

    Args:
        table: What predicts.
        measured: Latencies relative to the full model, by schedule.
        lengths: Token lengths of the inputs that they were measured on.

    Returns:
        A record for JSON: one row per schedule with "predicted", "direct" and "relative_error" (signed); what
        `compare_latencies` says; and "has_drifted": whether the mean error is above 5 %, so that the table should be
        built anew.

    Raises:
        ValueError: Nothing was measured, or a length is not covered by the table.
    """
    if not measured:
        raise ValueError("drift needs at least one schedule that was measured directly, got none.")
    predicted = table.predict_ratios(list(measured), lengths)
    direct = np.array(list(measured.values()))
    rows = [
        {"gamma": list(schedule.gamma), "eta": schedule.eta, "predicted": p, "direct": d, "relative_error": p / d - 1}
        for schedule, p, d in zip(measured, predicted.tolist(), direct.tolist(), strict=True)
    ]
    agreement = compare_latencies(predicted, direct)
    has_drifted = agreement["mean_relative_error"] > LARGEST_MEAN_DRIFT
    return {"schedules": rows, **agreement, "has_drifted": has_drifted}
