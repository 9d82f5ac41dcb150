"""One question from the command line: what is shown where, models on servers, and Ctrl-C."""

import io
import itertools
import json
import os
import pathlib
import pty
import re
import signal
import subprocess
import sys
import threading
import time

import loopback
import pytest

from agents import drive, effects, forms
from experiments import solve
from experiments.configs import common, quickstart
from experiments.running import backends, command, sessions, stored
from experiments.solving import panel

ROOT = pathlib.Path(__file__).parents[2]
SAYS = {
    "You analyse": "The capital is asked.",
    "You are the planner": "Context: Spain\nSub-goal: its capital\nTool: knowledge_search",
    "You write the command": 'knowledge_search(query="Spain capital")',
    "You check": "Found.\nVerdict: STOP",
    "You write the final": "It is in the memory.\nAnswer: Madrid",
}


def respond(body):
    system = body["messages"][0]["content"]
    return next(text for start, text in SAYS.items() if system.startswith(start))


def arguments(*more, query="What is the capital of Spain?"):
    return [sys.executable, "-m", "experiments.solve", f"--query={query}", *more]


def environment(**more):
    kept = {name: v for name, v in os.environ.items() if name not in ("NO_COLOR", "TERM")}
    return {**kept, "JAX_PLATFORMS": "cpu", **more}


def served(*more, respond=respond, **how):
    with loopback.Loopback(loopback.replies(respond)) as server:
        run = subprocess.run(
            arguments(f"--url={server.url}", "--model=m", *more),
            cwd=ROOT,
            env=environment(**how),
            capture_output=True,
            text=True,
            timeout=120,
        )
        return run, server


class Terminal:
    """A process on a terminal of its own."""

    def __init__(self, command_line, **more):
        ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            command_line,
            cwd=ROOT,
            env=environment(**more),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        self.text, self._ours = "", ours
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        while True:
            try:
                part = os.read(self._ours, 65536)
            except OSError:  # the other end is closed
                return
            if not part:
                return
            self.text += part.decode("utf-8", "replace")

    def wait_for(self, text, seconds=120):
        deadline = time.monotonic() + seconds
        while text not in self.text and time.monotonic() < deadline:
            time.sleep(0.02)
        assert text in self.text, self.text

    def end(self):
        code = self.process.wait(timeout=120)
        self._reader.join()
        os.close(self._ours)
        return code


def screen(text):
    """Lines that a terminal shows after a text that moves up, erases and writes lines."""
    lines, row = [""], 0
    for token in re.findall(r"\x1b\[[\d;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", text):
        if token == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif token.endswith("A") and token[0] == "\x1b":
            row -= int(token[2:-1])
        elif token == "\x1b[2K":
            lines[row] = ""
        elif token[0] not in "\x1b\r":
            lines[row] += token
    return lines


# ------------------------------------------------------------------------------- what is shown


class Tty(io.StringIO):
    def isatty(self):
        return True


def events(result="Its capital is Madrid."):
    ask = lambda role, turn=0: effects.ModelRequest(role, (), turn)
    return [
        ask("analyst"),
        effects.Reply("capital"),
        ask("planner", 1),
        effects.Reply("Sub-goal: capital\nTool: knowledge_search"),
        ask("executor", 1),
        effects.Reply('knowledge_search(query="Spain")'),
        effects.ToolCall("knowledge_search", {"query": "Spain"}),
        effects.ToolResult(result),
        ask("verifier", 1),
        effects.Reply("Verdict: STOP"),
        ask("generator"),
        effects.Reply("Answer: Madrid"),
    ]


def shown(said, *, size=(60, 30), colours=False, clock=lambda: 0.0):
    file = Tty()
    board = panel.Panel(file, colours=colours, size=size, clock=clock)
    with board:
        for event in said:
            board(event)
    return file.getvalue()


