"""Regular files, read within a bound on their size."""

import os
import stat

MAX_BYTES = 256 * 2**20  # of a file that is read whole; the largest tokenizer.json have 35 MB
MAX_LINE = 64 * 2**20  # bytes of a line of a .jsonl file


def read_bytes(path: str | os.PathLike, *, most: int = MAX_BYTES) -> bytes:
    """Returns the bytes of a regular file.

    Raises:
      OSError: it cannot be read.
      ValueError: it has more than `most` bytes, or is a pipe, a device or the like; the message
        names the file.
    """
    # A pipe would be waited for when it is opened, a device never ends.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is no regular file.")
        data = file.read(most + 1) if status.st_size <= most else b""
    size = max(status.st_size, len(data))  # it may grow, and some file systems tell no size
    if size > most:
        raise ValueError(f"{path} has {size:,} bytes; the most are {most:,}.")
    return data


def lines(file, *, most: int = MAX_LINE):
    """Yields the lines of a binary file, each with its end; None for one of more than `most` bytes.

    Such a line is passed over in pieces.
    """
    while line := file.readline(most + 1):
        if len(line) <= most:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(most + 1)
        yield None
