"""Files that are never seen half-written, and errors that say which file and why."""

import contextlib
import errno
import os
import shutil
import sys

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class CannotWrite(RuntimeError):
    """A file or folder cannot be written; the message names it and says why."""


@contextlib.contextmanager
def writing(path):
    """Turns an OSError into a CannotWrite that names `path`."""
    try:
        yield
    except OSError as error:
        raise CannotWrite(
            f"{path} cannot be written: {reason(path, error.errno or errno.EIO)}."
        ) from error


def reason(path, number, *, needed=None):
    """Returns why nothing could be written, in words.

    Args:
      path: what was to be written; it need not exist.
      number: an errno.
      needed: bytes that were to be written, if known.
    """
    facts = []
    if number == errno.ENOSPC:  # other limits are not those of the disk
        facts.append(f"{megabytes(free_bytes(path))} are free")
    if number in FULL and needed:
        facts.append(f"{megabytes(needed)} are needed")
    return os.strerror(number) + (f" ({', '.join(facts)})" if facts else "")


def free_bytes(path):
    """Returns how many bytes fit on the disk of `path`, which need not exist."""
    while not path.exists():
        path = path.parent
    usage = shutil.disk_usage(path)
    return usage.free if usage.total else sys.maxsize  # some network file systems do not know


def megabytes(count):
    return f"{count / 1e6:,.1f} MB"


def replace_text(path, text):
    """Writes a text file so that a crash leaves either the old content or the new.

    Raises:
      CannotWrite: the old content is left.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    with writing(path):
        try:
            unfinished.unlink(missing_ok=True)  # of a crash; or a link that leads elsewhere
            with unfinished.open("x", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                unfinished.unlink()
            raise


def append_text(path, text):
    """Appends to a text file; the text is on the disk when this returns.

    Raises:
      CannotWrite: the file is left as it was.
    """
    rest = text.encode()
    with writing(path), path.open("ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        try:
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(size)
            raise