def test_the_panel_leaves_a_box_for_each_turn():
    row = lambda text: "│ " + text.ljust(56) + "│"
    clock = itertools.count(0.0, 0.25)
    boxes = [line for line in screen(shown(events(), clock=lambda: next(clock))) if "╭" in line]
    times = [float(re.search(r" · ([0-9.]+) s ─", line)[1]) for line in boxes]
    assert len(boxes) == 3 and times[1] > 2 * times[0] > 0
    assert screen(shown(events())) == [
        "╭─ analysis · 0.0 s " + "─" * 38 + "╮",
        row("   analyst  capital"),
        "╰" + "─" * 57 + "╯",
        "╭─ turn 1 · 0.0 s " + "─" * 40 + "╮",
        row("   planner  Sub-goal: capital"),
        row("            Tool: knowledge_search"),
        row('  executor  knowledge_search(query="Spain")'),
        row("      tool  Its capital is Madrid."),
        row("  verifier  Verdict: STOP"),
        "╰" + "─" * 57 + "╯",
        "╭─ answer · 0.0 s " + "─" * 40 + "╮",
        row(" generator  Answer: Madrid"),
        "╰" + "─" * 57 + "╯",
        "",
    ]


def test_the_panel_says_what_is_being_done():
    file = Tty()
    board = panel.Panel(file, colours=False, size=(60, 30), clock=lambda: 0.0)
    seen = set()
    with board:
        board.doing("loading a model")
        seen |= {line[1:].strip() for line in screen(file.getvalue())}
        for event in events():
            board(event)
            seen |= {line[1:].strip() for line in screen(file.getvalue())}
    assert {
        "loading a model 0.0 s",
        "analyst reads the question 0.0 s",
        "knowledge_search runs 0.0 s",
        "verifier checks the result 0.0 s",
    } <= seen


@pytest.mark.parametrize("size", [(60, 30), (60, 4), (20, 2), (200, 50)])
def test_the_panel_never_writes_over_what_stays_nor_past_the_edge(size):
    text = shown(events("word " * 400 + "東京" * 100), size=size, colours=True)
    lines = screen(text)
    assert sum(line.startswith("╰") for line in lines) == 3
    for line in lines:
        columns = sum(2 if character in "東京" else 1 for character in line)
        assert columns <= min(size[0] - 1, panel.WIDEST)
    for moves in re.findall(r"(?:\x1b\[1A\x1b\[2K)+", text):
        assert moves.count("A") <= max(size[1] - 1, 1)


def test_lines_of_the_log_go_above_the_panel():
    file = Tty()
    board = panel.Panel(file, colours=False, size=(60, 30))
    with board:
        for event in events()[:4]:
            board(event)
        board.write("W1121 a warn")
        board.write("ing\n")
        lines = screen(file.getvalue())
    assert lines[3] == "W1121 a warning" and lines[4].startswith("╭─ turn 1")


def test_what_a_parser_refuses_is_shown_with_its_reason():
    said = events()[:4] + [effects.Refusal("planner", "The plan has no Sub-goal.")]
    assert "   planner  Refused: The plan has no Sub-goal." in shown(said)
    file = io.StringIO()
    with panel.make(file) as trace:
        for event in said:
            trace(event)
    assert file.getvalue().endswith("   planner │ Refused: The plan has no Sub-goal.\n")


def test_lines_tell_what_takes_long_and_how_long_so_far():
    file = io.StringIO()

    def wait_for(text):
        deadline = time.monotonic() + 60
        while text not in file.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert text in file.getvalue()

    with panel.Trace(file, every=0.02) as trace:
        trace.doing("loading a model")
        assert file.getvalue() == "loading a model\n"
        wait_for("loading a model: 0 s so far\n")
        trace(effects.ModelRequest("verifier", (), 1))
        wait_for("verifier checks the result: 0 s so far\n")
        trace(effects.Reply("Verdict: STOP"))
        after = file.getvalue()
        assert after.endswith("  verifier │ Verdict: STOP\n")
        time.sleep(0.1)
    assert file.getvalue() == after


def test_lines_tell_how_long_each_turn_took():
    file, clock = io.StringIO(), iter([10.0, 22.5, 30.0, 34.0])
    first, second = events()[:10], [effects.ModelRequest("planner", (), 2), *events()[10:]]
    with panel.Trace(file, clock=lambda: next(clock)) as trace:
        for event in first + second:
            trace(event)
    lines = [line for line in file.getvalue().splitlines() if "──" in line]
    rule = "─" * 40
    assert lines == [
        f"── turn 1 {rule}",
        "── turn 1: 12.5 s",
        f"── turn 2 {rule}",
        "── turn 2: 4.0 s",
    ]


