"""Requests, batches and responses, as handlers see them."""

from .cython_ext.messages import Batch, Headers, Request, Response

__all__ = ["Batch", "Headers", "Request", "Response"]
