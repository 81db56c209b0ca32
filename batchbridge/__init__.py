"""batchbridge: answers layer-7 requests at kernel speed, and hands the rest, in batches, to Python.

>>> import batchbridge as bb
>>> server = bb.Server(root="site")
>>> @server.batch("/hello/{name}")
... def hello(batch):
...     return [f"hello {request.params['name']}\\n" for request in batch]
>>> server.run()                                             # doctest: +SKIP
"""

from .config import Config
from .errors import (
    AlreadyAnsweredError,
    AppError,
    BatchBridgeError,
    BatchSizeError,
    BindError,
    ConfigError,
    EngineError,
    HTTPError,
    PurgeError,
)
from .handlers import Array, Json, Msgpack
from .messages import Batch, Headers, Request, Response
from .native import get_include
from .policy import BatchPolicy
from .server import Server

__version__ = "0.1.0"

__all__ = [
    "AlreadyAnsweredError",
    "AppError",
    "Array",
    "Batch",
    "BatchBridgeError",
    "BatchPolicy",
    "BatchSizeError",
    "BindError",
    "Config",
    "ConfigError",
    "EngineError",
    "HTTPError",
    "Headers",
    "Json",
    "Msgpack",
    "PurgeError",
    "Request",
    "Response",
    "Server",
    "__version__",
    "get_include",
]
