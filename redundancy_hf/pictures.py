"""Pictures: grids of axes that are written to a file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def open_grid(
    path: str | Path, rows: int, columns: int, width: float, height: float, **options: Any
) -> Iterator[tuple[Any, Any]]:
    """Give a figure and its axes, (rows, columns), to draw in; it is written at the end.

    Args:
        path: PNG.
        rows: Of the grid.
        columns: Of the grid.
        width: Of a column, in inches.
        height: Of a row.
        options: More of `matplotlib.pyplot.subplots`.
    """
    import matplotlib.pyplot as plt

    size = (width * columns, height * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **options)
    yield figure, axes
    figure.savefig(path, dpi=130)
    plt.close(figure)
