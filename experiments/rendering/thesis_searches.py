"""Views of the thesis' search on several tasks.

Files: thesis_TASK_95.json is a search for 95 % and thesis_TASK_95_test.json what is left of it on the test split.
"""

import math
import statistics
from collections.abc import Iterator
from itertools import groupby

from frame import around, describe_machine, format_table, interval, list_commands, percent

from classformer_hf.search.figures import layer_lengths
from classformer_hf.search.space import Schedule

from .schedules import THESIS_TABLE_5_1

# found for 99 % and for 95 % of RoBERTa-base on development sets, in percent
THESIS_TABLE_5_4 = {
    "sst2": (94.4, 93.0),
    "mrpc": (91.0, 90.4),
    "cola": (58.1, 57.3),
    "stsb": (89.8, 89.7),
    "qqp": (87.3, 84.7),
    "rte": (73.7, 73.7),
    "mnli": (85.4, 85.5),
    "qnli": (92.2, 88.7),
}
# the author's RoBERTa and DistilBERT
THESIS_TABLE_5_5 = {
    "sst2": (94.2, 90.0),
    "mrpc": (89.8, 89.9),
    "cola": (52.7, 47.7),
    "stsb": (90.9, 88.7),
    "qqp": (88.2, 86.2),
    "rte": (82.4, 70.6),
    "mnli": (87.6, 81.3),
    "qnli": (91.4, 88.0),
}
ORIGINS = {"model": "Gaussian process", "reference": "full model"}
TABLE_5_3_REQUIREMENTS = (0.99, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6)
TASKS = ("sst2", "mrpc", "imdb", "cola", "stsb", "qqp", "rte", "mnli", "qnli")  # in the order of the tables


def iterate_searches(records: dict) -> Iterator[tuple[str, float, dict, dict | None]]:
    """Give task, requirement, search and test of every search, in the order of TASKS, 95 % first."""
    names = (f"thesis_{task}_{required}" for task in TASKS for required in (95, 99))
    for name in names:
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


def geometric_mean(values: list[float]) -> float:
    return math.exp(statistics.mean(map(math.log, values)))


def score_interval(scored: dict) -> str:
    """Give a test score in percent with its 95 % interval."""
    return interval(*(100 * value for value in (scored["score"], *scored["confidence_interval"])), digits=1)


def judge(test: dict, required: float) -> str:
    """Say whether the test split shows the requirement kept, as a point estimate, and whether it is chance."""
    full, found = test["models"]
    is_kept = found["score"] >= required * full["score"]
    is_at_chance = found["confidence_interval"][0] <= test["majority_score"]
    return ("yes" if is_kept else "no") + (", at chance" if is_at_chance else "")


def thesis_searches_table(records: dict) -> str:
    """What the thesis' search found for each task and requirement, and how much faster it is."""
    rows, found = [], {}
    for task, required, record, test in iterate_searches(records):
        data = record["summary"]
        values = (data["speedup_schedule_only"], data["speedup_against_stock"])
        kept = "not measured" if test is None else judge(test, required)
        found.setdefault((required, "all tasks"), []).append(values)
        if kept == "yes":
            found.setdefault((required, "tasks that keep it on test"), []).append(values)
        rows.append(
            [
                *(
                    task.upper(),
                    data["metric_name"],
                    f"{data['num_train_examples']:,}",
                    f"{data['input_tokens']['median']:.0f}",
                ),
                "not measured" if test is None else score_interval(test["models"][0]),
                "" if test is None else f"{percent(test['majority_score'])}, {test['num_examples']:,}",
                *(f"{percent(required, 0)} %", str(data["num_trials"])),
                f"`{'-'.join(map(str, data['gamma']))}_eta{data['eta']}`",
                f"{percent(data['flops_ratio'], 0)} %",
                interval(values[0], *data["speedup_schedule_only_quartiles"]),
                interval(values[1], *data["speedup_against_stock_range"]),
                f"{gain_over_initial(record['trials'], required):.2f}",
                kept,
            ]
        )
    for (required, which), values in sorted(found.items()):
        means = [f"{geometric_mean(list(column)):.2f}" for column in zip(*values, strict=True)]
        name = [
            f"geometric mean, {which}",
            "",
            f"{len(values)} tasks",
            "",
            "",
            "",
            f"{percent(required, 0)} %",
            "",
            "",
            "",
        ]
        rows.append([*name, *means, "", ""])
    header = [
        "task",
        "metric",
        "trained on",
        "median tokens",
        "full model on test",
        "majority class, n",
        "keep",
        "trials",
    ]
    header += ["found", "operations", "x full", "x stock", "x initial set", "kept on test"]
    return format_table(header, rows) + "\n" + describe(records)


