"""Loads the object that ``--app MODULE_OR_FILE:OBJECT`` names."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from types import ModuleType
from typing import Any, NoReturn

from .errors import AppError

__all__ = ["load"]

NAMES_SHOWN_MAX = 10


def load(value: str) -> Any:
    """The object that `value` names: ``package.module:object`` or ``path/to/file.py:object``, dots in the object too.

    A module is looked for in the current folder first; a file's own folder is added to the search path, so that it
    can import its neighbours, and the file is known to ``sys.modules`` by its stem. Loading the same value again
    gives the same object. Raises AppError, one line that names `value` and the cause.
    """
    where, colon, name = value.rpartition(":")
    if not colon or not where or not name:
        raise AppError(f"{value!r} is not MODULE_OR_FILE:OBJECT, such as examples/hello.py:server")
    is_file = where.endswith(".py") or os.sep in where
    module = _load_file(value, where) if is_file else _load_module(value, where)
    found: Any = module
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise AppError(f"{value!r}: there is no {part!r} in {where}{_names_of(found, part)}") from None
    return found


def _load_file(value: str, path: str) -> ModuleType:
    path = os.path.realpath(path)
    if not os.path.isfile(path):
        raise AppError(f"{value!r}: there is no file {value.rpartition(':')[0]}")
    name = os.path.splitext(os.path.basename(path))[0]
    known = sys.modules.get(name)
    if known is not None:
        if _is_file(known, path):
            return known
        name = f"batchbridge_app_{name}"  # such as json.py: the module of that name stays what it is
        if name in sys.modules and _is_file(sys.modules[name], path):
            return sys.modules[name]
    _search_first(os.path.dirname(path))
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise AppError(f"{value!r}: {path} is not a Python file (its name must end with .py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        _refuse(value, error, path)
    return module


def _load_module(value: str, name: str) -> ModuleType:
    _search_first(os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):
            raise AppError(f"{value!r}: there is no module {error.name!r} (looked for from {os.getcwd()})") from None
        _refuse(value, error, None)
    except (Exception, SystemExit) as error:
        _refuse(value, error, None)


def _search_first(folder: str) -> None:
    if folder not in sys.path:
        sys.path.insert(0, folder)


def _is_file(module: ModuleType, path: str) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and os.path.realpath(file) == path


def _refuse(value: str, error: BaseException, path: str | None) -> NoReturn:
    """Raises the AppError for `error`, which importing raised."""
    text = str(error)
    if isinstance(error, SyntaxError) and error.filename:
        place, text = f"{os.path.basename(error.filename)}:{error.lineno}", error.msg
    else:
        place = _place(error, path)
    message = " ".join(text.split())  # one line, whatever the exception says
    kind = type(error).__name__
    raise AppError(f"{value!r}: importing it raised {kind}{': ' if message else ''}{message} ({place})") from None


def _place(error: BaseException, path: str | None) -> str:
    """FILE:LINE where it happened: the last line of the app's own file, else the innermost that is not importlib's."""
    innermost, own = "at import", None
    step = error.__traceback__
    while step is not None:
        file = step.tb_frame.f_code.co_filename
        machinery = file == __file__ or file.startswith("<frozen importlib") or os.path.dirname(file) == _IMPORTLIB
        if not machinery:
            innermost = f"{os.path.basename(file)}:{step.tb_lineno}"
            if path is not None and os.path.realpath(file) == path:
                own = innermost
        step = step.tb_next
    return own or innermost


_IMPORTLIB = os.path.dirname(importlib.__file__)


def _names_of(holder: Any, wanted: str) -> str:
    members = getattr(holder, "__dict__", {})
    names = [name for name, item in members.items() if not name.startswith("_") and not isinstance(item, ModuleType)]
    if not names:
        return ""
    from difflib import get_close_matches

    close = get_close_matches(wanted, names, 1)
    if close:
        return f"; did you mean {close[0]!r}?"
    shown = ", ".join(names[:NAMES_SHOWN_MAX])
    return f"; it has {shown}" + (" and more" if len(names) > NAMES_SHOWN_MAX else "")
