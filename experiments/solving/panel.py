"""Shows a question while it is solved: a live panel on a terminal, plain lines elsewhere.

What takes long is named while it lasts, on both.
Text of models and tools is shown without control characters: it cannot steer the terminal.
"""

import os
import threading
import time
import unicodedata

from rich import console, live, segment, spinner, table, text
from rich import panel as box

from agents import effects

SPEAKER_COLUMNS = 10
MESSAGE_LINES = 8  # of one message in the panel
WIDEST = 100
SECONDS = 10.0  # between lines of a trace about what still goes on
DOES = {
    "analyst": "reads the question",
    "planner": "plans the next step",
    "executor": "writes the command",
    "tool": "runs",
    "base": "answers the tool's question",
    "verifier": "checks the result",
    "generator": "writes the answer",
}
STYLES = {"planner": "cyan", "tool": "yellow", "verifier": "magenta", "generator": "green"}


def make(file, *, environment=os.environ):
    """Returns a `Panel` for a terminal that can move its cursor, else a `Trace`."""
    able = file.isatty() and environment.get("TERM", "dumb") not in ("dumb", "")
    if not able:
        return Trace(file)
    return Panel(file, colours=not environment.get("NO_COLOR"))


class Trace:
    """Writes the modules' texts as they come, as plain lines, and how long each turn took.

    every: seconds after which what is being done is written again.
    """

    def __init__(self, file, *, every=SECONDS, clock=time.monotonic):
        self.file, self.speaker, self.turn = file, "", 0
        self._every, self._watch = every, None
        self._clock, self._since = clock, 0.0  # when the turn began

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._done()

    def doing(self, what):
        """Writes what is being done."""
        self._done()
        self._line(what)
        self._begin(what)

    def _begin(self, what):
        """Writes now and then that it still goes on."""
        over = threading.Event()
        arguments = what, time.monotonic(), over
        self._watch = threading.Thread(target=self._repeat, args=arguments, daemon=True), over
        self._watch[0].start()

    def _repeat(self, what, since, over):
        while not over.wait(self._every):
            self._line(f"{what}: {time.monotonic() - since:.0f} s so far")

    def _done(self):
        if self._watch:
            thread, over = self._watch
            self._watch = None
            over.set()
            thread.join()

    def _line(self, text):
        self.file.write(clean(text) + "\n")
        self.file.flush()

    def __call__(self, event):
        self._done()
        speaker, text, _ = said(event)
        if speaker is not None:
            self._starts(speaker, event)
            self._begin(does(speaker, event))
        if text is not None:
            for line in clean(text).strip().splitlines() or [""]:
                self.file.write(f"{self.speaker:>{SPEAKER_COLUMNS}} │ {line}\n")
            self.file.flush()

    def _starts(self, speaker, event):
        turn = getattr(event, "turn", self.turn)
        if self.turn and (turn > self.turn or speaker == "generator"):
            self.file.write(f"── turn {self.turn}: {self._clock() - self._since:.1f} s\n")
        if turn > self.turn:
            self.file.write(f"── turn {turn} " + "─" * 40 + "\n")
            self._since = self._clock()
        if speaker != "generator":
            self.turn = turn
        self.speaker = speaker


