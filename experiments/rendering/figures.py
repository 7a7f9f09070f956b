"""What all pictures of several panels begin and end with."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# what records call the verbs that were made before there were verbs
SCRIPTS = {
    "redundancy-hf search": "scripts/search_classformer.py",
    "redundancy-hf evaluate": "scripts/evaluate_model.py",
}


def read_record(path: str, program: str) -> dict:
    """Read what an experiment or a verb has left.

    Args:
        path: The file.
        program: What left it, as `experiments/study_schedules.py` or `redundancy-hf search`.

    Raises:
        ValueError: There is no such file, it is not JSON, or another program left it.
    """
    try:
        record = json.loads(Path(path).read_text())
    except OSError as error:
        raise ValueError(f"the record {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ValueError(f"the record {path} is not JSON: {error}.") from error
    command = str(record.get("command")) if isinstance(record, dict) else ""
    known = (program, SCRIPTS.get(program, program), Path(program).name)
    if not command.removeprefix("python ").startswith(known):
        raise ValueError(f"{path} is not a record of {program}; give the JSON file that it wrote.")
    return record


def open_panels(
    count: int, columns: int, panel_size: tuple[float, float], legend_height: float = 0.0
) -> tuple[Any, list[Any]]:
    """Open a figure of `count` panels, row by row; the last places of the grid stay empty.

    Args:
        count: Number of panels.
        columns: Most panels in a row.
        panel_size: Width and height of a panel, in inches.
        legend_height: Height below the panels for a legend of the figure, in inches.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(count, columns)
    rows = -(-count // columns)
    size = (panel_size[0] * columns, panel_size[1] * rows + legend_height)
    figure, panels = plt.subplots(rows, columns, figsize=size, squeeze=False)
    for panel in panels.flat[count:]:
        panel.axis("off")
    return figure, list(panels.flat[:count])


def add_legend(figure: Any, panels: Iterable[Any], columns: int, font_size: float | None = None):
    """Write one legend below the panels; a label that several have stands there once."""
    handles = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        handles.values(), handles.keys(), ncols=min(len(handles), columns), loc="lower center", fontsize=font_size
    )


def save_figure(figure: Any, path: str, legend_height: float = 0.0):
    """Write a PNG file and say so; its folder is made."""
    figure.tight_layout(rect=(0, legend_height / figure.get_figheight(), 1, 1))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    print(f"wrote {path}")
