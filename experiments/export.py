"""Writes a trained planner as a Hugging Face folder that transformers and vLLM load.

    python -m experiments.export --workdir=runs/quickstart --out=planner

A planner trained as a LoRA adapter is merged into its base; with --adapter it becomes a far smaller
PEFT folder instead, which is loaded on top of the base.
"""

import pathlib

import jax
import numpy as np
from absl import flags, logging

from experiments.running import command, sessions, stored, tokens, trust
from flow_grpo_jax import metrics, scoring
from flow_grpo_jax.bounds import json_text
from models import huggingface, lora, model_card

TAGS = ["flow-grpo", "agentflow", "planner", "tool-use", "reinforcement-learning"]
CARD = """
# Planner trained in the flow

An AgentFlow planner ({family} architecture), trained by Flow-GRPO
([arXiv 2510.05592](https://arxiv.org/abs/2510.05592)) with flow_grpo_jax: on-policy, inside the
live loop of planner, executor, verifier and generator, from one verifiable outcome for each
trajectory.

| | |
|---|---|
| initial weights | {base} (fingerprint {reference}) |
| training step | {step} |
| training questions | {data} |
| tools | {tools} |
| reward | {reward} |
| python tool | {sandbox} |
| loss | {loss}, KL coefficient {kl} |
| learning rate | {lr} |
| config hash | {config_hash} |
| held-out success | {held_out}; before training {before} |
| dtype | {dtype}; trained in float32 |
| a reply ends at | {ends} |
| chat template | {switches} |

## Use
{use}
The prompts are those of flow_grpo_jax (`{prompts}`); with others the planner was not trained.
"""
USE_WEIGHTS = """
```python
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

folder = "."  # this one
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
```

```
vllm serve . --served-model-name planner
```

`generation_config.json` samples from the distribution that was trained: temperature {temperature},
without top-p, top-k or penalties.
"""
USE_ADAPTER = """
This is a LoRA adapter of rank {rank}; it needs its base.

```python
from peft import AutoPeftModelForCausalLM
from transformers import PreTrainedTokenizerFast

folder = "."  # this one
model = AutoPeftModelForCausalLM.from_pretrained(folder, dtype="auto")
tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
```

```
vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules planner=.
```

Sample from the distribution that was trained: temperature {temperature}, without top-p, top-k or
penalties, whatever the base's `generation_config.json` says, and end a reply at each of the tokens
above (`stop_token_ids` of a request to vLLM).
"""


def export(workdir, out, *, step=None, dtype=None, base_model=None, adapter=False, trusted=False):
    """Writes weights, config, tokenizer, generation config and model card of one checkpoint.

    Args:
      workdir: run folder of `experiments.train`.
      out: path or URL of the folder to write.
      step: the checkpoint; None takes the newest.
      dtype: of the weights, "float32" or "bfloat16"; None takes the one the policy was computed in.
      base_model: name of the initial weights on the Hugging Face hub, for the card and for PEFT,
        which looks for them in the run's model.path if no name is known.
      adapter: write a folder of PEFT, without the base: adapter, its config, tokenizer and card.
      trusted: whether the user trusts the maker of `workdir`.

    Returns:
      The step.

    Raises:
      ConfigError: there is no such checkpoint, an adapter is asked for that was not trained, or
        `workdir` needs the user's word.
    """
    config, config_hash = stored.open_config(
        workdir, uses=lambda config: ("model",), trusted=trusted
    )
    rank = config.model.lora.rank
    if adapter and not rank:
        raise command.ConfigError(
            f"The run in {workdir} has no adapter: with model.lora.rank=0 all parameters were "
            "trained. Leave out --adapter to write them."
        )
    if adapter and not base_model and sessions.is_gguf(config):
        raise command.ConfigError(
            f"An adapter needs a base that PEFT reads, and {config.model.path} is a GGUF model. "
            "Give the name of the same model on the hub as --base_model, or leave out --adapter."
        )
    dtype = np.dtype(sessions.DTYPES[dtype] if dtype else sessions.compute_dtype(config))
    restore = stored.restore_params if adapter else stored.restore_policy
    step, params, meta = restore(workdir, config, step=step)
    base, stops = stored.base_folder(config, meta), config.engine.stop_ids
    switches = tokens.switches(config.model)
    vocabulary = tokens.load(base, stops=stops, switches=switches, conversations=())
    known = model_card.of_base(base, name=base_model)
    temperature = config.rollout.temperature
    use = USE_ADAPTER if adapter else USE_WEIGHTS
    dims = huggingface.model_config(base)
    text = CARD.format(
        family=dims.family.title,
        base=known.get("base_model", config.model.path),
        reference=meta["reference"],
        step=step,
        data=config.data.train or config.data.environment.id,
        tools=", ".join(config.tools.names),
        reward=_deciders(config),
        loss=config.loss.variant,
        kl=config.loss.kl_coef,
        lr=config.optim.lr,
        config_hash=config_hash,
        sandbox=_sandbox(workdir, config),
        held_out=_held_out(workdir, step),
        before=_held_out(workdir, 0),
        dtype=dtype.name,
        ends=tokens.describe_ends(vocabulary),
        switches=_stated(switches, vocabulary),
        use=use.format(temperature=temperature, rank=rank, base=known.get("base_model", base)),
        prompts=config.rollout.prompts,
    )
    library = "peft" if adapter else "transformers"
    front = {"library_name": library, "pipeline_tag": "text-generation", **known, "tags": TAGS}
    front[model_card.PROMPTS] = config.rollout.prompts
    card = model_card.render(front, text)
    if adapter:
        lora.save(
            out,
            jax.tree.map(lambda x: x.astype(dtype), params),
            base_folder=known.get("base_model", base),
            tokenizer_folder=base,
            card=card,
        )
    else:
        huggingface.save(
            out,
            params,
            base_folder=base,
            dtype=dtype,
            generation=_sampled_as_trained(temperature),
            stops=stops,
            card=card,
        )
    return step


