"""What every experiment shares: its command line, how tables are written, where records come from, and pictures."""

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from redundancy_hf.command import parse_call, run_command

# what older records call their programs
FORMER = {
    "redundancy-hf search": "scripts/search_classformer.py",
    "redundancy-hf evaluate": "scripts/evaluate_model.py",
    "experiments/peers.py": "scripts/compare_peers.py",
    "experiments/schedules.py": "scripts/study_schedules.py",
    "experiments/sharing.py": "scripts/study_sharing.py",
    "experiments/autoencoders.py": "scripts/study_avae.py",
}


def command_of(
    run: Callable[..., Any] | None,
    description: str,
    draw: Callable[..., None] | None = None,
    show: Callable[[dict], str] | None = None,
) -> Callable[[], None]:
    """Give an experiment its command line: flags run it, and with `--draw` first they draw the records named there.

    The last line of an experiment's file, which so runs where the file is the program.

    Args:
        run: What the flags call, by its signature.
        description: Shown by `--help`.
        draw: What `--draw` calls with the files as `records`.
        show: Gives of a record the table that is printed.
    """

    def main():
        arguments = sys.argv[1:]
        if draw is not None and (run is None or arguments[:1] == ["--draw"]):
            arguments = ["--records" if argument == "--draw" else argument for argument in arguments]
            draw(**parse_call(draw, description, arguments))
        elif run is not None:
            record = run(**parse_call(run, description))
            if show is not None and record is not None:
                print(show(record))

    if getattr(run or draw, "__module__", "") == "__main__":
        run_command(main)
    return main


def format_table(header: Iterable[Any], rows: Iterable[Iterable[Any]], note: str = "") -> str:
    """Write a table in Markdown, and below it what a reader must know of it."""
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines) + (f"\n{note}" if note else "")


def interval(middle: float, low: float, high: float, digits: int = 2) -> str:
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def ratio(latency: dict, digits: int = 2) -> str:
    """Give a time relative to the reference's, with its quartiles."""
    return interval(latency["ratio"], latency["ratio_low"], latency["ratio_high"], digits)


def speedup(latency: dict) -> str:
    """Give how many times faster than the reference something is, with its quartiles."""
    return interval(1 / latency["ratio"], 1 / latency["ratio_high"], 1 / latency["ratio_low"])


def around(score: float, standard_error: float) -> tuple[float, float, float]:
    return score, score - 1.96 * standard_error, score + 1.96 * standard_error


def percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f}"


def describe_machine(hardware: dict) -> str:
    """Name a processor, what it computes with, and the threads."""
    threads = hardware["threads"]
    return f"{hardware['device_name']} ({hardware['cpu_capability']}), {threads} thread{'s' if threads > 1 else ''}"


def describe_hardware(record: dict) -> str:
    """Name the threads, the processor and what else it did."""
    hardware = record["hardware"]
    threads = "1 thread" if hardware["threads"] == 1 else f"{hardware['threads']} threads"
    return f"{threads}, {hardware['device_name']}, load average {hardware['load_average'][0]}"


def link_command(record: dict) -> str:
    """Give the command that repeats a record's run, linked to the record, which is the recipe, once that is a file."""
    if "command" not in record:
        return f"`{record['program']}`"
    if tag := record.get("closed"):
        return f"`{Path(record['program']).name}` of the tag `{tag}`, [record](../{record['command'].split()[-1]})"
    return f"[`{record['command']}`](../{record['command'].split()[-1]})"


def name_command(record: dict) -> str:
    return f"Command: {link_command(record)}\n"


def list_commands(records: Iterable[dict]) -> str:
    """Give the programs that repeat the runs of records, and the records, each of which is a recipe."""
    recipes: dict[str, list[str]] = {}
    for record in records:
        # one that was only just measured is no file yet
        program, path = record["command"].rsplit(" ", 1) if "command" in record else (record["program"], "")
        recipes.setdefault(program, []).extend([f"[{Path(path).stem}](../{path})"] if path else [])
    commands = (f"`{program}`{' with ' * bool(links)}{', '.join(links)}" for program, links in recipes.items())
    return f"Commands: {'; '.join(commands)}\n"


def describe_runs(records: dict) -> str:
    """Say where and by which command each record was made."""
    runs = (f"{r['dataset'].upper()}: {describe_hardware(r)}, {link_command(r)}" for r in records.values())
    return f"Commands: {'; '.join(runs)}\n"


def rename_settings(record: dict) -> dict:
    """Give a record's settings the names that they have now, so that what was begun before goes on."""
    settings, program = record.get("settings", {}), str(record.get("program", record.get("command")))
    if "study" in settings:
        settings["family" if "sharing" in program else "question"] = settings.pop("study")
    return record


def read_results(path: str | Path, program: str) -> dict:
    """Read what an experiment or a verb has left.

    Args:
        path: The file.
        program: What left it, as `experiments/schedules.py` or `redundancy-hf search`.

    Raises:
        ValueError: There is no such file, it is not JSON, or another program left it.
    """
    try:
        record = json.loads(Path(path).read_text())
    except OSError as error:
        raise ValueError(f"the record {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ValueError(f"the record {path} is not JSON: {error}.") from error
    # older records have the whole command
    command = str(record.get("program", record.get("command"))) if isinstance(record, dict) else ""
    known = (program, Path(program).name, former := FORMER.get(program, program), Path(former).name)
    if not command.removeprefix("python ").startswith(known):
        raise ValueError(f"{path} is not a record of {program}; give the JSON file that it wrote.")
    return rename_settings(record)


def refuse_twice(names: list[str]):
    """Refuse records of one task.

    Raises:
        ValueError: A name occurs twice.
    """
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"--records has {', '.join(twice)} twice; give one record of a task.")


def open_panels(count: int, columns: int, panel_size: tuple[float, float]) -> tuple[Any, list[Any]]:
    """Open a figure of `count` panels of a size in inches, row by row; the last places of the grid stay empty."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(count, columns)
    rows = -(-count // columns)
    size = (panel_size[0] * columns, panel_size[1] * rows)
    figure, panels = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for panel in panels.flat[count:]:
        panel.axis("off")
    return figure, list(panels.flat[:count])


def add_legend(figure: Any, panels: Iterable[Any], columns: int, font_size: float | None = None):
    """Write one legend below the panels; a label that several have stands there once."""
    handles = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    place = {"loc": "outside lower center", "ncols": min(len(handles), columns), "fontsize": font_size}
    figure.legend(handles.values(), handles.keys(), **place)


def save_figure(figure: Any, path: str):
    """Write a PNG file and say so; its folder is made."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    print(f"wrote {path}")
