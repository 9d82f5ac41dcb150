"""Measures the agent loop with many solvers in flight, and where its wall time goes.

    python -m experiments.benchmark rollout
    python -m experiments.benchmark rollout --engines=model --in_flight=64 --waves=1

The real driver, prompts, parsers, memory and trajectories of `rollout.collect`; only the time that
tools take is simulated. Two engines:

    script   answers at once, at most `--answers` requests a step, so that little but the driver is
             measured. Its texts are as long as those of the paper's agent (see LENGTHS), none is
             used twice, and the prompts are those for instruction-tuned models; the median tool
             result has 1,500 characters. Every trajectory takes `--turns` turns.
    model    the model of `--config`, by default the one that ships with the quickstart, with that
             config's prompts, questions and tools; `--config.model.path=DIR` takes another.

and two loads: the tools' latency is zero, or log-normal, drawn in the order of the calls from the
seed. There are as many threads for tools as solvers.

    turns/s    finished planner turns per second
    engine     share of the driver's thread spent in the engine; "idle": waiting for tools;
               "driver": everything else. They sum to 1.
    ms/turn    milliseconds of the driver per turn, and its parts: token ids and texts ("tokens"),
               prompts, parsers and memory ("solvers"), handing out calls ("calls"), the rest
    tools      seconds of all tool calls; "at once": mean number of calls at the same time
"""

import concurrent.futures
import dataclasses
import itertools
import json
import pathlib
import random
import time

import numpy as np
from absl import flags, logging
from ml_collections import config_flags

from agents import effects
from experiments.configs import common
from experiments.running import command, dataset, fields, places, sessions, tokens
from experiments.speed import measure
from flow_grpo_jax import files, rollout, timing
from models.engine import types
from models.tokenizer import Tokenizer
from tools import knowledge_base

ENGINES = ("script", "model")
LOADS = ("zero", "lognormal")
LONGEST = 10  # latencies are cut at this many medians

# Median characters of the scripted texts and tool results, and the spread around them.
LENGTHS = {"question": 150, "analyst": 600, "planner": 700, "verifier": 250, "generator": 400}
LENGTHS |= {"sub_goal": 80, "query": 60, "result": 1_500}
SPREAD, CLIP = 0.5, 3


# ---- what is written ---------------------------------------------------------------------------


class Prose:
    """Sentences of the knowledge base in random order, handed out in pieces."""

    def __init__(self, seed, *, characters=2**20):
        self.draw = np.random.default_rng(seed)
        sentences = [
            f"{sentence}."
            for article in knowledge_base.articles()
            for sentence in article.text.rstrip(".").split(". ")
        ]
        drawn = characters // min(map(len, sentences))
        order = self.draw.integers(0, len(sentences), drawn)
        self.text = " ".join(sentences[i] for i in order)[:characters]

    def piece(self, kind):
        """Returns one line of text with about as many characters as LENGTHS says."""
        median = LENGTHS[kind]
        drawn = median * self.draw.lognormal(0.0, SPREAD)
        length = int(np.clip(drawn, median / CLIP, median * CLIP))
        start = int(self.draw.integers(0, len(self.text) - length))
        return self.text[start : start + length].strip().replace('"', "'")


class Script:
    """A stand-in for the engine that answers by the role of a request and ignores its prompt.

    Args:
      tokenizer: not the driver's, whose caches it would warm.
      tools: list of Tool, taken in turns.
      answers: most requests answered in a step, the oldest first.
    """

    def __init__(self, tokenizer, tools, prose, *, answers):
        self.tokenizer, self.tools, self.prose, self.answers = tokenizer, tools, prose, answers
        self.ids, self.waiting, self.tool_of = itertools.count(), {}, {}
        self.next_tool = itertools.cycle(tools)

    @property
    def pending(self):
        return len(self.waiting)

    def submit(self, request):
        id = next(self.ids)
        self.waiting[id] = request
        return id

    def cancel(self, id):
        self.waiting.pop(id, None)

    def advance(self):
        oldest = list(itertools.islice(self.waiting.items(), self.answers))
        for id, _ in oldest:
            del self.waiting[id]
        return [(id, self.completion(request)) for id, request in oldest]

    def completion(self, request):
        *solver, _, role = request.address
        text = self.text(effects.ROLES[role], tuple(solver))
        ids = np.array([*self.tokenizer.encode(text), *self.tokenizer.eos_ids[:1]], np.int32)
        zeros = np.zeros(len(ids), np.float32)
        version = np.zeros(len(ids), np.int32)
        return types.Completion(ids, zeros, zeros, (), "stop", 0, version, 0)

    def text(self, role, solver):
        piece = self.prose.piece
        if role == "planner":
            tool = self.tool_of[solver] = next(self.next_tool)
            return (
                f"Justification: {piece('planner')}\nContext: {piece('sub_goal')}\n"
                f"Sub-goal: {piece('sub_goal')}\nTool: {tool.name}"
            )
        if role == "executor":
            tool = self.tool_of.pop(solver)
            arguments = [f'{parameter.name}="{piece("query")}"' for parameter in tool.parameters]
            return f"{tool.name}({', '.join(arguments)})"
        if role == "verifier":
            return f"{piece('verifier')}\nVerdict: CONTINUE"
        return f"{piece(role)}\nAnswer: {piece('query')}" if role == "generator" else piece(role)