def _deciders(config):
    """Returns a text that says who gave the reward."""
    others = {kind: config.reward[kind] for kind in scoring.DECIDERS}
    others = {kind: decider for kind, decider in others.items() if decider != "rule"}
    named = [f"{kind} by {decider}" for kind, decider in others.items()]
    return ", ".join(["exact checkers by question kind", *named])


def _stated(switches, vocabulary):
    """Returns a text that says which of the switches the chat template asked for."""
    stated = [f"{name}={switches[name]!r}" for name in vocabulary.switches]
    return f"with {', '.join(stated)}" if stated else "without switches"


def _held_out(workdir, step):
    path = pathlib.Path(workdir) / "metrics.jsonl"
    evaluated = [
        line
        for line in (metrics.read(path) if path.exists() else ())
        if line["step"] == step and "eval/success" in line
    ]
    if not evaluated:
        return "not measured"
    return f"{evaluated[-1]['eval/correct']:.0f}/{evaluated[-1]['eval/total']:.0f}"


def _sandbox(workdir, config):
    """Returns what held model-written programs while the run trained."""
    if "python_coder" not in config.tools.names:
        return "none"
    facts = json_text.read_object(pathlib.Path(workdir) / "config.json").get("sandbox")
    if not facts:
        return "sandboxed; the layers were not recorded"
    held = [name for name, state in facts["layers"].items() if state == "verified"]
    return f"sandbox of level {facts['level']}: {', '.join(held)}"


def _sampled_as_trained(temperature):
    """Returns a generation config that makes servers sample the distribution that was trained."""
    values = {"do_sample": True, "temperature": temperature}
    return values | {"top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0}


def define_flags():
    flags.DEFINE_string("workdir", None, "Run folder of experiments.train.")
    flags.DEFINE_string(
        "out", None, "Folder to write; a path, or a URL such as gs://bucket/planner."
    )
    flags.DEFINE_integer("step", None, "Checkpoint to export; the newest if not given.")
    flags.DEFINE_enum(
        "dtype", None, list(sessions.DTYPES), "Of the weights; model.dtype if not given."
    )
    flags.DEFINE_string("base_model", None, "Hub name of the initial weights, for the model card.")
    flags.DEFINE_bool("trust", False, trust.HELP)
    flags.DEFINE_bool("adapter", False, "Write the LoRA adapter for PEFT instead of merging it.")


def main():
    values = flags.FLAGS
    command.check_out(values.out, folder=True)
    step = export(
        values.workdir,
        values.out,
        step=values.step,
        dtype=values.dtype,
        base_model=values.base_model,
        adapter=values.adapter,
        trusted=values.trust,
    )
    logging.info("exported step %d to %s", step, values.out)


if __name__ == "__main__":
    define_flags()
    command.run(main, required=("workdir", "out"), remote=("out",))
