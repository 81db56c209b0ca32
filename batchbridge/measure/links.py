"""What a network interface does for TCP, and how to change it: its MTU, segmentation and checksums.

A pair of virtual interfaces is no network card: it puts off segmentation and leaves checksums out. Whether that favours
one server over another is found out by measuring with and without. Settings are made by ioctl (SIOCETHTOOL), as the
command ethtool makes them, which need not be installed.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from dataclasses import dataclass

from ..errors import BatchBridgeError

__all__ = ["MTU_BYTES_MAX", "MTU_BYTES_MIN", "Link", "LinkError", "apply", "read"]

#: Below it IPv6 ends, and above it so does what a virtual interface carries.
MTU_BYTES_MIN, MTU_BYTES_MAX = 1280, 65_535

SIOCGIFMTU, SIOCSIFMTU, SIOCETHTOOL = 0x8921, 0x8922, 0x8946
NAME_SIZE_BYTES = 16
REQUEST_SIZE_BYTES = 40  # struct ifreq

#: By feature, the commands of ethtool that read and set it. Order matters: segmentation needs checksums.
COMMANDS = {"tx_checksums": (0x16, 0x17), "gso": (0x23, 0x24), "tso": (0x1E, 0x1F)}


class LinkError(BatchBridgeError):
    """An interface's settings cannot be read, or not be made as asked. One sentence."""


@dataclass(frozen=True)
class Link:
    """Settings of an interface. What is None is left as the kernel makes it."""

    mtu_bytes: int = 1500
    tso: bool | None = None
    """Segments of TCP are as large as 64 KiB until they have left, as a card would cut them."""
    gso: bool | None = None
    """The same, cut by the kernel just before they leave."""
    tx_checksums: bool | None = None
    """Checksums of what is sent are left to the card (which, virtual, leaves them out)."""
    steering: bool = True
    """Receiving is moved to the receiver's core; else it takes place on the sender's, as over loopback."""

    @property
    def words(self) -> str:
        """What differs from the usual, in words; "" for nothing."""
        found = [f"MTU {self.mtu_bytes}"] if self.mtu_bytes != 1500 else []
        names = (("TSO", self.tso), ("GSO", self.gso), ("tx checksums", self.tx_checksums))
        found += [f"{'' if value else 'no '}{name}" for name, value in names if value is not None]
        return ", ".join([*found, *([] if self.steering else ["no packet steering"])])


def apply(name: str, link: Link) -> None:
    """Makes the settings of the interface, which is of the calling thread's namespace. Raises LinkError."""
    try:
        with _socket() as control:
            fcntl.ioctl(control, SIOCSIFMTU, _request(name, struct.pack("i", link.mtu_bytes)))
            for feature, (_, setting) in COMMANDS.items():
                if (wanted := getattr(link, feature)) is not None:
                    _ethtool(control, name, setting, int(wanted))
    except OSError as error:
        raise LinkError(f"{name} cannot be set so: {os.strerror(error.errno or 0).lower()}") from None
    found = read(name)
    for feature in COMMANDS:
        wanted = getattr(link, feature)
        if wanted is not None and found[feature] != wanted:
            raise LinkError(f"{name} keeps {feature} {'on' if found[feature] else 'off'}, whatever is asked for")


def read(name: str) -> dict[str, int | bool]:
    """What the interface does: mtu_bytes, tso, gso, tx_checksums. Raises LinkError."""
    try:
        with _socket() as control:
            answer = fcntl.ioctl(control, SIOCGIFMTU, _request(name, b""))
            (mtu_bytes,) = struct.unpack_from("i", answer, NAME_SIZE_BYTES)
            features = {feature: bool(_ethtool(control, name, getting)) for feature, (getting, _) in COMMANDS.items()}
    except OSError as error:
        raise LinkError(f"{name} cannot be looked at: {os.strerror(error.errno or 0).lower()}") from None
    return {"mtu_bytes": mtu_bytes, **features}


def _socket() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def _request(name: str, content: bytes) -> bytes:
    """A struct ifreq."""
    return name.encode().ljust(NAME_SIZE_BYTES, b"\0")[:NAME_SIZE_BYTES] + content.ljust(
        REQUEST_SIZE_BYTES - NAME_SIZE_BYTES, b"\0"
    )


def _ethtool(control: socket.socket, name: str, command: int, value: int = 0) -> int:
    """Carries out a command that takes or gives one number (struct ethtool_value). Raises OSError."""
    asked = ctypes.create_string_buffer(struct.pack("II", command, value), 8)
    fcntl.ioctl(control, SIOCETHTOOL, _request(name, struct.pack("P", ctypes.addressof(asked))))
    return int(struct.unpack("II", asked.raw)[1])
