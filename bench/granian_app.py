"""What Granian is measured with: 64 fixed bytes, by its fastest interface (RSGI)."""

BODY = b"x" * 64


async def app(_scope, protocol):
    protocol.response_bytes(200, [("content-type", "application/octet-stream")], BODY)
