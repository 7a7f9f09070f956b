"""Pictures of a search, drawn with matplotlib into PNG files.

Every picture uses the same marks: blue for what keeps the requirement, orange for what does not, a green star for the
chosen schedule, a black square for the full model (colours of Okabe and Ito, apart for colour-blind readers too).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..configuration_classformer import ClassformerConfig
from .constrained import SIGNIFICANT, MonotonicityAudit
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
    """Open a figure and its axes, with a layout an array (rows, columns); written to `path` and closed in the end."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            rows, columns, figsize=(WIDTH_INCHES, height_inches), layout="constrained", squeeze=not layout, **layout
        )
        try:
            yield figure, axes
            figure.savefig(path, dpi=DPI)
        finally:
            plt.close(figure)


def draw_pareto(path: Path, result: SearchResult, majority_score: float, search: SearchResult | None = None):
    """Draw the share of the full model's score against relative latency, of winners with the trials behind them."""
    everything = search or result
    front = [(trial.latency_ratio, everything.performance(trial)) for trial in pareto_front(everything.trials)]
    points = [(trial, everything, "o", 4.5, "trial") for trial in everything.trials if trial.is_ok]
    if search is not None:
        points += [(trial, result, "D", 5.5, "winner, fine-tuned") for trial in result.trials if trial.is_ok]
    with picture(path, 4.6) as (figure, axes):
        axes.plot(*np.transpose(front), drawstyle="steps-post", color=PLAIN, label="Pareto front")
        axes.axhline(result.required_performance, linestyle="--", color=LIMIT, label="asked")
        axes.axhline(majority_score / result.reference.score, linestyle=":", color="black", label="majority class")
        for trial, judge, mark, size, name in points:
            is_kept = judge.is_feasible(trial)
            color, label = (FEASIBLE, f"{name}, kept") if is_kept else (INFEASIBLE, f"{name}, not kept")
            if judge is result and trial is result.best:
                mark, size, color, label = "*", 15.0, CHOSEN, "chosen"
            elif judge is result and trial is result.reference:
                mark, size, color, label = "s", 7.0, "black", "full model"
            _draw_point(axes, trial, judge.performance(trial), marker=mark, color=color, markersize=size, label=label)
        axes.set(
            xlabel="latency relative to the full model, batch 1",
            ylabel=f"validation {result.reference.measurement.get('metric_name', 'score')}, share of full",
        )
        axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
        _draw_legend(figure, *axes.get_legend_handles_labels())


def _draw_point(axes: Any, trial: Trial, performance: float, **kwargs: Any):
    error = trial.measurement.get("paired_standard_error")
    axes.errorbar(
        trial.latency_ratio,
        performance,
        xerr=_span(trial.latency_ratio, trial.latency_quartiles),
        yerr=error or None,
        linestyle="none",
        elinewidth=0.8,
        ecolor="#B0B0B0",
        zorder={"o": 2, "s": 3, "*": 4, "D": 5}[kwargs["marker"]],
        markeredgecolor="white",
        markeredgewidth=0.5,
        **kwargs,
    )


def _span(value: float, quartiles: tuple[float, float] | None) -> Any:
    """Give the distances to quartiles as an error bar takes them."""
    return None if quartiles is None else np.abs(np.subtract(quartiles, value))[:, None]


