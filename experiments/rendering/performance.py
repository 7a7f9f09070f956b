"""Views of times: architectures, runtimes, other methods and the limit of the machine."""

import math

import numpy as np
from frame import format_table, interval

from classformer_hf.search import Schedule


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
    return format_table(header, rows) + "\n" + note


def describe_hardware(record: dict) -> str:
    hardware = record["hardware"]
    threads = "1 thread" if hardware["threads"] == 1 else f"{hardware['threads']} threads"
    return f"{threads}, {hardware['device_name']}, load average {hardware['load_average'][0]}"


def describe_runs(records: dict) -> str:
    """Say where and by which command each record was made."""
    return "; ".join(f"{r['dataset'].upper()}: {describe_hardware(r)}, `{r['command']}`" for r in records.values())


def published_table(records: dict) -> str:
    """The benchmark of the thesis' author, measured again, beside what was published."""
    ours, published = records["architectures_author"], records["architectures_published"]
    lengths = published["tokens"]
    found: dict[str, dict] = {}
    for row in ours["measurements"]:
        found.setdefault(row["model"], {})[row["tokens"]] = row
    reference = published["seconds"]["roberta"]
    rows = []
    for name, seconds in published["seconds"].items():
        # the same shape, other weights
        own = found["roberta" if name == "muppet-roberta" else name]
        measured = [interval(own[n]["ratio"], own[n]["ratio_low"], own[n]["ratio_high"]) for n in lengths]
        theirs = " / ".join(f"{a / b:.2f}" for a, b in zip(seconds, reference, strict=True))
        accuracies = [published[source].get(name) for source in ("mean_accuracy", "thesis_5_4", "thesis_5_5")]
        rows.append([name, *measured, theirs, *("" if value is None else f"{value:.1f}" for value in accuracies)])
    header = ["architecture", *(f"{n} tokens" for n in lengths), "author's times"]
    header += ["author's accuracy", "table 5.4", "table 5.5"]
    note = (
        f"First columns: measured here, relative to roberta in the same round, median and quartiles of "
        f"{ours['measurements'][0]['rounds']} rounds, batch 1, random weights, {describe_hardware(ours)}; "
        f"muppet-roberta has roberta's shape. Author's times: {published['times_source']}, relative to roberta, in the "
        f"same order. Accuracies are not measured here: {published['accuracy_source']} Command: `{ours['command']}`\n"
    )
    return format_table(header, rows) + "\n" + note


def name_point(point: dict, num_layers: int) -> str:
    """Name a method, and say where a schedule is of fewer layers."""
    is_short = point["method"] == "classformer" and point["setting"].count("-") + 1 < num_layers
    return "classformer, fewer layers" if is_short else point["method"]


def count_layers(record: dict) -> int:
    return max(point["setting"].count("-") + 1 for point in record["points"] if point["method"] == "classformer")


def peers_table(record: dict) -> str:
    """All methods on one dataset, fastest first."""
    rows, num_layers = [], count_layers(record)
    for point in sorted(record["points"], key=lambda point: point["ratio"]):
        front = "on it" if point["is_on_front"] else f"{100 * point['below_front']:.1f} below"
        if point["test_score"] <= record["majority_score"]:
            front = "no better than the majority"
        name = name_point(point, num_layers)
        rows.append(
            [
                f"**{name}**" if name.startswith("classformer") else name,
                f"`{point['setting']}`" if point["setting"] else "",
                interval(point["ratio"], point["ratio_low"], point["ratio_high"]),
                f"{point['test_score']:.3f} +- {point['test_standard_error']:.3f}",
                front,
            ]
        )
    numbers, seeds = record["num_examples"], record["seeds"]
    dataset, seed_word = record["dataset"].upper(), "seeds" if len(seeds) > 1 else "seed"
    note = (
        f"{dataset}: {record['metric_name']} on the test split (n = {numbers['test']}, majority class "
        f"{record['majority_score']:.3f}), mean of {len(seeds)} {seed_word}, with its standard error over examples (of "
        f"several seeds the root mean square); trained on {numbers['train']} examples. Time relative to the full model "
        f"in the same rounds, median and quartiles, batch 1, {describe_hardware(record)}. Command: "
        f"`{record['command']}`\n"
    )
    return format_table(["method", "setting", "time", "score", "front"], rows) + "\n" + note


