"""What each metric of metrics.jsonl means: the source of docs/reference.md.

<x> in a name stands for each thing of that kind in a run.
"""

import fnmatch
import re

# Lines of names that share a meaning, and below them that meaning.
METRICS = """
reward/mean, reward/std
    over valid trajectories, without branches: those with a known reward that neither
    infrastructure nor a deadline ended
group/zero_variance
    share of groups whose valid rewards are all equal, which teach nothing; where rollouts
    branch, share of points whose actions all had the same outcome
branch/points, branch/mean_range
    points with two or more valid outcomes; mean over points of highest minus lowest outcome;
    only with `loss.variant="turns"`, where `rollout/…` and `tool/…` are over roots
branch/same_action_share, branch/tokens
    share of branches that drew exactly the root's tokens; planner tokens of branches, part of
    `tokens/generated`
branch/timeouts, branch/infra_errors
    branches left out, including those of broken roots
rollout/valid_share
    valid trajectories / all
rollout/turns
    planner turns per trajectory
rollout/tool_error_rate
    share of turns that gave no result
rollout/parse_failure_rate
    share of turns in which a parser refused a module's text
rollout/shortened_prompts
    share of turns whose planner prompt needed older results shortened
rollout/too_long
    share of trajectories ended by a prompt over its limit
rollout/truncated
    share of trajectories in which a planner response or a prompt reached its limit
rollout/verified
    share of trajectories that the verifier ended
rollout/unreadable_answers
    share of trajectories without an `Answer:` line from the generator
rollout/infra_retries
    trajectories started again after an infrastructure failure
rollout/timeouts, rollout/infra_errors
    trajectories left out because of their deadline, or of a failure that a retry did not cure
reward/no_verdict
    trajectories without a verdict from any checker; only with a judge or math-verify
judge/asked, judge/no_verdict, judge/agreement
    trajectories shown to the judge; those without a verdict; share of verdicts that agree
    with the rule
backend/calls, backend/requests, backend/retries, backend/cached, backend/repairs,
backend/bad_output, backend/failures
    totals for remote models so far: calls, HTTP requests, attempts after the first, answers
    from the cache, replies requested again, calls whose reply had the wrong form in the end,
    calls that failed; only with a server
tool/<name>/share
    share of turns that chose the tool
tokens/generated
    tokens that the planner sampled (not those of the frozen modules)
tokens/trained
    planner tokens in the loss
tokens/padding_share
    padding / all tokens of the batches
tokens/sharing
    tokens of all turns, each counted alone / tokens computed without padding; 1 unless
    `batch.layout` is `tree`
loss/total, loss/policy, loss/kl
    total = policy + coefficient × kl; means over the optimizer steps
policy/clip_fraction, policy/ratio_mean
    share of tokens on which a clip bound was active; mean ratio
policy/entropy
    nats per token, at the sampling temperature
policy/logprob_gap_mean, policy/logprob_gap_max
    |Δ| in nats before the first optimizer step of this update, Δ = log π_trainer − log
    π_sampler of a sampled token
policy/logprob_gap_k3
    mean of exp(Δ) − 1 − Δ: Schulman's estimate k3 of KL(π_sampler ‖ π_trainer) in nats per
    token, since the tokens were drawn from π_sampler
optim/grad_norm
    global norm before clipping
optim/steps, optim/skipped
    optimizer steps tried, and those skipped because something was not finite
time/rollout, time/update, time/step
    seconds
time/rollout/engine, time/rollout/idle, time/rollout/others
    seconds of `time/rollout` that the driver's thread spent in the engine, waiting for tools
    and remote models, and waiting for other processes
time/rollout/tokens, time/rollout/solvers, time/rollout/calls, time/rollout/driver
    seconds of the driver's own work: tokenising prompts and decoding replies; prompts, parsers
    and memory; starting calls; the rest
throughput/generated_tokens_per_s
    `tokens/generated` / `time/rollout`
compile/count
    programs compiled so far
eval/success, eval/correct, eval/total
    held-out questions answered right, as a share and a count; all of them, failures included
eval/success/<source>
    `eval/success` for each `source`, if there are several
eval/…
    as `rollout/…`, `reward/no_verdict` and `judge/…`, on held-out questions
"""
HELD_OUT = "eval/"


def collect():
    """Returns [(names, meaning)] in order."""
    entries = re.findall(r"^((?:\S.*\n)+)((?:    .*\n)+)", METRICS, re.MULTILINE)
    return [(re.split(r",\s+", names.strip()), " ".join(text.split())) for names, text in entries]


def known(name):
    """Whether a metric is described."""
    patterns = [re.sub("<.*?>", "*", each) for names, _ in collect() for each in names]
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
        return True
    return name.startswith(HELD_OUT) and any(
        known(prefix + name.removeprefix(HELD_OUT)) for prefix in ("", "rollout/")
    )
