"""What an evaluation compares: modes, protocols and turn budgets, and the paper's figures."""

import dataclasses

from experiments.running import command

MODES = ("trained", "untrained", "bare")
PROTOCOLS = ("honest", "authors")
# The authors' settings, whatever their config says (docs/algorithm.md).
AUTHORS = dict(temperature=0.7, top_p=0.99, frequency_penalty=1.2)
AUTHORS |= dict(max_turns=10, max_response_tokens=2_048)
SAMPLING = ("temperature", "top_p", "frequency_penalty")  # of an `Arm`, and of a server's request

# Accuracy in %, 7B (arXiv 2510.05592, table 1 and 2): the untrained agent, and with Flow-GRPO.
PAPER = {
    "bamboogle": (58.4, 69.6),
    "2wiki": (60.0, 77.2),
    "hotpotqa": (51.3, 57.0),
    "musique": (19.2, 25.3),
    "gaia": (17.2, 33.1),
    "aime24": (16.7, 40.0),
    "amc23": (47.4, 61.5),
    "gameof24": (31.0, 53.0),
    "gpqa": (37.0, 47.0),
    "medqa": (76.0, 80.0),
}
THEIR_SETUP = (
    "Theirs: all modules Qwen2.5-7B-Instruct; at most {max_turns} turns; the planner sampled at "
    "temperature {temperature}, top-p {top_p}, frequency penalty {frequency_penalty}, at most "
    "{max_response_tokens} tokens a response; Google search that another model answers, Wikipedia, "
    "pages of the web, Python; answers judged by GPT-4o; 100 to 200 questions of a benchmark; "
    "scores are shares of the outputs that exist, so a crash is left out.".format(**AUTHORS)
)


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way of answering all questions.

    budgets: turn budgets, ascending, all of them answered by one trajectory; (0,) of the bare
      model.
    temperature, top_p, frequency_penalty: of the planner, or of the bare model. The penalty is a
      server's: the engine here has none.
    """

    mode: str
    protocol: str
    budgets: tuple
    temperature: float
    top_p: float
    max_response_tokens: int
    frequency_penalty: float = 0.0

    @property
    def name(self):
        return self.mode if self.protocol == "honest" else f"{self.mode}, authors'"


def arms(config, *, modes, protocols, budgets, trials):
    """Returns the `Arm`s of an evaluation.

    protocols: "honest" is always among them; "authors" comes beside, for the agent.
    budgets: turn budgets of the honest ones; () is the config's.

    Raises:
      ConfigError: a value is unknown or given twice, or all trials would be the same.
    """
    _known("modes", modes, MODES)
    _known("protocol", protocols, PROTOCOLS)
    wanted = sorted(budgets) or [config.rollout.max_turns]
    if wanted[0] < 1 or len(set(wanted)) < len(wanted):
        raise command.ConfigError(
            f"--max_turns={','.join(map(str, budgets))} must be different numbers from 1 up."
        )
    temperature = config.eval.temperature
    if trials < 1:
        raise command.ConfigError(f"--trials={trials} must be 1 or more.")
    if trials > 1 and temperature == 0:
        raise command.ConfigError(
            f"--trials={trials} would be the same {trials} times: eval.temperature is 0. Sample, "
            "e.g. with --temperature=0.6."
        )
    longest = config.rollout.max_response_tokens
    found = []
    for mode in (mode for mode in MODES if mode in modes):
        turns = (0,) if mode == "bare" else tuple(wanted)
        found.append(Arm(mode, "honest", turns, temperature, 1.0, longest))
        if "authors" in protocols and mode != "bare":
            turns = (AUTHORS["max_turns"],)
            tokens = min(AUTHORS["max_response_tokens"], longest)
            how = AUTHORS["temperature"], AUTHORS["top_p"], tokens, AUTHORS["frequency_penalty"]
            found.append(Arm(mode, "authors", turns, *how))
    return found


def paper_figure(benchmark, mode):
    """Returns the paper's accuracy for a mode of the agent, a share; None where it has none."""
    if benchmark not in PAPER or mode == "bare":
        return None
    return PAPER[benchmark][mode == "trained"] / 100


def differences(config, found, arms, trials, *, weights, judged):
    """Returns sentences on how this evaluation differs from the paper's.

    found: the `questions.Benchmark`s.
    weights: {mode: what its weights are}.
    judged: whether a judge's verdicts stand beside the scores.
    """
    by_server = "untrained" not in weights
    planners = "; ".join(f"{mode} {weights[mode]}" for mode in MODES if mode in weights)
    who = f"all modules {weights['trained']}" if by_server else planners
    ours = [
        THEIR_SETUP,
        f"Here: {who}; tools "
        f"{', '.join((*config.tools.names, *config.tools.mcp)) or 'none'}; official scorers"
        + (", a judge beside them" if judged else "")
        + "; all questions in the denominator.",
        f"Questions: {', '.join(f'{b.name} {len(b.questions)}' for b in found)}; "
        f"{trials} trial{'s' if trials > 1 else ''} each.",
    ]
    ours += [
        f"{benchmark.path.name} holds {benchmark.held}." for benchmark in found if benchmark.held
    ]
    for arm in arms:
        turns = ", ".join(map(str, arm.budgets))
        ours.append(
            f"{arm.name}: temperature {arm.temperature:g}, top-p {arm.top_p:g}, "
            f"{arm.max_response_tokens} tokens a response"
            + (f", at most {turns} turns." if arm.mode != "bare" else ", one prompt.")
        )
    if any(arm.protocol == "authors" for arm in arms):
        penalty = "is the server's to apply" if by_server else "is not applied: the engine has none"
        ours.append(
            "authors': the score is a share of the outputs that exist, by the judge where there is "
            f"one. Their frequency penalty of {AUTHORS['frequency_penalty']} {penalty}; their "
            "prompts, tools and judge are not used, and a response never has more tokens than the "
            "config allows."
        )
    return ours


def _known(flag, given, valid):
    wrong = [value for value in given if value not in valid]
    if wrong or not given or len(set(given)) < len(given):
        raise command.ConfigError(
            f"--{flag}={','.join(given)}: name each of {', '.join(valid)} at most once."
        )
