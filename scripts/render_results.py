"""Render the JSON files in results/ into the documents, so that no number is typed by hand.

A document marks a place with `<!-- results: NAME.json VIEW -->` and `<!-- end -->`; what stands between is replaced.
Views are the functions in `VIEWS`.

    python scripts/render_results.py           # write
    python scripts/render_results.py --check   # change nothing, exit 1 if a document differs
"""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from classformer_hf.command import parse_arguments, run_command

TAUS = ("tau_supernet_individual", "tau_ceiling")
BLOCK = re.compile(r"(<!-- results: (\S+) (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


@dataclass
class RenderArguments:
    documents: list[str] = field(
        default_factory=lambda: ["README.md", "docs/thesis.md", "docs/search.md", "docs/performance.md"],
        metadata={"help": "Documents with marked places."},
    )
    results: str = field(default="results", metadata={"help": "Folder of the JSON files."})
    check: bool = field(default=False, metadata={"help": "Write nothing; fail if a document differs."})


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def interval(middle: float, low: float, high: float, digits: int = 2) -> str:
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def search_table(record: dict) -> str:
    """All trials, fastest first, then what was chosen."""
    rows = []
    for row in sorted(record["trials"], key=lambda row: row["latency_ratio"] or float("inf")):
        if row["status"] != "ok":
            rows.append([str(row["number"]), row["key"], row["origin"], "failed", "", "", "", ""])
            continue
        ratio = interval(row["latency_ratio"], *row["latency_ratio_quartiles"], digits=3)
        rows.append(
            [
                f"{'**' if row['chosen'] else ''}{row['number']}{'**' if row['chosen'] else ''}",
                f"`{row['key']}`",
                row["origin"],
                f"{row['score']:.4f}",
                f"{100 * row['performance']:.1f}",
                ratio,
                f"{row['speedup_schedule_only']:.2f}",
                f"{row['speedup_against_stock']:.2f}",
            ]
        )
    summary, hardware = record["summary"], record["summary"]["hardware"]
    lengths = next(value for name, value in summary.items() if name.startswith("layer_lengths"))
    note = (
        f"Validation {summary['metric_name']}, n = {summary['num_validation_examples']}, seed {record['seed']}; the "
        f"majority class has {summary['majority_score']:.4f}, the requirement was {summary['required_score']:.4f}; "
        "latency relative to the full model in the same rounds (median and quartiles), batch 1, "
        f"{hardware['threads']} thread, {hardware['dtype']}, {hardware['device_name']}. Bold: chosen for "
        f"{100 * summary['required_performance']:g} %; of 512 tokens its layers pass on {lengths}. "
        f"Command: `{record['command']}`\n"
    )
    header = ["trial", "gamma and eta", "proposed by", "score", "% of full", "latency ratio", "x full", "x stock"]
    return table(header, rows) + "\n" + note


def search_headline(record: dict) -> str:
    """One sentence for the README."""
    data = record["summary"]
    low, high = data["speedup_schedule_only_quartiles"]
    trials = f"{data['num_trials']} trials"
    if "num_search_trials" in data:
        trials = f"{data['num_search_trials']} schedules validated, {data['num_trials']} fine-tuned"
    return (
        f"Measured: {data['base_model']} on {data['dataset'].upper()}, asked for "
        f"{100 * data['required_performance']:g} % of the full model's {data['metric_name']}: "
        f"**{data['speedup_against_stock']:.2f}x** faster than the stock model "
        f"({data['speedup_schedule_only']:.2f}x [{low:.2f}, {high:.2f}] by the schedule alone) at "
        f"{100 * data['performance']:.1f} % on the validation split, batch 1 on one CPU thread "
        f"({trials}, n = {data['num_validation_examples']}, one seed).\n"
    )


def evaluation_headline(record: dict) -> str:
    """One sentence that compares the last model with the first."""
    first, *_, last = record["models"]
    errors = f"{last['standard_error']:.3f} and {first['standard_error']:.3f}"
    kept = f"{100 * last['score'] / first['score']:.1f} % is kept there"
    return (
        f"On the test split (n = {record['num_examples']}), which no search saw, the searched model has "
        f"{last['metric_name']} {last['score']:.3f} and the full one {first['score']:.3f} (standard errors {errors}): "
        f"{kept}. The majority class has {record['majority_score']:.3f}.\n"
    )


def evaluation_table(record: dict) -> str:
    rows = [
        [row["model"], f"{row['score']:.4f}", f"{row['standard_error']:.4f}", str(record["num_examples"])]
        for row in record["models"]
    ]
    rows.append(["majority class", f"{record['majority_score']:.4f}", "", str(record["num_examples"])])
    metric = record["models"][0]["metric_name"]
    return table([f"model, {record['dataset']} {record['split']}", metric, "standard error", "n"], rows)


def load_table(record: dict) -> str:
    """Relative latency of five schedules, alone and beside busy processes."""
    rows = []
    for name, quiet in record["quiet"]["latencies"].items():
        busy = record["busy"]["latencies"][name]
        rows.append(
            [
                name,
                interval(quiet["ratio"], quiet["ratio_low"], quiet["ratio_high"], digits=3),
                interval(busy["ratio"], busy["ratio_low"], busy["ratio_high"], digits=3),
                f"{busy['wall_ratio']:.3f}",
                f"{quiet['wall_p50_ms']:.0f}",
                f"{busy['wall_p50_ms']:.0f}",
            ]
        )
    header = ["schedule", "ratio before", "ratio, two busy processes", "by wall clock", "before, ms", "busy, ms"]
    loads = [f"{record[state]['load_average_before'][0]:.1f}" for state in ("quiet", "busy")]
    note = (
        f"{record['sequence_length_tokens']} tokens, batch 1, one thread, {record['hardware']['device_name']}; "
        f"ratios of processor time, median and quartiles of {record['quiet']['latencies']['full']['rounds']} rounds; "
        f"load average before: {loads[0]} and {loads[1]}. Order kept by processor time: {record['is_cpu_order_kept']}, "
        f"by wall clock: {record['is_wall_order_kept']}. Command: `{record['command']}`\n"
    )
    return table(header, rows) + "\n" + note


def percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f}"