def peers_summary(records: dict) -> str:
    """Distance to the front by method and dataset, and how often Classformer dominates."""
    cells: dict[str, dict[str, float]] = {}
    dominated: dict[str, list[bool]] = {}
    for name, record in records.items():
        num_layers = count_layers(record)
        own = [point for point in record["points"] if point["method"] == "classformer"]
        for point in record["points"]:
            method = name_point(point, num_layers)
            nearest = cells.setdefault(method, {})
            is_useless = point["test_score"] <= record["majority_score"]
            nearest[name] = min(nearest.get(name, math.inf), math.inf if is_useless else point["below_front"])
            beaten = any(one["ratio"] <= point["ratio"] and one["test_score"] >= point["test_score"] for one in own)
            dominated.setdefault(method, []).append(beaten)
    rows = []
    for method, nearest in sorted(cells.items(), key=lambda item: (-len(item[1]), sum(item[1].values()))):
        marks = ["not run" if name not in nearest else distance_mark(nearest[name]) for name in records]
        own = method.startswith("classformer")
        beaten = "" if own or method == "full" else f"{sum(dominated[method])} of {len(dominated[method])}"
        rows.append([f"**{method}**" if own else method, *marks, beaten])
    header = ["method", *(record["dataset"].upper() for record in records.values()), "points dominated"]
    note = (
        "Points of the score by which the best of a method's settings lies below the front of all (0: on it); last: "
        "how many of its points a Classformer dominates, being no slower and no worse on the test split. Both compare "
        "scores as they were measured; differences within one or two of the standard errors below decide nothing.\n"
    )
    return format_table(header, rows) + "\n" + note


def distance_mark(distance: float) -> str:
    if math.isinf(distance):
        return "no better than the majority"
    return "**0**" if distance <= 0 else f"{100 * distance:.1f}"


def runtimes_table(record: dict) -> str:
    """Speed-up against stock by model and variant, with the schedule's own gain within each variant."""
    rows = record["rows"]
    by_name = {(row["model"], row["variant"]): row for row in rows}
    full = next(row["model"] for row in rows if row["gamma"])
    lines = []
    for row in rows[1:]:
        latency = row["latency"]
        # stock in another form has no schedule that could gain
        reference = by_name.get((full, row["variant"]), row)["latency"]
        schedule = f"`{Schedule.from_config(row).key}`" if row["gamma"] else "stock RoBERTa"
        speedup = interval(1 / latency["ratio"], 1 / latency["ratio_high"], 1 / latency["ratio_low"])
        score = f"{row['score']:.3f} +- {row['standard_error']:.3f}"
        kept = f"{100 * row['score'] / rows[0]['score']:.1f}"
        gain = f"{reference['ratio'] / latency['ratio']:.2f}"
        lines.append([schedule, row["variant"], speedup, gain, score, kept])
    header = ["schedule", "runtime and precision", "x stock", "x by the schedule", "score", "% of stock"]
    note = (
        f"{record['dataset'].upper()}: x stock is against RoBERTa with eager attention in torch, float32, with the "
        f"weights of the first model ({record['metric_name']} {rows[0]['score']:.3f}), in the same rounds, median and "
        f"quartiles of {rows[0]['latency']['rounds']} rounds of processor time on {len(record['timed_lengths'])} texts "
        f"(median {int(np.median(record['timed_lengths']))} tokens), batch 1; score: {record['metric_name']} on the "
        f"test split, n = {record['num_examples']}, majority class {record['majority_score']:.3f}; "
        f"{describe_hardware(record)}. Command: `{record['command']}`\n"
    )
    return format_table(header, lines) + "\n" + note