def test_text_cannot_steer_the_terminal():
    evil = "a\x1b]0;title\x07\x1b[2Jb\u202ec\td\r\ne\x9b1A"
    assert panel.clean(evil) == "a�]0;title��[2Jbc    d\ne�1A"
    harmless = shown(events())
    attack = shown(events(result="\x1b[9A\x1b[2J"))
    assert set(re.findall(r"\x1b.{0,3}", attack)) == set(re.findall(r"\x1b.{0,3}", harmless))
    assert "\x1b[2J" not in attack and "[9A" in attack and "[9A" not in harmless
    assert "[bold]x[/bold]" in shown(events(result="[bold]x[/bold] :smile:"))
    assert ":smile:" in shown(events(result=":smile:"))
    file = io.StringIO()
    trace = panel.make(file)
    for event in events(result="\x1b[2J"):
        trace(event)
    assert "\x1b" not in file.getvalue()


def test_a_panel_needs_a_terminal_that_can_and_colours_are_a_wish():
    able = {"TERM": "xterm-256color"}
    assert isinstance(panel.make(io.StringIO(), environment=able), panel.Trace)
    for poor in ({"TERM": "dumb"}, {"TERM": ""}, {}):
        assert isinstance(panel.make(Tty(), environment=poor), panel.Trace)
    assert panel.make(Tty(), environment=able).colours
    assert not panel.make(Tty(), environment=able | {"NO_COLOR": "1"}).colours
    assert panel.make(Tty(), environment=able | {"NO_COLOR": ""}).colours
    assert "\x1b[" in shown(events(), colours=True)
    assert not re.search(r"\x1b\[[\d;]*m", shown(events()))


# ---------------------------------------------------------------------------- which model answers


def chosen(config=None, **flags):
    names = ("model", "url", "workdir", "api_key_variable")
    return solve.choose_config(config, **dict.fromkeys(names) | flags)


def test_the_config_follows_from_the_flags(tmp_path):
    assert chosen() == quickstart.get_config()
    folder = ROOT / quickstart.get_config().model.path
    local = chosen(model=str(folder))
    assert local.rollout.prompts == "compact" and local.model.path == str(folder)
    assert local.rollout.max_prompt_tokens + local.rollout.max_module_tokens == 1024
    given = chosen(quickstart.get_config(), model=str(folder))
    assert given.rollout.prompts == "compact" and given.model.path == str(folder)
    served = chosen(url="http://127.0.0.1:9/v1", model="m", api_key_variable="KEY").backends
    assert {served[n].kind for n in served} == {"server", "none"} and served.verifier.model == "m"
    stored.write_config(common.base(), tmp_path)
    assert chosen(workdir=str(tmp_path)).rollout.prompts == "instruct"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"url": "http://x/v1"}, "--url needs the name of a model"),
        ({"url": "http://x/v1", "model": "m", "workdir": "w"}, "leave out --url"),
        ({"model": "m", "workdir": "w"}, "leave out --model"),
        ({"api_key_variable": "KEY"}, "give its --url"),
        ({"model": "/no/such/folder"}, "holds no model"),
        ({"model": "Org/Absent"}, "hf download Org/Absent"),
        ({"model": str(pathlib.Path(__file__).parent)}, "holds no model"),
    ],
)
def test_flags_that_contradict_are_refused(flags, message):
    with pytest.raises(command.ConfigError, match=message):
        chosen(**flags)


@pytest.mark.parametrize(
    ("query", "message"), [("", "empty"), (" \n", "empty"), ("of \udcff Spain?", "not valid text")]
)
def test_what_is_no_question_is_refused(query, message):
    with pytest.raises(command.ConfigError, match=message):
        solve.check_query(query)
    solve.check_query("¿Cuál es la capital de España? 東京")


def test_a_grammar_without_its_extra_says_what_to_install(monkeypatch):
    config = quickstart.get_config()
    config.rollout.grammar = True
    monkeypatch.setattr(command, "installed", lambda extra: False)
    with pytest.raises(command.ConfigError, match=r"llguidance: pip install '\.\[grammar\]'"):
        sessions.build(config)