def supernet_table(record: dict) -> str:
    """Supernet against individual fine-tuning, schedule by schedule, then tau, its ceiling, the winner and the cost."""
    header = ["schedule", "operations", "supernet", *(f"individual, seed {seed}" for seed in record["seeds"])]
    rows = [
        [
            f"`{row['key']}`",
            f"{row['flops_ratio']:.2f}",
            f"{row['supernet']:.3f}",
            *(f"{value:.3f}" for value in row["individual"]),
        ]
        for row in record["schedules"]
    ]
    taus = [interval(*(record[name][key] for key in ("tau", "low", "high"))) for name in TAUS]
    each = " and ".join(f"{one['tau']:.2f}" for one in record["tau_supernet_each_seed"])
    winner = record["winner"]
    note = (
        f"{record['dataset'].upper()}, {record['metric_name']} on {record['num_evaluation_examples']} examples "
        f"(majority {record['majority_score']:.3f}), {record['num_train_examples']} training examples, the same epochs "
        f"on both sides. **Kendall's tau, supernet against individual: {taus[0]}** ({each} with single seeds); its "
        f"ceiling, seed against seed: {taus[1]}; intervals: bootstrap over the schedules, 95 %. A supernet costs the "
        f"training operations of {percent(record['cost']['fraction_of_50_trials'])} % of 50 fine-tunings. "
    )
    if winner is not None:
        twins = " and ".join(f"{score:.3f}" for score in winner["twins"])
        note += (
            f"The search's winner `{winner['key']}`, after {winner['num_epochs']:g} epoch of its own, has "
            f"{winner['score']:.3f}; fine-tuned individually {twins}: **gap {percent(winner['gap'], 2)} points** "
            f"(standard error {percent(winner['standard_error'], 2)}, {winner['standard_error_kind']}). "
        )
    return table(header, rows) + f"\n{note}Command: `{record['command']}`\n"


def latency_check(record: dict) -> str:
    """One row: the table against direct measurement beside direct against direct."""
    ours, direct = record["table_against_direct"], record["direct_against_direct"]
    rows = [
        [
            name,
            percent(one["mean_relative_error"]),
            percent(one["max_relative_error"]),
            f"{one['kendall_tau']:.3f}",
            str(one["num_pairs"]),
        ]
        for name, one in (("table against direct", ours), ("direct against direct", direct))
    ]
    header = ["comparison", "mean error, %", "largest error, %", "Kendall's tau", "pairs"]
    note = (
        f"{len(record['schedules'])} schedules, {record['busy_processes']} busy processes beside (load average before: "
        f"{record['load_average_before'][0]:.1f}), table built in {record['table']['build_seconds']:.0f} s; pairs "
        f"whose latencies differ by more than 5 %; {record['hardware']['device_name']}, "
        f"{record['hardware']['threads']} thread, {record['hardware']['dtype']}. Command: `{record['command']}`\n"
    )
    return table(header, rows) + "\n" + note


