"""Writes a trained planner as a Hugging Face folder that transformers and vLLM load.

python -m experiments.export --workdir=runs/quickstart --out=planner
"""

import json
import pathlib

from absl import flags, logging

from experiments import command, session
from flow_grpo_jax import metrics
from models import huggingface

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


def export(workdir, out, *, step=None):
    """Writes weights, config, tokenizer, generation config and model card of one checkpoint."""
    config, config_hash = session.run_config(workdir)
    step, params, meta = session.restore_policy(workdir, config, step=step)
    base = session.resolve(config.model.path)
    huggingface.save(out, params, tokenizer_folder=base)
    _sample_as_trained(pathlib.Path(out) / "generation_config.json", config.rollout.temperature)
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


def _sample_as_trained(path, temperature):
    """Servers sample by this file: the distribution must be the one that was trained."""
    values = json.loads(path.read_text())
    values |= {"do_sample": True, "temperature": temperature}
    values |= {"top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0}
    path.write_text(json.dumps(values, indent=2) + "\n")


def define_flags():
    flags.DEFINE_string("workdir", None, "Run folder of experiments.train.")
    flags.DEFINE_string("out", None, "Folder to write.")
    flags.DEFINE_integer("step", None, "Checkpoint to export; the newest if not given.")


def main():
    values = flags.FLAGS
    step = export(values.workdir, values.out, step=values.step)
    logging.info("exported step %d to %s", step, values.out)


if __name__ == "__main__":
    define_flags()
    command.run(main, required=("workdir", "out"))