@pytest.mark.slow
def test_a_grammar_reaches_the_engine(monkeypatch):
    grammar = pytest.importorskip("models.engine.grammar", reason="needs the extra grammar")
    asked, expression = [], grammar.Grammars.expression

    def noted(self, pattern):
        asked.append(pattern)
        return expression(self, pattern)

    monkeypatch.setattr(grammar.Grammars, "expression", noted)
    config = quickstart.get_config()
    config.rollout.grammar, config.engine.slots = True, 1
    found = solve.solve(config, "What is the capital of Spain?")
    assert found.answer == "Madrid"
    assert {forms.VERDICT, forms.ANSWER} < set(asked) and len(set(asked)) == 3


def test_servers_alone_answer_every_module():
    with loopback.Loopback(loopback.replies(respond)) as server:
        config = chosen(url=server.url, model="m")
        found = solve.solve_by_servers(config, "What is the capital of Spain?")
    assert (found.answer, found.stop, len(found.turns)) == ("Madrid", "verified", 1)
    assert "Its capital is Madrid" in found.turns[0].result
    assert {body["model"] for body in server.bodies()} == {"m"} and len(server.bodies()) == 5


@pytest.mark.parametrize(
    ("models", "prompts", "limits"),
    [
        ([{"id": "m", "max_model_len": 1024, "agent_prompts": "compact"}], "compact", (256, 768)),
        ([{"id": "n", "max_model_len": 99}, {"id": "m", "max_model_len": 1024}], None, (256, 768)),
        ([{"id": "m", "max_model_len": "long", "agent_prompts": "mine"}, 7], None, None),
        ([{"id": "n", "max_model_len": 1024}], None, None),
        (None, None, None),
    ],
)
def test_limits_and_prompts_are_those_of_the_model_that_is_served(models, prompts, limits):
    with loopback.Loopback(loopback.replies(respond), models=models) as server:
        config = chosen(url=server.url, model="m")
        solve.fit_to_server(config)
    usual = common.base().rollout
    assert config.rollout.prompts == (prompts or usual.prompts)
    found = config.rollout.max_module_tokens, config.rollout.max_prompt_tokens
    assert found == (limits or (usual.max_module_tokens, usual.max_prompt_tokens))


def test_a_server_that_is_not_there_leaves_the_limits():
    config = chosen(url="http://127.0.0.1:9/v1", model="m")
    solve.fit_to_server(config)
    assert config.rollout == common.base().rollout


def chosen_server(server, **limits):
    config = chosen(url=server.url, model="m")
    for name in backends.ROLES:
        config.backends[name].limits.update(dict(backoff_seconds=0.01) | limits)
    return config


@pytest.mark.parametrize(
    ("behaviour", "limits", "requests", "words", "advice"),
    [
        (loopback.fails(401, "wrong key"), {}, 1, "wrong key", "api_key_variable"),
        (loopback.fails(404, "no model m"), {}, 1, "no model m", "--model"),
        (loopback.fails(503, "full"), {"retries": 1}, 4, "503: full", "then ask again"),
        (loopback.resets, {"retries": 0}, 2, "reset", "then ask again"),
        (loopback.answers(200, {"a": 1}), {}, 4, "no chat completion", "/v1"),
    ],
)
def test_a_server_that_fails_ends_the_question_with_what_and_why(
    behaviour, limits, requests, words, advice
):
    """What may help is tried again, requests as well as the question; what cannot is not."""
    with loopback.Loopback(behaviour) as server:
        with pytest.raises(drive.Failed, match=f"the analyst gave no answer.*{words}") as caught:
            solve.solve_by_servers(chosen_server(server, **limits), "Capital of Spain?")
        assert len(server.requests) == requests
    assert advice in solve.what_to_do(caught.value)


def test_a_question_is_started_again_when_the_server_has_rested():
    """Two failures bring it down for 0.2 s; the question waits for it and starts from scratch."""
    said, script = [], [loopback.replies(respond)] * 2 + [loopback.fails(500)] * 2
    with loopback.Loopback(*script, loopback.replies(respond)) as server:
        config = chosen_server(server, failures_to_open=2, open_seconds=0.2)
        found = solve.solve_by_servers(config, "Capital of Spain?", on_event=said.append)
        assert (found.answer, found.status, found.attempts) == ("Madrid", "ok", 2)
        assert len(server.requests) == 2 + 2 + 5
    (broken,) = [event for event in said if isinstance(event, effects.Interrupted)]
    assert "the executor gave no answer" in str(broken)
    assert [e.role for e in said if isinstance(e, effects.ModelRequest)].count("analyst") == 2


