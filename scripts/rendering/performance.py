"""Views of times: architectures, runtimes, other methods and the limit of the machine."""

from .tables import interval, table


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
