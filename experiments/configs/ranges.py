"""The range of every number in a config, and what to use instead of a value outside it.

A test proves that each number of `common.base()` and of the shipped configs has a row. What depends
on other fields is checked in experiments/running/limits.py.
"""

import dataclasses
import fnmatch
import math

from models.engine.types import LOWEST_TEMPERATURE

GOOD_START = "the default is a good start"
MOST = 2**31 - 1  # of a whole number: arrays and their indices hold no more
MOST_OF_LIST = 2**24  # of what is there at once


@dataclasses.dataclass(frozen=True)
class Range:
    """Finite numbers from `low` to `high`, unless `above` leaves out `low` and `below` `high`.

    also: a single number that may stand outside. instead: what to use, a clause.
    most: a bound of whole numbers that no one meets; it is told to those alone who pass it.
    """

    low: float
    instead: str
    high: float = math.inf
    above: bool = False
    below: bool = False
    also: float | None = None
    most: float = math.inf

    def holds(self, value):
        over = self.low < value if self.above else self.low <= value
        under = value < self.high if self.below or self.high == math.inf else value <= self.high
        return value == self.also or (over and under and value > -math.inf)

    def __str__(self):
        bounds = []
        if self.low > -math.inf:
            bounds.append(f"above {self.low:g}" if self.above else f"{self.low:g} or more")
        if self.high < math.inf:
            bounds.append(f"{'below' if self.below else 'at most'} {self.high:,}")
        words = " and ".join(bounds) or "finite"
        return words if self.also is None else f"{self.also:g} or {words}"


def count(instead, least=1, most=MOST):
    return Range(least, instead, most=most)


def seconds(instead=GOOD_START):
    return Range(0, instead, above=True)


def waiting(instead=GOOD_START):
    """Seconds that sockets wait, which hold no more than weeks."""
    return Range(0, instead, high=10**6, above=True)


def off_or_more(instead, most=MOST):
    return Range(0, instead, most=most)


def temperature(instead):
    return Range(LOWEST_TEMPERATURE, instead, also=0)


