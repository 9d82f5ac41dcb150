"""Trajectories in two formats of others: OpenAI's chat messages, and ATIF 1.4.

ATIF is the Agent Trajectory Interchange Format of the Harbor framework
(harborframework.com/docs/trajectory-format, RFC 0001). A step of ours is a planner turn: what it
wrote, the tool call that the executor made of it, the tool's result and the verdict.
"""

import dataclasses
import datetime
import json

from agents import parsing
from tools.protocol import Parameter, Tool

ATIF = "ATIF-v1.4"
AGENT = "flow_grpo_jax"


def describe(tools):
    """Returns name -> Tool as JSON-able data, from which the exports read calls."""
    return [
        {
            "name": tool.name,
            "description": tool.description,
            "parameters": [dataclasses.asdict(parameter) for parameter in tool.parameters],
        }
        for tool in tools.values()
    ]


def described(tools):
    """Returns name -> Tool of `describe`d ones; they can be read for, not run."""
    return {
        tool["name"]: Tool(
            name=tool["name"],
            description=tool["description"],
            parameters=tuple(Parameter(**parameter) for parameter in tool["parameters"]),
            limits="",
            demo=tool["name"],
            run=_not_run,
            seconds=0.0,
        )
        for tool in tools
    }


def _not_run(**arguments):
    raise AssertionError("a tool of an export is not run")


def calls(turn, tools):
    """Returns the tool calls of a turn that were made, [(name, arguments, result)].

    [] of a command that is none. A line of before results were kept apart has them all at the last.
    """
    tool = tools.get(turn["tool"])
    if tool is None or not turn["command"]:
        return []
    try:
        given = [_plain(found) for found in parsing.calls(turn["command"], tool)]
    except parsing.ParseError:
        return []
    results = turn.get("results", [""] * (len(given) - 1) + [turn["result"]])
    return [(tool.name, one, result) for one, result in zip(given, results, strict=False)]


def _plain(arguments):
    """Returns literal arguments as JSON has them."""
    return json.loads(json.dumps(arguments, default=list))


def messages(line, tools):
    """Returns a ledger line as {"messages", "tools", "metadata"} of OpenAI's chat API."""
    solved = line["trajectory"]
    said = [{"role": "user", "content": solved["question"]}]
    if solved["analysis"]:
        said.append({"role": "assistant", "content": solved["analysis"]})
    for turn in solved["turns"]:
        found = calls(turn, tools)
        ids = [f"call_{turn['index']}_{number}" for number in range(1, len(found) + 1)]
        if not found:
            said.append({"role": "assistant", "content": turn["planner_text"]})
            said.append({"role": "user", "content": turn["result"]})
            continue
        made = [
            {"id": id, "type": "function", "function": {"name": n, "arguments": json.dumps(given)}}
            for id, (n, given, _) in zip(ids, found, strict=True)
        ]
        said.append({"role": "assistant", "content": turn["planner_text"], "tool_calls": made})
        said += [
            {"role": "tool", "tool_call_id": id, "content": result}
            for id, (*_, result) in zip(ids, found, strict=True)
        ]
    said.append({"role": "assistant", "content": solved["answer"]})
    return {
        "messages": said,
        "tools": [_function(tool) for tool in tools.values()],
        "metadata": {"key": line["key"], "status": solved["status"], "gold": solved["gold"]},
    }


def _function(tool):
    types = {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}
    properties = {
        p.name: {"type": types[p.type], "description": p.description} for p in tool.parameters
    }
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    about = {"name": tool.name, "description": tool.description, "parameters": schema}
    return {"type": "function", "function": about}


def atif(line, tools, *, model, version, scores):
    """Returns a ledger line as an ATIF trajectory.

    model: name of what answers.    version: of this program.    scores: {scorer: value}.
    """
    solved, key = line["trajectory"], line["key"]
    _, _, mode, protocol, max_turns, _ = key
    clock = datetime.datetime.fromisoformat(line["ended"])
    clock -= datetime.timedelta(seconds=solved["seconds"])
    steps = [{"timestamp": clock.isoformat(), "source": "user", "message": solved["question"]}]
    if solved["analysis"]:
        steps.append(_says(clock, solved["analysis"], {"module": "analyst"}))
    for turn in solved["turns"]:
        clock += datetime.timedelta(seconds=turn["seconds"])
        steps.append(_step(clock, turn, tools))
    steps.append(_says(datetime.datetime.fromisoformat(line["ended"]), solved["answer"], {}))
    steps[-1]["extra"] = {"module": "generator", "stop": solved["stop"]}
    agent = {"name": AGENT, "version": version, "model_name": model}
    agent["extra"] = {"mode": mode, "protocol": protocol, "max_turns": max_turns}
    turns = solved["turns"]
    return {
        "schema_version": ATIF,
        "session_id": "/".join(map(str, key)),
        "agent": agent,
        "steps": [{"step_id": number, **step} for number, step in enumerate(steps, start=1)],
        "final_metrics": {
            "total_prompt_tokens": sum(turn["prompt_tokens"] for turn in turns),
            "total_completion_tokens": sum(turn["response_tokens"] for turn in turns),
            "total_steps": len(steps),
            "extra": {"scores": scores, "status": solved["status"], "gold": solved["gold"]},
        },
        "notes": "Token counts are the planner's; the other modules' are not kept.",
    }


def _says(clock, text, extra):
    return {"timestamp": clock.isoformat(), "source": "agent", "message": text, "extra": extra}


def _step(clock, turn, tools):
    extra = {name: turn[name] for name in ("context", "sub_goal", "verdict", "tool_error")}
    step = _says(clock, turn["planner_text"], {"module": "planner", **extra})
    results = [{"content": turn["result"]}]
    if found := calls(turn, tools):
        ids = [f"call_{turn['index']}_{i}" for i in range(1, len(found) + 1)]
        step["tool_calls"] = [
            {"tool_call_id": id, "function_name": n, "arguments": given}
            for id, (n, given, _) in zip(ids, found, strict=True)
        ]
        results = [
            {"content": result, "source_call_id": id}
            for id, (*_, result) in zip(ids, found, strict=True)
        ]
    step["observation"] = {"results": results}
    step["metrics"] = {
        "prompt_tokens": turn["prompt_tokens"],
        "completion_tokens": turn["response_tokens"],
        "extra": {"logprob_sum": turn["logprob_sum"]},
    }
    return step
