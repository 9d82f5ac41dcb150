"""What a program uses, by the kernel's account in /proc: threads, bytes written."""

import os


def path_of(process, *, is_namespace):
    """Returns the folder in /proc of a process that is not reaped, None if it cannot be found.

    is_namespace: /proc knows the process by another number, that of the namespace outside.
    """
    if not is_namespace:
        return f"/proc/{process}"
    try:
        descriptor = os.pidfd_open(process)
    except OSError:
        return None
    try:
        with open(f"/proc/self/fdinfo/{descriptor}") as file:
            fields = dict(line.split(":", 1) for line in file)
        return f"/proc/{int(fields['Pid'])}"
    except (OSError, KeyError):
        return None
    finally:
        os.close(descriptor)


def threads(path):
    """Returns how many threads a process has, by its folder in /proc; None if that is unknown."""
    if path is None:
        return None
    try:
        with open(f"{path}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[17])
    except OSError:
        return None


def written(path):
    """Returns the bytes that a process has written to any files so far, 0 if it has ended.

    Also to files that are deleted, and by mapped memory. The process must not hide from this one.
    """
    try:
        with open(f"{path}/io", "rb") as file:
            fields = dict(line.split(b": ") for line in file)
    except OSError:
        return 0
    return max(int(fields[b"wchar"]), int(fields[b"write_bytes"]))
