"""Pictures of a search, drawn with matplotlib into PNG files.

Every picture uses the same marks: blue for what keeps the requirement, orange for what does not, a green star for the
chosen schedule, a black square for the full model (colours of Okabe and Ito, apart for colour-blind readers too).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..configuration_classformer import ClassformerConfig
from .journal import Trial
from .loop import SearchResult, pareto_front
from .space import Schedule

FEASIBLE, INFEASIBLE, CHOSEN, LIMIT, PLAIN = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#8C8C8C"
WIDTH_INCHES, DPI = 6.0, 150
# marks of what proposed a trial
ORIGIN_MARKS = {"reference": "s", "seeded": "^", "random": "v", "model": "o", "reused": "D", "winner": "P"}
STYLE: Any = {
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "legend.fontsize": 9,
    "legend.frameon": False,
}


@contextmanager
def picture(path: Path, height_inches: float, rows: int = 1, columns: int = 1, **layout: Any) -> Iterator[Any]:
    """Open a figure and its axes, (rows, columns); written to `path` and closed in the end."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            rows, columns, figsize=(WIDTH_INCHES, height_inches), layout="constrained", squeeze=False, **layout
        )
        try:
            yield figure, axes
            figure.savefig(path, dpi=DPI)
        finally:
            plt.close(figure)


def latency_quartiles(trial: Trial) -> tuple[float, float] | None:
    """Give the quartiles of a relative latency; `None` where it comes from a table."""
    candidate = trial.measurement.get("latency", {}).get("candidate")
    return None if candidate is None else (candidate["ratio_low"], candidate["ratio_high"])


def latency_source(trial: Trial) -> str | None:
    """Say whether a latency was measured ("direct") or predicted ("table"); `None` where that is not recorded."""
    return "direct" if latency_quartiles(trial) else trial.measurement.get("latency_source")


def speedup_against_stock(trial: Trial) -> float | None:
    """Say how many times as fast as plain RoBERTa a trial is; `None` where that was not timed."""
    stock = trial.measurement.get("stock_latency_ratio")
    return None if stock is None else stock / trial.latency_ratio


def speedup_against_stock_range(trial: Trial) -> tuple[float, float] | None:
    """Give the range of `speedup_against_stock` over the quartiles of both times; `None` where one has none.

    From the lower quartile of plain RoBERTa's time by the upper one of the trial's, to the reverse: wider than the
    quartiles of the quotient, whose rounds are not kept.
    """
    stock, quartiles = trial.measurement.get("latency", {}).get("stock"), latency_quartiles(trial)
    return stock and quartiles and (stock["ratio_low"] / quartiles[1], stock["ratio_high"] / quartiles[0])


def draw_pareto(path: Path, result: SearchResult, majority_score: float, search: SearchResult | None = None):
    """Draw the share of the full model's score against relative latency: all trials, front, requirement, floor, choice.

    Args:
        path: Of the PNG.
        result: What was judged.
        majority_score: The floor.
        search: The trials with a supernet, where `result` holds winners with a fine-tuning of their own.
    """
    from matplotlib.ticker import PercentFormatter

    everything = search or result
    front = pareto_front(everything.trials)
    with picture(path, 4.6) as (figure, axes):
        axes = axes[0, 0]
        axes.plot(
            [trial.latency_ratio for trial in front],
            [everything.performance(trial) for trial in front],
            drawstyle="steps-post",
            color=PLAIN,
            label="Pareto front",
        )
        axes.axhline(result.required_performance, linestyle="--", color=LIMIT, label="asked")
        axes.axhline(majority_score / result.reference.score, linestyle=":", color="black", label="majority class")
        points = [(trial, everything, "o", "trial") for trial in everything.trials if trial.is_ok]
        if search is not None:
            points += [(trial, result, "D", "winner, fine-tuned") for trial in result.trials if trial.is_ok]
        for trial, judge, mark, name in points:
            if trial in (judge.reference, result.best) and judge is result:
                mark, color, size = ("s", "black", 7.0) if trial is not result.best else ("*", CHOSEN, 15.0)
                name = "full model" if trial is not result.best else "chosen"
            else:
                color, size = (FEASIBLE if judge.is_feasible(trial) else INFEASIBLE), 5.5 if mark == "D" else 4.5
                name += ", kept" if judge.is_feasible(trial) else ", not kept"
            _draw_point(axes, trial, judge.performance(trial), marker=mark, color=color, markersize=size, label=name)
        axes.set_xlabel("latency relative to the full model, batch 1")
        axes.set_ylabel(f"validation {result.reference.measurement.get('metric_name', 'score')}, share of full")
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        _draw_legend(figure, axes)