# The first pattern that matches a field's dotted name counts; of a tuple, each item is checked.
RANGES = {
    "seed": Range(0, "use a small number such as 0", high=2**32 - 1),
    "steps": off_or_more("0 only evaluates the held-out questions", math.inf),
    "model.lora.rank": off_or_more("0 trains all parameters", MOST_OF_LIST),
    "model.lora.alpha": Range(0, "twice the rank is common", above=True),
    "mesh.*": Range(1, "-1 takes all remaining devices", also=-1, most=MOST),
    "data.environment.reward_*": Range(-math.inf, "it is a total of rewards, such as -1"),
    "data.environment.seconds": waiting(),
    "data.environment.max_characters": count("2,000 is a page of text"),
    "data.environment.held_out": off_or_more("0 evaluates none of them"),
    "data.environment.train": off_or_more("0 trains only on the files"),
    "data.mixture.*": off_or_more("0 leaves the source out"),
    "tools.workers": count("16 calls run at once by default"),
    "tools.*.seconds": waiting("give a call the time that its service needs"),
    "tools.*.per_second": off_or_more("0 sets no limit"),
    "tools.*.top_k": count("1 returns only the best; to turn it off, edit tools.names"),
    "tools.*.max_characters": count("2,000 is a page of text"),
    "tools.python_coder.*_bytes": count(GOOD_START, most=2**50),
    "rollout.questions": count("a step needs a question", most=MOST_OF_LIST),
    "rollout.group": count(
        "advantages compare a question's rollouts: use 8, like the paper", 2, MOST_OF_LIST
    ),
    "rollout.max_turns": count("the paper trains with 3", most=MOST_OF_LIST),
    "rollout.temperature": temperature("the paper samples at 0.5"),
    "rollout.*_tokens": count("set it to what the model's context allows", most=MOST_OF_LIST),
    "rollout.*_seconds": seconds("use a time after which waiting is pointless"),
    "rollout.in_flight": count("rollout.questions * rollout.group starts all at once"),
    "rollout.infra_retries": off_or_more("0 never tries again"),
    "rollout.min_valid_share": Range(0, "0 never stops the run", high=1),
    "rollout.empty_steps": off_or_more("0 ends the run at the first"),
    "engine.replicas": off_or_more("0 makes as many as the devices allow", MOST_OF_LIST),
    "engine.cache_tokens": off_or_more("0 sizes the cache for the slots"),
    "engine.*": count(GOOD_START, most=MOST_OF_LIST),
    "backends.*.extra.*": Range(-math.inf, "JSON has no other numbers"),
    "backends.*.temperature": off_or_more("0 decodes greedily"),
    "backends.*.limits.requests_per_second": off_or_more("0 sets no limit"),
    "backends.*.limits.retries": off_or_more("0 never tries again"),
    "backends.*.limits.backoff_*": Range(0, "0 does not wait", high=10**6),
    "backends.*.limits.open_seconds": Range(0, "0 asks again at once", high=10**6),
    "backends.*seconds": waiting(),
    "backends.*.limits.*": count(GOOD_START),
    "reward.*": count(GOOD_START),
    "batch.*": count("experiments.plan says what fits", most=MOST_OF_LIST),
    "loss.clip_low": Range(0, "0.2 is usual, 3e-4 for gspo", high=1, above=True),
    "loss.clip_high": Range(0, "0.3 is usual, 4e-4 for gspo", above=True),
    "loss.dual_clip": Range(1, "3 is usual, 0 turns it off", above=True, also=0),
    "loss.kl_coef": off_or_more("0 leaves the term out"),
    "loss.tis_cap": Range(1, "2 is usual, 0 turns it off", also=0),
    "loss.turns.points": count("1 draws one turn of each root anew"),
    "loss.turns.siblings": count("an action is compared with its siblings"),
    "loss.turns.broadcast": Range(0, "0 measures all credit", high=1, below=True),
    "loss.mini_batch_turns": off_or_more("0 splits by questions"),
    "loss.*": count("1 makes one optimizer step per rollout batch"),
    "optim.lr": off_or_more("0 trains nothing, as a control"),
    "optim.warmup_steps": off_or_more("0 starts at the full rate"),
    "optim.b[12]": Range(0, "0.9 and 0.999 are usual", high=1, below=True),
    "optim.eps": Range(0, "1e-8 is usual", above=True),
    "optim.weight_decay": off_or_more("0 turns it off"),
    "optim.clip_norm": Range(0, "1.0 is usual; 1e9 never clips", above=True),
    "eval.every": off_or_more("0 evaluates only before and after", math.inf),
    "eval.questions": off_or_more("0 asks all questions", math.inf),
    "eval.temperature": temperature("0 decodes greedily"),
    "checkpoint.every": count("a number above steps saves only at the end", most=math.inf),
    "checkpoint.keep": count("1 keeps only the newest"),
    "tracking.trajectories": Range(0, "0 makes no table", high=1_000),
    "tracking.seconds": waiting(),
    "trace.steps": count("steps count from 1", most=math.inf),
    "profile.steps": count("steps count from 1", most=math.inf),
    "warmstart.seed": Range(0, "use a small number such as 0", high=2**32 - 1),
    "warmstart.lr": Range(0, "1e-5 suits full training, 2e-4 adapters", above=True),
    "warmstart.final_lr": Range(0, "it is a share of warmstart.lr, such as 0.05", high=1),
    "warmstart.warmup_steps": off_or_more("0 starts at the full rate"),
    "warmstart.weight_decay": off_or_more("0 turns it off"),
    "warmstart.max_turns": off_or_more("0 takes rollout.max_turns"),
    "warmstart.copy_samples": off_or_more("0 leaves copying out"),
    "warmstart.copy_distinct": off_or_more("0 draws each token from the whole vocabulary"),
    "warmstart.prompt_weight": off_or_more("0 trains only on replies"),
    "warmstart.real_share": Range(0, "it is a share, such as 0.3", high=1),
    "warmstart.temperature": Range(0.01, "1 keeps the odds of the world", high=100),
    "warmstart.b2": Range(0, "0.98 is usual", high=1, below=True),
    "warmstart.enough": Range(0, "it is a share such as 0.9; 0 turns it off", high=1),
    "warmstart.*": count("the default is a good start"),
}


def of(name):
    """Returns the Range of a field by its dotted name, None if it has none."""
    return next((r for pattern, r in RANGES.items() if fnmatch.fnmatchcase(name, pattern)), None)


def problems(values):
    """Yields a sentence for each number outside its range, of (dotted name, value) pairs."""
    for name, value in values:
        numbers = value if isinstance(value, tuple) else (value,)
        for number in numbers:
            if isinstance(number, bool) or not isinstance(number, int | float):
                continue
            allowed = of(name)
            if allowed is None:
                continue
            wanted = ""
            if isinstance(number, float) and not math.isfinite(number):
                wanted = "finite"
            elif not allowed.holds(number):
                wanted = allowed
            elif isinstance(number, int) and number > allowed.most:
                wanted = f"at most {allowed.most:,}"
            if wanted:
                yield f"{name}={value} must be {wanted}; {allowed.instead}."
                break
