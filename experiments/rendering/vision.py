"""Views of weight sharing in image classifiers."""

from frame import format_table, interval, percent


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
    return format_table(header, rows) + f"\n{note}Command: `{record['command']}`\n"


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
        text += format_table(header, rows) + "\n"
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
    return format_table(header, rows) + "\n" + note


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
    return format_table(["layer", "mode", "variant", "time"], rows) + "\n" + note


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
    return format_table(header, rows) + f"\nCommand: `{record['command']}`\n"


def similarity_table(record: dict) -> str:
    """How similar kernels are to those of the unshared network, beside random ones."""
    first, second = (record["cosine_similarity"][layer] for layer in ("first", "second"))
    rows = [
        [name, *(f"{one[name][kind]:.2f}" for one in (first, second) for kind in ("cosine", "random"))]
        for name in first
    ]
    header = ["left", "first layer", "random", "first layer that shares", "random"]
    return format_table(header, rows) + f"\nCommand: `{record['command']}`\n"
