"""Every exception that batchbridge raises on purpose, in one tree under :class:`BatchBridgeError`.

A message is one sentence that names the value and says what is allowed or what to do, so that a command can print it
as it stands, without a traceback.
"""

from __future__ import annotations

import errno as _errno
import os
from collections.abc import Iterable

__all__ = [
    "AlreadyAnsweredError",
    "AppError",
    "BatchBridgeError",
    "BatchSizeError",
    "BindError",
    "ConfigError",
    "EngineError",
    "HTTPError",
    "PurgeError",
]


class BatchBridgeError(Exception):
    """The root: catches everything that batchbridge itself raises."""


class ConfigError(BatchBridgeError, ValueError):
    """A setting, a batch policy or a configuration file is wrong: at construction, before anything is served."""


class BindError(BatchBridgeError, OSError):
    """An address cannot be listened on: when the server, or its admin server, starts. ``errno`` tells why."""

    def __str__(self) -> str:
        return str(self.strerror) if self.strerror else super().__str__()

    @classmethod
    def of(cls, address: object, error: OSError) -> BindError:
        """The error for `address` (HOST:PORT) out of what bind raised, with the likely cause and the fix."""
        hints = {
            _errno.EADDRINUSE: "another program listens there; stop it or choose another port",
            _errno.EACCES: "ports below 1024 need root or CAP_NET_BIND_SERVICE",
            _errno.EADDRNOTAVAIL: "this machine has no such address",
            _errno.EAFNOSUPPORT: "this machine has no such address family",
        }
        number = error.errno or _errno.EINVAL
        # getaddrinfo's numbers are negative and have no strerror of their own.
        what = os.strerror(number) if number > 0 else str(error.strerror or error)
        hint = hints.get(number)
        return cls(number, f"cannot listen on {address}: {what.lower()}" + (f" ({hint})" if hint else ""))


class AppError(BatchBridgeError):
    """The application cannot be loaded: no such module or file, it raises when imported, or it lacks the object."""


class EngineError(BatchBridgeError):
    """The engine that was asked for by name cannot run here (io_uring forbidden, a kernel feature missing, …)."""


class BatchSizeError(BatchBridgeError, ValueError):
    """A batch handler returned a number of answers that is not the number of requests it was given."""


class AlreadyAnsweredError(BatchBridgeError):
    """A request was answered a second time, or after it was too late to answer it."""


class PurgeError(BatchBridgeError):
    """A purge was asked for without exactly one of `url`, `prefix` and `tag`, or could not be carried out."""


class HTTPError(BatchBridgeError):
    """Raised or returned by a handler: this request is answered with `status`, the others of its batch are untouched.

    `status` is 400 to 599 (else ``ValueError``), `detail` a sentence for the client, sent as the plain-text body
    (nothing else of the exception is sent), `headers` pairs of names and values added to the response.
    """

    def __init__(self, status: int, detail: str = "", headers: Iterable[tuple[str, str]] = ()) -> None:
        if isinstance(status, bool) or not isinstance(status, int) or not 400 <= status <= 599:
            raise ValueError(f"HTTPError: {status!r} is not an error status; give 400 to 599")
        self.status: int = status
        self.detail: str = detail
        self.headers: tuple[tuple[str, str], ...] = tuple(headers)
        super().__init__(status, detail, self.headers)  # the arguments as given, so that a copy or a pickle is equal

    def __str__(self) -> str:
        return f"{self.status} {self.detail}".rstrip()
