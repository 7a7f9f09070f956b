"""What the three packages stand on: data, saved folders, measurements and commands; it knows none of them."""

from collections.abc import Callable
from importlib import import_module
from typing import Any


def export_lazily(package: str, places: dict[str, str]) -> Callable[[str], Any]:
    """Give a package the `__getattr__` that loads what it exports when it is first asked for.

    Args:
        package: Its `__name__`.
        places: By name, the module in which it is, relative to the package.
    """

    def load(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{places[name]}"), name)

    return load


__getattr__ = export_lazily(
    __name__,
    {
        "TaskArguments": "task",
        "TaskFlags": "task",
        "classify": "commands.classify",
        "evaluate_classifiers": "commands.evaluate",
        "publish_folder": "commands.publish",
    },
)
