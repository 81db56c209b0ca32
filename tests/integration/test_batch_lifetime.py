"""A batch goes when its handler is done with it, without the cyclic collector: a program may have switched that off."""

import gc
import logging
from collections.abc import Iterator

import pytest

import batchbridge as bb
from support.serving import config


@pytest.fixture
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    logging.disable(logging.CRITICAL)  # pytest keeps log records, and so the frames of their tracebacks
    yield
    logging.disable(logging.NOTSET)
    gc.enable()


def batches_alive() -> int:
    return sum(isinstance(each, bb.Batch) for each in gc.get_objects())


@pytest.mark.usefixtures("without_collector")
@pytest.mark.parametrize("path", ["/answers", "/fails", "/waits"])
def test_no_batch_stays_once_it_is_answered(path):
    server = bb.Server(config=config("auto"))
    kept: list[bb.Request] = []

    @server.batch("/answers")
    def answers(batch: bb.Batch) -> None:
        for request in batch:
            request.respond(b"x")

    @server.batch("/fails")
    def fails(batch: bb.Batch) -> None:
        raise RuntimeError(batch[0].path)

    @server.batch("/waits")
    async def waits(batch: bb.Batch) -> list[str]:
        return [request.path for request in batch]

    @server.batch("/keeps")
    def keeps(batch: bb.Batch) -> list[str]:
        kept.extend(batch)
        return [request.path for request in batch]

    with server.test_client() as client:
        client.batch(["/keeps"] * 2)
        client.batch([path] * 3)
        assert batches_alive() == 1
        assert [request.path for request in kept] == ["/keeps"] * 2  # whoever keeps a request keeps its memory
        kept.clear()
        assert batches_alive() == 0
