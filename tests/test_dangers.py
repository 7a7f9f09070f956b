"""Nothing in packages or experiments runs a shell or unpacks code, because folders and data come from strangers."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


DANGERS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "system",
    "popen",
    "getoutput",
    "getstatusoutput",
    "read_pickle",
    "joblib.load",
}


DANGERS |= {"spawnl", "execv", "execvp"}


MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve"}


def find_dangers(source):
    """Name what must not stand in our code, because model folders and data sets come from strangers."""
    dangers = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            # a method called eval puts a model in evaluation mode, re.compile makes a pattern
            called = ast.unparse(node.func)
            name = called.removeprefix("os.").removeprefix("subprocess.").removeprefix("builtins.").removeprefix("pd.")
            if name in DANGERS:
                dangers.append(called)
            words = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if called == "torch.load" and words.get("weights_only") != "True":
                dangers.append(called)
            if called == "yaml.load" and "SafeLoader" not in ast.unparse(node):
                dangers.append(called)
            loaded = [argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant)]
            if name in ("import_module", "importlib.import_module"):
                dangers += MODULES.intersection(loaded)
            dangers += [word for word, value in words.items() if word in ("shell", "allow_pickle") and value != "False"]
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = {alias.name for alias in node.names}
            origin = getattr(node, "module", None) or ""
            if origin in ("os", "subprocess", "builtins"):
                dangers += names & DANGERS
            if origin in ("torch", "joblib", "numpy") and "load" in names:
                dangers.append(f"{origin}.load")
            # an error that others raise can be caught without unpacking anything
            if (origin, names) != ("pickle", {"UnpicklingError"}):
                dangers += {name.partition(".")[0] for name in {*names, origin}} & MODULES
    return dangers


@pytest.mark.parametrize(
    "path", [*ROOT.glob("experiments/*.py"), *ROOT.glob("*_hf/**/*.py")], ids=lambda path: path.stem
)
def test_nothing_runs_a_shell_or_unpacks_code(path):
    assert find_dangers(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        *("eval('1')", "builtins.exec('1')", "from os import system", "os.popen('ls')", "import pickle as p"),
        *("from pickle import loads", "joblib.load('x')", "subprocess.run('ls', shell=True)"),
        *("torch.load('x')", "torch.load('x', weights_only=False)", "np.load('x', allow_pickle=True)"),
        *("yaml.load(text)", "pd.read_pickle('x')", "run('ls', shell=is_short)"),
        *("from torch import load", "importlib.import_module('pickle')"),
    ],
)
def test_dangers_are_caught(source):
    assert find_dangers(source)


@pytest.mark.parametrize("source", ["model.eval()", "re.compile('x')", "np.load('x', allow_pickle=False)", "import os"])
def test_harmless_code_is_not(source):
    assert not find_dangers(source)
