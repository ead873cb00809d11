"""Methods from files and modules of the user's."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from mergekern.errors import RecipeError


def load_plugins(given: Sequence[str] | None) -> None:
    """Those of a command line."""
    for plugin in given or ():
        load_plugin(plugin)


def load_plugin(file_or_module: str) -> None:
    """Import a Python file, or a module by name, for the methods that it defines.

    Raises RecipeError for one that is not there or cannot be imported.
    """
    path = Path(file_or_module)
    try:
        if path.suffix == ".py":
            _import_file(path)
        else:
            importlib.import_module(file_or_module)
    except RecipeError:
        raise
    except Exception as error:
        raise RecipeError(
            f"plugin {file_or_module} cannot be imported: {type(error).__name__}: {error}"
        ) from error


def _import_file(path: Path) -> None:
    name = f"mergekern_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, f"{path} ends in .py"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where annotations are looked up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
