"""What single searches, evaluations and latency tables found, by the records that their verbs leave."""

from frame import format_table, interval, name_command, percent


def table(record: dict) -> str:
    """All trials, fastest first, then what was chosen."""
    rows = []
    for row in sorted(record["trials"], key=lambda row: row["latency_ratio"] or float("inf")):
        if row["status"] != "ok":
            rows.append([row["number"], row["key"], row["origin"], "failed", "", "", "", ""])
            continue
        mark = "**" if row["chosen"] else ""
        time = interval(row["latency_ratio"], *row["latency_ratio_quartiles"], digits=3)
        speedups = [f"{row[f'speedup_{name}']:.2f}" for name in ("schedule_only", "against_stock")]
        scores = [f"{row['score']:.4f}", percent(row["performance"])]
        rows.append([f"{mark}{row['number']}{mark}", f"`{row['key']}`", row["origin"], *scores, time, *speedups])
    summary, hardware = record["summary"], record["summary"]["hardware"]
    lengths = next(value for name, value in summary.items() if name.startswith("layer_lengths"))
    note = (
        f"Validation {summary['metric_name']}, n = {summary['num_validation_examples']}, seed {record['seed']}; the "
        f"majority class has {summary['majority_score']:.4f}, the requirement was {summary['required_score']:.4f}; "
        "latency relative to the full model in the same rounds (median and quartiles), batch 1, "
        f"{hardware['threads']} thread, {hardware['dtype']}, {hardware['device_name']}. Bold: chosen for "
        f"{100 * summary['required_performance']:g} %; of 512 tokens its layers pass on {lengths}. "
        f"{name_command(record)}"
    )
    header = ["trial", "gamma and eta", "proposed by", "score", "% of full", "latency ratio", "x full", "x stock"]
    return format_table(header, rows, note)


def headline(record: dict) -> str:
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
    """Score of every model, and of the majority class."""
    models = record["models"]
    rows = [[row["model"], f"{row['score']:.4f}", f"{row['standard_error']:.4f}"] for row in models]
    rows.append(["majority class", f"{record['majority_score']:.4f}", ""])
    header = [f"model, {record['dataset']} {record['split']}", models[0]["metric_name"], "standard error", "n"]
    return format_table(header, [[*row, record["num_examples"]] for row in rows])


def certificate_sentence(record: dict) -> str:
    """What the one reading of a test split said of every candidate."""
    sentences = [model["certificate"]["sentence"] for model in record["models"] if "certificate" in model]
    warning = f" But {record['warning']}" if "warning" in record else ""
    return "".join(f"- {record['dataset'].upper()}: {sentence}{warning}\n" for sentence in sentences)


def latency_table(record: dict) -> str:
    """The latency table against direct measurement beside direct against direct."""
    rows = []
    for name in ("table against direct", "direct against direct"):
        one = record[name.replace(" ", "_")]
        errors = [percent(one[f"{kind}_relative_error"]) for kind in ("mean", "max")]
        rows.append([name, *errors, f"{one['kendall_tau']:.3f}", one["num_pairs"]])
    header = ["comparison", "mean error, %", "largest error, %", "Kendall's tau", "pairs"]
    note = (
        f"{len(record['schedules'])} schedules, {record['busy_processes']} busy processes beside (load average before: "
        f"{record['load_average_before'][0]:.1f}), table built in {record['table']['build_seconds']:.0f} s; pairs "
        f"whose latencies differ by more than 5 %; {record['hardware']['device_name']}, "
        f"{record['hardware']['threads']} thread, {record['hardware']['dtype']}. {name_command(record)}"
    )
    return format_table(header, rows, note)