def _draw_legend(figure: Any, handles: Sequence[Any], names: Sequence[str]):
    unique = dict(zip(names, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=3, columnspacing=1.2)


def draw_progress(path: Path, result: SearchResult):
    """Draw every trial's speed-up and reward by number, and the best so far."""
    trials = [(trial, reward) for trial, reward in zip(result.trials, result.rewards, strict=True) if trial.is_ok]
    numbers = [trial.number for trial, _ in trials]
    speedups = [1 / trial.latency_ratio for trial, _ in trials]
    kept = [speedup if result.is_feasible(trial) else 1.0 for speedup, (trial, _) in zip(speedups, trials, strict=True)]
    rewards = [reward for _, reward in trials]
    failed = [trial.number for trial in result.trials if not trial.is_ok]
    with picture(path, 6.2, rows=2, sharex=True) as (figure, axes):
        upper, lower = axes[:, 0]
        for panel, values, best in ((upper, speedups, [1.0, *kept]), (lower, rewards, [-np.inf, *rewards])):
            for (trial, _), value in zip(trials, values, strict=True):
                color = FEASIBLE if result.is_feasible(trial) else INFEASIBLE
                style = {"color": color, "markersize": 5, "markeredgecolor": "white", "markeredgewidth": 0.4}
                panel.plot(trial.number, value, ORIGIN_MARKS.get(trial.origin, "o"), **style)
            panel.step(numbers, np.maximum.accumulate(best)[1:], where="post", color=CHOSEN, zorder=1)
            low = np.full(len(failed), 0.03)
            panel.plot(failed, low, "x", color="black", markersize=6, transform=panel.get_xaxis_transform())
        upper.set(ylabel="speed-up over full")
        lower.set(ylabel="reward (eq. 5.4)", xlabel="trial", xlim=(-1, result.trials[-1].number + 1))
        lower.xaxis.get_major_locator().set_params(integer=True)
        _draw_progress_legend(figure, sorted({trial.origin for trial, _ in trials}), bool(failed))


def _draw_progress_legend(figure: Any, origins: Sequence[str], has_failed: bool):
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    marks = [(ORIGIN_MARKS.get(origin, "o"), "#555555", f"by: {origin}") for origin in origins]
    marks += [("x", "black", "failed")] * has_failed
    handles: list[Any] = [
        Line2D([], [], color=CHOSEN, label="best so far"),
        Patch(color=FEASIBLE, label="requirement kept"),
        Patch(color=INFEASIBLE, label="not kept"),
        *(Line2D([], [], linestyle="none", marker=mark, color=color, label=label) for mark, color, label in marks),
    ]
    _draw_legend(figure, handles, [handle.get_label() for handle in handles])


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
    height = 0.5 + 1.45 * len(schedules)
    with picture(path, height, len(schedules), len(inputs), sharex=True, sharey="col") as (_, axes):
        for column, (name, num_tokens) in enumerate(inputs.items()):
            for row, (label, schedule) in enumerate(schedules.items()):
                panel, lengths = axes[row, column], layer_lengths(schedule, num_tokens)
                layers, is_short = range(len(lengths)), len(lengths) <= 8
                full = layer_lengths(Schedule((1,) * len(lengths)), num_tokens)
                panel.bar(layers, full, color="#E3E3E3", width=0.85)
                bars = panel.bar(layers, lengths, color=FEASIBLE, width=0.6)
                panel.bar_label(bars, fontsize=7.5 if is_short else 6, padding=1)
                panel.set(ylim=(0, 1.22 * num_tokens), xticks=layers, ylabel="" if column else "tokens")
                panel.tick_params(axis="x", labelsize=10 if is_short else 7.5)
                panel.grid(visible=False)
                panel.set_title(label if row else f"{name}, {num_tokens} tokens\n{label}", fontsize=9)
            axes[-1, column].set_xlabel("layer")


def draw_audit(path: Path, audit: MonotonicityAudit):
    """Draw how much better the shorter schedule of every comparable pair scored."""
    gains, is_violation = audit.gains, audit.gains > SIGNIFICANT
    with picture(path, 4.0) as (figure, axes):
        ordered = {"color": FEASIBLE, "alpha": 0.45, "markersize": 4, "label": "in order, or within the error"}
        marked = {"color": LIMIT, "markersize": 7, "label": "violation"}
        for chosen, mark, style in ((~is_violation, "o", ordered), (is_violation, "X", marked)):
            if chosen.any():
                axes.plot(audit.halvings[chosen], gains[chosen], mark, markeredgewidth=0, **style)
        axes.axhline(SIGNIFICANT, linestyle="--", color=LIMIT, label=f"{SIGNIFICANT:g} standard errors")
        axes.axhline(0, color="black", linewidth=0.8)
        if gains.min() < -20:
            axes.set_yscale("symlog", linthresh=5)
            ticks = [tick for tick in (-200, -100, -50, -20, -10, -5, 0, 5, 10, 20) if tick >= 1.3 * gains.min()]
            axes.set_yticks(ticks, map(str, ticks))
            axes.minorticks_off()
        share = f"{is_violation.sum()} of {len(gains):,} comparable pairs are violations ({is_violation.mean():.1%})"
        axes.set_title(share.replace("%", " %"), fontsize=10.5)
        axes.set(
            xlabel="how much shorter: halvings, summed over the layers",
            ylabel="score of shorter minus longer,\nstandard errors",
        )
        axes.set_ylim(top=max(1.2 * gains.max(), 2 * SIGNIFICANT))
        _draw_legend(figure, *axes.get_legend_handles_labels())


def draw_costs(path: Path, costs: Sequence[tuple[str, float]]):
    """Draw where the seconds went, as horizontal bars."""
    names, seconds = zip(*costs, strict=True)
    unit, divisor = ("minutes", 60.0) if sum(seconds) > 300 else ("seconds", 1.0)
    values = np.array(seconds) / divisor
    texts = [f"{value:.1f} ({value / values.sum():.0%})" for value in values]
    with picture(path, 0.9 + 0.45 * len(costs)) as (_, axes):
        axes.bar_label(axes.barh(names, values, color=FEASIBLE, height=0.6), texts, padding=4, fontsize=9)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set(xlim=(0, 1.3 * values.max()), xlabel=f"{unit} (total {values.sum():.1f})")


def draw_drift(path: Path, record: Mapping[str, Any]):
    """Draw predicted against directly measured latency, of the content of `direct_latency.json`."""
    rows = record["drift"]["schedules"]
    both = np.array([[row["direct"], row["predicted"]] for row in rows])
    limits = np.array([0.95 * both.min(), 1.05 * both.max()])
    with picture(path, 4.4) as (figure, axes):
        for row in rows:
            direct = record["latency"].get(Schedule(tuple(row["gamma"]), row["eta"]).key)
            span = _span(row["direct"], direct and (direct["ratio_low"], direct["ratio_high"]))
            style = {"color": FEASIBLE, "ecolor": "#9A9A9A", "markersize": 5.5, "label": "schedule, quartiles"}
            axes.errorbar(row["direct"], row["predicted"], xerr=span, fmt="o", **style)
        axes.plot(limits, limits, color="black", linewidth=0.8, label="equal")
        axes.fill_between(limits, 0.95 * limits, 1.05 * limits, color="#DDDDDD", label="within 5 %")
        axes.set(
            xlim=limits,
            ylim=limits,
            xlabel="measured latency, relative to the full model",
            ylabel="predicted by the table",
        )
        _draw_legend(figure, *axes.get_legend_handles_labels())