class Latencies:
    """Makes tools take time; thread-safe.

    Args:
      load: of LOADS.
      seconds: the median.
      sigma: standard deviation of the logarithm.
    """

    def __init__(self, load, *, seconds, sigma, seed):
        drawn = np.random.default_rng(seed).lognormal(0.0, sigma, 2**12).clip(max=LONGEST)
        self.drawn = [0.0] if load == "zero" else (seconds * drawn).tolist()
        self.next, self.seconds = itertools.cycle(self.drawn), []

    def slow(self, tool, run):
        """Returns the tool so that it waits, then calls `run`."""

        def waits(**arguments):
            started = time.perf_counter()
            time.sleep(next(self.next))
            try:
                return run(**arguments)
            finally:
                self.seconds.append(time.perf_counter() - started)

        return dataclasses.replace(tool, run=waits)


# ---- a run -------------------------------------------------------------------------------------


@dataclasses.dataclass
class Scripted:
    """The agent with the limits of configs/common.py, answered by a `Script`."""

    tokenizer: Tokenizer
    folder: str
    tools: dict
    settings: rollout.Settings
    answers: int

    def setting(self, count, group, seed):
        """Returns (engine, `count` questions, function from a tool to what it runs) of a run."""
        prose = Prose(seed)
        tools = list(self.tools.values())
        engine = Script(Tokenizer.load(self.folder), tools, prose, answers=self.answers)
        questions = [{"id": f"q{i}", "question": prose.piece("question")} for i in range(count)]
        calls = count * group * self.settings.max_turns
        results = iter([prose.piece("result") for _ in range(calls)])
        return engine, questions, lambda tool: lambda **_: next(results)


def scripted(config, *, turns, answers):
    limits = common.base()
    limits.rollout.max_turns = turns
    folder = sessions.model_folder(config)
    return Scripted(
        tokens.load(folder, stops=config.engine.stop_ids, switches=tokens.switches(config.model)),
        folder,
        sessions.make_tools(config),
        sessions.rollout_settings(limits, temperature=1.0),
        answers,
    )


@dataclasses.dataclass
class Modelled:
    """A config's own model, questions and tools."""

    session: sessions.Session
    settings: rollout.Settings
    questions: list

    @property
    def tokenizer(self):
        return self.session.system.tokenizer

    @property
    def tools(self):
        return self.session.system.tools

    def setting(self, count, group, seed):
        """Returns (engine, `count` questions, function from a tool to what it runs) of a run."""
        questions = random.Random(seed).choices(self.questions, k=count)
        return self.session.system.engine, questions, lambda tool: tool.run


def modelled(config):
    built = sessions.build(config, training=False)
    built.system.engine.warmup()
    settings = sessions.rollout_settings(config, temperature=config.rollout.temperature)
    return Modelled(built, settings, dataset.read(config, config.data.train))


