"""Render the JSON files in results/ into the documents, so that no number is typed by hand.

A document marks a place with `<!-- results: NAME.json VIEW -->` and `<!-- end -->`; what stands between is replaced.
VIEW is the file of a question in experiments/, for its `table`, or FILE.FUNCTION for another one; it is given the
record, or all of them by name where NAME holds a `*`.

    python experiments/render_results.py           # write
    python experiments/render_results.py --check   # change nothing, exit 1 if a document differs
"""

import importlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from redundancy_hf.command import parse_call, run_command

BLOCK = re.compile(r"(<!-- results: (\S+) (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def find_view(name: str) -> Callable[[Any], str]:
    """Find what a document names: `FILE` for the table of an experiment, `FILE.FUNCTION` for another one.

    Raises:
        ValueError: There is no such experiment, or it has no such table.
    """
    file, _, function = name.partition(".")
    if not (Path(__file__).parent / f"{file}.py").is_file():
        raise ValueError(f"there is no experiments/{file}.py; a document names FILE or FILE.FUNCTION.")
    module = importlib.import_module(file)
    if not hasattr(module, function or "table"):
        raise ValueError(f"experiments/{file}.py has no {function or 'table'}.")
    return getattr(module, function or "table")


def read(path: Path) -> dict:
    """Read a record, and say by which command its file repeats it."""
    record = json.loads(path.read_text())
    return {**record, "command": f"{record['program']} {path}"} if "program" in record else record


def render(text: str, results: Path) -> str:
    """Fill the marked places of a document.

    Raises:
        ValueError: A result is missing, or has no such view.
    """

    def fill(match: re.Match) -> str:
        start, name, view, end = match.groups()
        try:
            paths = sorted(results.glob(name)) if "*" in name else [results / name]
            records = {path.stem: read(path) for path in paths}
            record = records if "*" in name else records[Path(name).stem]
        except (OSError, json.JSONDecodeError) as error:
            raise ValueError(f"{results / name} cannot be read: {error}.") from error
        if not records:
            raise ValueError(f"no file in {results} is named {name}.")
        try:
            return start + find_view(view)(record) + end
        except KeyError as error:
            raise ValueError(f"{name} does not suit the view {view}: it has no {error}.") from error

    return BLOCK.sub(fill, text)


def run(documents: Sequence[str] = ("README.md", "docs/*.md"), results: str = "results", check: bool = False) -> int:
    """Render documents; gives the exit code.

    Args:
        documents: Documents with marked places, or patterns of them.
        results: Folder of the JSON files.
        check: Write nothing; fail if a document differs.

    Raises:
        ValueError: There is no such document, or what it names cannot be rendered.
    """
    stale = []
    for pattern in documents:
        paths = sorted(Path().glob(pattern))
        if not paths:
            raise ValueError(f"--documents names {pattern}, and there is no such file.")
        for path in paths:
            text = path.read_text()
            rendered = render(text, Path(results))
            if rendered != text:
                stale.append(str(path))
                if not check:
                    path.write_text(rendered)
    if stale and check:
        print(f"differs from results/: {', '.join(stale)}; run experiments/render_results.py")
    elif stale:
        print(f"rendered {', '.join(stale)}")
    return int(check and bool(stale))


def main() -> int:
    return run(**parse_call(run, __doc__))


if __name__ == "__main__":
    run_command(main)
