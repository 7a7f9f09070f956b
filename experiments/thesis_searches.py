r"""What the thesis' search found for 95 and 99 % on several tasks, and score against time (figures 5.9 and 5.10).

    python experiments/thesis_searches.py --draw results/thesis_sst2_99.json results/thesis_mrpc_99.json \
        --figure docs/images/searches.png

thesis_TASK_95.json is a search for 95 % and thesis_TASK_95_test.json what is left of it on the test split. --draw takes
the searches for 99 %, a panel each with all trials of its task; those for 95 %, of fewer trials, lie beside them. The
last panel averages over the tasks: geometric mean of the time, mean of the share that is kept on the validation split
and, where both are tested, on the test split.
"""

import statistics
from collections import defaultdict
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from frame import (
    add_legend,
    around,
    command_of,
    describe_machine,
    format_table,
    interval,
    list_commands,
    name_command,
    open_panels,
    percent,
    read_results,
    refuse_twice,
    save_figure,
)

from classformer_hf.search.figures import layer_lengths
from classformer_hf.search.space import Schedule

# RoBERTa-base on development sets, in percent: the author's run (table 5.1), what was found for 99 and for 95 % (5.4),
# and the author's RoBERTa and DistilBERT (5.5)
THESIS = {
    "sst2": (94.8, 94.4, 93.0, 94.2, 90.0),
    "mrpc": (91.8, 91.0, 90.4, 89.8, 89.9),
    "cola": (63.0, 58.1, 57.3, 52.7, 47.7),
    "stsb": (90.9, 89.8, 89.7, 90.9, 88.7),
    "qqp": (88.8, 87.3, 84.7, 88.2, 86.2),
    "rte": (83.4, 73.7, 73.7, 82.4, 70.6),
    "mnli": (87.0, 85.4, 85.5, 87.6, 81.3),
    "qnli": (92.9, 92.2, 88.7, 91.4, 88.0),
}
TASKS = ("sst2", "mrpc", "imdb", "cola", "stsb", "qqp", "rte", "mnli", "qnli")  # in the order of the tables
ORIGINS = {"model": "Gaussian process", "reference": "full model"}
TABLE_5_3_REQUIREMENTS = (0.99, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6)
COLORS = {0.99: "C2", 0.95: "C3"}


def iterate_searches(records: dict) -> Iterator[tuple[str, float, dict, dict | None]]:
    """Give task, requirement, search and test of every search, in the order of TASKS, 95 % first."""
    for name in (f"thesis_{task}_{required}" for task in TASKS for required in (95, 99)):
        if name in records:
            data = records[name]["summary"]
            yield data["dataset"], data["required_performance"], records[name], records.get(f"{name}_test")


def best_of(trials: list[dict], required: float) -> dict:
    """Give the fastest trial that keeps the required share of the full model's score; that one is among them."""
    fit = [trial for trial in trials if trial["status"] == "ok" and trial["performance"] >= required]
    return min(fit, key=lambda trial: trial["latency_ratio"])


def gain_over_initial(trials: list[dict], required: float) -> float:
    """Give how much faster the best trial is than the best of those that no model proposed.

    The full model's time, measured against itself, counts as 1.
    """
    trials = [{**trial, "latency_ratio": 1.0} if trial["origin"] == "reference" else trial for trial in trials]
    initial = [trial for trial in trials if trial["origin"] != "model"]
    return best_of(initial, required)["latency_ratio"] / best_of(trials, required)["latency_ratio"]


def score_interval(scored: dict) -> str:
    return interval(*(100 * value for value in (scored["score"], *scored["confidence_interval"])), digits=1)


def judge(test: dict, required: float) -> str:
    """Say whether the test split shows the requirement kept, as a point estimate, and whether it is chance."""
    full, found = test["models"]
    is_kept = found["score"] >= required * full["score"]
    is_at_chance = found["confidence_interval"][0] <= test["majority_score"]
    return ("yes" if is_kept else "no") + (", at chance" if is_at_chance else "")