def describe(records: dict) -> str:
    """Say how the searches came about."""
    searches = list(iterate_searches(records))
    half = dict.fromkeys(task.upper() for task, _, record, _ in searches if "--bf16" in record["command"])
    mixed = f" Trained and validated with bfloat16 autocast: {', '.join(half)}." if half else ""
    return (
        f"{describe_setup([record for _, _, record, _ in searches])}, batch 1, timed in float32, median and quartiles "
        "of the rounds; of x stock, whose rounds are not kept, the range over the quartiles of both times. Tokens: of "
        f"the validation texts. Scores: percent, with 95 % intervals over test examples.{mixed}\n\n"
        f"{list_commands(record for _, _, record, _ in searches)}"
    )


def describe_setup(searches: list[dict]) -> str:
    """Name models, seeds and processors of searches."""
    models = sorted({record["summary"]["base_model"] for record in searches})
    machines = sorted({describe_machine(record["summary"]["hardware"]) for record in searches})
    seeds = sorted({record["seed"] for record in searches})
    return f"{', '.join(models)}, seed {', '.join(map(str, seeds))}, {' and '.join(machines)}"


def describe_tests(records: dict) -> str:
    """Say how the scores on the test split came about."""
    tested = [(record, test) for _, _, record, test in iterate_searches(records) if test is not None]
    return f"{describe_setup([record for record, _ in tested])}.\n\n{list_commands(test for _, test in tested)}"


def protocols_table(records: dict) -> str:
    """The same schedules by the thesis' protocol, scored where they were chosen, and on data that no search saw."""
    rows, kept = [], {}
    for task, required, record, test in iterate_searches(records):
        data = record["summary"]
        row = [
            *(task.upper(), data["metric_name"], f"{percent(required, 0)} %", f"{data['num_validation_examples']:,}"),
            f"{percent(data['full_score'])}, {percent(data['score'])} ({percent(data['majority_score'])})",
            percent(data["performance"]),
        ]
        if test is None:
            rows.append([*row, "not measured", "", "", "", ""])
            continue
        full, found = test["models"]
        majority = test["majority_score"]
        share = found["score"] / full["score"]
        share_above = (found["score"] - majority) / (full["score"] - majority)
        kept.setdefault(required, []).append((data["performance"], share, share_above))
        certificate = found["certificate"]
        bound = certificate["performance_lower_bound"]
        certain = "nothing" if bound is None or bound <= 0 else f"{percent(bound)} %"
        verdict = "issued" if certificate["is_issued"] else f"refused; {certain} is certain"
        is_full = set(data["gamma"]) == {1}
        rows.append(
            [
                *row,
                f"{test['num_examples']:,}",
                f"{score_interval(full)}, {score_interval(found)} ({percent(majority)})",
                f"{percent(share)}{'' if share >= required else ' (below)'}",
                percent(share_above),
                "none needed: the full model" if is_full else verdict,
            ]
        )
    for required, shares in sorted(kept.items()):
        validation, on_test, above = (percent(statistics.mean(column)) for column in zip(*shares, strict=True))
        name = f"mean of {len(shares)}"
        rows.append([name, "", f"{percent(required, 0)} %", "", "", validation, "", "", on_test, above, ""])
    header = ["task", "metric", "keep", "n", "validation: full, found (majority)", "kept, %"]
    header += ["n", "test: full, found (majority)", "kept, %", "kept above the majority class, %", "certificate"]
    below = {required: sum(on_test < required for _, on_test, _ in shares) for required, shares in kept.items()}
    counts = "; ".join(
        f"{percent(required, 0)} %: {below[required]} of {len(shares)}" for required, shares in sorted(kept.items())
    )
    note = (
        "Validation: the split that every trial was scored on. Test: no search saw it; with 95 % intervals of the "
        "scores. The certificate, and what is certain, has 95 % confidence. Point estimate below the requirement on "
        "the test split: "
        f"{counts}. "
    )
    return format_table(header, rows) + "\n" + note + describe_tests(records)


