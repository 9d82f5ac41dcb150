"""The tokenizer of a run: what its chat template must take, and what ends a reply.

Dimensions:
  Q questions    G rollouts of a question
"""

from absl import logging

from experiments.running import command
from flow_grpo_jax import processes
from models import tokenizer
from models.engine import programs

# Roles of the messages that the agents send, and of those that ask a judge for its form again.
CONVERSATION, REPAIR = ("system", "user"), ("system", "user", "assistant", "user")


def switches(model):
    """Returns {name: value} that the chat template sees beside the messages.

    model: `config.model`. Qwen3's template asks whether to think; Llama 3's writes a date, which is
      the same every day, so that a run resumed tomorrow sees the prompts of today.
    """
    return {"enable_thinking": model.thinking, "date_string": model.date}


def load(folder, *, stops=(), switches=None, conversations=(CONVERSATION,)):
    """Loads the Tokenizer of a folder.

    Args:
      stops: tokens that end a reply beside those that the folder names, ids or texts.
      switches: of the function of that name; None leaves the chat template to its own defaults.
      conversations: roles of messages that its chat template must take.

    Raises:
      ConfigError: it names no end-of-reply token, or its chat template refuses a conversation.
    """
    with command.checking_config():
        vocabulary = tokenizer.Tokenizer.load(folder, stops=stops, switches=switches)
        for roles in conversations:
            vocabulary.check_conversation(roles)
    ends = vocabulary.eos_ids
    if not ends:
        cut = f" The chat template writes {vocabulary.turn_end!r}, which is not one token."
        raise command.ConfigError(
            f"Nothing ends a reply of the model in {folder}: generation_config.json, the tokenizer "
            f"and the chat template name no token.{cut if vocabulary.turn_end else ''} Add "
            "eos_token_id to generation_config.json, or name it by engine.stop_ids."
        )
    if len(ends) > programs.STOP_IDS:
        raise command.ConfigError(
            f"{len(ends)} tokens end a reply of the model in {folder}: {ends}. The engine takes "
            f"{programs.STOP_IDS}; give fewer in engine.stop_ids."
        )
    if vocabulary.turn_end and not stops:
        logging.warning(
            "the chat template in %s ends a reply with %r, which is not one token, so that does "
            "not stop the engine; %s does. If replies do not end, name a token by engine.stop_ids.",
            folder,
            vocabulary.turn_end,
            describe_ends(vocabulary),
        )
    if vocabulary.merges_system:
        logging.warning(
            "the chat template in %s takes no system message: its text goes in front of the first "
            "user message",
            folder,
        )
    return vocabulary


def describe_ends(vocabulary):
    """Returns the texts and ids of the tokens that end a reply of a Tokenizer."""
    shown = (vocabulary.decode([end], keep_special=True) for end in vocabulary.eos_ids)
    return ", ".join(f"{text} ({end})" for text, end in zip(shown, vocabulary.eos_ids, strict=True))


def warn_if_nothing_ended(trajectories_QG, vocabulary, config):
    """Warns if every response of the planner met its limit: the reward of most is 0 then.

    Of several processes, 0 warns.
    """
    turns = [turn for group in trajectories_QG for each in group for turn in each.own_turns]
    if processes.index() or not turns or any(turn.finished for turn in turns):
        return
    logging.warning(
        "none of the planner's %d responses ended before rollout.max_response_tokens=%d. A "
        "response ends at %s. Check that the chat template in %s is that of the model, name the "
        "token that ends its turns by engine.stop_ids, or allow more tokens.",
        len(turns),
        config.rollout.max_response_tokens,
        describe_ends(vocabulary),
        config.model.path,
    )
