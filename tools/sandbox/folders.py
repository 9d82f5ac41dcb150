"""The private folders of programs: of a fixed size in memory, or on disk and measured.

What a program leaves may be wide, deep, closed, or no folder any more. Nothing here follows a link,
and nothing takes longer paths or more descriptors for a deeper tree.
"""

import contextlib
import itertools
import os
import stat

BYTES, FILES = 64 * 2**20, 2048  # in all, of one program
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def is_too_large(folder):
    """Whether it holds more than one of the limits; looks at no more files than the limit."""
    waiting, size, files = [folder], 0, 0
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    files += 1
                    size += entry.stat(follow_symlinks=False).st_blocks * 512
                    if size > BYTES or files > FILES:
                        return True
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
        except (FileNotFoundError, PermissionError):
            continue  # it has just gone; nothing can lie in a folder that its owner cannot enter
        except OSError:  # a path that is too long
            return True
    return False


def is_clean(folder):
    """Whether it is as it was made: a folder, empty, open to its owner."""
    try:
        here = os.open(folder, _OPEN)
    except OSError:
        return False
    try:
        with os.scandir(here) as entries:
            return next(entries, None) is None and os.fstat(here).st_mode & 0o700 == 0o700
    finally:
        os.close(here)


def renew(folder):
    """Makes it as it was made; also if a program without Landlock removed or replaced it."""
    for path in (os.path.dirname(folder), folder):
        _make_again(path)
    _empty(folder)


def remove(home):
    """Removes the folder of all, as far as it is still there."""
    with contextlib.suppress(OSError):
        os.chmod(home, 0o700)
        _empty(home)
        os.rmdir(home)


def _make_again(path):
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            return os.chmod(path, 0o700)
        os.unlink(path)
    os.mkdir(path, 0o700)


def _empty(folder):
    """Empties it: folders inside are moved to its top before they are emptied."""
    prefix, moved = os.urandom(16).hex(), itertools.count()
    top = os.open(folder, _OPEN)
    try:
        while entries := _entries(top):
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.name, dir_fd=top)
                    continue
                os.chmod(entry.name, 0o700, dir_fd=top)
                inner = os.open(entry.name, _OPEN, dir_fd=top)
                try:
                    for each in _entries(inner):
                        if each.is_dir(follow_symlinks=False):
                            os.chmod(each.name, 0o700, dir_fd=inner)
                            name = f"{prefix}-{next(moved)}"
                            os.rename(each.name, name, src_dir_fd=inner, dst_dir_fd=top)
                        else:
                            os.unlink(each.name, dir_fd=inner)
                finally:
                    os.close(inner)
                os.rmdir(entry.name, dir_fd=top)
    finally:
        os.close(top)


def _entries(descriptor):
    with os.scandir(descriptor) as entries:
        return list(entries)
