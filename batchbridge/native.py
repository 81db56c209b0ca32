"""Native handlers: compiled functions that answer batches, and the ways to say which function.

``include/batchbridge.h`` says what such a function may do; ``get_include()`` is the folder that it lies in.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

from .errors import ConfigError

__all__ = ["NativeFunction", "get_include", "native_function"]

ADDRESS_MAX = 2 * sys.maxsize + 1


@dataclass(frozen=True)
class NativeFunction:
    """A compiled function, by its address, with what it is given."""

    address: int
    context: int
    """An address that each of its batches carries; 0: none."""
    name: str
    """How log lines call it."""
    keep: tuple[Any, ...] = field(repr=False)
    """What must live as long as the function may be called."""


def get_include() -> str:
    """The folder of ``batchbridge.h``, for the compiler's ``-I``."""
    import importlib.resources
    from pathlib import Path

    header = importlib.resources.files("batchbridge").joinpath("include", "batchbridge.h")
    return str(Path(str(header)).parent)


def native_function(
    given: object, *, context: object = None, keep: object = None, abi: int | None = None, label: str = "function"
) -> NativeFunction:
    """The function that `given` says: a capsule named "batchbridge.handler", a function of a ctypes library, a cffi
    pointer, anything with an integer ``address``, or the address itself.

    `context` is a ctypes object or an address; `keep` stays referred to. `abi` is the version of the header that the
    function was compiled with, None: this one's; a capsule says it itself. `label` is how an error calls the function.
    Raises ConfigError for anything else, and for a version that is not ours.
    """
    from .cython_ext.native import HANDLER_ABI, read_capsule

    told = read_capsule(given)
    if told is not None:
        if context is not None or abi is not None:
            raise ConfigError(f"{label}: a capsule says its context and its abi itself")
        abi, address, context_address, name = told
    else:
        address, name = _address_of(given, label), _name_of(given)
        context_address = _context_address(context, label)
        abi = HANDLER_ABI if abi is None else abi
    if not 1 <= abi <= HANDLER_ABI:
        raise ConfigError(
            f"{label}: compiled for version {abi} of batchbridge.h; this batchbridge takes versions 1 to {HANDLER_ABI}"
        )
    if address == 0:
        raise ConfigError(f"{label}: its address is NULL")
    return NativeFunction(address, context_address, name or f"the function at {address:#x}", (given, context, keep))


def _address_of(given: object, label: str) -> int:
    import _ctypes
    import ctypes
    import inspect

    if isinstance(given, int) and not isinstance(given, bool):
        return _checked(given, label)
    if isinstance(given, _ctypes.CFuncPtr):
        return ctypes.cast(given, ctypes.c_void_p).value or 0
    if isinstance(given, ctypes.c_void_p):
        return given.value or 0
    if type(given).__module__ == "_cffi_backend":
        return _cffi_address(given, label)
    address = getattr(given, "address", None)
    if isinstance(address, int) and not isinstance(address, bool):
        return _checked(address, label)
    if type(given).__name__ == "PyCapsule":
        raise ConfigError(f'{label}: the capsule\'s name is not "batchbridge.handler"')
    hint = "; a Python function is a handler for server.batch" if inspect.isroutine(given) else ""
    raise ConfigError(
        f"{label}: {given!r} is no compiled function: no capsule, ctypes or cffi function, or address{hint}"
    )


def _checked(address: int, label: str) -> int:
    if not 0 <= address <= ADDRESS_MAX:
        raise ConfigError(f"{label}: {address} is no address")
    return address


def _cffi_address(given: object, label: str) -> int:
    import _cffi_backend

    try:
        return int(_cffi_backend.cast(_cffi_backend.new_primitive_type("uintptr_t"), given))
    except TypeError:
        raise ConfigError(f"{label}: {given!r} is no pointer") from None


def _name_of(given: object) -> str | None:
    name = getattr(given, "__name__", None)
    return name if isinstance(name, str) else None


def _context_address(context: object, label: str) -> int:
    if context is None:
        return 0
    if isinstance(context, int) and not isinstance(context, bool):
        return _checked(context, f"{label}: context")
    import ctypes

    if isinstance(context, (ctypes.c_void_p, ctypes._Pointer, ctypes.Array)):
        return ctypes.cast(context, ctypes.c_void_p).value or 0
    try:
        return ctypes.addressof(context)  # type: ignore[arg-type]
    except TypeError:
        raise ConfigError(f"{label}: context: {context!r} is neither a ctypes object nor an address") from None
