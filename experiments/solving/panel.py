"""What is shown of a question while it is solved: a live panel on a terminal, lines elsewhere.

Text of models and tools is shown without control characters: it cannot steer the terminal.
"""

import os
import threading
import time
import unicodedata

from agents import effects

TICK_SECONDS = 0.1
SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
SPEAKER_COLUMNS = 10
MESSAGE_LINES = 8  # of one message in the panel
WIDEST, NARROWEST = 100, 30
DOES = {
    "analyst": "reads the question",
    "planner": "plans the next step",
    "executor": "writes the command",
    "tool": "runs",
    "base": "answers the tool's question",
    "verifier": "checks the result",
    "generator": "writes the answer",
}
COLOURS = {"planner": "36", "tool": "33", "verifier": "35", "generator": "32"}
DIM, BOLD, RED = "2", "1", "31"


def make(file, *, environment=os.environ):
    """A `Panel` for a terminal that can move its cursor, else a `Trace`."""
    able = file.isatty() and environment.get("TERM", "dumb") not in ("dumb", "")
    if not able:
        return Trace(file)
    return Panel(file, colours=not environment.get("NO_COLOR"))


class Trace:
    """Writes what each module says as it is said, as plain lines."""

    def __init__(self, file):
        self.file, self.speaker, self.turn = file, "", 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """Everything is written already."""

    def doing(self, what):
        """What a module does is not news enough for a line."""

    def __call__(self, event):
        speaker, text, _ = said(event)
        if speaker is not None:
            self._starts(speaker, event)
        if text is not None:
            for line in clean(text).strip().splitlines() or [""]:
                self.file.write(f"{self.speaker:>{SPEAKER_COLUMNS}} │ {line}\n")
            self.file.flush()

    def _starts(self, speaker, event):
        turn = getattr(event, "turn", self.turn)
        if turn > self.turn:
            self.file.write(f"── turn {turn} " + "─" * 40 + "\n")
        if speaker != "generator":
            self.turn = turn
        self.speaker = speaker