def _draw_point(axes: Any, trial: Trial, performance: float, **kwargs: Any):
    """Draw a trial with its quartiles and its standard error, where they are known."""
    quartiles, error = latency_quartiles(trial), trial.measurement.get("paired_standard_error")
    spans = (
        None
        if quartiles is None
        else [[max(trial.latency_ratio - quartiles[0], 0)], [max(quartiles[1] - trial.latency_ratio, 0)]]
    )
    axes.errorbar(
        trial.latency_ratio,
        performance,
        xerr=spans,
        yerr=error or None,
        linestyle="none",
        elinewidth=0.8,
        ecolor="#B0B0B0",
        zorder={"o": 2, "s": 3, "*": 4, "D": 5}[kwargs["marker"]],
        markeredgecolor="white",
        markeredgewidth=0.5,
        **kwargs,
    )


def _draw_legend(figure: Any, axes: Any):
    """Draw one entry per name, below the axes."""
    handles, names = axes.get_legend_handles_labels()
    unique = dict(zip(names, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=3, columnspacing=1.2)


def draw_progress(path: Path, result: SearchResult):
    """Draw every trial's speed-up and reward by number, and the best so far."""
    trials = [(trial, reward) for trial, reward in zip(result.trials, result.rewards, strict=True) if trial.is_ok]
    failed = [trial.number for trial in result.trials if not trial.is_ok]
    with picture(path, 6.2, rows=2, sharex=True) as (figure, axes):
        upper, lower = axes[:, 0]
        fastest, highest, speedups, rewards = 1.0, -float("inf"), [], []
        for trial, reward in trials:
            if result.is_feasible(trial):
                fastest = max(fastest, 1 / trial.latency_ratio)
            highest = max(highest, reward)
            speedups.append(fastest)
            rewards.append(highest)
            color = FEASIBLE if result.is_feasible(trial) else INFEASIBLE
            marker = ORIGIN_MARKS.get(trial.origin, "o")
            for panel, value in ((upper, 1 / trial.latency_ratio), (lower, reward)):
                panel.plot(
                    trial.number, value, marker, color=color, markersize=5, markeredgecolor="white", markeredgewidth=0.4
                )
        numbers = [trial.number for trial, _ in trials]
        for panel, best in ((upper, speedups), (lower, rewards)):
            panel.step(numbers, best, where="post", color=CHOSEN, zorder=1)
            for number in failed:
                panel.plot(number, 0.03, "x", color="black", markersize=6, transform=panel.get_xaxis_transform())
        upper.set_ylabel("speed-up over full")
        lower.set_ylabel("reward (eq. 5.4)")
        lower.set_xlabel("trial")
        lower.set_xlim(-1, max(trial.number for trial in result.trials) + 1)
        lower.xaxis.get_major_locator().set_params(integer=True)
        _draw_progress_legend(figure, {trial.origin for trial, _ in trials}, bool(failed))


def _draw_progress_legend(figure: Any, origins: set[str], has_failed: bool):
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Line2D([], [], color=CHOSEN, label="best so far"),
        Patch(color=FEASIBLE, label="requirement kept"),
        Patch(color=INFEASIBLE, label="not kept"),
    ]
    for origin in sorted(origins):
        mark = ORIGIN_MARKS.get(origin, "o")
        handles.append(Line2D([], [], linestyle="none", marker=mark, color="#555555", label=f"by: {origin}"))
    if has_failed:
        handles.append(Line2D([], [], linestyle="none", marker="x", color="black", label="failed"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, columnspacing=1.2)


def layer_lengths(schedule: Schedule, num_tokens: int) -> list[int]:
    """Count the tokens that leave every layer of a classifier."""
    config = ClassformerConfig(num_hidden_layers=len(schedule.gamma), **schedule.config)
    return config.layer_lengths(num_tokens, cls_only=True)


def draw_lengths(path: Path, schedules: Mapping[str, Schedule], inputs: Mapping[str, int]):
    """Draw the tokens that leave each layer, one row per schedule and one column per input length.

    Args:
        path: Of the PNG.
        schedules: By the name that is written above their bars; those of the full model are drawn behind.
        inputs: Numbers of tokens, by name.
    """
    with picture(path, 0.5 + 1.45 * len(schedules), len(schedules), len(inputs), sharex=True, sharey="col") as (
        _,
        axes,
    ):
        for column, (name, num_tokens) in enumerate(inputs.items()):
            for row, (label, schedule) in enumerate(schedules.items()):
                panel, lengths = axes[row, column], layer_lengths(schedule, num_tokens)
                layers = range(len(lengths))
                full = layer_lengths(Schedule((1,) * len(lengths)), num_tokens)
                panel.bar(layers, full, color="#E3E3E3", width=0.85)
                bars = panel.bar(layers, lengths, color=FEASIBLE, width=0.6)
                panel.bar_label(bars, fontsize=7.5 if len(lengths) <= 8 else 6, padding=1)
                panel.set_ylim(0, 1.22 * num_tokens)
                panel.set_xticks(layers)
                panel.tick_params(axis="x", labelsize=10 if len(lengths) <= 8 else 7.5)
                panel.grid(visible=False)
                panel.set_title(f"{name}, {num_tokens} tokens\n{label}" if row == 0 else label, fontsize=9)
                if column == 0:
                    panel.set_ylabel("tokens")
            axes[-1, column].set_xlabel("layer")


def draw_audit(path: Path, pairs: Sequence[tuple[float, float, bool]], limit: float):
    """Draw how much better the shorter schedule of every comparable pair scored.

    Args:
        path: Of the PNG.
        pairs: Halvings between the two schedules (mean over the inputs, summed over the layers), difference of the
            scores of shorter and longer one in standard errors, and whether that is a violation.
        limit: Standard errors above which it is one.
    """
    with picture(path, 4.0) as (figure, axes):
        axes = axes[0, 0]
        for is_violation, mark, color, name in (
            (False, "o", FEASIBLE, "in order, or within the error"),
            (True, "X", LIMIT, "violation"),
        ):
            chosen = [pair for pair in pairs if pair[2] == is_violation]
            if chosen:
                x, y, _ = zip(*chosen, strict=True)
                alpha = 1.0 if is_violation else 0.45
                axes.plot(
                    x,
                    y,
                    mark,
                    color=color,
                    alpha=alpha,
                    markersize=7 if is_violation else 4,
                    label=name,
                    markeredgewidth=0,
                )
        axes.axhline(limit, linestyle="--", color=LIMIT, label=f"{limit:g} standard errors")
        axes.axhline(0, color="black", linewidth=0.8)
        low = min((pair[1] for pair in pairs), default=0)
        if low < -20:
            axes.set_yscale("symlog", linthresh=5)
            axes.set_yticks([tick for tick in (-200, -100, -50, -20, -10, -5, 0, 5, 10, 20) if tick >= 1.3 * low])
            axes.yaxis.set_major_formatter("{x:g}")
            axes.minorticks_off()
        top = max(pair[1] for pair in pairs)
        axes.set_ylim(top=max(1.2 * top, 2 * limit))
        num_violations = sum(is_violation for *_, is_violation in pairs)
        share = f"{100 * num_violations / len(pairs):.1f} %"
        axes.set_title(f"{num_violations} of {len(pairs):,} comparable pairs are violations ({share})", fontsize=10.5)
        axes.set_xlabel("how much shorter: halvings, summed over the layers")
        axes.set_ylabel("score of shorter minus longer,\nstandard errors")
        _draw_legend(figure, axes)


def draw_costs(path: Path, costs: Sequence[tuple[str, float]]):
    """Draw where the seconds went, as horizontal bars."""
    total = sum(seconds for _, seconds in costs)
    unit, divisor = ("minutes", 60.0) if total > 300 else ("seconds", 1.0)
    values = [seconds / divisor for _, seconds in costs]
    with picture(path, 0.9 + 0.45 * len(costs)) as (_, axes):
        axes = axes[0, 0]
        bars = axes.barh([name for name, _ in costs], values, color=FEASIBLE, height=0.6)
        shares = [value / max(sum(values), 1e-9) for value in values]
        texts = [f"{value:.1f} ({share:.0%})" for value, share in zip(values, shares, strict=True)]
        axes.bar_label(bars, texts, padding=4, fontsize=9)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.3 * max([*values, 1e-9]))
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(f"{unit} (total {sum(values):.1f})")


