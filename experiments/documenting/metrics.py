"""What each metric of metrics.jsonl means: the source of docs/reference.md.

In a name <x> stands for each of what a run has several of.
"""

import fnmatch
import re

# Lines with names, which are told together, and below them their meaning.
METRICS = """
reward/mean, reward/std
    over valid trajectories, without branches: not ended by infrastructure or a deadline, and
    with a known reward
group/zero_variance
    share of groups with equal valid rewards: they teach nothing; where rollouts branch, share
    of points whose actions all had the same outcome
branch/points, branch/mean_range
    points with two or more valid outcomes; mean of highest less lowest outcome of a point; only
    with `loss.variant="turns"`, where `rollout/…` and `tool/…` are over roots
branch/same_action_share, branch/tokens
    share of branches that drew the root's very tokens; planner tokens of branches, a part of
    `tokens/generated`
branch/timeouts, branch/infra_errors
    branches left out, those of broken roots among them
rollout/valid_share
    valid trajectories / all
rollout/turns
    planner turns a trajectory
rollout/tool_error_rate
    share of turns that gave no result
rollout/parse_failure_rate
    share of turns with a module text that its parser refused
rollout/shortened_prompts
    share of turns whose planner prompt had older results shortened
rollout/too_long
    share of trajectories that a prompt over its limit ended
rollout/truncated
    share of trajectories in which a planner response or a prompt met its limit
rollout/verified
    share of trajectories that the verifier ended
rollout/unreadable_answers
    share of trajectories without an `Answer:` line from the generator
rollout/infra_retries
    trajectories started again after a failure of infrastructure
rollout/timeouts, rollout/infra_errors
    trajectories left out for their deadline, or for a failure that the retry did not cure
reward/no_verdict
    trajectories without a verdict from any checker; only with a judge or math-verify
judge/asked, judge/no_verdict, judge/agreement
    trajectories put to the judge; those without a verdict; share of the verdicts that agree
    with the rule
backend/calls, backend/requests, backend/retries, backend/cached, backend/repairs,
backend/bad_output, backend/failures
    remote models so far: calls, HTTP requests, attempts after the first, answers from the
    cache, replies asked for again, calls that ended without the form asked for, calls that
    failed; only with a server
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
    nats a token, at the sampling temperature
policy/logprob_gap_mean, policy/logprob_gap_max
    |Δ| in nats before the first optimizer step of this update, Δ = log π_trainer − log
    π_sampler of a sampled token
policy/logprob_gap_k3
    mean of exp(Δ) − 1 − Δ: Schulman's estimate k3 of KL(π_sampler ‖ π_trainer) in nats a token,
    since the tokens were drawn from π_sampler
optim/grad_norm
    global norm before clipping
optim/steps, optim/skipped
    optimizer steps tried, and those left out because something was not finite
time/rollout, time/update, time/step
    seconds
time/rollout/engine, time/rollout/idle, time/rollout/others
    seconds of `time/rollout` that the driver's thread spent in the engine, waiting for tools
    and remote models, and waiting for other processes
time/rollout/tokens, time/rollout/solvers, time/rollout/calls, time/rollout/driver
    the driver's own: token ids of prompts and texts of replies; prompts, parsers and memory;
    handing out calls; the rest
throughput/generated_tokens_per_s
    `tokens/generated` / `time/rollout`
compile/count
    programs compiled so far
eval/success, eval/correct, eval/total
    held-out questions, all of them in the denominator
eval/success/<source>
    the same for each `source`, if there are several
eval/…
    as `rollout/…`, `reward/no_verdict` and `judge/…`, on held-out questions
"""
HELD_OUT = "eval/"


def collect():
    """Returns [(names, meaning)] in order."""
    entries = re.findall(r"^((?:\S.*\n)+)((?:    .*\n)+)", METRICS, re.MULTILINE)
    return [(re.split(r",\s+", names.strip()), " ".join(text.split())) for names, text in entries]


def known(name):
    """Whether a metric is told."""
    patterns = [re.sub("<.*?>", "*", each) for names, _ in collect() for each in names]
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
        return True
    return name.startswith(HELD_OUT) and any(
        known(prefix + name.removeprefix(HELD_OUT)) for prefix in ("", "rollout/")
    )