def race_table(record: dict) -> str:
    """Evaluations to 99 % of the optimum, by sampler and requirement."""
    rows = []
    for required, result in record["required"].items():
        for name, summary in result["samplers"].items():
            reach = summary["evaluations_to_99%"]
            numbers = ["more" if reach[key] is None else f"{reach[key]:.0f}" for key in ("median", "low", "high")]
            rows.append(
                [
                    f"{percent(float(required), 0)} %",
                    name,
                    f"{numbers[0]} [{numbers[1]}, {numbers[2]}]",
                    percent(reach["reached"], 0),
                    str(reach["runs"]),
                    f"{summary['reward']['median'][9]:.3f}",
                    f"{summary['reward']['median'][-1]:.3f}",
                ]
            )
    header = [
        "keep",
        "sampler",
        "evaluations to 99 % of the optimum",
        "runs there, %",
        "runs",
        "reward at 10",
        "at the end",
    ]
    sizes = [one["schedules"] for result in record["required"].values() for one in result["tables"]]
    note = (
        f"{record['table']}: {sizes[0]} schedules; median and 95 % interval over runs, `more` is more than "
        f"{record['max_trials']}; reward of equation 5.4, median. Command: `{record['command']}`\n"
    )
    return table(header, rows) + "\n" + note


def certificate_table(record: dict) -> str:
    """How often the plain rule's choice is wrong, and how often a wrong one gets its certificate."""
    rows = [
        [
            f"{percent(row['required_performance'], 0)} %",
            f"{row['margin']:g}",
            str(row["num_holdout"]),
            percent(row["choice_violates_rate"]),
            percent(row["issued_rate"]),
            interval(*(100 * value for value in (row["issued_wrongly_rate"], *row["issued_wrongly_interval"]))),
            f"{row['issued_wrongly_p_value']:.2f}",
        ]
        for row in record["rows"]
    ]
    header = ["keep", "margin", "holdout", "choice violates, %", "issued, %", "issued wrongly, % [95 %]", "p above 5 %"]
    note = (
        f"{record['num_resamples']} resamples of a population of {record['num_population']} texts and "
        f"{len(record['schedules'])} schedules, {record['num_search']} texts to choose on; "
        f"{record['hardware']['device_name']}. "
        f"Command: `{record['command']}`\n"
    )
    return table(header, rows) + "\n" + note


def certificate_sentence(record: dict) -> str:
    """What the one reading of a test split said of every candidate."""
    sentences = [model["certificate"]["sentence"] for model in record["models"] if "certificate" in model]
    warning = f" But {record['warning']}" if "warning" in record else ""
    return "".join(f"- {record['dataset'].upper()}: {sentence}{warning}\n" for sentence in sentences)


def cross_table(record: dict) -> str:
    """Speed-up of the winner for one target, timed on another."""
    names = list(record["ratios"])
    rows = []
    for target in record["targets"]:
        cells = []
        for other in names:
            one = record["ratios"][target["name"]][other]
            cells.append(interval(*(1 / one[key] for key in ("ratio", "high", "low"))))
        seconds = f"{target['answer_seconds']:.0f}" if target["is_reused"] else "trained"
        rows.append([target["name"], f"`{target['winner']}`", seconds, *cells])
    note = (
        f"Speed-up over the full model on that target, median and quartiles of {record['rounds']} rounds in which all "
        "winners took turns; answered: seconds from the latency table to the candidates, before their fine-tuning. "
        f"{record['hardware']['device_name']}. Command: `{record['command']}`\n"
    )
    return table(["winner for", "schedule", "answered, s", *(f"timed on {name}" for name in names)], rows) + "\n" + note


