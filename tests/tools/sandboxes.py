"""Sandboxes with some of the layers, started once for all tests; how to run a program in one."""

import atexit
import functools

from tools.sandbox import client

WALLS = ("landlock", "seccomp", "namespaces")  # layers of which several may stop the same attack
MEMORY_BYTES = 256 * 2**20


@functools.cache
def without(*layers):
    box = client.Sandbox(without=layers)
    atexit.register(box.close)
    return box


def only(*layers):
    """With these of WALLS, and with all layers that are none of WALLS."""
    return without(*(wall for wall in WALLS if wall not in layers))


def run(code, *, box=None, seconds=20.0, max_output_bytes=4096, memory_bytes=MEMORY_BYTES):
    return (box or without()).run(
        code, seconds=seconds, max_output_bytes=max_output_bytes, memory_bytes=memory_bytes
    )
