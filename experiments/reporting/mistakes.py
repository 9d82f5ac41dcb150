"""What went wrong in a trajectory, in a few words."""

from agents.trajectory import Status, Stop

OF_STATUS = {
    Status.TRUNCATED: "met a token limit",
    Status.TIMEOUT: "ran out of time",
    Status.INFRA_ERROR: "infrastructure failed",
}
UNREADABLE_ANSWER = "no readable answer"
WRONG = "stopped with a wrong answer"
TURNS_USED_UP = "turns used up, not solved"


def of_turn(turn):
    """Returns what went wrong in a turn, as a `trajectories` record, or "".

    Runs of before this was written down do not tell an unreadable command from a failed call.
    """
    if turn["tool_error"] and not turn["tool"]:
        return "unreadable plan"
    if turn["tool_error"] and turn["parse_failures"]:
        return f"{turn['tool']}: unreadable command"
    if turn["tool_error"]:
        return f"{turn['tool']}: error"
    return "unreadable verdict" if turn["parse_failures"] else ""


def of_trajectory(trajectory):
    """Returns all that went wrong, as a list of names, each once."""
    found = [of_turn(turn) for turn in trajectory["turns"]]
    found.append(OF_STATUS.get(trajectory["status"], ""))
    reward = trajectory["reward"]
    if trajectory["stop"] == Stop.PARSE_ERROR:
        found.append(UNREADABLE_ANSWER)
    elif reward is not None and reward < 1 and trajectory["status"] == Status.OK:
        found.append({Stop.VERIFIED: WRONG, Stop.BUDGET: TURNS_USED_UP}.get(trajectory["stop"], ""))
    return [name for name in dict.fromkeys(found) if name]
