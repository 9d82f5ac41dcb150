"""Our side of the talk with a peer, a process in its own Python environment; see serve.py."""

import json
import os
import pathlib
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[3]
SHOWN_LINES = 12


class Peer:
    """A running peer; use as a context manager, or `close` it."""

    def __init__(self, name, python, *, threads, measured):
        """Starts `python -m experiments.speed.peers.{name}_{measured}`.

        Args:
          name: "torch" or "tunix".
          python: interpreter of an environment with the packages that the peer needs.
          threads: OpenMP threads that it starts with.
          measured: what the peer is compared in, "update" or "engine".
        """
        self.name, self.python = name, python
        self.log = tempfile.TemporaryFile()  # noqa: SIM115, closed by `close`
        values = os.environ | {"TRANSFORMERS_VERBOSITY": "error", "PYTHONPATH": str(ROOT)}
        values |= {"OMP_NUM_THREADS": str(threads)}
        try:
            self.process = subprocess.Popen(
                [python, "-m", f"experiments.speed.peers.{name}_{measured}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.log,
                text=True,
                cwd=ROOT,
                env=values,
            )
        except OSError as error:
            self.log.close()
            raise ValueError(
                f"--{name}_python={python} cannot be started: {error}. Name the interpreter of an "
                f"environment made as the docstring of experiments/speed/{measured}.py says, "
                "or leave the flag empty to go without this peer."
            ) from error

    def ask(self, do, **values):
        """Sends one request and waits for the reply.

        Raises:
          RuntimeError: the peer ended; the message holds the end of its stderr.
        """
        try:
            self.process.stdin.write(json.dumps({"do": do, **values}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it ended: readline returns nothing
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            self.log.seek(0)
            said = self.log.read().decode(errors="replace").splitlines()[-SHOWN_LINES:]
            raise RuntimeError(
                f"The {self.name} peer ({self.python}) ended with exit code {code} while asked to "
                f"{do!r}. Its last lines:\n" + "\n".join(said)
            )
        return json.loads(line)

    def close(self):
        """Ends the process."""
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()
        self.log.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
