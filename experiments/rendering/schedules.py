"""Views of fixed schedules and of what tasks are like."""

import statistics
from collections.abc import Iterator

from frame import around, describe_machine, format_table, interval, list_commands

# RoBERTa-base on development sets, table 5.1: the author's run, random weights
THESIS_TABLE_5_1 = {
    "cola": (63.0, 60.4),
    "sst2": (94.8, 79.8),
    "mrpc": (91.8, 83.4),
    "stsb": (90.9, 45.8),
    "qqp": (88.8, 72.0),
    "rte": (83.4, 52.7),
}
# the thesis: 7 tasks, share kept against training size and against mean length
THESIS_PREDICTION = {"training texts": (-0.25, 0.59), "mean length": (-0.17, 0.71)}


def iterate_tasks(records: dict) -> Iterator[tuple[str, dict, dict, list[dict]]]:
    """Give name, description, record and rows of every task."""
    for record in records.values():
        for name, task in record["datasets"].items():
            yield name, task, record, [row for row in record["rows"] if row["dataset"] == name]


def select_records(records: dict, family: str) -> dict:
    """Leave out the records without rows of a family."""
    return {name: record for name, record in records.items() if family in {row["family"] for row in record["rows"]}}


def mean_score(rows: list[dict], **wanted) -> float | None:
    """Give the mean score over seeds of one variant, in percent; None where it was not run."""
    scores = [row["test_score"] for row in rows if wanted.items() <= row.items()]
    return 100 * statistics.mean(scores) if scores else None


def largest_error(rows: list[dict], **wanted) -> float:
    """Give the standard error over examples of a variant's score, in percent; of several seeds, the largest."""
    return 100 * max(row["test_standard_error"] for row in rows if wanted.items() <= row.items())


def score_interval(rows: list[dict], family: str = "full") -> str:
    """Give a mean score in percent with its 95 % interval over examples."""
    score = mean_score(rows, family=family)
    assert score is not None
    return interval(*around(score, largest_error(rows, family=family)), digits=1)


def single_table(records: dict) -> str:
    """The share of the full model's score that one reduction leaves, by layer and factor."""
    lines, num_layers = [], 0
    for name, task, _, rows in iterate_tasks(records):
        full = mean_score(rows, family="full")
        assert full is not None
        num_layers = len(rows[0]["gamma"])
        for factor in sorted({row["factor"] for row in rows if row["family"] == "single"}):
            scores = [mean_score(rows, family="single", factor=factor, layer=layer) for layer in range(num_layers - 1)]
            shares = ["" if score is None else f"{100 * score / full:.1f}" for score in scores]
            majority = f"{10000 * task['majority_score'] / full:.1f}"
            lines.append([name.upper(), task["metric_name"], f"{factor}x", score_interval(rows), *shares, majority])
    layers = (f"layer {layer + 1} (n = {num_layers - layer}), %" for layer in range(num_layers - 1))
    header = ["task", "metric", "factor", "full score", *layers]
    return (
        format_table([*header, "majority class, %"], lines) + "\nn: last layers that are shorter. " + describe(records)
    )


def constrained_table(records: dict) -> str:
    """Score and time of the schedules with one parameter."""
    records = select_records(records, "constrained")
    lines = []
    for name, task, record, rows in iterate_tasks(records):
        timed, full = (record["latency"] or {}).get(name, {}), mean_score(rows, family="full")
        schedules = {row["layer"]: row["schedule"] for row in rows if row["family"] == "constrained"}
        assert full is not None
        of = [name.upper(), task["metric_name"]]
        lines.append([*of, "full model", "", score_interval(rows), "100.0", "1.00"])
        for layer, schedule in sorted(schedules.items()):
            score, latency = mean_score(rows, family="constrained", layer=layer), timed.get(schedule)
            assert score is not None
            time = (
                interval(latency["ratio"], latency["ratio_low"], latency["ratio_high"]) if latency else "not measured"
            )
            kept = f"{100 * score / full:.1f}"
            lines.append([*of, str(layer + 1), f"`{schedule}`", f"{score:.1f}", kept, time])
        majority = 100 * task["majority_score"]
        lines.append([*of, "majority class", "", f"{majority:.1f}", f"{100 * majority / full:.1f}", ""])
    header = ["task", "metric", "k", "gamma and eta", "test score", "% of full", "time relative to the full model"]
    note = "Times: a text of the test split at a time, float32; in brackets quartiles over the rounds. "
    return format_table(header, lines) + "\n" + note + describe(records)