def averages_table(records: dict) -> str:
    """Full model and what was found, on the test split; then the thesis' tables 5.4 and 5.5."""
    ours, thesis, missing = {}, {}, []
    for task, found_by_thesis in THESIS_TABLE_5_4.items():
        tests = [records.get(f"thesis_{task}_{required}_test") for required in (99, 95)]
        if None in tests:
            missing.append(task)
            continue
        models = [tests[0]["models"][0], *(test["models"][1] for test in tests)]
        ours[task] = (tests[0], models, share_kept([100 * model["score"] for model in models]))
        own = THESIS_TABLE_5_1[task][0]
        thesis[task] = [*share_kept([own, *found_by_thesis]), *THESIS_TABLE_5_5[task]]
    mean = f"mean of {len(ours)}"
    kept = ["kept at 99 %, %", "kept at 95 %, %"]
    first = format_table(
        ["task", "metric", "n", "majority class", "ours, full", "for 99 %", "for 95 %", *kept],
        [
            *(
                [
                    *(task.upper(), models[0]["metric_name"], f"{test['num_examples']:,}"),
                    percent(test["majority_score"]),
                    *map(score_interval, models),
                    *(f"{value:.1f}" for value in values[3:]),
                ]
                for task, (test, models, values) in ours.items()
            ),
            [mean, "", "", "", *mean_columns([values for _, _, values in ours.values()])],
            *([task.upper(), "not measured", *[""] * 7] for task in missing),
        ],
    )
    second = format_table(
        ["task", "thesis, full (table 5.1)", "for 99 % (5.4)", "for 95 %", *kept, "RoBERTa (5.5)", "DistilBERT (5.5)"],
        [
            *([task.upper(), *(f"{value:.1f}" for value in values)] for task, values in thesis.items()),
            [mean, *mean_columns(list(thesis.values()))],
        ],
    )
    note = (
        "Ours: all-MiniLM-L6-v2 on data that no search saw, percent with 95 % intervals. The thesis: the author's own "
        "RoBERTa-base on the development sets that his searches used; means over these tasks, computed "
        "here; they mix metrics, as the thesis' do. "
    )
    return f"{first}\n{second}\n{note}{describe_tests(records)}"


def share_kept(scores: list[float]) -> list[float]:
    """Append to the scores of the full model and of what was found which share of the first the others keep."""
    return [*scores, *(100 * score / scores[0] for score in scores[1:])]


def mean_columns(rows: list[list[float]]) -> list[str]:
    return [f"{statistics.mean(column):.1f}" for column in zip(*rows, strict=True)]


def requirements_table(record: dict) -> str:
    """The fastest trial of one journal for each requirement, with the tokens behind each layer as in table 5.3."""
    rows = []
    kept_by = groupby(TABLE_5_3_REQUIREMENTS, lambda required: best_of(record["trials"], required))
    for trial, group in kept_by:
        assert trial is not None  # the full model is among them
        required = [percent(value, 0) for value in group]
        keep = required[0] if len(required) == 1 else f"{required[0]} to {required[-1]}"
        lengths = layer_lengths(Schedule.from_key(trial["key"]), 512)
        ratio = interval(trial["latency_ratio"], *trial["latency_ratio_quartiles"])
        rows.append(
            [
                *(f"{keep} %", f"`{trial['key']}`", ORIGINS.get(trial["origin"], trial["origin"])),
                interval(*around(trial["score"], trial["standard_error"]), digits=3),
                *(percent(trial["performance"]), ratio, f"{1 / trial['latency_ratio']:.2f}", *map(str, lengths)),
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
        f"{data['num_trials']} trials. Layers: tokens that leave it, of 512. Command: `{record['command']}`\n"
    )
    return format_table(header, rows) + "\n" + note