def table(records: dict) -> str:
    """What the thesis' search found for each task and requirement, and how much faster it is."""
    rows, found = [], defaultdict(list)
    for task, required, record, test in iterate_searches(records):
        data, keep = record["summary"], f"{percent(required, 0)} %"
        speedups = (data["speedup_schedule_only"], data["speedup_against_stock"])
        kept = on_test = "not measured"
        majority = ""
        if test is not None:
            kept, on_test = judge(test, required), score_interval(test["models"][0])
            majority = f"{percent(test['majority_score'])}, {test['num_examples']:,}"
        found[keep, "all tasks"].append(speedups)
        if kept == "yes":
            found[keep, "tasks that keep it on test"].append(speedups)
        spreads = (data["speedup_schedule_only_quartiles"], data["speedup_against_stock_range"])
        rows.append(
            [
                *(task.upper(), data["metric_name"], f"{data['num_train_examples']:,}"),
                *(f"{data['input_tokens']['median']:.0f}", on_test, majority, keep, data["num_trials"]),
                *(f"`{Schedule(tuple(data['gamma']), data['eta']).key}`", f"{percent(data['flops_ratio'], 0)} %"),
                *(interval(value, *spread) for value, spread in zip(speedups, spreads, strict=True)),
                *(f"{gain_over_initial(record['trials'], required):.2f}", kept),
            ]
        )
    for (keep, which), values in sorted(found.items()):
        means = [f"{statistics.geometric_mean(column):.2f}" for column in zip(*values, strict=True)]
        name = [f"geometric mean, {which}", "", f"{len(values)} tasks", "", "", "", keep, "", "", ""]
        rows.append([*name, *means, "", ""])
    header = ["task", "metric", "trained on", "median tokens", "full model on test", "majority class, n", "keep"]
    header += ["trials", "found", "operations", "x full", "x stock", "x initial set", "kept on test"]
    return format_table(header, rows, describe(records))


def describe(records: dict) -> str:
    """Say how the searches came about."""
    searches = [record for _, _, record, _ in iterate_searches(records)]
    half = dict.fromkeys(one["summary"]["dataset"].upper() for one in searches if one.get("arguments", {}).get("bf16"))
    mixed = f" Trained and validated with bfloat16 autocast: {', '.join(half)}." if half else ""
    return (
        f"{describe_setup(searches)}, batch 1, timed in float32, median and quartiles "
        "of the rounds; of x stock, whose rounds are not kept, the range over the quartiles of both times. Tokens: of "
        f"the validation texts. Scores: percent, with 95 % intervals over test examples.{mixed}\n\n"
        f"{list_commands(searches)}"
    )


def describe_setup(searches: list[dict]) -> str:
    """Name models, seeds and processors of searches."""
    models = sorted({record["summary"]["base_model"] for record in searches})
    machines = sorted({describe_machine(record["summary"]["hardware"]) for record in searches})
    seeds = sorted({record["seed"] for record in searches})
    return f"{', '.join(models)}, seed {', '.join(map(str, seeds))}, {' and '.join(machines)}"


def describe_tests(records: dict) -> str:
    tested = [(record, test) for _, _, record, test in iterate_searches(records) if test is not None]
    return f"{describe_setup([record for record, _ in tested])}.\n\n{list_commands(test for _, test in tested)}"


def protocols_table(records: dict) -> str:
    """The same schedules by the thesis' protocol, scored where they were chosen, and on data that no search saw."""
    rows, kept = [], defaultdict(list)
    for task, required, record, test in iterate_searches(records):
        data = record["summary"]
        scores = f"{percent(data['full_score'])}, {percent(data['score'])} ({percent(data['majority_score'])})"
        row = [task.upper(), data["metric_name"], f"{percent(required, 0)} %", f"{data['num_validation_examples']:,}"]
        row += [scores, percent(data["performance"])]
        if test is None:
            rows.append([*row, "not measured", *[""] * 4])
            continue
        (full, found), majority = test["models"], test["majority_score"]
        share = found["score"] / full["score"]
        above = (found["score"] - majority) / (full["score"] - majority)
        kept[required].append((data["performance"], share, above))
        row += [f"{test['num_examples']:,}", f"{score_interval(full)}, {score_interval(found)} ({percent(majority)})"]
        row += [f"{percent(share)}{'' if share >= required else ' (below)'}", percent(above)]
        is_full = set(data["gamma"]) == {1}
        rows.append([*row, "none needed: the full model" if is_full else describe_certificate(found["certificate"])])
    for required, shares in sorted(kept.items()):
        validation, on_test, above = (percent(statistics.mean(column)) for column in zip(*shares, strict=True))
        name = [f"mean of {len(shares)}", "", f"{percent(required, 0)} %", "", ""]
        rows.append([*name, validation, "", "", on_test, above, ""])
    header = ["task", "metric", "keep", "n", "validation: full, found (majority)", "kept, %"]
    header += ["n", "test: full, found (majority)", "kept, %", "kept above the majority class, %", "certificate"]
    counts = "; ".join(
        f"{percent(required, 0)} %: {sum(on_test < required for _, on_test, _ in shares)} of {len(shares)}"
        for required, shares in sorted(kept.items())
    )
    note = (
        "Validation: the split that every trial was scored on. Test: no search saw it; with 95 % intervals of the "
        "scores. The certificate, and what is certain, has 95 % confidence. Point estimate below the requirement on "
        f"the test split: {counts}. {describe_tests(records)}"
    )
    return format_table(header, rows, note)


