"""Run folders as experiments.train leaves them, made up.

    python -m tests.experiments.fake_runs --out=runs/large --steps=50 --words=950

makes one of 5,040 trajectories, 63 MB, to see how a report of it opens.
"""

import argparse
import json
import pathlib
import random
import re

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u2028\u202e&amp;\x1b[31m"
TOOLS = ("knowledge_search", "python_coder", "base_generator")
WORDS = tuple("".join(random.Random(n).choices("aeinorst", k=2 + n % 9)) for n in range(200))
PLACES = ("Lake Constance", "Mount Etna", "the Danube", "Tartu", "Ljubljana", "Lake Ohrid")


def fake_turn(draw, index, *, skill, last, words=0):
    tool = draw.choices(TOOLS, weights=(1 + 6 * skill, 2, 3 - 2 * skill))[0]
    place = draw.choice(PLACES)
    error = draw.random() < 0.45 * (1 - skill)
    command = {
        "knowledge_search": f'tool.execute(query="{place} area")',
        "python_coder": 'tool.execute(code="a = 1184\\nb = 376.9\\nprint(a - b)")',
        "base_generator": f'tool.execute(prompt="What is known about {place}?")',
    }[tool]
    result = f"{place}: a well documented place. Area {draw.randint(20, 900)} km2, 3 rivers.\n" * 3
    result += " ".join(draw.choices(WORDS, k=words))
    text = f"Context: the area of {place} is missing.\nSub-goal: its area\nTool: {tool}"
    wrote = re.findall(r"\s*\S+", text)
    return {
        "index": index,
        "prompt_tokens": 180 + 70 * index,
        "response_tokens": len(wrote),
        "planner_text": "".join(wrote),
        "token_characters": [len(word) for word in wrote],
        "token_logprobs": [-round(draw.random() ** 4 * 4 * (1.2 - skill), 4) for _ in wrote],
        "parse_failures": int(error and draw.random() < 0.5),
        "context": f"The question compares two places; {place} is one of them.",
        "sub_goal": f"Find the area of {place}.",
        "tool": tool,
        "command": command,
        "result": "ToolError: the command names no parameter 'code'." if error else result,
        "tool_error": error,
        "verdict": "STOP" if last else "CONTINUE",
        "logprob_sum": -draw.random() * 9 * (1.2 - skill),
        "seconds": draw.random(),
    }


def fake_trajectory(draw, step, question, rollout, *, skill, words=0):
    right = draw.random() < 0.2 + 0.75 * skill
    count = draw.choice((1, 2, 2, 3))
    failed = draw.random() < 0.01
    return {
        "version": 1,
        "step": step,
        "question_id": f"q{question}",
        "rollout": rollout,
        "question": f"How much larger is {PLACES[question % 6]} than {PLACES[(question + 2) % 6]}, "
        f"in square kilometres, rounded to {question % 3} digits?",
        "gold": ["160", "160 km2"] if question % 2 else "807.1",
        "source": f"geo/{1 + question % 2}-hop",
        "analysis": "Two look-ups, then a subtraction.",
        "turns": [
            fake_turn(draw, i, skill=skill, last=i == count - 1 and right, words=words)
            for i in range(count)
        ],
        "answer": "160" if right else "about 12",
        "reward": None if failed else float(right),
        "reward_source": "number",
        "advantage": 0.0 if failed else (0.7 if right else -0.9),
        "status": "infra_error" if failed else "ok",
        "stop": "verified" if right else "budget",
        "seconds": 2.5 + draw.random(),
        "error": "pool worker died" if failed else "",
    }


def fake_metrics(draw, step, steps):
    skill = step / steps
    row = {
        "reward/mean": 0.2 + 0.7 * skill + draw.gauss(0, 0.06),
        "reward/std": 0.4,
        "group/zero_variance": 0.1 + 0.5 * skill,
        "rollout/turns": 2.1 - 0.3 * skill + draw.gauss(0, 0.1),
        "rollout/tool_error_rate": 0.42 * (1 - skill) + 0.03 + 0.02 * draw.random(),
        "rollout/truncated": 0.02 * draw.random(),
        "rollout/infra_errors": 0.0,
        "tokens/generated": 21_400 + draw.randint(-900, 900),
        "loss/kl": 0.02 * skill,
        "policy/entropy": 0.9 - 0.5 * skill + draw.gauss(0, 0.03),
        "policy/logprob_gap_mean": 1.1e-6 * (1 + draw.random()),
        "policy/logprob_gap_max": 1.4e-5 * (1 + draw.random()),
        "policy/logprob_gap_k3": 1e-12 * (1 + draw.random()),
        "policy/clip_fraction": 0.01 + 0.02 * draw.random(),
        "optim/grad_norm": 0.3 + 0.2 * draw.random(),
        "time/rollout": 5.2 + draw.random(),
        "time/update": 2.9 + draw.random() / 3,
        "time/step": 8.4 + draw.random(),
        "throughput/generated_tokens_per_s": 3900 + draw.gauss(0, 150),
        "compile/count": 9.0,
        "loss/total": draw.gauss(0, 0.02),
    }
    search = 0.3 + 0.4 * skill
    shares = (search, 0.25, 0.75 - search)
    row |= {f"tool/{tool}/share": share for tool, share in zip(TOOLS, shares, strict=True)}
    if step == 0:
        row = {}
    if step % 10 == 0:
        correct = round(100 * (0.36 + 0.57 * skill))
        row |= {
            "eval/success": correct / 100,
            "eval/correct": correct,
            "eval/total": 100,
            "eval/success/geo/1-hop": 0.5 + 0.45 * skill,
            "eval/success/geo/2-hop": 0.1 + 0.6 * skill,
            "eval/turns": 2.2 - 0.2 * skill,
            "eval/tool_error_rate": 0.31 * (1 - skill) + 0.02,
        }
    return {"step": step} | row


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def with_texts(trajectory, hostile):
    """Puts `hostile` into every text of a trajectory and of its first turn."""
    changed = {k: hostile if isinstance(v, str) else v for k, v in trajectory.items()}
    turn = {k: hostile if isinstance(v, str) else v for k, v in trajectory["turns"][0].items()}
    return changed | {"turns": [turn, *trajectory["turns"][1:]]}


def fake_run(folder, *, steps, questions, group, hostile="", words=0):
    """A run folder as experiments.train leaves it.

    hostile: in every text of some trajectories.    words: that each tool's result has beside.
    """
    draw = random.Random(0)
    folder.mkdir(parents=True)
    config = {
        "hash": "6f1c9a",
        "config": {
            "seed": 0,
            "steps": steps,
            "model": {"path": "experiments/data/quickstart/model"},
            "rollout": {"questions": questions, "group": group, "max_turns": 3, "temperature": 1.0},
            "loss": {"variant": "flow", "kl_coef": 0.001},
            "optim": {"lr": 3e-4},
            "note": hostile,
        },
        "sandbox": {"level": "strict"},
        "kernels": {"engine": "loop"},
        "versions": {"jax": "0.10.2", "devices": "1 x cpu"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    write_lines(folder / "metrics.jsonl", [fake_metrics(draw, s, steps) for s in range(steps + 1)])
    for step in range(1, steps + 1):
        rows = [
            fake_trajectory(
                draw, step, (step * questions + q) % 97, g, skill=step / steps, words=words
            )
            for q in range(questions)
            for g in range(group)
        ]
        if hostile and step == steps:
            rows[0] = with_texts(rows[0], hostile)
        write_lines(folder / "trajectories" / f"step_{step:06d}.jsonl", rows)
    for step in range(0, steps + 1, 10):
        rows = [
            fake_trajectory(draw, step, 200 + q, 0, skill=step / steps, words=words)
            for q in range(40)
        ]
        if hostile:  # newly solved at the end, so that the page names it
            rows[0] = with_texts(rows[0], hostile) | {"reward": float(step == steps)}
        write_lines(folder / "trajectories" / f"heldout_{step:06d}.jsonl", rows)
    return folder


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="run folder to make")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--questions", type=int, default=12)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--words", type=int, default=0, help="of each tool's result, beside a few")
    values = vars(parser.parse_args())
    fake_run(values.pop("out"), **values)


if __name__ == "__main__":
    main()
