"""Tables of experiments that are closed: their questions are answered, and the records say how.

The code that measured them is at the tag `closed-experiments`, under the names that the records give.
"""

from frame import describe_hardware, format_table, interval, name_command, percent, ratio, speedup


def roofline_table(record: dict) -> str:
    """Measured speed-up of schedules against what the machine's rates promise."""
    rows = []
    for row in record["rows"]:
        bounds = [f"{100 * row[f'{bound}_ms'] / row['measured_ms']:.0f}" for bound in ("roofline", "products")]
        speedups = [interval(*row[name]) for name in ("speedup", "predicted_speedup")]
        reached = interval(*(100 * value for value in row["reached"]), digits=0)
        overheads = [interval(*row[f"{who}overhead_per_layer_us"], digits=0) for who in ("", "stock_")]
        about = [f"`{row['schedule']}`", row["tokens"], f"{row['gflops']:.2f}"]
        rows.append([*about, *bounds, *speedups, reached, *overheads])
    header = ["schedule", "tokens", "GFLOP", "roofline, %", "products, %", "x stock", "promised", "reached, %"]
    note = (
        f"{record['model']}, batch 1, median and quartiles of {record['rounds']} rounds of processor time, "
        f"{describe_hardware(record)}. Measured: {record['peak_gflops']:.0f} GFLOP/s at best, "
        f"{record['bandwidth_gb_per_s']:.1f} GB/s reading, {record['weight_megabytes']:.0f} MB of weights in the "
        "layers. Roofline and products: share of the time that the bound, or the matrix products alone, would take. "
        "Promised: what the products' own times and plain RoBERTa's overhead at the lengths that leave each layer "
        f"give. Overhead: of a layer, in microseconds, beside that of plain RoBERTa's layers at the lengths that leave "
        f"each layer. {name_command(record)}"
    )
    return format_table([*header, "overhead", "of plain layers"], rows, note)


def profile_table(record: dict) -> str:
    """What the time of a pass goes into."""
    profiles = record["profiles"]
    first = next(iter(profiles.values()))
    rows = [
        [name, *(f"{100 * profiled['shares'][name]:.1f}" for profiled in profiles.values())]
        for name in sorted(first["shares"], key=lambda name: -first["shares"][name])
    ]
    rows.append(["operators in a pass", *(f"{profiled['num_operators']:.0f}" for profiled in profiles.values())])
    header = ["share of the time, %", *(name if " " in name else f"`{name}`" for name in profiles)]
    joined = ", ".join(f"{interval(*ratios)} at {n} tokens" for n, ratios in record["joined_projections"].items())
    note = (
        f"torch.profiler, {first['tokens']} tokens, batch 1. One matrix product for queries, keys and values takes "
        f"{joined} of the time of three.\n"
    )
    return format_table(header, rows, note)


def load_table(record: dict) -> str:
    """Relative latency of five schedules, alone and beside busy processes."""
    rows = []
    for name, quiet in record["quiet"]["latencies"].items():
        busy = record["busy"]["latencies"][name]
        walls = [f"{busy['wall_ratio']:.3f}", f"{quiet['wall_p50_ms']:.0f}", f"{busy['wall_p50_ms']:.0f}"]
        rows.append([name, ratio(quiet, digits=3), ratio(busy, digits=3), *walls])
    header = ["schedule", "ratio before", "ratio, two busy processes", "by wall clock", "before, ms", "busy, ms"]
    loads = [f"{record[state]['load_average_before'][0]:.1f}" for state in ("quiet", "busy")]
    note = (
        f"{record['sequence_length_tokens']} tokens, batch 1, one thread, {record['hardware']['device_name']}; "
        f"ratios of processor time, median and quartiles of {record['quiet']['latencies']['full']['rounds']} rounds; "
        f"load average before: {loads[0]} and {loads[1]}. Order kept by processor time: {record['is_cpu_order_kept']}, "
        f"by wall clock: {record['is_wall_order_kept']}. {name_command(record)}"
    )
    return format_table(header, rows, note)


def int8_table(record: dict) -> str:
    """Texts per second against float32 and one text at a time, by graph, batch size and order."""
    rows = {(row["variant"], row["batch_size"], row["order"]): row for row in record["rows"]}
    ways = list(dict.fromkeys(key[1:] for key in rows))
    variants = dict.fromkeys(key[0] for key in rows)
    lines = [[variant, *(speedup(rows[variant, *way]) for way in ways)] for variant in variants]
    header = ["graph", *("alone" if size == 1 else f"{size}, {order}" for size, order in ways)]
    report = record["report"]
    note = (
        f"{record['dataset'].upper()}: texts per second relative to float32 one text at a time, in the same rounds, "
        f"median and quartiles of {record['rows'][0]['rounds']} rounds of processor time over {record['num_texts']} "
        f"texts of {record['mean_tokens']:.0f} tokens in the mean. In int8 against the weights: {report['verdict']}. "
        f"Beside other texts instead of alone: {report['batch_verdict']}. {describe_hardware(record)}. "
        f"{name_command(record)}"
    )
    return format_table(header, lines, note)


def samplers_table(record: dict) -> str:
    """Evaluations until the fastest schedule that is good enough has 99 % of the best speed-up, by sampler."""
    rows = []
    for required, result in record["required"].items():
        for name, summary in result["samplers"].items():
            reach, reward = summary["evaluations_to_99%"], summary["reward"]["median"]
            median, low, high = (
                "more" if reach[key] is None else f"{reach[key]:.0f}" for key in ("median", "low", "high")
            )
            about = [f"{percent(float(required), 0)} %", name, f"{median} [{low}, {high}]"]
            reached = [percent(reach["reached"], 0), reach["runs"]]
            rows.append([*about, *reached, f"{reward[9]:.3f}", f"{reward[-1]:.3f}"])
    header = ["keep", "sampler", "evaluations to 99 % of the optimum", "runs there, %", "runs", "reward at 10"]
    num_schedules = next(iter(record["required"].values()))["tables"][0]["schedules"]
    note = (
        f"{record['table']}: {num_schedules} schedules; median and 95 % interval over runs, `more` "
        f"is more than {record['max_trials']}; reward of equation 5.4, median. {name_command(record)}"
    )
    return format_table([*header, "at the end"], rows, note)


def length_policy_table(record: dict) -> str:
    """A schedule per length bucket against the best single one."""
    rows = []
    for row in record["requirements"]:
        both = [row[name]["test"] for name in ("single", "policy")]
        cells = [(f"`{one['key']}`", f"{one['latency_ratio']:.3f}", percent(one["performance"])) for one in both]
        change = f"{100 * row['test_latency_change']:+.1f}"
        rows.append([f"{percent(row['required_performance'], 0)} %", *cells[0], *cells[1], change])
    header = ["keep", "single", "latency", "kept, %", "by length", "latency", "kept, %", "change, %"]
    quantiles = " / ".join(f"{value:.0f}" for value in record["length_quantiles_tokens"])
    note = (
        f"Chosen on {record['num_validation_examples']} texts, reported on {record['num_test_examples']} others; "
        f"latency by the table, relative to the full model, {record['hardware']['device_name']}; lengths at "
        f"5/25/50/75/95 %: {quantiles} tokens. {name_command(record)}"
    )
    return format_table(header, rows, note)