def test_a_wait_that_is_longer_than_the_question_may_take_is_not_waited():
    with loopback.Loopback(loopback.fails(429, "later", retry_after=600)) as server:
        config = chosen_server(server)
        start = time.monotonic()
        with pytest.raises(drive.Failed, match="later"):
            solve.solve_by_servers(config, "Capital of Spain?")
        assert time.monotonic() - start < 5 and len(server.requests) == 1


def test_a_tool_that_breaks_is_named(monkeypatch):
    def broken(*_, **__):
        raise OSError("the disk is gone")

    monkeypatch.setattr(drive, "call_tool", broken)
    with loopback.Loopback(loopback.replies(respond)) as server:
        with pytest.raises(drive.Failed, match="the tool knowledge_search .* the disk is gone"):
            solve.solve_by_servers(chosen_server(server), "Capital of Spain?")
        assert len(server.requests) == 2 * 3


# ------------------------------------------------------------------------------------ the command


@pytest.mark.slow
def test_in_a_pipe_the_answer_is_all_of_standard_output():
    run, _ = served()
    assert (run.returncode, run.stdout) == (0, "Madrid\n"), run.stderr
    assert "\x1b" not in run.stderr and "  planner │ Sub-goal: its capital" in run.stderr
    assert run.stderr.startswith("asking http://127.0.0.1:")
    assert run.stderr.splitlines()[-1].startswith("1 turn · ")
    run, _ = served("--json")
    assert run.returncode == 0 and json.loads(run.stdout)["answer"] == "Madrid"
    assert run.stderr == ""


@pytest.mark.slow
def test_no_answer_is_an_error_and_json_still_tells():
    run, _ = served(respond=lambda body: "Hm.")
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.splitlines()[-1].startswith("error: There is no answer. The generator's")
    run, _ = served("--json", respond=lambda body: "Hm.")
    assert run.returncode == 1 and json.loads(run.stdout)["stop"] == "parse_error"


@pytest.mark.slow
def test_a_failure_is_one_line_and_exit_code_1():
    config = ["--config=experiments/configs/quickstart.py"]
    config += [f"--config.backends.{name}.limits.retries=0" for name in backends.ROLES]
    run = subprocess.run(
        arguments("--url=http://127.0.0.1:9/v1", "--model=m", *config),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (run.returncode, run.stdout) == (1, "") and "Traceback" not in run.stderr
    assert run.stderr.splitlines()[-1].startswith("error: The question was not solved: the analyst")
    assert run.stderr.endswith("then ask again.\n")


@pytest.mark.slow
def test_on_a_terminal_the_panel_ends_with_the_answer():
    terminal = Terminal(arguments(), TERM="xterm", NO_COLOR="1")
    assert terminal.end() == 0
    lines = [line for line in screen(terminal.text) if line]
    assert lines[-1] == "Madrid" and lines[-2].startswith("1 turn · ")
    assert sum(line.startswith("╭─ turn") for line in lines) == 1
    for told in ("loading", "compiling prefill and decode"):
        assert told in terminal.text and not any(told in line for line in lines)


@pytest.mark.slow
def test_interrupting_a_server_that_hangs_ends_cleanly():
    with loopback.Loopback(loopback.hangs) as server:
        terminal = Terminal(arguments(f"--url={server.url}", "--model=m"), TERM="xterm")
        terminal.wait_for("reads the question")
        start = time.monotonic()
        os.kill(terminal.process.pid, signal.SIGINT)
        assert terminal.end() == 130 and time.monotonic() - start < 5
    assert terminal.text.endswith("interrupted\r\n") and "Traceback" not in terminal.text


@pytest.mark.slow
def test_interrupting_a_rollout_ends_cleanly():
    terminal = Terminal(arguments(), TERM="dumb")
    terminal.wait_for("analyst │")
    os.kill(terminal.process.pid, signal.SIGINT)
    assert terminal.end() in (130, 0)  # it may have been that quick
    assert "Traceback" not in terminal.text


@pytest.mark.slow
def test_interrupting_the_loading_ends_cleanly():
    terminal = Terminal(arguments(), TERM="xterm")
    terminal.wait_for("loading")
    os.kill(terminal.process.pid, signal.SIGINT)
    assert terminal.end() == 130
    assert terminal.text.endswith("interrupted\r\n") and "Traceback" not in terminal.text
