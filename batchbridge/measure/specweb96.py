"""SPECweb96's mix of requests: a document root that is made, and how often each of its files is asked for.

A directory has 36 files in four classes of nine: class 0 by tenths of a KiB (102 to 921 bytes), class 1 by KiB, class 2
by 10 KiB, class 3 by 100 KiB; 5,119,484 bytes in all. Requests fall to the classes by 35, 50, 14 and 1%, within a class
by a Poisson distribution (mean 5) of the nine, and to all directories alike: 14.6 KB on average. The benchmark itself
has 10·√(operations a second ÷ 5) directories, and a connection for each request; here their number is chosen, since a
root must fit where it is measured.

What a file holds follows from its name, so a root that was made elsewhere is the same.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "DIRECTORIES_MAX",
    "DIRECTORY_SIZE_BYTES",
    "Document",
    "documents",
    "mean_size_bytes",
    "url_lines",
    "write_root",
]

#: More than 65,536 different requests are none that a load takes.
DIRECTORIES_MAX = 1000
DIRECTORY_SIZE_BYTES = 5_119_484

CLASS_SHARES = (0.35, 0.50, 0.14, 0.01)
FILES_IN_CLASS = 9
#: Of the distribution within a class.
POISSON_MEAN = 5
#: Of a class's files in steps of this, from the smallest class on.
STEP_SIZE_BYTES = 102.4


class Document(NamedTuple):
    """A file of the root."""

    path: str
    """Below the root, and the URL's: begins with "/"."""
    size_bytes: int
    weight: float
    """Its share of all requests."""


def documents(directories: int) -> Iterator[Document]:
    """All files of a root with so many directories; their weights add up to 1."""
    poisson = [POISSON_MEAN**step / math.factorial(step) for step in range(1, FILES_IN_CLASS + 1)]
    for directory in range(directories):
        for kind, share in enumerate(CLASS_SHARES):
            for step, likely in enumerate(poisson, 1):
                yield Document(
                    f"/dir{directory:05}/class{kind}_{step}",
                    int(STEP_SIZE_BYTES * 10**kind * step),
                    share * likely / sum(poisson) / directories,
                )


def mean_size_bytes() -> float:
    """Of an answer's body."""
    return sum(document.size_bytes * document.weight for document in documents(1))


def write_root(root: Path, directories: int) -> None:
    """Writes all files below `root`, which is made. Raises OSError."""
    for document in documents(directories):
        path = root / document.path[1:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(random.Random(document.path).randbytes(document.size_bytes))


def url_lines(directories: int) -> Iterator[str]:
    """Lines of WEIGHT PATH, as `bench load --urls` takes them."""
    for document in documents(directories):
        yield f"{document.weight:.9g} {document.path}"
