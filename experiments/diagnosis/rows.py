"""What the doctor finds, as rows; checks that do not depend on each other, one after another."""

import dataclasses
import importlib
import textwrap

from absl import app

OK, ABSENT, NOTE, BROKEN = STATES = ("ok", "absent", "note", "broken")
WIDTH = 110  # of the table
REPORT = "Report it with all of this output."
INSTALL = "pip install -e . in the folder of the repository."


@dataclasses.dataclass(frozen=True)
class Row:
    """One finding.

    what: was looked at.
    state: "ok"; "absent": optional and not there; "note": works, but know this; "broken": something
      that a default config needs.
    found: a line.
    todo: what to do, "" for nothing.
    facts: JSON-able values for programs.
    """

    what: str
    state: str
    found: str
    todo: str = ""
    facts: dict = dataclasses.field(default_factory=dict)


def run(checks, on_check=lambda name: None, on_row=lambda row: None):
    """Runs checks; one that raises is a broken row with its reason, and the rest goes on.

    Args:
      checks: {name: a function without arguments that yields Rows}.
      on_check, on_row: called with each as it comes.

    Returns:
      {name: [Row]}.
    """
    found = {}
    for name, check in checks.items():
        on_check(name)
        found[name] = []
        for row in _guarded(check):
            found[name].append(row)
            on_row(row)
    return found


def _guarded(check):
    try:
        yield from check()
    except ModuleNotFoundError as error:
        yield Row("check", BROKEN, f"The package {error.name} is missing.", INSTALL)
    except app.UsageError as error:  # says what to do
        yield Row("check", BROKEN, str(error))
    except Exception as error:  # noqa: BLE001  a check that fails is a finding
        yield Row("check", BROKEN, f"{type(error).__name__}: {error}", REPORT)


def later(name, *arguments):
    """Returns a check by "module.function" of this package, which is imported when it runs.

    So a package that is missing breaks the checks that need it, and no other.
    """
    module, function = name.split(".")

    def check():
        imported = importlib.import_module(f"{__package__}.{module}")
        return getattr(imported, function)(*arguments)

    return check


def lines(row):
    """Returns a Row as lines of text."""
    head = f"  {row.state:<7} {row.what:<22} "
    first, *rest = row.found.splitlines() or [""]
    texts = [first, *(line.strip() for line in rest)]
    if row.todo:
        texts.append(f"-> {row.todo}")
    margin, width = " " * len(head), max(40, WIDTH - len(head))
    wrapped = [
        line
        for text in texts
        for line in textwrap.wrap(text, width, break_on_hyphens=False, break_long_words=False)
        or [""]
    ]
    return [head + wrapped[0], *(margin + line for line in wrapped[1:])]


def is_broken(found):
    """Whether any Row of `run` is."""
    return any(row.state == BROKEN for rows in found.values() for row in rows)