def policy_table(record: dict) -> str:
    """A schedule per length bucket against the best single one."""
    rows = []
    for row in record["requirements"]:
        single, policy = row["single"]["test"], row["policy"]["test"]
        rows.append(
            [
                f"{percent(row['required_performance'], 0)} %",
                f"`{single['key']}`",
                f"{single['latency_ratio']:.3f}",
                percent(single["performance"]),
                f"`{policy['key']}`",
                f"{policy['latency_ratio']:.3f}",
                percent(policy["performance"]),
                f"{100 * row['test_latency_change']:+.1f}",
            ]
        )
    header = ["keep", "single", "latency", "kept, %", "by length", "latency", "kept, %", "change, %"]
    quantiles = " / ".join(f"{value:.0f}" for value in record["length_quantiles_tokens"])
    note = (
        f"Chosen on {record['num_validation_examples']} texts, reported on {record['num_test_examples']} others; "
        f"latency by the table, relative to the full model, {record['hardware']['device_name']}; lengths at "
        f"5/25/50/75/95 %: {quantiles} tokens. "
        f"Command: `{record['command']}`\n"
    )
    return table(header, rows) + "\n" + note


def mean_and_values(values: list[float]) -> str:
    """A mean in percent, and what it is of."""
    each = ", ".join(percent(value) for value in values)
    return f"{percent(sum(values) / len(values))} ({each})" if len(values) > 1 else each


def sharing_table(record: dict) -> str:
    """Trainings by variant: what is stored, accuracy with every seed, operations and time where they were measured."""
    costs, variants = record.get("costs", {}), list(dict.fromkeys(row["variant"] for row in record["rows"]))
    header = ["network", "stored", "depthwise", "test accuracy, %", "top 5, %"]
    header += ["operations", "time, 1 image", "time, batch of 32"] if costs else []
    rows = []
    for variant in variants:
        same = [row for row in record["rows"] if row["variant"] == variant]
        row = [variant, f"{same[0]['parameters']:,}", f"{same[0]['depthwise_parameters']:,}"]
        row += [mean_and_values([one[f"test_{name}"] for one in same]) for name in ("accuracy", "top5_accuracy")]
        if costs:
            cost = costs[variant]
            row.append(f"{cost['flops'] / costs['plain']['flops']:.2f}")
            row += [interval(*cost[f"time_ratio_batch_{batch}"].values()) for batch in (1, 32)]
        rows.append(row)
    sizes, recipe = record["settings"]["sizes"], record["settings"]["recipe"]
    cpus = " and ".join(sorted({row["cpu"] for row in record["rows"]}))
    seeds = sorted({row["seed"] for row in record["rows"]})
    note = (
        f"{sizes['train']:,} training and {sizes['test']:,} test images, {float(recipe['num_train_epochs']):g} epochs, "
        f"seeds {', '.join(map(str, seeds))}; a test accuracy of 60 % has a standard error of "
        f"{percent((0.6 * 0.4 / sizes['test']) ** 0.5)} points. {cpus}, 1 thread. "
    )
    if costs:
        controls = [interval(*costs["control"][f"time_ratio_batch_{batch}"].values()) for batch in (1, 32)]
        note += (
            "Operations and processor time relative to the plain network, median and quartiles; a second plain one "
            f"has {controls[0]} and {controls[1]}. "
        )
    return table(header, rows) + f"\n{note}Command: `{record['command']}`\n"


def conversion_table(record: dict) -> str:
    """What conversion of a trained network keeps, by method."""
    text = ""
    for family, plain in record["plain"].items():
        rows = [
            [
                str(row["sharing_factor"]),
                row["method"],
                f"{row['parameters']:,}",
                f"{row['weight_error']:.3f}",
                *(percent(row[name]) for name in ("zero_shot", "reestimated", "fine_tuned")),
            ]
            for row in record["rows"]
            if row["family"] == family
        ]
        rows.insert(0, ["1", "plain", f"{plain['parameters']:,}", "0"] + [percent(plain["accuracy"])] * 2)
        rows[0].append(percent(plain["fine_tuned"]))
        header = ["s", f"{family}, method", "stored", "weight error", "at once, %", "statistics anew, %", "trained, %"]
        text += table(header, rows) + "\n"
    sizes, recipe = record["settings"]["sizes"], record["settings"]["recipe"]
    return text + (
        f"Accuracy on {sizes['test']:,} test images; statistics from {record['settings']['num_statistics']:,} training "
        f"images; trained: {float(recipe['num_train_epochs']):g} more epoch, learning rate {recipe['learning_rate']}; "
        f"weight error: root of the mean square over that of the weights; one seed. Command: `{record['command']}`\n"
    )