def draw_drift(path: Path, record: Mapping[str, Any]):
    """Draw predicted against directly measured latency.

    Args:
        path: Of the PNG.
        record: Of `direct_latency.json`.
    """
    with picture(path, 4.4) as (figure, axes):
        axes = axes[0, 0]
        values = []
        for row in record["drift"]["schedules"]:
            direct = record["latency"].get(Schedule(tuple(row["gamma"]), row["eta"]).key)
            spans = None
            if direct is not None:
                spans = [[max(row["direct"] - direct["ratio_low"], 0)], [max(direct["ratio_high"] - row["direct"], 0)]]
            axes.errorbar(
                row["direct"],
                row["predicted"],
                xerr=spans,
                fmt="o",
                color=FEASIBLE,
                ecolor="#9A9A9A",
                markersize=5.5,
                label="schedule, quartiles",
            )
            values += [row["direct"], row["predicted"]]
        low, high = 0.95 * min(values), 1.05 * max(values)
        axes.plot([low, high], [low, high], color="black", linewidth=0.8, label="equal")
        axes.fill_between(
            [low, high], [0.95 * low, 0.95 * high], [1.05 * low, 1.05 * high], color="#DDDDDD", label="within 5 %"
        )
        axes.set_xlim(low, high)
        axes.set_ylim(low, high)
        axes.set_xlabel("measured latency, relative to the full model")
        axes.set_ylabel("predicted by the table")
        _draw_legend(figure, axes)
