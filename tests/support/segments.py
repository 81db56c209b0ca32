"""A TCP client whose segments a test chooses one by one, on a network interface of its own (TUN): it can send what no
kernel would, retransmissions that overlap what arrived, pieces out of order, bytes with FIN. Needs root."""

import contextlib
import fcntl
import os
import random
import select
import socket
import struct
import subprocess
import time
import weakref
from collections.abc import Callable, Iterator
from typing import ClassVar

from .skips import skip

FIN, SYN, RST, PUSH, ACK = 1, 2, 4, 8, 16
NETWORK = "10.97.3"
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 1, 0x1000


@contextlib.contextmanager
def tunnel() -> Iterator[int]:
    """A descriptor that reads and writes IP packets of `NETWORK`: the machine itself is its .1, all others are ours."""
    if os.geteuid() != 0 or not os.path.exists("/dev/net/tun"):
        skip("not-root", "a TUN interface needs root and /dev/net/tun")
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        request = fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH14x", b"bbtest%d", IFF_TUN | IFF_NO_PI))
        name = request[:16].rstrip(b"\0").decode()
        subprocess.run(["ip", "address", "add", f"{NETWORK}.1/24", "dev", name], check=True)
        subprocess.run(["ip", "link", "set", name, "up"], check=True)
        yield fd
    finally:
        os.close(fd)


def bodies(received: bytes) -> list[bytes]:
    """Of responses one behind the other, all with a Content-Length."""
    found = []
    while received:
        lines, _, rest = received.partition(b"\r\n\r\n")
        length = int(lines.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        found.append(rest[:length])
        received = rest[length:]
    return found


def checksum(data: bytes) -> int:
    data += b"\0" * (len(data) & 1)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~((total >> 16) + total) & 0xFFFF


class Peer:
    """One connection to `port`, established. `at`: how many bytes of its stream it has sent, if all was in order.

    Several may share a tunnel: whoever listens hands on what is for another.
    """

    others: ClassVar[weakref.WeakValueDictionary[tuple[int, bytes, int], "Peer"]] = weakref.WeakValueDictionary()

    def __init__(self, tunnel_fd: int, port: int) -> None:
        self.tunnel, self.port = tunnel_fd, port
        self.address = socket.inet_aton(f"{NETWORK}.{random.randrange(2, 250)}")
        self.server = socket.inet_aton(f"{NETWORK}.1")
        self.own_port, self.first = random.randrange(20_000, 60_000), random.getrandbits(32)
        self.acknowledges = 0
        self.acknowledged = 0
        self.received = b""
        self.has_fin = self.has_rst = False
        self.at = 0
        self.others[tunnel_fd, self.address, self.own_port] = self
        self._segment(0, SYN, b"")
        self.listen_until(lambda: bool(self.acknowledges))

    def send(self, offset: int, data: bytes = b"", *, fin: bool = False) -> None:
        """`data` as the bytes of the stream from `offset` on, whatever was sent before."""
        self.at = max(self.at, offset + len(data) + fin)
        self._segment(1 + offset, PUSH | ACK | (FIN if fin else 0), data)

    def listen_until(self, condition: Callable[[], bool], patience_s: float = 5.0) -> None:
        until = time.monotonic() + patience_s
        while not condition():
            assert time.monotonic() < until, f"not true within {patience_s} s; received {self.received!r}"
            self._listen(0.05)

    def listen(self, seconds: float) -> None:
        """Takes what comes in this time."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._listen(0.02)

    def _listen(self, seconds: float) -> None:
        while select.select([self.tunnel], [], [], seconds)[0]:
            packet = os.read(self.tunnel, 70_000)
            if packet[0] >> 4 == 4 and packet[9] == 6:
                start = (packet[0] & 15) * 4
                (own_port,) = struct.unpack_from("!H", packet, start + 2)
                if peer := self.others.get((self.tunnel, packet[16:20], own_port)):
                    peer._take(packet, start)
            seconds = 0

    def _take(self, packet: bytes, start: int) -> None:
        _, _, sequence, acknowledged, offset, flags = struct.unpack_from("!HHIIBB", packet, start)
        self.has_rst |= bool(flags & RST)
        if flags & SYN:
            self.acknowledges = (sequence + 1) & 0xFFFFFFFF
            self._segment(1, ACK, b"")
            return
        self.acknowledged = (acknowledged - self.first - 1) & 0xFFFFFFFF
        data = packet[start + (offset >> 4) * 4 :]
        if sequence != self.acknowledges or not (data or flags & FIN):
            return
        self.received += data
        self.has_fin |= bool(flags & FIN)
        self.acknowledges = (sequence + len(data) + bool(flags & FIN)) & 0xFFFFFFFF
        self._segment(1 + self.at, ACK, b"")

    def _segment(self, place: int, flags: int, data: bytes) -> None:
        sequence = (self.first + place) & 0xFFFFFFFF
        ports = struct.pack("!HH", self.own_port, self.port)
        numbers = struct.pack("!IIBBH", sequence, self.acknowledges, 5 << 4, flags, 64_000)
        around = self.address + self.server + struct.pack("!BBH", 0, 6, 20 + len(data))
        total = checksum(around + ports + numbers + b"\0\0\0\0" + data)
        tcp = ports + numbers + struct.pack("!HH", total, 0) + data
        ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(tcp), 1, 0, 64, 6, 0, self.address, self.server)
        ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
        os.write(self.tunnel, ip + tcp)
