"""Finds the one torch.nn.Module in a `model.py` and makes it.

Runs the file as a module of its own; what it imports from its folder is its own too.  Knows no weights and no
configuration.  Whoever calls this has decided that the code is trusted.
"""

import inspect
import sys
import threading
import types
from pathlib import Path

import torch

_lock = threading.Lock()
_loaded: dict[tuple[Path, int, int], types.ModuleType] = {}
"""By file, time and size: instances share one class, so that what torch.compile made for it serves them all."""


class SourceError(ValueError):
    """The file holds no class that can be served; the message says why."""


def module_class(path: Path, class_name: str = "") -> type[torch.nn.Module]:
    """The class to serve, named or the only one that the file defines.

    Raises:
        SourceError: there is none, or there are several.
        Exception: what the file raises.
    """
    module = _module(path)
    defined = {
        name: value
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, torch.nn.Module) and value.__module__ == module.__name__
    }
    if class_name:
        if class_name not in defined:
            raise SourceError(
                f"{path.name} defines no torch.nn.Module called {class_name}; it defines {', '.join(defined) or 'none'}"
            )
        return defined[class_name]
    if len(defined) == 1:
        return next(iter(defined.values()))
    if not defined:
        hint = " (TritonPythonModel is not served)" if hasattr(module, "TritonPythonModel") else ""
        raise SourceError(f"{path.name} defines no class that extends torch.nn.Module{hint}; define one")
    raise SourceError(
        f"{path.name} defines {len(defined)} classes that extend torch.nn.Module: {', '.join(defined)}; name the one "
        "to serve with the parameter MODULE_CLASS_NAME"
    )


def _module(path: Path) -> types.ModuleType:
    status = path.stat()
    key = (path, status.st_mtime_ns, status.st_size)
    with _lock:  # sys.path belongs to everybody
        if key not in _loaded:
            for old in [other for other in _loaded if other[0] == path]:
                sys.modules.pop(_loaded.pop(old).__name__, None)
            _loaded[key] = _run(path, f"tandem_model_{len(_loaded)}_{status.st_mtime_ns}_{path.stem}")
        return _loaded[key]


def _run(path: Path, name: str) -> types.ModuleType:
    code = compile(path.read_text(encoding="utf-8"), str(path), "exec")  # not imported: that would write __pycache__
    module = types.ModuleType(name)
    module.__file__ = str(path)
    folder = str(path.parent)
    before = set(sys.modules)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up
    sys.path.insert(0, folder)
    writes_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        exec(code, vars(module))  # noqa: S102  (this is what --allow-python-models allows)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.dont_write_bytecode = writes_bytecode
        sys.path.remove(folder)
        for other in set(sys.modules) - before - {name}:
            if str(getattr(sys.modules[other], "__file__", None) or "").startswith(folder + "/"):
                del sys.modules[other]  # another model's helpers may have the same name
    return module