def learned_table(record: dict) -> str:
    """Accuracy before and after every weight or kernel is put on its basis."""
    groups = dict.fromkeys((row["method"], row["tau"]) for row in record["rows"])
    rows = []
    for method, tau in groups:
        same = [row for row in record["rows"] if (row["method"], row["tau"]) == (method, tau)]
        states = ("before", "after", "reestimated")
        cells = [mean_and_values([row[state]["test_accuracy"] for row in same]) for state in states]
        validation = percent(same[0]["after"]["validation_accuracy"])
        error, zeros = (sum(row[name] for row in same) / len(same) for name in ("relative_error", "zero_ratio"))
        sizes = f"{same[0]['bytes_after'] / same[0]['bytes_before']:.2f}"
        loss = method if tau is None else f"{method}, {tau:g}"
        loss = f"**{loss}**" if len(same) > 1 and tau is not None else loss
        rows.append([loss, validation, *cells, f"{error:.3f}", percent(zeros), sizes])
    header = ["loss, tau", "validation, quantised, %", "test: before, %", "quantised, %", "statistics anew, %"]
    header += ["weight error", "zeros, %", "file size"]
    options, sizes = record["settings"]["options"], record["settings"]["sizes"]
    start, epochs = record["settings"]["start"], float(record["settings"]["recipe"]["num_train_epochs"])
    stages = (
        f"{epochs:g} epochs with the loss"
        if start == "scratch"
        else f"{epochs:g} epochs without a loss, {start[0]:g} with it"
    )
    note = (
        f"{options['num_bases']} basis weights or components, or {options['num_kernels']} basis kernels, per layer; "
        f"{sizes['train']:,} training and {sizes['test']:,} test images, {stages}; "
        "the first seed's validation accuracy chose tau for the second seed (bold); mean and each seed; file size "
        f"relative to the plain file. Command: `{record['command']}`\n"
    )
    return table(header, rows) + "\n" + note


def vision_speed_table(record: dict) -> str:
    """Time of shared layers against plain ones, by kind."""
    rows = [
        [row["kind"], row["mode"], row["variant"], interval(row["geomean"], row["smallest"], row["largest"])]
        for row in record["summary"]
        if row["variant"] != "plain"
    ]
    note = (
        f"Processor time relative to a plain convolution in the same round, median of {record['rounds']} rounds per "
        f"shape; geometric mean over the shapes of EfficientNet-B0, ResNet-50 and Xception, [smallest, largest]; batch "
        f"{record['batch_size']}, {record['hardware']['device_name']}, {record['hardware']['threads']} thread. "
        f"`control` is a second plain convolution. Command: `{record['command']}`\n"
    )
    return table(["layer", "mode", "variant", "time"], rows) + "\n" + note


def counts_table(record: dict) -> str:
    """What sharing saves of published networks."""
    rows = []
    for name, counts in record["networks"].items():
        plain = counts[0]
        for row in counts:
            saved = 1 - row["parameters"] / plain["parameters"]
            cells = [f"{row['parameters']:,}", percent(saved), percent(row["spatial_parameters"] / row["parameters"])]
            rows.append([name, str(row["sharing_factor"]), *cells, f"{row['flops'] / plain['flops']:.2f}"])
    header = ["network, what shares", "s", "stored", "saved, %", "of which kernels larger than 1x1, %", "operations"]
    return table(header, rows) + f"\nCommand: `{record['command']}`\n"


def similarity_table(record: dict) -> str:
    """How similar kernels are to those of the unshared network, beside random ones."""
    first, second = (record["cosine_similarity"][layer] for layer in ("first", "second"))
    rows = [
        [name, *(f"{one[name][kind]:.2f}" for one in (first, second) for kind in ("cosine", "random"))]
        for name in first
    ]
    header = ["left", "first layer", "random", "first layer that shares", "random"]
    return table(header, rows) + f"\nCommand: `{record['command']}`\n"


def values_of(rows: list[dict], variant: str, *path: str) -> list[float]:
    """Read a number of every seed of a variant."""
    found = []
    for row in rows:
        if row["variant"] == variant:
            value = row
            for name in path:
                value = value[name]
            found.append(value)
    return found


def mean_and_each(values: list[float], digits: int = 2) -> str:
    """A mean, and what it is of."""
    mean = f"{sum(values) / len(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({', '.join(f'{value:.{digits}f}' for value in values)})"


