"""The process of one tracker: it follows a run folder while the training speaks to it.

The first line of the standard input says what to follow (`experiments.running.trackers`), each
further one that a step is written; the end of it is that of the training, however that ended.
What was sent before is never sent again: tracking/NAME.json keeps the run's id and its last step.
"""

import json
import logging
import os
import pathlib
import signal
import sys
import uuid

from experiments.tracking import libraries, private, tables
from flow_grpo_jax import files

FAILED = "failed: "  # begins the line of the log that says why


class State:
    """The id of a run at its tracker and the last step that was sent, in a file.

    A step is noted before it is sent: a crash in between loses it rather than doubling it.
    """

    def __init__(self, path):
        self._path = path
        self.id, self.step = uuid.uuid4().hex[:12], -1
        if path.exists():
            stored = json.loads(path.read_text(encoding="utf-8"))
            self.id, self.step = str(stored["id"]), int(stored["step"])
        self.note(self.step)

    def note(self, step):
        self.step = step
        text = json.dumps({"id": self.id, "step": step}) + "\n"
        files.replace_text(self._path, text)


class Lines:
    """The lines of metrics.jsonl that were not read yet; a file that was replaced is read anew."""

    def __init__(self, path):
        self._path, self._inode, self._read = path, None, 0

    def new(self):
        """Yields what can be read of them."""
        with self._path.open("rb") as file:
            inode = os.fstat(file.fileno()).st_ino
            if inode != self._inode:
                self._inode, self._read = inode, 0
            file.seek(self._read)
            text = file.read()
        text = text[: text.rfind(b"\n") + 1]
        self._read += len(text)
        for line in text.splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                logging.warning("left out what is no line of metrics: %r", line[:80])


class Follower:
    """Sends what a run folder holds to one tracker, each step once."""

    def __init__(self, about):
        self._folder = pathlib.Path(about["folder"])
        self._most = about["trajectories"]
        self._lines = Lines(self._folder / "metrics.jsonl")
        self._waiting = {}  # step -> its line, until the training says that it is whole
        self._hide = private.hider(os.environ)
        name = about["tracker"]
        self._state = State(self._folder / "tracking" / f"{name}.json")
        stored = json.loads((self._folder / "config.json").read_text(encoding="utf-8"))
        if libraries.FORGETS[name]:
            self._state.note(min(self._state.step, about["first_step"] - 1))
        self._board = libraries.BOARDS[name](
            about,
            id=self._state.id,
            first_step=self._state.step + 1,
            config=private.of_config(stored["config"], self._hide),
        )

    def told(self, step, machine):
        """Sends the steps up to this one that were not sent yet; `machine` belongs to the last."""
        self._waiting |= {line["step"]: line for line in self._lines.new()}
        for number in sorted(self._waiting):
            if number > step:
                break
            line = self._waiting.pop(number)
            if number <= self._state.step:
                continue
            self._state.note(number)
            values = {name: value for name, value in line.items() if name != "step"}
            self._board.log(
                number,
                values | (machine if number == step else {}),
                tables.of_step(self._folder, number, most=self._most, hide=self._hide),
            )

    def close(self):
        self._board.close()


def main():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        follower = Follower(json.loads(sys.stdin.readline()))
        for text in sys.stdin:
            follower.told(**json.loads(text))
        follower.close()
    except Exception as error:  # libraries write more of their own after it
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        sys.stdout.write(f"{FAILED}{private.hider(os.environ)(reason)}\n")
        sys.stdout.flush()
        raise


if __name__ == "__main__":
    main()
