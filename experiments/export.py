"""Writes a trained planner as a Hugging Face folder that transformers and vLLM load.

python -m experiments.export --workdir=runs/quickstart --out=planner
"""

import json
import pathlib

import jax
import ml_collections
from absl import flags, logging

from experiments import command, session
from flow_grpo_jax import checkpoint, metrics, update
from models import huggingface, qwen2

WORKDIR = flags.DEFINE_string("workdir", None, "Run folder of experiments.train.")
OUT = flags.DEFINE_string("out", None, "Folder to write.")
STEP = flags.DEFINE_integer("step", None, "Checkpoint to export; the newest if not given.")

CARD = """---
library_name: transformers
pipeline_tag: text-generation
base_model: {base}
tags: [flow-grpo, agentflow, planner, tool-use]
---

# Planner trained in the flow

An AgentFlow planner (Qwen2.5 architecture), trained by Flow-GRPO (arXiv 2510.05592) with
flow_grpo_jax: on-policy, inside the live loop of planner, executor, verifier and generator, from
one verifiable outcome for each trajectory.

| | |
|---|---|
| initial weights | {base} (fingerprint {reference}) |
| training step | {step} |
| training questions | {data} |
| tools | {tools} |
| reward | exact checkers by question kind |
| python tool | child process with resource limits |
| loss | {loss}, KL coefficient {kl} |
| learning rate | {lr} |
| config hash | {config_hash} |
| held-out success | {held_out} |
"""


def run_config(workdir):
    """(ConfigDict, hash) of a run."""
    path = pathlib.Path(workdir) / "config.json"
    if not path.exists():
        raise command.ConfigError(f"{workdir} holds no run: {path} does not exist.")
    stored = json.loads(path.read_text())
    return ml_collections.ConfigDict(stored["config"]), stored["hash"]


def restore_policy(workdir, config, *, step=None):
    """(step, params on one device, meta) of a run's checkpoint.

    Raises:
      ConfigError: the run has no checkpoint, or not that one.
    """
    shape = huggingface.config_from_dict(
        huggingface.read_config(session.resolve(config.model.path))
    )
    optimizer = update.make_optimizer(**config.optim)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
        jax.eval_shape(
            lambda key: update.init(qwen2.Qwen2(key, shape), optimizer), jax.random.key(0)
        ),
    )
    checkpoints = checkpoint.Checkpoints(pathlib.Path(workdir) / "checkpoints", keep=None)
    restored = checkpoints.restore(like, step=step)
    checkpoints.close()
    if restored is None:
        raise command.ConfigError(f"{workdir} has no checkpoint yet.")
    step, state, meta = restored
    return step, state.params, meta


def export(workdir, out, *, step=None):
    """Writes weights, config, tokenizer, generation config and model card of one checkpoint."""
    config, config_hash = run_config(workdir)
    step, params, meta = restore_policy(workdir, config, step=step)
    base = session.resolve(config.model.path)
    huggingface.save(out, params, tokenizer_folder=base)
    evaluated = [
        line
        for line in metrics.read(pathlib.Path(workdir) / "metrics.jsonl")
        if line["step"] == step and "eval/success" in line
    ]
    held_out = "not measured at this step"
    if evaluated:
        line = evaluated[-1]
        held_out = f"{line['eval/correct']:.0f}/{line['eval/total']:.0f}"
    card = CARD.format(
        base=config.model.path,
        reference=meta["reference"],
        step=step,
        data=config.data.train,
        tools=", ".join(config.tools.names),
        loss=config.loss.variant,
        kl=config.loss.kl_coef,
        lr=config.optim.lr,
        config_hash=config_hash,
        held_out=held_out,
    )
    (pathlib.Path(out) / "README.md").write_text(card)
    return step


def main():
    step = export(WORKDIR.value, OUT.value, step=STEP.value)
    logging.info("exported step %d to %s", step, OUT.value)


if __name__ == "__main__":
    command.run(main, required=("workdir", "out"))
