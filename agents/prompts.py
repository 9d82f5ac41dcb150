"""Every word the modules are told, in one place.

What never changes comes first (role, tools, form), then the question, then the memory, so that
prompts share prefixes across questions, rollouts and turns.
"""

import dataclasses

from tools import toolbox

SHORTENED_CHARACTERS = 60


@dataclasses.dataclass(frozen=True)
class Prompts:
    """A set of prompts.

    system: role -> system text; `{tools}` is replaced by the tool metadata.
    step: template of one remembered step, fields of `memory.Step` and `number`.
    full_metadata: whether tools are described in full or by name and parameters.
    """

    system: dict
    step: str
    full_metadata: bool


COMPACT = Prompts(
    system={
        "analyst": "analyse",
        "planner": "plan {tools}",
        "executor": "call {tool}",
        "verifier": "verify",
        "generator": "answer",
        "base": "base",
    },
    step="{number}. {sub_goal} | {command} | {result} | {verdict}",
    full_metadata=False,
)
"""For models trained on these prompts (the quickstart's): the form is in the weights."""

INSTRUCT = Prompts(
    system={
        "analyst": (
            "You analyse questions for a team that solves them step by step with tools.\n"
            "Say in at most three short sentences what is asked, which facts or computations are "
            "needed, and in which order. Do not answer the question."
        ),
        "planner": (
            "You are the planner of a team that answers a question step by step with tools.\n"
            "Available tools:\n{tools}\n\n"
            "Decide the single best next step. Use what the memory already holds, never repeat a "
            "step that failed in the same way, and put every fact the tool needs into the "
            "context: the tool sees nothing else.\n"
            "Answer in exactly this form:\n"
            "Justification: why this step comes next\n"
            "Context: the facts, names and numbers the tool needs\n"
            "Sub-goal: what this one step must achieve\n"
            "Tool: one tool name from the list"
        ),
        "executor": (
            "You write the command that makes a tool reach a sub-goal.\n"
            "The tool:\n{tool}\n\n"
            "Answer with one Python call of this tool and nothing else, with keyword arguments "
            "that are plain literals."
        ),
        "verifier": (
            "You check whether a team has what it needs to answer a question.\n"
            "Read the question and the memory. Is the newest result valid, and does the memory "
            "hold everything needed for a complete and correct answer? Explain in one sentence.\n"
            "Then end with one line, either\nVerdict: STOP\nif nothing more is needed, or\n"
            "Verdict: CONTINUE"
        ),
        "generator": (
            "You write the final answer to a question from the results in the memory.\n"
            "Explain briefly how the results lead to it. Then end with one line:\n"
            "Answer: the answer alone, as short as possible"
        ),
        "base": "Answer the question from your own knowledge, briefly and precisely.",
    },
    step=(
        "Step {number}\nSub-goal: {sub_goal}\nTool: {tool}\nCommand: {command}\n"
        "Result: {result}\nVerdict: {verdict}"
    ),
    full_metadata=True,
)
"""For instruction-tuned models such as Qwen2.5-7B-Instruct."""

SETS = {"compact": COMPACT, "instruct": INSTRUCT}


class PromptTooLong(Exception):
    """The prompt does not fit although every older result was shortened."""


def analyst(prompts, question):
    return _messages(prompts.system["analyst"], f"Question: {question}")


def planner(prompts, tools, question, analysis, memory):
    described = [toolbox.describe(tool, full=prompts.full_metadata) for tool in tools.values()]
    listed = ("\n" if prompts.full_metadata else " ").join(described)
    system = prompts.system["planner"].replace("{tools}", listed)
    return _messages(system, _state(prompts, question, analysis, memory))


def executor(prompts, tool, context, sub_goal):
    described = toolbox.describe(tool, full=prompts.full_metadata)
    system = prompts.system["executor"].replace("{tool}", described)
    return _messages(system, f"Context: {context}\nSub-goal: {sub_goal}")


def verifier(prompts, question, analysis, memory):
    return _messages(prompts.system["verifier"], _state(prompts, question, analysis, memory))


def generator(prompts, question, analysis, memory):
    return _messages(prompts.system["generator"], _state(prompts, question, analysis, memory))


def base(prompts, ask):
    return _messages(prompts.system["base"], ask)


def fit(build, memory, fits):
    """Builds messages that fit, shortening the oldest results first, never the newest step.

    Args:
      build: memory -> messages.
      fits: messages -> bool, whether the tokenised prompt is within the limit.

    Returns:
      (messages, number of results shortened).

    Raises:
      PromptTooLong: even with every older result shortened.
    """
    for oldest in range(max(len(memory.steps), 1)):
        messages = build(memory.shortened(oldest, characters=SHORTENED_CHARACTERS))
        if fits(messages):
            return messages, oldest
    raise PromptTooLong("The prompt exceeds its token limit with all older results shortened.")


def _messages(system, user):
    return ({"role": "system", "content": system}, {"role": "user", "content": user})


def _state(prompts, question, analysis, memory):
    lines = [f"Question: {question}", f"Analysis: {analysis}"]
    for number, step in enumerate(memory.steps, start=1):
        fields = dataclasses.asdict(step) | {"number": number}
        lines.append(prompts.step.format(**fields).rstrip())
    return "\n".join(lines)
