"""The record of one solved question, and its stable JSON form."""

import dataclasses

VERSION = 1


@dataclasses.dataclass(frozen=True)
class Turn:
    """One planner turn and what came of it.

    prompt_tokens, response_tokens: the token ids the planner saw and sampled; training uses these,
      never a re-tokenised text.
    logprobs: nats, log π_old of response_tokens under the distribution they were drawn from.
    finished: False when the token limit cut the planner off.
    tool_error: the turn gave no result: unreadable plan or command, unknown tool, failed call.
    parse_failures: texts of this turn's modules that their strict parser refused.
    verdict: "CONTINUE" or "STOP".
    """

    index: int
    prompt_tokens: tuple[int, ...]
    response_tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finished: bool
    planner_text: str
    context: str
    sub_goal: str
    tool: str
    command: str
    result: str
    tool_error: bool
    verdict: str
    parse_failures: int
    shortened: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """status: "ok", "truncated" (a planner response or prompt met its limit), "timeout" or
    "infra_error". stop: "verified", "budget", "deadline" or "parse_error" (no answer came).
    attempts: times it was started; more than 1 after infrastructure failures."""

    question_id: str
    rollout: int
    analysis: str
    turns: tuple[Turn, ...]
    answer: str
    status: str
    stop: str
    seconds: float
    error: str = ""
    attempts: int = 1


def to_json(trajectory, *, question, step, reward, reward_source, advantage):
    """The line written to `trajectories/*.jsonl`; see docs/design.md for the schema."""
    turns = [
        {
            "index": turn.index,
            "prompt_tokens": len(turn.prompt_tokens),
            "response_tokens": len(turn.response_tokens),
            "planner_text": turn.planner_text,
            "context": turn.context,
            "sub_goal": turn.sub_goal,
            "tool": turn.tool,
            "command": turn.command,
            "result": turn.result,
            "tool_error": turn.tool_error,
            "verdict": turn.verdict,
            "logprob_sum": float(sum(turn.logprobs)),
            "seconds": round(turn.seconds, 4),
        }
        for turn in trajectory.turns
    ]
    return {
        "version": VERSION,
        "step": step,
        "question_id": trajectory.question_id,
        "rollout": trajectory.rollout,
        "question": question["question"],
        "gold": question["answer"],
        "analysis": trajectory.analysis,
        "turns": turns,
        "answer": trajectory.answer,
        "reward": reward,
        "reward_source": reward_source,
        "advantage": advantage,
        "status": trajectory.status,
        "stop": trajectory.stop,
        "seconds": round(trajectory.seconds, 4),
        "error": trajectory.error,
        "attempts": trajectory.attempts,
    }
