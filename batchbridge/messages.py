"""Requests, batches and responses, as handlers see them."""

from .cython_ext.headers import Headers
from .cython_ext.messages import Batch, Request
from .cython_ext.response import Response

__all__ = ["Batch", "Headers", "Request", "Response"]
