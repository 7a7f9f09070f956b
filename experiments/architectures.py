"""How fast other architectures are, as `redundancy-hf benchmark` measures them with random weights."""

from frame import describe_hardware, format_table, name_command, ratio


def group_rows(record: dict) -> dict[str, dict[float, dict]]:
    """Give the measurement of every architecture and length."""
    found: dict[str, dict[float, dict]] = {}
    for row in record["measurements"]:
        found.setdefault(row["model"], {})[row["tokens"]] = row
    return found


def table(record: dict) -> str:
    """Time of stock architectures by length, relative to the first one."""
    rows, found = [], group_rows(record)
    lengths = list(next(iter(found.values())))
    for name, own in found.items():
        first, last = own[lengths[0]], own[lengths[-1]]
        growth, flops = last["cpu_p50_ms"] / first["cpu_p50_ms"], last["flops_per_input"] / 1e9
        times = [ratio(own[tokens]) for tokens in lengths]
        rows.append([name, *times, f"{growth:.1f}x", f"{flops:.1f}", f"{first['weights_bytes'] / 1e6:.0f}"])
    header = ["architecture", *(f"{n:.0f} tokens" for n in lengths), "growth", f"GFLOPs at {lengths[-1]:.0f}", "MB"]
    first, hardware = record["measurements"][0], record["hardware"]
    note = (
        f"Processor time relative to {first['model']} in the same round, median and quartiles of {first['rounds']} "
        f"rounds; growth: processor time of the longest against the shortest input. Random weights, batch "
        f"{first['batch_size']}, {hardware['threads']} thread, {hardware['dtype']}, {hardware['device_name']}, load "
        f"average {hardware['load_average'][0]}. {name_command(record)}"
    )
    return format_table(header, rows, note)


def published_table(records: dict) -> str:
    """The benchmark of the thesis' author, measured again, beside what was published."""
    ours, published = records["architectures_author"], records["architectures_published"]
    found, lengths, rows = group_rows(ours), published["tokens"], []
    for name, seconds in published["seconds"].items():
        # the same shape, other weights
        own = found["roberta" if name == "muppet-roberta" else name]
        theirs = " / ".join(f"{a / b:.2f}" for a, b in zip(seconds, published["seconds"]["roberta"], strict=True))
        accuracies = [published[source].get(name) for source in ("mean_accuracy", "thesis_5_4", "thesis_5_5")]
        cells = ["" if value is None else f"{value:.1f}" for value in accuracies]
        rows.append([name, *(ratio(own[tokens]) for tokens in lengths), theirs, *cells])
    header = ["architecture", *(f"{n} tokens" for n in lengths), "author's times"]
    header += ["author's accuracy", "table 5.4", "table 5.5"]
    note = (
        f"First columns: measured here, relative to roberta in the same round, median and quartiles of "
        f"{ours['measurements'][0]['rounds']} rounds, batch 1, random weights, {describe_hardware(ours)}; "
        f"muppet-roberta has roberta's shape. Author's times: {published['times_source']}, relative to roberta, in the "
        f"same order. Accuracies are not measured here: {published['accuracy_source']} {name_command(ours)}"
    )
    return format_table(header, rows, note)