def describe_certificate(certificate: dict) -> str:
    bound = certificate["performance_lower_bound"]
    certain = "nothing" if bound is None or bound <= 0 else f"{percent(bound)} %"
    return "issued" if certificate["is_issued"] else f"refused; {certain} is certain"


def averages_table(records: dict) -> str:
    """Full model and what was found, on the test split; then the thesis' tables 5.4 and 5.5."""
    rows, ours, thesis, missing = [], [], {}, []
    for task, (*own, roberta, distilbert) in THESIS.items():
        tests = [records.get(f"thesis_{task}_{required}_test") for required in (99, 95)]
        if None in tests:
            missing.append([task.upper(), "not measured", *[""] * 7])
            continue
        models = [tests[0]["models"][0], *(test["models"][1] for test in tests)]
        ours.append(share_kept([100 * model["score"] for model in models]))
        thesis[task.upper()] = [*share_kept(own), roberta, distilbert]
        about = [models[0]["metric_name"], f"{tests[0]['num_examples']:,}", percent(tests[0]["majority_score"])]
        kept = [f"{value:.1f}" for value in ours[-1][3:]]
        rows.append([task.upper(), *about, *map(score_interval, models), *kept])
    mean, kept = f"mean of {len(ours)}", ["kept at 99 %, %", "kept at 95 %, %"]
    header = ["task", "metric", "n", "majority class", "ours, full", "for 99 %", "for 95 %", *kept]
    first = format_table(header, [*rows, [mean, "", "", "", *mean_columns(ours)], *missing])
    header = ["task", "thesis, full (table 5.1)", "for 99 % (5.4)", "for 95 %", *kept]
    rows = [[task, *(f"{value:.1f}" for value in values)] for task, values in thesis.items()]
    note = (
        "Ours: all-MiniLM-L6-v2 on data that no search saw, percent with 95 % intervals. The thesis: the author's own "
        "RoBERTa-base on the development sets that his searches used; means over these tasks, computed "
        f"here; they mix metrics, as the thesis' do. {describe_tests(records)}"
    )
    second = [*rows, [mean, *mean_columns(list(thesis.values()))]]
    return first + "\n" + format_table([*header, "RoBERTa (5.5)", "DistilBERT (5.5)"], second, note)


def share_kept(scores: list[float]) -> list[float]:
    """Append to the scores of the full model and of what was found which share of the first the others keep."""
    return [*scores, *(100 * score / scores[0] for score in scores[1:])]


def mean_columns(rows: list[list[float]]) -> list[str]:
    return [f"{statistics.mean(column):.1f}" for column in zip(*rows, strict=True)]


def requirements_table(record: dict) -> str:
    """The fastest trial of one journal for each requirement, with the tokens behind each layer as in table 5.3."""
    rows = []
    for trial, group in groupby(TABLE_5_3_REQUIREMENTS, lambda required: best_of(record["trials"], required)):
        required = [percent(value, 0) for value in group]
        keep = required[0] if len(required) == 1 else f"{required[0]} to {required[-1]}"
        time = interval(trial["latency_ratio"], *trial["latency_ratio_quartiles"])
        rows.append(
            [
                *(f"{keep} %", f"`{trial['key']}`", ORIGINS.get(trial["origin"], trial["origin"])),
                interval(*around(trial["score"], trial["standard_error"]), digits=3),
                *(percent(trial["performance"]), time, f"{1 / trial['latency_ratio']:.2f}"),
                *layer_lengths(Schedule.from_key(trial["key"]), 512),
            ]
        )
    data = record["summary"]
    full = interval(*around(data["full_score"], data["full_standard_error"]), digits=3)
    header = ["keep", "fastest", "proposed by", "score", "kept, %", "time relative to the full model", "x full"]
    header += [f"layer {layer + 1}" for layer in range(len(data["gamma"]))]
    note = (
        f"{data['dataset'].upper()}, validation {data['metric_name']} with 95 % intervals, n = "
        f"{data['num_validation_examples']}, {data['num_train_examples']:,} training examples; "
        f"{describe_setup([record])}; the full model has {full}, the majority class {data['majority_score']:.3f}; "
        f"{data['num_trials']} trials. Layers: tokens that leave it, of 512. {name_command(record)}"
    )
    return format_table(header, rows, note)


