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


def register_classes(config_class: Any, **model_classes: Any):
    """Let the Auto classes find an architecture; `save_pretrained` then copies its code into the folder.

    Args:
        config_class: Of the architecture.
        model_classes: By the names of their Auto classes.
    """
    transformers = import_module("transformers")
    transformers.AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    config_class.register_for_auto_class()
    for name, model_class in model_classes.items():
        getattr(transformers, name).register(config_class, model_class, exist_ok=True)
        model_class.register_for_auto_class(name)


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
