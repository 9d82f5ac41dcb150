"""Demonstrations on the frozen lake, for a warm start: a walker that errs in some of its steps."""

import json
import random
import re

from agents import effects, prompts, solve
from agents.environments import protocol
from experiments.configs import lake
from experiments.running import dataset
from tools.protocol import call

MOVES = {"l": "left", "d": "down", "r": "right", "u": "up"}
WAY = ("drdl", "d.d.", "rrd.", ".rr.")  # the right move from each cell


def walk(tool, question, rng, **how):
    """Yields the conversations of an episode, as `experiments.warmstart` reads them."""
    solver = solve.solve(question, tools={"act": tool}, prompt_set=prompts.COMPACT, **how)
    told, sent = question["question"], None
    while True:
        try:
            effect = solver.send(sent)
        except StopIteration:
            return
        if isinstance(effect, effects.ToolCall):
            sent = effects.ToolResult(told := call(tool, effect.arguments))
            continue
        row, column = map(int, re.findall(r"row (\d), column (\d)", told)[-1])
        if effect.role == "planner":
            move = MOVES[rng.choice("ldru") if rng.random() < 0.3 else WAY[row][column]]
        text = {"analyst": "act", "generator": "Answer: -"}.get(effect.role) or {
            "planner": f"Context: {row} {column}\nSub-goal: {move}\nTool: act",
            "executor": f'act(action="{move}")',
            "verifier": f"Verdict: {'STOP' if 'It is over.' in told else 'CONTINUE'}",
        }[effect.role]
        sent = effects.Reply(text)
        reply = {"role": "assistant", "content": text}
        yield {"module": effect.role, "messages": [*effect.messages, reply]}


if __name__ == "__main__":
    c, rng = lake.get_config(), random.Random(0)
    with dataset.environment(c.data.environment) as world:
        [question] = world.questions("train", 1)
        for _ in range(200):
            act = protocol.Play(world, question).tools["act"]
            for row in walk(act, question, rng, max_turns=c.rollout.max_turns):
                print(json.dumps(row))  # noqa: T201
