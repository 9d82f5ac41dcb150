"""Writes what a run did right as conversations to learn: the data of expert iteration.

    python -m experiments.successes --workdir=runs/quickstart --out=runs/successes.jsonl
    python -m experiments.warmstart --config=FILE --workdir=DIR \
        --config.warmstart.start=MODEL --config.warmstart.data=runs/successes.jsonl

Takes the training trajectories that earned the reward, not the held-out ones, and plays each again
through the agent with its stored texts and results, so that the prompts are those of the rollouts.
A turn whose tool call failed is left out, and what was written twice to the same prompt counts
once. The run stores the whole text of planner, executor and analyst alone.

Source: rejection sampling and fine-tuning, as in arXiv 2203.14465 and 2308.01825.
"""

import collections
import json
import pathlib
import re

from absl import flags, logging

from agents import effects, parsing, prompts, solve
from agents.trajectory import Status
from experiments.reporting import trajectories
from experiments.running import command, sessions, stored, tokens, trust
from experiments.warmstarting import conversations, material

STORED = ("planner", "executor", "analyst")  # modules whose texts trajectories hold
NEEDED = {"question_id", "rollout", "question", "status", "reward", "analysis", "turns"}
TEXTS = ("planner_text", "tool", "command", "result", "verdict")  # of a turn
SHOWN = 3  # trajectories that a warning names


class Unlike(ValueError):
    """A trajectory cannot be played again: the agent would ask something else today."""


def successes(
    workdir, out, *, modules, reward, per_question, first_step=0, last_step=None, trusted=False
):
    """Writes the conversations of a run's successes to `out`, newest steps first.

    Args:
      workdir: run folder of `experiments.train`.
      modules: of STORED.
      reward: least reward of a success.
      per_question: most trajectories of a question, the newest; 0 takes all.
      first_step, last_step: of the trajectories; None is the last.
      trusted: whether the user trusts the maker of `workdir`.

    Returns:
      {"trajectories", "successes", "questions", "replies", "unlike", "damaged": counts}.

    Raises:
      ConfigError: no success was found, or `workdir` needs the user's word.
    """
    workdir = pathlib.Path(workdir)
    if unknown := [module for module in modules if module not in STORED]:
        raise command.ConfigError(
            f"--modules has {', '.join(unknown)}; a run stores the texts of {', '.join(STORED)}."
        )
    config, _ = stored.open_config(workdir, uses=lambda config: ("model", "tools"), trusted=trusted)
    paths = _paths(workdir, first_step, last_step)
    vocabulary = tokens.load(
        sessions.model_folder(config),
        stops=config.engine.stop_ids,
        switches=tokens.switches(config.model),
    )
    how = dict(
        tools=sessions.make_tools(material.without_articles(config)),
        prompt_set=sessions.rollout_settings(config, temperature=0.0).prompt_set,
        budget=prompts.Budget(
            config.rollout.max_prompt_tokens, lambda messages: len(vocabulary.chat(messages))
        ),
    )
    counts, taken, examples, unlike = collections.Counter(), collections.Counter(), {}, []
    for path in reversed(paths):
        for line in trajectories.read_lines(path):
            if line is None or not line.keys() >= NEEDED:
                counts["damaged"] += 1
                continue
            counts["trajectories"] += 1
            if not _is_success(line, reward):
                continue
            asked = json.dumps([line["question_id"], line["question"]])
            if per_question and taken[asked] == per_question:
                continue
            place = f"{path.name}, question {line['question_id']}, rollout {line['rollout']}"
            place = command.visible(place)
            try:
                found = list(replay(line, place, **how))
            except Unlike as problem:
                unlike.append(f"{place} {problem}")
                continue
            taken[asked] += 1
            for example in found:
                if example.module in modules:
                    key = example.module, json.dumps(example.messages), example.reply
                    examples.setdefault(key, example)
    if unlike:
        logging.warning(
            "left out %d trajectories that the agent would not repeat today: %s",
            len(unlike),
            "; ".join(unlike[:SHOWN]),
        )
    if not examples:
        raise command.ConfigError(
            f"{workdir}: none of {counts['trajectories']} training trajectories earned a reward of "
            f"{reward} and could be played again; train for longer, or lower --reward."
        )
    conversations.write(out, examples.values())
    return dict(
        trajectories=counts["trajectories"],
        successes=taken.total(),
        questions=len(taken),
        replies=len(examples),
        unlike=len(unlike),
        damaged=counts["damaged"],
    )


