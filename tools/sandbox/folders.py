"""The private folders of programs: of a fixed size in memory, or on disk and measured.

What a program leaves may be wide, deep, closed, or no folder any more. Nothing here follows a link,
and nothing takes longer paths or more descriptors for a deeper tree.
"""

import contextlib
import itertools
import os
import stat

BYTES, FILES = 64 * 2**20, 2048  # in all, of one program
FEW = 8  # files that are removed sooner than a process for it starts
PATH = 512  # characters; where folders are measured, since longer ones take more time
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def is_too_large(folder):
    """Whether it holds more than one of the limits; looks at no more than the limits."""
    waiting, size, files = [folder], 0, 0
    while waiting:
        path = waiting.pop()
        try:
            here = os.open(path, _OPEN)
        except OSError:
            continue  # it has just gone, or its owner cannot enter it: nothing can lie in it
        with _closing(here), contextlib.suppress(FileNotFoundError), os.scandir(here) as entries:
            for entry in entries:
                files += 1
                size += entry.stat(follow_symlinks=False).st_blocks * 512
                if size > BYTES or files > FILES:
                    return True
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(f"{path}/{entry.name}")
                    if len(waiting[-1]) > len(folder) + PATH:
                        return True
    return False


def is_clean(folder):
    """Whether it is a folder, empty, and open to its owner, once a few files are removed."""
    try:
        with _closing(os.open(folder, _OPEN)) as here:
            if os.fstat(here).st_mode & 0o700 != 0o700:
                return False
            with os.scandir(here) as entries:
                found = list(itertools.islice(entries, FEW + 1))
            if len(found) > FEW or any(entry.is_dir(follow_symlinks=False) for entry in found):
                return False
            for entry in found:
                os.unlink(entry.name, dir_fd=here)
            return True
    except OSError:  # no folder any more, or what is in it changes
        return False


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
    with _closing(os.open(folder, _OPEN)) as top:
        while entries := _entries(top):
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.name, dir_fd=top)
                    continue
                os.chmod(entry.name, 0o700, dir_fd=top)
                with _closing(os.open(entry.name, _OPEN, dir_fd=top)) as inner:
                    for each in _entries(inner):
                        if each.is_dir(follow_symlinks=False):
                            os.chmod(each.name, 0o700, dir_fd=inner)
                            name = f"{prefix}-{next(moved)}"
                            os.rename(each.name, name, src_dir_fd=inner, dst_dir_fd=top)
                        else:
                            os.unlink(each.name, dir_fd=inner)
                os.rmdir(entry.name, dir_fd=top)


@contextlib.contextmanager
def _closing(descriptor):
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _entries(descriptor):
    with os.scandir(descriptor) as entries:
        return list(entries)
