"""What all views write with."""

from collections.abc import Iterable


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def interval(middle: float, low: float, high: float, digits: int = 2) -> str:
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def around(score: float, standard_error: float) -> tuple[float, float, float]:
    """Give a score with its 95 % interval."""
    return score, score - 1.96 * standard_error, score + 1.96 * standard_error


def percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f}"


def describe_machine(hardware: dict) -> str:
    """Name a processor, what it computes with, and the threads."""
    threads = hardware["threads"]
    return f"{hardware['device_name']} ({hardware['cpu_capability']}), {threads} thread{'s' if threads > 1 else ''}"


def list_commands(records: Iterable[dict]) -> str:
    """Give the command of every record, folded."""
    commands = "; ".join(f"`{record['command']}`" for record in records)
    return f"<details><summary>Commands</summary>\n\n{commands}\n\n</details>\n"
