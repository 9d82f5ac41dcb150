"""Work of a child process for test_children.py: what hostile text could make it do."""

import os
import socket
import subprocess
import sys


def prepare():
    pass


def answer(*, job, about=None):
    if job == "echo":
        return about
    try:
        return JOBS[job](about)
    except OSError as error:
        return type(error).__name__


def loop(_):
    while True:
        pass


def write(path):
    with open(path, "w") as file:
        file.write("mine")


def read(path):
    with open(path) as file:
        return file.read()


def end_well(_):
    os._exit(0)


JOBS = {
    "environment": lambda _: dict(os.environ),
    "loop": loop,
    "memory": lambda _: len(bytearray(2**31)),
    "raise": lambda _: [][0],
    "end": end_well,
    "nonsense": lambda _: os.write(int(sys.argv[3]), b"nonsense\n"),
    "flood": lambda _: "x" * (40 * 2**20),
    "read": read,
    "write": write,
    "connect": lambda port: socket.create_connection(("127.0.0.1", port)).close(),
    "udp": lambda _: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close(),
    "program": lambda _: subprocess.run([sys.executable, "-c", "1"]).returncode,
    "kill": lambda process: os.kill(process, 0),
    "print": print,
}
