"""The exceptions form one tree, keep what they were given, and speak in one sentence."""

import copy
import errno
import inspect
import pickle

import pytest

from batchbridge import errors
from batchbridge.errors import BatchBridgeError, BindError, ConfigError, HTTPError


def test_all_are_in_one_tree_and_say_when_they_are_raised():
    found = [item for _, item in inspect.getmembers(errors, inspect.isclass) if item.__module__ == errors.__name__]
    assert {item.__name__ for item in found} == set(errors.__all__)
    for item in found:
        assert issubclass(item, BatchBridgeError)
        assert item.__doc__


def test_the_second_bases_that_callers_may_catch():
    assert issubclass(ConfigError, ValueError)
    assert issubclass(BindError, OSError)
    assert issubclass(errors.BatchSizeError, ValueError)


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.EADDRINUSE, "another program"),
        (errno.EACCES, "CAP_NET_BIND_SERVICE"),
        (errno.EADDRNOTAVAIL, "no such address"),
    ],
)
def test_bind_error_keeps_errno_and_names_address_cause_and_fix(number, hint):
    error = BindError.of("127.0.0.1:80", OSError(number, "whatever"))
    assert error.errno == number
    assert str(error).startswith("cannot listen on 127.0.0.1:80: ")
    assert hint in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert (again.errno, str(again)) == (number, str(error))


def test_bind_error_of_a_name_that_is_not_known():
    assert "not known" in str(BindError.of("nowhere:1", OSError(-2, "Name or service not known")))


@pytest.mark.parametrize("duplicate", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_http_error_carries_status_detail_and_headers(duplicate):
    error = duplicate(HTTPError(429, "too many", headers=[("Retry-After", "3")]))
    assert (error.status, error.detail, error.headers) == (429, "too many", (("Retry-After", "3"),))
    assert str(error) == "429 too many"
    assert str(HTTPError(404)) == "404"


@pytest.mark.parametrize("status", [200, 304, 600, True, "404", None])
def test_http_error_takes_error_statuses_only(status):
    with pytest.raises(ValueError, match="400 to 599"):
        HTTPError(status)