def avae_note(record: dict) -> str:
    """Scale of a study of autoencoders."""
    settings = record["settings"]
    sizes, seeds = settings["sizes"], sorted({row["seed"] for row in record["rows"]})
    kind = f", {' and '.join(settings['classes'])} only" if settings["classes"] else ""
    cpus = " and ".join(sorted({row["cpu"] for row in record["rows"]}))
    return (
        f"{sizes['train']:,} training and {sizes['test']:,} test inputs of side {settings['image_size']}{kind}, "
        f"{float(settings['recipe']['num_train_epochs']):g} epochs, seeds {', '.join(map(str, seeds))}; {cpus}, one "
        "thread. "
        f"Command: `{record['command']}`\n"
    )


def pose_table(record: dict) -> str:
    """Error of plain and affine autoencoders of equal total latent size (thesis tables 4.1 and 4.2)."""
    rows, variants = [], list(dict.fromkeys(row["variant"] for row in record["rows"]))
    for poses in ("turned", "turned and shifted"):
        plain, affine = f"{poses}, VAE", f"{poses}, AVAE"
        if plain not in variants or affine not in variants:
            continue
        errors = [values_of(record["rows"], name, "test", "squared_error") for name in (plain, affine)]
        gain = 1 - sum(errors[1]) / len(errors[1]) / (sum(errors[0]) / len(errors[0]))
        sizes = [values_of(record["rows"], name, "latent_dim")[0] for name in (plain, affine)]
        cells = [f"{sizes[0]}", f"{sizes[1]} + {sizes[0] - sizes[1]}", *(mean_and_each(error) for error in errors)]
        rows.append([poses, *cells, percent(gain)])
    header = ["inputs", "VAE latent", "AVAE shape + pose", "VAE squared error", "AVAE squared error", "improvement, %"]
    return table(header, rows) + "\n" + avae_note(record)


def control_table(record: dict) -> str:
    """An affine autoencoder trained with the direct search beside its twin with the fast one."""
    rows, orders = [], {}
    if all("orientations" in row for row in record["rows"]):
        orders = {"1": "doubled_concentration", "6": "concentration", "9": "concentration"}
    for name in dict.fromkeys(row["variant"] for row in record["rows"]):
        cells = []
        for digit, order in orders.items():
            last = [list(row["orientations"].values())[-1] for row in record["rows"] if row["variant"] == name]
            cells.append(mean_and_each([found[digit][order] for found in last]))
        errors = values_of(record["rows"], name, "test", "squared_error")
        times = values_of(record["rows"], name, "cpu_seconds")
        rows.append([name, mean_and_each(errors), *cells, f"{sum(times) / len(times):,.0f}"])
    titles = [f'"{digit}"{", doubled angle" if "doubled" in order else ""}' for digit, order in orders.items()]
    header = ["search in training", "squared error", *titles, "processor seconds"]
    return table(header, rows) + "\n" + avae_note(record)


def disentanglement_table(record: dict) -> str:
    """Where the angle of turned inputs went, how alike aligned inputs are, and the likelihood."""
    rows = []
    for name in dict.fromkeys(row["variant"] for row in record["rows"] if "disentanglement" in row):
        of = [row for row in record["rows"] if row["variant"] == name]
        cells = []
        for kind in ("latent_probe", "latent_information", "alpha_probe", "alpha_information"):
            values = [row["disentanglement"][kind] for row in of if kind in row["disentanglement"]]
            cells.append(mean_and_each(values) if values else "")
        last = [list(row["orientations"].values())[-1] for row in of if "orientations" in row]
        orders = {"1": "doubled_concentration", "6": "concentration", "9": "concentration"}
        means = [sum(found[digit][order] for found in last) / len(last) for digit, order in orders.items() if last]
        cells.append(" / ".join(f"{mean:.2f}" for mean in means))
        cells.append(mean_and_each([row["consistency"] for row in of], 3) if "consistency" in of[0] else "")
        likelihoods = [row["log_likelihood"] for row in of if "log_likelihood" in row]
        mean = mean_and_each([one["mean"] for one in likelihoods], 1) if likelihoods else ""
        cells.append(f"{mean} +- {likelihoods[0]['standard_error']:.1f}" if likelihoods else "")
        rows.append([name, *cells])
    header = ["model", "angle from latent, R^2", "information, nats", "angle from alpha, R^2", "information, nats"]
    header += ["concentration of 1 (doubled) / 6 / 9", "align(turned) against align", "log p(x), nats"]
    return table(header, rows) + "\n" + avae_note(record)


