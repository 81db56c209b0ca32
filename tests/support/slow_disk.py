"""A file system whose look-ups take as long as a test lets them (FUSE, spoken from here, without any library)."""

import contextlib
import ctypes
import errno
import os
import stat
import struct
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from .skips import skip
from .wire import await_true

#: What the kernel asks (linux/fuse.h), as far as it is answered here.
LOOKUP, FORGET, GETATTR, READ, INIT, INTERRUPT, DESTROY, BATCH_FORGET = 1, 2, 3, 15, 26, 36, 38, 42
#: Opening asks nothing where it is answered with ENOSYS; look-ups in one directory do not wait for each other.
NO_OPEN_SUPPORT, PARALLEL_DIROPS = 1 << 17, 1 << 18
REQUEST_SIZE_BYTES = 65_536
VALID_S = 3600
MNT_DETACH = 2


class SlowDisk:
    """Files below a mount point. The kernel remembers a name, or that there is none, for an hour."""

    def __init__(self, path: Path, files: Mapping[str, bytes]) -> None:
        self.path = path
        self.held: set[str] = set()
        self.waiting: list[tuple[int, int, str]] = []
        self._names: dict[tuple[int, str], int] = {}
        self._contents: dict[int, bytes | None] = {1: None}  # None: a directory
        for name, content in files.items():
            *folders, last = name.split("/")
            parent = 1
            for folder in folders:
                parent = self._node(parent, folder, None)
            self._node(parent, last, content)
        self._fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        libc = ctypes.CDLL(None, use_errno=True)
        options = f"fd={self._fd},rootmode=40755,user_id=0,group_id=0".encode()
        if libc.mount(b"slow", bytes(path), b"fuse", 0, options) < 0:
            code = ctypes.get_errno()
            os.close(self._fd)
            raise OSError(code, f"no FUSE at {path}: {os.strerror(code)}")
        self._umount = lambda: libc.umount2(bytes(path), MNT_DETACH)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _node(self, parent: int, name: str, content: bytes | None) -> int:
        if (parent, name) not in self._names:
            number = len(self._contents) + 1
            self._names[parent, name] = number
            self._contents[number] = content
        return self._names[parent, name]

    def hold(self, *names: str) -> None:
        """Lets look-ups of these names (not paths) wait from now on."""
        self.held.update(names)

    def await_waiting(self, count: int) -> None:
        await_true(lambda: len(self.waiting) == count, what=f"{self.waiting} are {count} look-ups")

    def let_go(self) -> None:
        """Answers all look-ups, and those to come."""
        self.held.clear()
        while self.waiting:
            self._reply(*self._look_up(*self.waiting.pop()))

    def end(self) -> None:
        self.let_go()
        self._umount()
        self._thread.join()
        os.close(self._fd)

    def _serve(self) -> None:
        while True:
            try:
                request = os.read(self._fd, REQUEST_SIZE_BYTES)
            except InterruptedError:
                continue
            except OSError as error:
                if error.errno == errno.ENOENT:  # an operation was interrupted
                    continue
                return  # ENODEV: unmounted
            _, opcode, unique, node = struct.unpack_from("<IIQQ", request)
            if opcode == LOOKUP:
                name = request[40:].rstrip(b"\0").decode()
                if name in self.held:
                    self.waiting.append((unique, node, name))
                else:
                    self._reply(*self._look_up(unique, node, name))
            elif opcode not in (FORGET, BATCH_FORGET, INTERRUPT, DESTROY):
                self._reply(unique, *self._answer(opcode, node, request[40:]))

    def _look_up(self, unique: int, parent: int, name: str) -> tuple[int, int, bytes]:
        node = self._names.get((parent, name), 0)
        entry = struct.pack("<QQQQII", node, 0, VALID_S, VALID_S, 0, 0)
        return unique, 0, entry + (self._attributes(node) if node else bytes(88))

    def _attributes(self, node: int) -> bytes:
        content = self._contents[node]
        mode = stat.S_IFDIR | 0o755 if content is None else stat.S_IFREG | 0o644
        size = len(content or b"")
        return struct.pack("<QQQQQQIIIIIIIIII", node, size, 8, 1, 1, 1, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def _answer(self, opcode: int, node: int, rest: bytes) -> tuple[int, bytes]:
        if opcode == INIT:
            flags = NO_OPEN_SUPPORT | PARALLEL_DIROPS
            return 0, struct.pack("<IIIIHHIIHHI7I", 7, 31, 65_536, flags, 16, 12, 4096, 1, 16, 0, 0, *[0] * 7)
        if opcode == GETATTR:
            return 0, struct.pack("<QII", VALID_S, 0, 0) + self._attributes(node)
        if opcode == READ:
            _, offset, size = struct.unpack_from("<QQI", rest)
            return 0, (self._contents[node] or b"")[offset : offset + size]
        return errno.ENOSYS, b""

    def _reply(self, unique: int, error: int, data: bytes) -> None:
        with contextlib.suppress(OSError):  # whoever asked was interrupted
            os.write(self._fd, struct.pack("<IiQ", 16 + len(data), -error, unique) + data)


@contextlib.contextmanager
def slow_disk(path: Path, files: Mapping[str, bytes]) -> Iterator[SlowDisk]:
    """Mounted at `path`, a folder that is there. The test is skipped where it cannot be."""
    try:
        disk = SlowDisk(path, files)
    except OSError as error:
        skip("no-fuse", f"/dev/fuse, and the privilege to mount: {error}")
    try:
        yield disk
    finally:
        disk.end()