def random_weights_table(records: dict) -> str:
    """Pretrained against random weights, beside table 5.1."""
    records = select_records(records, "random_weights")
    lines = []
    for name, task, _, rows in iterate_tasks(records):
        thesis = THESIS_TABLE_5_1.get(name, ())
        lines.append(
            [
                *(name.upper(), task["metric_name"], str(task["num_examples"]["test"])),
                *(score_interval(rows), score_interval(rows, "random_weights")),
                f"{100 * task['majority_score']:.1f}",
                *(f"{value:g}" for value in thesis),
                *([] if thesis else ["", ""]),
            ]
        )
    header = ["task", "metric", "n", "pretrained", "random weights", "majority class"]
    return format_table([*header, "thesis, pretrained", "thesis, random"], lines) + "\n" + describe(records)


def prediction_table(records: dict) -> str:
    """Whether training size or length foretell what a reduction by four at the second layer leaves."""
    from scipy import stats

    points, at_chance = {}, []
    for name, task, _, rows in iterate_tasks(records):
        full, score = mean_score(rows, family="full"), mean_score(rows, family="single", factor=4, layer=1)
        if full is None or score is None:
            continue
        majority = 100 * task["majority_score"]
        if full - majority <= 2 * largest_error(rows, family="full"):
            at_chance.append(name.upper())  # what has learned nothing has nothing to lose
            continue
        points[name.upper()] = (
            *(task["num_examples"]["train"], task["mean_length"]),
            *(score / full, (score - majority) / (full - majority)),
        )
    if len(points) < 3:
        return "Not measured: a regression needs three tasks.\n"
    sizes, lengths, shares, gains = zip(*points.values(), strict=True)
    lines = []
    for what, kept in (("score", shares), ("score above the majority class", gains)):
        for against, values in (("training texts", sizes), ("mean length", lengths)):
            fit, ranks = stats.linregress(values, kept), stats.spearmanr(values, kept)
            numbers = [f"{fit.rvalue:.2f}", p_value(fit.pvalue), f"{ranks.statistic:.2f}", p_value(ranks.pvalue)]
            r, p = THESIS_PREDICTION[against]
            lines.append([what, against, str(len(kept)), *numbers, f"{r} (p = {p})" if kept is shares else ""])
    each = "; ".join(
        f"{name} {100 * share:.0f} and {100 * gain:.0f} % ({length:.0f} tokens)"
        for name, (_, length, share, gain) in points.items()
    )
    note = "Kept at 4x in the second layer, of the score and of what it is above the majority class, and mean length "
    note += f"after cutting: {each}."
    if at_chance:
        note += f" Left out, within two standard errors of the majority class: {', '.join(at_chance)}."
    header = ["share kept of the", "against", "n", "Pearson's r", "its p", "Spearman's", "its p", "thesis, r"]
    return format_table(header, lines) + f"\n{note} " + describe(records)


def p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def describe(records: dict) -> str:
    """Say how the scores came about."""
    models = sorted({record["model"] for record in records.values()})
    machines = sorted({describe_machine(record["hardware"]) for record in records.values()})
    seeds = sorted({seed for record in records.values() for seed in record["seeds"]})
    trained = ", ".join(
        f"{name.upper()} {task['num_examples']['train']:,} training and {task['num_examples']['test']:,} test examples"
        for name, task, _, _ in iterate_tasks(records)
    )
    return (
        f"{', '.join(models)}; {trained}; test split, seed {', '.join(map(str, seeds))}; scores in percent, 95 % "
        f"intervals over test examples in brackets; {' and '.join(machines)}.\n\n"
        f"{list_commands(records.values())}"
    )