def replay(line, place, *, tools, prompt_set, budget):
    """Yields the Examples of a stored trajectory, those of failed calls left out.

    Args:
      line: of trajectories/step_*.jsonl.
      place: names it in an error.
      tools, prompt_set, budget: of `solve.solve`, as the run had them.

    Raises:
      Unlike: the agent asks something else than then.
    """
    _check(line)
    question = {"id": line["question_id"], "question": line["question"]}
    turns = line["turns"]
    solver = solve.solve(
        question, tools=tools, prompt_set=prompt_set, budget=budget, max_turns=len(turns)
    )
    index, results = -1, iter(())
    effect = next(solver)
    while True:
        turn = turns[index] if index >= 0 else None
        if isinstance(effect, effects.ToolCall):
            sent = next(results, None)
            if sent is None:
                raise Unlike(f"calls {effect.tool} once more in turn {index + 1}")
        else:
            role = effect.role
            if role == "generator":
                if index + 1 < len(turns):
                    raise Unlike(f"ends after turn {index + 1} of {len(turns)}")
                return
            if role == "planner":
                index += 1
                turn = turns[index]
                if (now := budget.count(effect.messages)) != turn["prompt_tokens"]:
                    raise Unlike(
                        f"asks the planner with {now} tokens in turn {index + 1}, then "
                        f"{turn['prompt_tokens']}"
                    )
            elif role == "executor":
                results = iter(_results(turn, tools))
            text = _text(role, line, turn)
            if role in STORED and not (turn and turn["tool_error"]):
                yield conversations.Example(place, role, effect.messages, text)
            sent = effects.Reply(text)
        try:
            effect = solver.send(sent)
        except StopIteration as stop:
            raise Unlike(f"ends with {stop.value.error or 'no answer'}") from None


def _check(line):
    """Raises Unlike for a line whose fields are not what a run writes."""
    turns = line["turns"]
    whole = (
        all(isinstance(line[name], str) for name in ("question_id", "question", "analysis"))
        and isinstance(turns, list)
        and turns != []
        and all(isinstance(turn, dict) for turn in turns)
        and all(isinstance(turn.get(name), str) for turn in turns for name in TEXTS)
        and all(isinstance(turn.get("tool_error"), bool) for turn in turns)
        and all(isinstance(turn.get("prompt_tokens"), int) for turn in turns)
    )
    if not whole:
        raise Unlike("is damaged: fields are missing, or of another type")


def _text(role, line, turn):
    """Returns what a module wrote; of the verifier, what it came to."""
    if role == "analyst":
        return line["analysis"]
    if role == "verifier":
        return f"Verdict: {turn['verdict']}"
    return turn["planner_text" if role == "planner" else "command"]


def _results(turn, tools):
    """Returns ToolResults that give the stored result of a turn; a run stores it joined."""
    text = turn["result"]
    if turn["tool_error"]:
        if text.startswith("Error: "):
            return [effects.ToolResult(text.removeprefix("Error: "), error=True)]
        good, _, bad = text.partition("\nError: ")
        return [effects.ToolResult(good), effects.ToolResult(bad, error=True)]
    if turn["tool"] not in tools:
        raise Unlike(f"calls {turn['tool']}, which is no tool of the run")
    try:
        calls = parsing.calls(turn["command"], tools[turn["tool"]])
    except parsing.ParseError as refused:
        raise Unlike(f"has a command that is refused: {refused}") from None
    return [effects.ToolResult(part) for part in text.split("\n", len(calls) - 1)]


def _is_success(line, reward):
    earned = line["reward"]
    return line["status"] == Status.OK and isinstance(earned, int | float) and earned >= reward


def _paths(workdir, first, last):
    """Returns the files of training trajectories, in order of step."""
    found = []
    for path in (workdir / "trajectories").glob("step_*.jsonl"):
        if number := re.fullmatch(r"step_(\d+)", path.stem):
            found.append((int(number[1]), path))
    if not found:
        raise command.ConfigError(f"{workdir}/trajectories holds no training trajectories.")
    kept = [
        path for step, path in sorted(found) if first <= step and (last is None or step <= last)
    ]
    if not kept:
        steps = sorted(step for step, _ in found)
        end = "the last" if last is None else last
        raise command.ConfigError(
            f"No step from {first} to {end}: {workdir} has trajectories of {steps[0]} to "
            f"{steps[-1]}."
        )
    return kept


def define_flags():
    flags.DEFINE_string("workdir", None, "Run folder of experiments.train.")
    flags.DEFINE_string("out", None, "File of conversations to write, .jsonl.")
    flags.DEFINE_list("modules", ["planner"], f"Whose replies, of {', '.join(STORED)}.")
    flags.DEFINE_float("reward", 1.0, "Least reward of a success.", lower_bound=0.0)
    flags.DEFINE_integer("per_question", 0, "Most trajectories of a question; 0: all.", 0)
    flags.DEFINE_integer("first_step", 0, "Of the trajectories.", 0)
    flags.DEFINE_integer("last_step", None, "Of the trajectories; the newest if not given.", 0)
    flags.DEFINE_bool("trust", False, trust.HELP)


def main():
    values = flags.FLAGS
    command.check_out(values.out, folder=False)
    if not values.out.endswith(".jsonl"):
        raise command.ConfigError(f"--out={values.out} must end in .jsonl.")
    counts = successes(
        values.workdir,
        values.out,
        modules=values.modules,
        reward=values.reward,
        per_question=values.per_question,
        first_step=values.first_step,
        last_step=values.last_step,
        trusted=values.trust,
    )
    logging.info(
        "%s: %d replies of %d successes, %d questions; %d trajectories were read",
        values.out,
        *(counts[name] for name in ("replies", "successes", "questions", "trajectories")),
    )
    if counts["damaged"]:
        logging.warning("%d damaged lines were left out", counts["damaged"])


if __name__ == "__main__":
    define_flags()
    command.run(main, required=("workdir", "out"))
