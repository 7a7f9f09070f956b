"""Views of the affine autoencoder."""

import math

from frame import format_table, interval, percent


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
    return format_table(header, rows) + "\n" + avae_note(record)


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
    return format_table(header, rows) + "\n" + avae_note(record)


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
    return format_table(header, rows) + "\n" + avae_note(record)


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
    return format_table(header, rows) + "\n" + note


def training_speed_table(records: list) -> str:
    """Processor time of a training step, relative to a plain autoencoder's."""
    rows = [
        [record["name"], name, interval(row["time_ratio"], row["low"], row["high"])]
        for record in records
        if record["kind"] == "training"
        for name, row in record["rows"].items()
        if name != "plain"
    ]
    return format_table(["inputs", "model", "time of a step"], rows) + (
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
    return format_table(["degrees", "as they are, %", "aligned first, %"], rows)
