"""The ledger of an evaluation: finished trajectories, appended one line each.

A line is {"key": [benchmark, question id, mode, protocol, turn budget, trial], "ended": ISO time,
"trajectory": …}, the trajectory as in a run's `trajectories/`. Of two lines with one key the later
one counts. A torn last line, as a kill leaves it, is cut off.
"""

import dataclasses
import datetime
import json
import pathlib

from absl import logging

from agents import trajectory
from agents.trajectory import Status
from flow_grpo_jax import files
from flow_grpo_jax.bounds import files as bounded
from flow_grpo_jax.bounds import json_text

NAME = "ledger.jsonl"


@dataclasses.dataclass(frozen=True, order=True)
class Key:
    """What a trajectory is: no two of an evaluation have the same."""

    benchmark: str
    question: str
    mode: str
    protocol: str
    max_turns: int
    trial: int


class Ledger:
    """The file; lines stay on the disk, only their places are kept."""

    def __init__(self, folder):
        """Opens a folder's ledger, which may not exist yet; cuts off a torn last line."""
        self.path = pathlib.Path(folder) / NAME
        self._places = {}  # Key -> (offset, bytes, whether infrastructure ended it)
        if not self.path.exists():
            with files.writing(self.path):
                self.path.touch()
        with self.path.open("rb") as file:
            offset = damaged = 0
            for line in bounded.lines(file):
                start, offset = offset, file.tell()
                if line is not None and not line.endswith(b"\n"):
                    offset = start
                elif not self._place(line, start):
                    damaged += 1
        if offset < self.path.stat().st_size:
            logging.warning("%s: the torn last line was cut off", self.path)
            with files.writing(self.path), self.path.open("r+b") as file:
                file.truncate(offset)
        if damaged:
            logging.warning("%s: %d damaged lines; their questions are open", self.path, damaged)

    def __contains__(self, key):
        return key in self._places

    def finished(self, key):
        """Whether a key needs no further attempt: it is there, and infrastructure did not end it.

        Infrastructure may work when the same command is started again.
        """
        return key in self._places and not self._places[key][2]

    def read(self, key):
        """Returns the line of a key."""
        offset, size, _ = self._places[key]
        with self.path.open("rb") as file:
            file.seek(offset)
            return json_text.parse(file.read(size))

    def add(self, found, question):
        """Appends trajectories of a question; they are on the disk when this returns.

        found: {Key: Trajectory}.
        """
        ended = datetime.datetime.now().astimezone().isoformat(timespec="milliseconds")
        text, places, offset = [], {}, self.path.stat().st_size
        for key, solved in found.items():
            solved = dataclasses.replace(solved, question_id=key.question, rollout=key.trial)
            record = trajectory.to_json(
                solved,
                question=question,
                step=key.max_turns,
                reward=None,
                reward_source=None,
                advantage=None,
            )
            line = {"key": dataclasses.astuple(key), "ended": ended, "trajectory": record}
            data = (json.dumps(line) + "\n").encode()
            places[key] = offset, len(data), solved.status == Status.INFRA_ERROR
            text.append(data.decode())
            offset += len(data)
        files.append_text(self.path, "".join(text))
        self._places |= places

    def _place(self, line, offset):
        """Lists a line; returns whether it is whole."""
        try:
            value = json_text.parse(line) if line is not None else None
            failed = value["trajectory"]["status"] == Status.INFRA_ERROR
            self._places[Key(*value["key"])] = offset, len(line), failed
        except (ValueError, TypeError, KeyError):
            return False
        return True