def search_speed_table(records: list) -> str:
    """Processor time and loss of pose searches, relative to the direct one."""
    rows = []
    for record in records:
        if record["kind"] != "search":
            continue
        for name, row in record["rows"].items():
            ratio = f"{1 / row['time_ratio']:.1f}x [{1 / row['high']:.1f}, {1 / row['low']:.1f}]"
            shares = [percent(row["worse_share"]), percent(row["better_share"]), str(row["worse_than_identity"])]
            rows.append([record["name"], name, ratio, f"{row['loss']:.3f} ({row['difference']:+.3f})", *shares])
    header = [
        "inputs",
        "search",
        "cheaper",
        "loss (to direct)",
        "worse by > 0.05, %",
        "better, %",
        "worse than identity",
    ]
    scales = [
        f"{one['name']}: n = {one['num_inputs']}, side {one['image_size']}, {one['rounds']} rounds, "
        f"{one['hardware']['device_name']}"
        for one in records
        if one["kind"] == "search"
    ]
    note = "; ".join(scales)
    commands = "; ".join(f"`{record['command']}`" for record in records if record["kind"] == "search")
    note = f"Processor time, median [smallest, largest] of the rounds, 1 thread. {note}. Commands: {commands}\n"
    return table(header, rows) + "\n" + note


def training_speed_table(records: list) -> str:
    """Processor time of a training step, relative to a plain autoencoder's."""
    rows = [
        [record["name"], name, interval(row["time_ratio"], row["low"], row["high"])]
        for record in records
        if record["kind"] == "training"
        for name, row in record["rows"].items()
        if name != "plain"
    ]
    return table(["inputs", "model", "time of a step"], rows) + (
        "\nRelative to a plain autoencoder of the same total latent size, median [smallest, largest] of the rounds; "
        "`control` is a second plain one.\n"
    )


def robustness_table(record: dict) -> str:
    """Accuracy of a classifier trained upright on turned images, with and without `align` in front."""
    row = next(row for row in record["rows"] if "robustness" in row)
    rows = [
        [f"{math.degrees(point['value']):.0f}", percent(point["turned"]), percent(point["aligned"])]
        for point in row["robustness"]
    ]
    for name in ("turned", "aligned"):
        row[name] = sum(point[name] for point in row["robustness"]) / len(row["robustness"])
    rows.append(["mean", percent(row["turned"]), percent(row["aligned"])])
    return table(["degrees", "as they are, %", "aligned first, %"], rows)


def best_of(trials: list[dict], required: float) -> dict | None:
    """Give the fastest trial that keeps the required share of the full model's score."""
    fit = [trial for trial in trials if trial["status"] == "ok" and trial["performance"] >= required]
    return min(fit, key=lambda trial: trial["latency_ratio"], default=None)


def thesis_searches_table(records: dict) -> str:
    """Thesis searches of several tasks: what was found for each requirement, and what is left of it on the test split.

    Files: thesis_TASK_95.json and thesis_TASK_95_test.json, and so with 99.
    """
    rows, speedups = [], {}
    for name in sorted(name for name in records if not name.endswith("_test")):
        record, test = records[name], records.get(f"{name}_test")
        data = record["summary"]
        required = data["required_performance"]
        initial = [trial for trial in record["trials"] if trial["origin"] != "model"]
        before, after = (best_of(trials, required) for trials in (initial, record["trials"]))
        gain = "" if before is None or after is None else f"{before['latency_ratio'] / after['latency_ratio']:.2f}x"
        speedup = interval(data["speedup_schedule_only"], *data["speedup_schedule_only_quartiles"])
        on_test, kept, verdict = "", "", ""
        if test is not None:
            full, found = test["models"]
            on_test = f"{found['score']:.3f} of {full['score']:.3f} +- {full['standard_error']:.3f}"
            kept = f"{100 * found['score'] / full['score']:.1f}"
            verdict = "issued" if found["certificate"]["is_issued"] else "refused"
        rows.append(
            [
                f"{data['dataset']}, {100 * required:g} %",
                f"`{'-'.join(map(str, data['gamma']))}_eta{data['eta']}`",
                f"{data['score']:.3f} of {data['full_score']:.3f}",
                f"{100 * data['performance']:.1f}",
                *(speedup, f"{data['speedup_against_stock']:.2f}x", gain),
                *(on_test, kept, verdict, f"{data['majority_score']:.3f}"),
            ]
        )
        speedups.setdefault(required, []).append(data["speedup_schedule_only"])
    header = ["task", "found", "validation", "% kept", "x full", "x stock", "gain over initial set"]
    header += ["test", "% kept", "certificate", "majority"]
    means = [
        f"{100 * required:g} %: {math.prod(values) ** (1 / len(values)):.2f}x over {len(values)} tasks"
        for required, values in sorted(speedups.items())
    ]
    first = next(record for name, record in records.items() if not name.endswith("_test"))
    note = (
        f"Geometric mean of the speed-up by the schedule alone: {'; '.join(means)}. One seed, "
        f"{first['summary']['hardware']['device_name']}, 1 thread, batch 1, median and quartiles. "
        f"Command, with other names for the other tasks: `{first['command']}`\n"
    )
    return table(header, rows) + "\n" + note