class Panel:
    """A box for each turn, filled as the modules speak, and a line of what is being done.

    Only the box in progress is drawn again; those before it scroll away like any output. The cursor
    is never hidden, so nothing has to be put right if the process is killed.
    """

    def __init__(self, file, *, colours, clock=time.monotonic, size=None):
        """file: of the terminal. size: () -> (columns, lines)."""
        self.file, self._colours, self._clock = file, colours, clock
        self._size = size or (lambda: _size_of(file))
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._title, self._messages, self._speaker = None, [], ""
        self._doing, self._since, self._drawn, self._partial = "", clock(), 0, ""
        self._ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self):
        self._ticker.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._ticker.join()
        with self._lock:
            self._close()

    def doing(self, what):
        with self._lock:
            self._doing, self._since = what, self._clock()
            self._draw()

    def write(self, text):
        """Puts lines, such as the log's, above the panel."""
        with self._lock:
            *lines, self._partial = (self._partial + text).split("\n")
            if lines:
                self._erase()
                self.file.write("".join(clean(line) + "\n" for line in lines))
                self._draw()

    def flush(self):
        self.file.flush()

    def __call__(self, event):
        speaker, text, bad = said(event)
        with self._lock:
            if speaker is not None:
                self._starts(speaker, event)
            if text is not None:
                self._messages.append((self._speaker, clean(text).strip(), bad))
                self._doing = ""
            self._draw()

    def _starts(self, speaker, event):
        titles = {"analyst": "analysis", "generator": "answer"}
        if isinstance(event, effects.ModelRequest):
            title = titles.get(speaker, f"turn {event.turn}")
            if title != self._title:
                self._close()
                self._title = title
        self._speaker, self._since = speaker, self._clock()
        name = f"{event.tool} {DOES['tool']}" if speaker == "tool" else speaker
        self._doing = name if speaker == "tool" else f"{speaker} {DOES[speaker]}"

    def _tick(self):
        while not self._ended.wait(TICK_SECONDS):
            with self._lock:
                self._draw()

    def _close(self):
        """Leaves the box in progress on the screen, whole."""
        self._erase()
        for line in self._box():
            self.file.write(line + "\n")
        self.file.flush()
        self._title, self._messages, self._doing = None, [], ""

    def _erase(self):
        if self._drawn:
            self.file.write(f"\x1b[{self._drawn}A\r\x1b[J")
            self._drawn = 0

    def _draw(self):
        lines = self._box()
        if self._doing:
            seconds = self._clock() - self._since
            sign = SPINNER[int(self._clock() / TICK_SECONDS) % len(SPINNER)]
            waited = self._coloured(DIM, f"{seconds:.1f} s")
            what = fold(self._doing, self._columns() - 12)[0]
            lines.append(f"{self._coloured('36', sign)} {what} {waited}")
        lines = lines[-max(self._size()[1] - 1, 1) :]
        self._erase()
        self.file.write("".join(line + "\n" for line in lines))
        self.file.flush()
        self._drawn = len(lines)

    def _columns(self):
        return max(min(self._size()[0] - 1, WIDEST), NARROWEST)

    def _box(self):
        """Lines of the box in progress; [] without one."""
        if self._title is None:
            return []
        columns = self._columns()
        rule = "─" * (columns - len(self._title) - 4)
        head = self._coloured(DIM, "╭─ ") + self._coloured(BOLD, self._title)
        lines = [f"{head} {self._coloured(DIM, rule)}"]
        for speaker, text, bad in self._messages:
            folded = fold(text, columns - SPEAKER_COLUMNS - 5)
            if len(folded) > MESSAGE_LINES:
                more = len(folded) - MESSAGE_LINES + 1
                folded = [*folded[: MESSAGE_LINES - 1], f"… {more} more lines"]
            for index, line in enumerate(folded):
                name = f"{speaker if index == 0 else '':>{SPEAKER_COLUMNS}}"
                name = self._coloured(COLOURS.get(speaker, DIM), name)
                shown = self._coloured(RED, line) if bad else line
                lines.append(f"{self._coloured(DIM, '│')} {name}  {shown}")
        return [*lines, self._coloured(DIM, "╰" + "─" * (columns - 1))]

    def _coloured(self, code, text):
        return f"\x1b[{code}m{text}\x1b[0m" if self._colours else text


def said(event):
    """(who begins to work or None, what was said or None, whether it is an error) of an event."""
    if isinstance(event, effects.ModelRequest):
        return event.role, None, False
    if isinstance(event, effects.ToolCall):
        return "tool", None, False
    if isinstance(event, effects.Reply):
        return None, event.text, False
    if isinstance(event, effects.Interrupted):
        return None, f"Interrupted: {event}", True
    if event.ask is not None:  # the base model will speak for the tool
        return None, None, False
    return None, f"Error: {event.text}" if event.error else event.text, event.error


def _size_of(file):
    """(columns, lines) of a terminal; some say that they have none."""
    columns, lines = os.get_terminal_size(file.fileno())
    return columns or 80, lines or 24


def clean(text):
    """A text without characters that steer a terminal or turn the direction of writing."""
    kept = []
    for character in text.replace("\r\n", "\n").replace("\t", "    "):
        kind = unicodedata.category(character)
        if character == "\n" or kind[0] != "C" or kind == "Co":
            kept.append(character)
        elif kind != "Cf":
            kept.append("�")
    return "".join(kept)


def fold(text, columns):
    """Lines of at most so many columns of the terminal, broken at blanks where there are any."""
    folded = []
    for line in text.split("\n"):
        while (fitting := _fitting(line, columns)) < len(line):
            blank = line.rfind(" ", 1, fitting + 1)
            end = blank if blank > 0 else max(fitting, 1)
            folded.append(line[:end])
            line = line[end:].lstrip(" ")
        folded.append(line)
    return folded


def _fitting(line, columns):
    """How many characters of a line fit."""
    for index, character in enumerate(line):
        if not unicodedata.combining(character):
            columns -= 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if columns < 0:
            return index
    return len(line)
