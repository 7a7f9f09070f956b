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
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redundancy_hf.command import parse_arguments, run_command

BLOCK = re.compile(r"(<!-- results: (\S+) (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


@dataclass
class RenderArguments:
    documents: list[str] = field(
        default_factory=lambda: ["README.md", *map(str, sorted(Path("docs").glob("*.md")))],
        metadata={"help": "Documents with marked places."},
    )
    results: str = field(default="results", metadata={"help": "Folder of the JSON files."})
    check: bool = field(default=False, metadata={"help": "Write nothing; fail if a document differs."})


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


def main() -> int:
    (arguments,) = parse_arguments([RenderArguments], __doc__)
    stale = []
    for document in map(Path, arguments.documents):
        text = document.read_text()
        rendered = render(text, Path(arguments.results))
        if rendered != text:
            stale.append(document)
            if not arguments.check:
                document.write_text(rendered)
                print(f"rendered {document}")
    if arguments.check and stale:
        print(f"differs from results/: {', '.join(map(str, stale))}; run experiments/render_results.py")
        return 1
    return 0


if __name__ == "__main__":
    run_command(main)