def architectures_table(record: dict) -> str:
    """Time of stock architectures by length, relative to the first one."""
    rows, measurements = [], record["measurements"]
    lengths = list(dict.fromkeys(row["tokens"] for row in measurements))
    for name in dict.fromkeys(row["model"] for row in measurements):
        own = {row["tokens"]: row for row in measurements if row["model"] == name}
        ratios = [interval(own[n]["ratio"], own[n]["ratio_low"], own[n]["ratio_high"]) for n in lengths]
        growth = own[lengths[-1]]["cpu_p50_ms"] / own[lengths[0]]["cpu_p50_ms"]
        flops = f"{own[lengths[-1]]['flops_per_input'] / 1e9:.1f}"
        rows.append([name, *ratios, f"{growth:.1f}x", flops, f"{own[lengths[0]]['weights_bytes'] / 1e6:.0f}"])
    header = ["architecture", *(f"{n:.0f} tokens" for n in lengths), "growth", f"GFLOPs at {lengths[-1]:.0f}", "MB"]
    first, hardware = measurements[0], record["hardware"]
    note = (
        f"Processor time relative to {first['model']} in the same round, median and quartiles of {first['rounds']} "
        f"rounds; growth: processor time of the longest against the shortest input. Random weights, batch "
        f"{first['batch_size']}, {hardware['threads']} thread, {hardware['dtype']}, {hardware['device_name']}, load "
        f"average {hardware['load_average'][0]}. Command: `{record['command']}`\n"
    )
    return table(header, rows) + "\n" + note


VIEWS: dict[str, Callable[[Any], str]] = {
    view.__name__: view
    for view in (
        search_table,
        search_headline,
        evaluation_headline,
        evaluation_table,
        load_table,
        supernet_table,
        latency_check,
        race_table,
        certificate_table,
        certificate_sentence,
        cross_table,
        policy_table,
        sharing_table,
        conversion_table,
        learned_table,
        vision_speed_table,
        counts_table,
        similarity_table,
        pose_table,
        control_table,
        disentanglement_table,
        search_speed_table,
        training_speed_table,
        robustness_table,
        thesis_searches_table,
        architectures_table,
    )
}


def render(text: str, results: Path) -> str:
    """Fill the marked places of a document.

    Raises:
        ValueError: A result is missing, or has no such view.
    """

    def fill(match: re.Match) -> str:
        start, name, view, end = match.groups()
        try:
            paths = sorted(results.glob(name)) if "*" in name else [results / name]
            records = {path.stem: json.loads(path.read_text()) for path in paths}
            record = records if "*" in name else records[Path(name).stem]
        except (OSError, json.JSONDecodeError) as error:
            raise ValueError(f"{results / name} cannot be read: {error}.") from error
        if view not in VIEWS:
            raise ValueError(f"there is no view {view}, only {sorted(VIEWS)}.")
        try:
            return start + VIEWS[view](record) + end
        except KeyError as error:
            raise ValueError(f"{name} does not suit the view {view}: it has no {error}.") from error

    return BLOCK.sub(fill, text)


def main() -> int:
    (arguments,) = parse_arguments([RenderArguments], __doc__)
    stale = []
    for document in map(Path, arguments.documents):
        text = document.read_text()
        rendered = render(text, Path(arguments.results))
        if rendered != text:
            stale.append(document)
            if not arguments.check:
                document.write_text(rendered)
                print(f"rendered {document}")
    if arguments.check and stale:
        print(f"differs from results/: {', '.join(map(str, stale))}; run scripts/render_results.py")
        return 1
    return 0


if __name__ == "__main__":
    run_command(main)