def int8_table(record: dict) -> str:
    """Texts per second against float32 and one text at a time, by graph, batch size and order."""
    rows = {(row["variant"], row["batch_size"], row["order"]): row for row in record["rows"]}
    ways = list(dict.fromkeys(key[1:] for key in rows))
    lines = []
    for variant in dict.fromkeys(key[0] for key in rows):
        own = [rows[variant, *way] for way in ways]
        lines.append([variant, *(interval(1 / r["ratio"], 1 / r["ratio_high"], 1 / r["ratio_low"]) for r in own)])
    header = ["graph", *("alone" if size == 1 else f"{size}, {order}" for size, order in ways)]
    report = record["report"]
    note = (
        f"{record['dataset'].upper()}: texts per second relative to float32 one text at a time, in the same rounds, "
        f"median and quartiles of {record['rows'][0]['rounds']} rounds of processor time over {record['num_texts']} "
        f"texts of {record['mean_tokens']:.0f} tokens in the mean. In int8 against the weights: {report['verdict']}. "
        f"Beside other texts instead of alone: {report['batch_verdict']}. {describe_hardware(record)}. Command: "
        f"`{record['command']}`\n"
    )
    return format_table(header, lines) + "\n" + note


def parity_table(record: dict) -> str:
    """Largest difference of a logit, by runtime and kept leading tokens."""
    rows = []
    for runtime in dict.fromkeys(row["runtime"] for row in record["rows"]):
        own = [row for row in record["rows"] if row["runtime"] == runtime]
        etas = sorted({int(row["schedule"].split("_eta")[1]) for row in own})
        worst = [max(r["difference"] for r in own if r["schedule"].endswith(f"_eta{eta}")) for eta in etas]
        rows.append([runtime, str(len(own)), *(f"{value:.1e}" for value in worst)])
    header = ["runtime", "graphs", *(f"eta {eta}" for eta in etas)]
    lengths = ", ".join(map(str, record["lengths"]))
    has_types = all("token_type_ids" in row.get("inputs", ()) for row in record["rows"])
    types = ", token types among the inputs, logits of size 1" if has_types else ", without token types"
    note = (
        f"Largest difference of a logit from torch's, over texts of {lengths} tokens, alone and as the longest of a "
        f"padded batch{types}; {describe_hardware(record)}. Command: "
        f"`{record['command']}`\n"
    )
    return format_table(header, rows) + "\n" + note


def roofline_table(record: dict) -> str:
    """Measured speed-up of schedules against what the machine's rates promise."""
    rows = []
    for row in record["rows"]:
        bound = 100 * row["roofline_ms"] / row["measured_ms"]
        products = 100 * row["products_ms"] / row["measured_ms"]
        overheads = ["{:.0f} [{:.0f}, {:.0f}]".format(*row[f"{who}overhead_per_layer_us"]) for who in ("", "stock_")]
        rows.append(
            [
                f"`{row['schedule']}`",
                str(row["tokens"]),
                f"{row['gflops']:.2f}",
                f"{bound:.0f}",
                f"{products:.0f}",
                interval(*row["speedup"]),
                interval(*row["predicted_speedup"]),
                interval(*(100 * value for value in row["reached"]), digits=0),
                *overheads,
            ]
        )
    header = ["schedule", "tokens", "GFLOP", "roofline, %", "products, %", "x stock", "promised", "reached, %"]
    note = (
        f"{record['model']}, batch 1, median and quartiles of {record['rounds']} rounds of processor time, "
        f"{describe_hardware(record)}. Measured: {record['peak_gflops']:.0f} GFLOP/s at best, "
        f"{record['bandwidth_gb_per_s']:.1f} GB/s reading, {record['weight_megabytes']:.0f} MB of weights in the "
        "layers. Roofline and products: share of the time that the bound, or the matrix products alone, would take. "
        "Promised: what the products' own times and plain RoBERTa's overhead at the lengths that leave each layer "
        f"give. Overhead: of a layer, in microseconds, beside that of plain RoBERTa's layers at the lengths that leave "
        f"each layer. Command: `{record['command']}`\n"
    )
    return format_table([*header, "overhead", "of plain layers"], rows) + "\n" + note


def profile_table(record: dict) -> str:
    """What the time of a pass goes into."""
    profiles = record["profiles"]
    names = list(next(iter(profiles.values()))["shares"])
    rows = [
        [name, *(f"{100 * profiled['shares'][name]:.1f}" for profiled in profiles.values())]
        for name in sorted(names, key=lambda name: -next(iter(profiles.values()))["shares"][name])
    ]
    rows.append(["operators in a pass", *(f"{profiled['num_operators']:.0f}" for profiled in profiles.values())])
    header = ["share of the time, %", *(name if " " in name else f"`{name}`" for name in profiles)]
    joined = ", ".join(f"{interval(*ratios)} at {n} tokens" for n, ratios in record["joined_projections"].items())
    tokens = next(iter(profiles.values()))["tokens"]
    note = (
        f"torch.profiler, {tokens} tokens, batch 1. One matrix product for queries, keys and values takes {joined} of "
        "the time of three.\n"
    )
    return format_table(header, rows) + "\n" + note