def solve_in_waves(agent, *, in_flight, waves, group, latencies, seed):
    """Solves `waves` times as many trajectories as are in flight.

    Args:
      agent: `Scripted` or `Modelled`.
      latencies: `Latencies`, new.

    Returns:
      ({name: number}, the trajectories).
    """
    engine, questions, run = agent.setting(-(-in_flight * waves // group), group, seed)
    timer = timing.Timer()
    with concurrent.futures.ThreadPoolExecutor(in_flight) as pool:
        started = time.perf_counter()
        groups = rollout.collect(
            questions,
            group=group,
            step=seed,
            system=rollout.System(
                engine,
                agent.tokenizer,
                {name: latencies.slow(tool, run(tool)) for name, tool in agent.tools.items()},
                pool,
            ),
            settings=dataclasses.replace(agent.settings, in_flight=in_flight),
            timer=timer,
        )
        wall = time.perf_counter() - started
    trajectories = [trajectory for members in groups for trajectory in members]
    return summarise(trajectories, timer.seconds, wall, latencies.seconds), trajectories


def summarise(trajectories, seconds, wall, tool_seconds):
    """Returns {name: number} of a run.

    Args:
      seconds: name of `rollout.SHARES` -> seconds of the driver's thread.
      wall: seconds from call to return.
      tool_seconds: of each call.
    """
    turns = [turn for trajectory in trajectories for turn in trajectory.turns]
    overhead = {name: seconds[name] for name in rollout.OVERHEAD}
    return {
        "trajectories": len(trajectories),
        "broken": sum(t.broken for t in trajectories),
        "turns": len(turns),
        "prompt_tokens": float(np.mean([len(turn.prompt_tokens) for turn in turns])),
        "wall_s": wall,
        "trajectories_per_s": len(trajectories) / wall,
        "turns_per_s": len(turns) / wall,
        "engine_share": seconds["engine"] / wall,
        "idle_share": seconds["idle"] / wall,
        "driver_share": sum(overhead.values()) / wall,
        "driver_ms_per_turn": 1e3 * sum(overhead.values()) / len(turns),
        "ms_per_turn": {name: 1e3 * value / len(turns) for name, value in overhead.items()},
        "tool_s": sum(tool_seconds),
        "tools_at_once": sum(tool_seconds) / wall,
    }


def table(runs):
    """Returns lines of text; runs: [((engine, in flight, load), {name: number})]."""
    head = ["", "in flight", "tools'", "traj./s", "turns/s", "prompt", "wall s", "engine", "idle"]
    head += ["driver", "ms/turn", *rollout.OVERHEAD, "tools s", "at once"]
    rows = [head]
    for (engine, in_flight, load), numbers in runs:
        rows.append(
            [
                engine,
                str(in_flight),
                load,
                f"{numbers['trajectories_per_s']:.1f}",
                f"{numbers['turns_per_s']:.1f}",
                f"{numbers['prompt_tokens']:,.0f}",
                f"{numbers['wall_s']:.1f}",
                *[f"{numbers[f'{name}_share']:.3f}" for name in ("engine", "idle", "driver")],
                f"{numbers['driver_ms_per_turn']:.2f}",
                *[f"{value:.2f}" for value in numbers["ms_per_turn"].values()],
                f"{numbers['tool_s']:.1f}",
                f"{numbers['tools_at_once']:.1f}",
            ]
        )
    return measure.aligned(rows)


# ---- the command -------------------------------------------------------------------------------


def define_flags():
    config_flags.DEFINE_config_file(
        "config",
        str(places.CONFIGS / "quickstart.py"),
        "The tokenizer and tools of both engines, and all of the agent of `model`.",
    )
    flags.DEFINE_list("engines", list(ENGINES), f"Of {', '.join(ENGINES)}.")
    flags.DEFINE_list("loads", list(LOADS), f"Of {', '.join(LOADS)}.")
    flags.DEFINE_list("in_flight", ["64", "512"], "Solvers at once.")
    flags.DEFINE_integer("waves", 2, "Trajectories for each solver in flight.", lower_bound=1)
    flags.DEFINE_integer("turns", 3, "Of a trajectory that the script answers.", lower_bound=1)
    flags.DEFINE_integer("answers", 8, "Requests that a step of the script answers.", lower_bound=1)
    flags.DEFINE_float("tool_seconds", 0.5, "Median of a tool's log-normal latency.", 0.0)
    flags.DEFINE_float("sigma", 1.0, "Standard deviation of that latency's logarithm.", 0.0)
    flags.DEFINE_integer("seed", 0, "Of texts and latencies.")
    flags.DEFINE_string("out", "", "File to write, one line of JSON for each run.")


def sizes(values):
    """Returns the numbers of --in_flight."""
    if not all(value.isdecimal() and int(value) for value in values) or not values:
        raise command.ConfigError(f"--in_flight={','.join(values)}: give numbers from 1 up.")
    return [int(value) for value in values]


def main():
    values = flags.FLAGS
    fields.check(values.config)
    engines = measure.known("engines", values.engines, ENGINES)
    loads = measure.known("loads", values.loads, LOADS)
    flights = sizes(values.in_flight)
    names = ("waves", "turns", "answers", "tool_seconds", "sigma", "seed")
    about, runs, lines = measure.about(values, names), [], []
    for engine in engines:
        if engine == "script":
            agent = scripted(values.config, turns=values.turns, answers=values.answers)
        else:
            agent = modelled(values.config)
        for seed, (in_flight, load) in enumerate(itertools.product(flights, loads), values.seed):
            latencies = Latencies(
                load, seconds=values.tool_seconds, sigma=values.sigma, seed=values.seed
            )
            numbers, _ = solve_in_waves(
                agent,
                in_flight=in_flight,
                waves=values.waves,
                group=values.config.rollout.group,
                latencies=latencies,
                seed=seed,
            )
            runs.append(((engine, in_flight, load), numbers))
            logging.info("%s, %d in flight, %s: done", engine, in_flight, load)
            run = {"engine": engine, "in_flight": in_flight, "load": load}
            lines.append(json.dumps(about | run | numbers) + "\n")
            if values.out:
                files.replace_text(pathlib.Path(values.out), "".join(lines))
    measure.write_lines(table(runs))