class Panel:
    """A box for each turn, filled as the modules speak, and a line that says what is being done.

    Only the box in progress is drawn again; those before it scroll away like any output. The cursor
    stays visible, so that a killed process leaves the terminal in order.
    """

    def __init__(self, file, *, colours, clock=time.monotonic, size=(None, None)):
        """size: (columns, lines) of the terminal; None asks it."""
        self.colours, self._clock = colours, clock
        # Replaced as a whole, never changed: the thread of `Live` reads them.
        self._title, self._messages, self._doing = None, (), ("", 0.0)
        self._since = 0.0  # when the box in progress began
        self._speaker = self._partial = ""
        self._spinner = spinner.Spinner("dots", style="cyan")
        self._console = console.Console(
            file=file,
            force_terminal=True,
            color_system="standard" if colours else None,
            width=size[0],
            height=size[1],
            highlight=False,
        )
        self._console.show_cursor = lambda show=True: False
        self._live = live.Live(
            console=self._console,
            get_renderable=self._drawn,
            refresh_per_second=10,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self):
        self._live.start()
        return self

    def __exit__(self, *_):
        self._close()
        self._live.stop()

    def doing(self, what):
        self._doing = what, self._clock()
        self._live.refresh()

    def write(self, string):
        """Puts lines, such as the log's, above the panel."""
        *lines, self._partial = (self._partial + string).split("\n")
        for line in lines:
            self._console.print(text.Text(clean(line)), soft_wrap=True)

    def flush(self):
        self._console.file.flush()

    def __call__(self, event):
        speaker, words, bad = said(event)
        if speaker is not None:
            self._starts(speaker, event)
        if words is not None:
            self._messages = *self._messages, (self._speaker, clean(words).strip(), bad)
            self._doing = "", 0.0
        self._live.refresh()

    def _starts(self, speaker, event):
        titles = {"analyst": "analysis", "generator": "answer"}
        if isinstance(event, effects.ModelRequest):
            title = titles.get(speaker, f"turn {event.turn}")
            if title != self._title:
                self._close()
                self._title, self._since = title, self._clock()
        self._speaker = speaker
        self._doing = does(speaker, event), self._clock()

    def _close(self):
        """Leaves the box in progress on the screen, whole."""
        closed = self._box(f" · {self._clock() - self._since:.1f} s")
        self._title, self._messages, self._doing = None, (), ("", 0.0)
        self._live.refresh()
        if closed is not None:
            self._console.print(closed)

    def _drawn(self):
        """Returns the box in progress and what is being done, the last lines that fit."""
        parts = [part for part in (self._box(), self._activity()) if part is not None]
        lines = self._console.render_lines(console.Group(*parts), pad=False)
        fitting = lines[-max(self._console.height - 1, 1) :]
        return segment.SegmentLines(fitting, new_lines=True)

    def _activity(self):
        what, since = self._doing
        if not what:
            return None
        row = text.Text(no_wrap=True, overflow="ellipsis")
        row.append_text(self._spinner.render(self._console.get_time()))
        row.append(f" {what} ").append(f"{self._clock() - since:.1f} s", "dim")
        return row

    def _box(self, took=""):
        """Returns the box in progress, or None; took: what its title says of its time."""
        if self._title is None:
            return None
        columns = min(self._console.width - 1, WIDEST)
        rows = table.Table.grid(padding=(0, 2, 0, 0))
        rows.add_column(justify="right", width=SPEAKER_COLUMNS)
        rows.add_column(overflow="fold")
        for speaker, words, bad in self._messages:
            lines = text.Text(words, "red" if bad else "").wrap(
                self._console, max(columns - SPEAKER_COLUMNS - 6, 1), overflow="fold"
            )
            more = len(lines) - MESSAGE_LINES + 1
            if more > 1:
                lines = [*lines[: MESSAGE_LINES - 1], text.Text(f"… {more} more lines")]
            name = text.Text(speaker, STYLES.get(speaker, "dim"))
            rows.add_row(name, text.Text("\n").join(lines))
        title = text.Text(self._title, "bold").append(took, "not bold")
        title.truncate(max(columns - 6, 1), overflow="ellipsis")  # the corners and a line
        return box.Panel(
            rows,
            title=title,
            title_align="left",
            border_style="dim",
            width=columns,
        )


def does(speaker, event):
    """Returns what a role does from this event on."""
    return f"{event.tool if speaker == 'tool' else speaker} {DOES[speaker]}"


def said(event):
    """Returns (role that begins or None, text that was said or None, whether it is an error)."""
    if isinstance(event, effects.ModelRequest):
        return event.role, None, False
    if isinstance(event, effects.ToolCall):
        return "tool", None, False
    if isinstance(event, effects.Reply):
        return None, event.text, False
    if isinstance(event, effects.Refusal):
        return None, f"Refused: {event.text}", True
    if isinstance(event, effects.Interrupted):
        return None, f"Interrupted: {event}", True
    if event.ask is not None:  # the base model will speak for the tool
        return None, None, False
    return None, f"Error: {event.text}" if event.error else event.text, event.error


def clean(text):
    """Removes characters that steer a terminal or turn the direction of writing."""
    kept = []
    for character in text.replace("\r\n", "\n").replace("\t", "    "):
        kind = unicodedata.category(character)
        if character == "\n" or kind[0] != "C" or kind == "Co":
            kept.append(character)
        elif kind != "Cf":
            kept.append("�")
    return "".join(kept)