def name_record(path: str, required: float) -> Path:
    return Path(path.replace("_99.json", f"_{100 * required:.0f}.json"))


def read_search(path: str | Path, required: float) -> dict[str, Any]:
    """Read the record of a search.

    Raises:
        ValueError: It is none, or of another requirement.
    """
    record = read_results(path, "redundancy-hf search")
    found = record["summary"]["required_performance"]
    if found != required:
        raise ValueError(f"{path} is a search for {found:.0%}, not for {required:.0%} as its name says.")
    return record


def read_test(path: Path) -> list[dict[str, Any]]:
    """Read what was scored on a test split: the full model and what was found.

    Raises:
        ValueError: These are not the two models.
    """
    models = read_results(path, "redundancy-hf evaluate")["models"]
    if len(models) != 2:
        raise ValueError(f"{path} has {len(models)} models instead of the full one and the one that was found.")
    return models


def draw_task(panel: Any, path: str):
    """Draw all trials of a task."""
    record = read_search(path, 0.99)
    data = record["summary"]
    for label, style, is_from_model in (("initial set", ("^", "0.6"), False), ("Gaussian process", ("o", "C0"), True)):
        trials = [trial for trial in record["trials"] if trial["status"] == "ok"]
        points = [trial for trial in trials if (trial["origin"] == "model") == is_from_model]
        times, scores = [trial["latency_ratio"] for trial in points], [100 * trial["score"] for trial in points]
        panel.plot(times, scores, style[0], color=style[1], label=label)
    for required, color in COLORS.items():
        found = read_search(name_record(path, required), required)["summary"]
        floor, label = 100 * required * data["full_score"], f"for {required:.0%}"
        panel.axhline(floor, color=color, linestyle="--", linewidth=0.8, label=f"{required:.0%} of the full score")
        panel.plot(found["latency_ratio"], 100 * found["score"], "*", color=color, markersize=13, label=label)
    panel.axhline(100 * data["majority_score"], color="black", linestyle=":", linewidth=0.8, label="majority class")
    panel.set(
        title=f"{data['dataset'].upper()} (n = {data['num_validation_examples']})",
        xlabel="time of a text, relative to the full model",
        ylabel=f"validation {data['metric_name']}, %",
    )


def draw_average(panel: Any, paths: list[str]):
    """Draw time and share of the full score, averaged over the tasks."""
    panel.plot(1, 100, "s", color="black", label="full model")
    for required, color in COLORS.items():
        records = [name_record(path, required) for path in paths]
        found = [read_search(path, required)["summary"] for path in records]
        time = statistics.geometric_mean(data["latency_ratio"] for data in found)
        kept = statistics.mean(data["performance"] for data in found)
        panel.plot(time, 100 * kept, "*", color=color, markersize=13, label=f"for {required:.0%}, validation")
        tests = [path.with_name(f"{path.stem}_test.json") for path in records]
        if all(path.exists() for path in tests):
            models = [read_test(path) for path in tests]
            kept = statistics.mean(last["score"] / full["score"] for full, last in models)
            panel.plot(time, 100 * kept, "P", color=color, markersize=9, label=f"for {required:.0%}, test")
    axes = {"xlabel": "time, relative to the full model", "ylabel": "% of the full score"}
    panel.set(title=f"mean of {len(paths)} tasks", **axes)


def draw(records: list[str], figure: str):
    """Draw the searches of several tasks.

    Args:
        records: JSON files of the searches that were asked for 0.99, a panel each.
        figure: PNG file.

    Raises:
        ValueError: A file is no such search, or two are of one task.
    """
    others = [path for path in records if not path.endswith("_99.json")]
    if others:
        raise ValueError(
            f"--records takes files named TASK_99.json, with TASK_95.json beside; got {', '.join(others)}."
        )
    refuse_twice([read_search(path, 0.99)["summary"]["dataset"] for path in records])
    picture, (*tasks, average) = open_panels(len(records) + 1, 4, (4.2, 3.9))
    for panel, path in zip(tasks, records, strict=True):
        draw_task(panel, path)
    draw_average(average, records)
    for panel in (*tasks, average):
        panel.grid(alpha=0.3)
    average.legend(fontsize=8)
    add_legend(picture, tasks, columns=5)
    save_figure(picture, figure)


main = command_of(None, __doc__, draw=draw)