def cascade_table(records: dict) -> str:
    """Cascades against single schedules with the same weights."""
    rows = []
    for record in records.values():
        for row in record["rows"]:
            asked = f"{100 * row['required_performance']:g}"
            for kind in ("single", "cascade"):
                part, latency = row[kind], row[kind]["latency_to_single"]
                settings = part["settings"]
                if kind == "cascade" and not (settings["cascade"] or {}).get("margin"):
                    rows.append([record["dataset"].upper(), asked, kind, "none is faster", *[""] * 6])
                    continue
                schedule = f"`{Schedule.from_config(settings).key}`"
                if settings["cascade"]:
                    cascade = settings["cascade"]
                    schedule = f"`{Schedule.from_config(cascade).key}`, below {cascade['margin']:.2f} {schedule}"
                twice = f"{100 * part['classified_twice']:.0f}" if kind == "cascade" else ""
                full, certificate = row["full"]["test_score"], part["certificate"]
                rows.append(
                    [
                        record["dataset"].upper(),
                        asked,
                        kind,
                        schedule,
                        f"{part['expected_ratio']:.3f}",
                        interval(latency["ratio"], latency["ratio_low"], latency["ratio_high"]),
                        twice,
                        f"{part['validation_score']:.3f}",
                        f"{part['test_score']:.3f} ({100 * part['test_score'] / full:.1f})",
                        "issued" if certificate["is_issued"] else f"{100 * certificate['performance_lower_bound']:.1f}",
                    ]
                )
    header = ["dataset", "asked, %", "", "schedule", "expected, of full", "time, of single", "twice, %"]
    header += ["validation", "test (% of full)", "certificate, %"]
    examples = "; ".join(
        f"{record['dataset'].upper()} {record['num_examples']['validation']} and {record['num_examples']['test']}"
        for record in records.values()
    )
    schedules = " and ".join(f"{r['num_schedules']} ({r['dataset'].upper()})" for r in records.values())
    note = (
        f"Chosen on validation among {schedules} schedules, reported on test ({examples} examples). "
        "Expected: by the latency table over the validation texts, relative to the full model; time: measured on texts "
        "of the test split relative to the single schedule, median and quartiles; twice: texts that are classified "
        "again. Certificate: what share of the full model's score is certain with 95 % confidence where the one asked "
        f"for is refused, corrected for all rows of the dataset. Batch 1. Commands: {describe_runs(records)}\n"
    )
    return format_table(header, rows) + "\n" + note


def throughput_table(records: dict) -> str:
    """Texts per second of models and ways to batch, relative to stock on unsorted batches."""
    rows = []
    for record in records.values():
        for model in dict.fromkeys(row["model"] for row in record["rows"]):
            own = {row["batching"]: row for row in record["rows"] if row["model"] == model}
            first = next(iter(own.values()))
            name = f"`{Schedule.from_config(first).key}`" if first["gamma"] else "stock RoBERTa"
            cells = [interval(1 / r["ratio"], 1 / r["ratio_high"], 1 / r["ratio_low"]) for r in own.values()]
            rows.append([record["dataset"].upper(), name, *cells])
        stock = record["rows"][: len(own)]
        rows.append([record["dataset"].upper(), "padding, %", *(f"{100 * row['padding']:.0f}" for row in stock)])
    first = next(iter(records.values()))
    names = [row["batching"] for row in first["rows"][: len(own)]]
    texts = "; ".join(
        f"{r['dataset'].upper()} {r['num_texts']} texts of {r['mean_tokens']:.0f} tokens in the mean, in batches of "
        f"{r['batch_size']}, {r['rows'][0]['rounds']} rounds"
        for r in records.values()
    )
    note = (
        f"Texts per second relative to stock RoBERTa on unsorted batches, median and quartiles of rounds; {texts}. "
        f"Commands: {describe_runs(records)}\n"
    )
    return format_table(["dataset", "schedule", *names], rows) + "\n" + note
