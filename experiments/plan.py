"""Does a step of a config fit on devices that you need not have, and how fast could it be?

    python -m experiments.plan --config=experiments/configs/paper_7b.py --model=7b \\
        --topology=v5p-16

Compiles the programs that training would run, with libtpu for a TPU slice (in an environment of its
own: pip install -e '.[plan]') and with XLA:CPU for cpu:N; a large program takes some minutes. For
GPUs there is no compiler without a GPU: weights are counted, and temporaries are those of the same
programs compiled for as many v5p chips or, without libtpu, those of a formula. --estimate uses the
formula at once. No weights are needed, only a config.json or the name of a published size.

Prints bytes per device, FLOPs, the time of a step at the limit of the hardware, and what to change
if it does not fit. Not fitting is a result: the exit code is 0; 1 is an error and 2 a bad flag or
config. With --json, one JSON object on standard output.
"""

import json
import sys

import jax
import jax.numpy as jnp
from absl import flags, logging
from ml_collections import config_flags

from experiments.planning import advice, formulas, programs, rollouts
from experiments.running import command, fields, limits, sessions
from models import hardware, huggingface, published

GiB = hardware.GiB
GOOD = 0.4  # of the limit: what good trainers reach on such models


def plan(config, topology, *, model="", estimate=False, workload=None):
    """Returns the plan as a dict of plain values; `--json` prints it.

    Args:
      topology: hardware.Topology.
      model: name in `published.SIZES`; "" reads config.model.path.
      estimate: no compiling.
      workload: of `step_time`; None takes its defaults for the config.
    """
    fields.check(config)
    dims = model_dims(config, model)
    variant = limits.choose_variant(config)
    count, peak = topology.devices, topology.limits
    estimated = advice.need(config, dims, count)
    mesh = programs.abstract_mesh(config, count)
    sizes = sessions.batch_shapes(config, mesh)
    batch_rows = dict(zip(sizes["row_lengths"], sizes["rows"], strict=True))
    compiled, basis, scale, engine_devices = [], "formula", 1.0, ()
    if not estimate:
        compiled, basis = compile_programs(config, variant, dims, topology)
        if topology.kind != "gpu":  # a TPU's programs would be others
            engine_devices = programs.devices(hardware.part(topology, config.engine.tensor))
    if compiled:
        largest = max(compiled, key=lambda program: program.total)
        if largest.tokens:
            scale = largest.temporaries / estimated.temporaries[largest.tokens]
        total = largest.total
    else:
        total = estimated.total
    sampling = rollouts.need(config, dims, topology, estimated, engine_devices)
    if not config.engine.release:
        total += sampling.weights + sampling.cache
    result = {
        "model": model or config.model.path,
        "parameters": parameter_count(dims),
        "topology": topology.name,
        "devices": count,
        "mesh": dict(mesh.shape) | {"sequence": config.mesh.sequence},
        "basis": basis,
        "jax": jax.__version__,
        "bytes": {
            "parameters": estimated.parameters,
            "moments": estimated.moments,
            "gradients": estimated.gradients,
            "frozen": estimated.frozen,
        },
        "programs": [
            {
                "name": program.name,
                "rows": program.rows,
                "tokens": program.tokens,
                "temporaries": program.temporaries,
                "total": program.total,
            }
            for program in compiled
        ]
        or [
            {
                "name": "accumulate",
                "rows": batch_rows[tokens],
                "tokens": tokens,
                "temporaries": round(size),
                "total": round(estimated.lasting + size),
            }
            for tokens, size in estimated.temporaries.items()
        ],
        "total": round(total),
        "rollouts": {
            "replicas": count // config.engine.tensor,
            "weights": sampling.weights,
            "cache": sampling.cache,
            "state": sampling.state,
            "temporaries": sampling.temporaries,
            "total": sampling.total,
        },
        "phases": {"rollouts": round(sampling.total), "update": round(total)},
    }
    if peak is None:
        return result
    result["memory"] = round(peak.memory)
    result["spare"] = 1 - total / peak.memory
    result["rollouts"]["spare"] = 1 - sampling.total / peak.memory
    result["fits"] = max(sampling.total, total) <= peak.memory
    result["step"] = step_time(
        config, dims, mesh, peak, estimated, **(workload or default_workload(config))
    )
    if result["spare"] < advice.SPARE:
        alone, together = advice.advise(config, dims, count, peak.memory, scale=scale)
        result["changes"] = [change_dict(change) for change in alone]
        result["together"] = together and change_dict(together)
    return result


def model_dims(config, model):
    """Returns the decoder.Config of a published size, or of the folder that the config names."""
    if model:
        if model.lower() not in published.SIZES:
            raise command.ConfigError(
                f"--model={model!r} is unknown; valid: {', '.join(published.SIZES)}, or leave it "
                "out and set --config.model.path."
            )
        return published.SIZES[model.lower()]
    if not config.model.path:
        raise command.ConfigError(
            "Which model? Set --config.model.path to a folder with a config.json, or --model to a "
            f"published size: {', '.join(published.SIZES)}."
        )
    return huggingface.model_config(sessions.model_folder(config))


def compile_programs(config, variant, dims, topology):
    """Returns ([Program], their target); no programs if there is no compiler."""
    target = topology
    if topology.kind == "gpu":
        if not programs.has_libtpu():
            logging.info("no libtpu: temporaries are those of a formula")
            return [], "formula"
        target = hardware.like_gpus(topology)
    found = programs.devices(target)
    mesh = programs.mesh_over(config, found)
    logging.info("compiling for %d x %s", mesh.size, found[0].device_kind)
    values = programs.inputs(config, dims, mesh)
    return programs.compiled(config, variant, values, mesh, on_program=log_program), target.name


def log_program(program):
    logging.info("%s %s: %.2f GiB", program.name, program.tokens or "", program.total / GiB)


def parameter_count(dims):
    return sum(leaf.size for leaf in jax.tree.leaves(programs.abstract_model(dims, jnp.float32)))


# ---- time --------------------------------------------------------------------------------------


def default_workload(config):
    """Assumes the turns of a step: most are far shorter than the longest that fits."""
    settings = config.rollout
    return dict(
        turns=(1 + settings.max_turns) / 2,
        turn_tokens=(settings.max_prompt_tokens + settings.max_response_tokens) // 5,
        response_tokens=max(1, settings.max_response_tokens // 5),
        sharing=1.0,
        fill=0.95,
    )


def step_time(
    config, dims, mesh, chip, needed, *, turns, turn_tokens, response_tokens, sharing, fill
):
    """Estimates what the update of one step costs at the limit of the hardware.

    Args:
      needed: advice.Need, whose weights the optimizer reads and writes.
      turns: of a trajectory. turn_tokens, response_tokens: of a turn.
      sharing: tokens of turns per token computed, above 1 where layout "tree" shares prefixes.
      fill: share of the computed tokens that is not padding.
    """
    how = advice.setting(config, dims, mesh)
    trained = config.rollout.questions * config.rollout.group * turns
    useful, executed = formulas.turn_flops(how, turn_tokens, response_tokens)
    tokens = trained * turn_tokens
    mini_batches = config.loss.mini_batches
    if config.loss.mini_batch_turns:
        mini_batches = max(1, int(trained // config.loss.mini_batch_turns))
    steps = config.loss.epochs * mini_batches
    # It reads all of them and writes parameters and moments.
    moved = 2 * needed.parameters + 2 * needed.moments + needed.gradients
    optimizer = steps * moved / chip.bandwidth
    products = config.loss.epochs * trained * executed / sharing / fill / mesh.size / chip.flops
    largest = max(zip(config.batch.row_lengths, config.batch.rows, strict=True))
    rows = largest[1] * mesh.shape["data"] * mesh.shape["fsdp"]
    micro_batches = config.loss.epochs * tokens / sharing / fill / (rows * largest[0])
    links = micro_batches * formulas.exchanged(how, rows, largest[0]) / chip.link
    seconds = max(products, links) + optimizer
    return {
        "turns": trained,
        "turn_tokens": turn_tokens,
        "tokens": tokens,
        "useful_flops": config.loss.epochs * trained * useful,
        "executed_flops": config.loss.epochs * trained * executed / sharing / fill,
        "seconds_products": products,
        "seconds_links": links,
        "seconds_optimizer": optimizer,
        "seconds": seconds,
        "tokens_per_second_per_device": tokens / seconds / mesh.size,
    }


# ---- text --------------------------------------------------------------------------------------


def as_text(result):
    mesh = ", ".join(f"{axis}={size}" for axis, size in result["mesh"].items())
    unit = ("GiB", GiB) if result["total"] >= GiB else ("MiB", 2**20)
    shown = lambda size: f"{size / unit[1]:10.2f}"
    lines = [
        f"{result['model']} ({result['parameters'] / 1e9:.2f}B parameters) on "
        f"{result['topology']}: {result['devices']} devices, {mesh}",
        basis_line(result),
        "",
        f"per device                          {unit[0]}",
    ]
    names = {
        "parameters": "trained parameters",
        "moments": "optimizer's moments",
        "gradients": "sum of gradients",
        "frozen": "frozen weights",
    }
    for name, label in names.items():
        if result["bytes"][name]:
            lines.append(f"  {label:<28}{shown(result['bytes'][name])}")
    lines += ["", "program       rows x tokens  temporaries  in memory"]
    for program in result["programs"]:
        size = f"{program['rows']} x {program['tokens']:,}" if program["rows"] else ""
        columns = f"{shown(program['temporaries'])}   {shown(program['total'])}"
        lines.append(f"{program['name']:<12}{size:>15}  {columns}")
    lines += ["", *rollout_lines(result, shown), "", *phase_lines(result, shown)]
    if "step" in result:
        lines += ["", *step_lines(result)]
    if "changes" in result:
        lines += ["", *change_lines(result)]
    return "\n".join(lines)


def rollout_lines(result, shown):
    found = result["rollouts"]
    lines = [f"while rollouts run: {found['replicas']} replicas of the engine"]
    names = {"state": "trainer's state", "weights": "engine's weights", "cache": "engine's cache"}
    for name, label in names.items():
        lines.append(f"  {label:<28}{shown(found[name])}")
    for name, size in found["temporaries"].items():
        lines.append(f"  {'temporaries of ' + name:<28}{shown(size)}")
    return [*lines, f"  {'in all':<28}{shown(found['total'])}"]


def phase_lines(result, shown):
    """Returns the verdict on a whole step: the phases follow one another in the same memory."""
    lines = ["a step in memory"]
    for name, total in result["phases"].items():
        of = f"  of {result['memory'] / GiB:.2f} GiB" if "memory" in result else ""
        spare = f", {1 - total / result['memory']:.0%} to spare" if of else ""
        lines.append(f"  {name:<28}{shown(total)}{of}{spare}")
    lines += [verdict(result)]
    if result["rollouts"].get("spare", 1) < advice.SPARE:
        lines.append(
            "For rollouts: lower engine.cache_tokens, or raise engine.tensor, on which both weight "
            "sets are spread."
        )
    return lines


def basis_line(result):
    basis = result["basis"]
    if basis == "formula":
        return "weights counted, temporaries estimated by formula"
    if basis == result["topology"]:
        return f"compiled ahead of time, jax {result['jax']}"
    return (
        f"weights counted, temporaries of the same programs compiled for {basis}, "
        f"jax {result['jax']}: an estimate"
    )


def verdict(result):
    fullest = max(result["phases"], key=result["phases"].get)
    total = f"{result['phases'][fullest] / GiB:.2f} GiB"
    if "memory" not in result:
        return f"needs {total} ({fullest}) per virtual device, which share this machine's memory"
    spare = {name: 1 - size / result["memory"] for name, size in result["phases"].items()}
    memory = f"{result['memory'] / GiB:.2f} GiB per device"
    if not result["fits"]:
        over = " and ".join(name for name in spare if spare[name] < 0)
        return f"does not fit: {over}; {fullest} would take {total} of {memory}"
    close = "" if spare[fullest] >= advice.SPARE else ", which is too close to rely on"
    return (
        f"fits: the fullest phase, {fullest}, takes {total} of {memory}, {spare[fullest]:.0%} to "
        f"spare{close}"
    )


def step_lines(result):
    step = result["step"]
    limit = max(step["seconds_products"], step["seconds_links"])
    bound = "products" if limit == step["seconds_products"] else "links between devices"
    return [
        f"one step: {step['turns']:,.0f} turns of {step['turn_tokens']:,} tokens (assumed) = "
        f"{step['tokens'] / 1e6:.2f}M tokens",
        f"  FLOPs: {step['useful_flops']:.2e} useful, {step['executed_flops']:.2e} executed",
        f"  at the limit {step['seconds']:.1f} s, bound by {bound} (optimizer "
        f"{step['seconds_optimizer']:.2f} s); at {GOOD:.0%} of it {step['seconds'] / GOOD:.1f} s",
    ]


def change_dict(change):
    return {"flags": as_flags(change.flags), "price": change.price, "total": round(change.total)}


def as_flags(values):
    return [f"--config.{name}={str(value).replace(' ', '')}" for name, value in values.items()]


def change_lines(result):
    lines = ["What would help, by estimate (GiB per device afterwards):"]
    for change in result["changes"]:
        lines.append(
            f"{change['total'] / GiB:10.2f}  {' '.join(change['flags'])}  ({change['price']})"
        )
    if result["together"] is None:
        lines.append("Not even all of it together fits: more devices, or shorter rows.")
    else:
        together = result["together"]
        lines += [f"Fits with {advice.SPARE:.0%} to spare at {together['total'] / GiB:.2f} GiB:"]
        lines += [f"  {' '.join(together['flags'])}"]
    return lines


# ---- command -----------------------------------------------------------------------------------


def define_flags():
    config_flags.DEFINE_config_file("config", lock_config=True)
    flags.DEFINE_string("topology", None, f"Devices, e.g. {hardware.EXAMPLES}.")
    flags.DEFINE_string("model", "", f"A published size: {', '.join(published.SIZES)}.")
    flags.DEFINE_bool("json", False, "Print one JSON object.")
    flags.DEFINE_bool("estimate", False, "Do not compile: temporaries by formula, in seconds.")
    flags.DEFINE_float("turns", None, "Assumed turns of a trajectory.", 1.0)
    flags.DEFINE_integer("turn_tokens", None, "Assumed tokens of a turn.", 1)
    flags.DEFINE_integer("response_tokens", None, "Assumed tokens of a response.", 1)
    flags.DEFINE_float(
        "sharing", 1.0, "Tokens of turns per token computed (layout tree: up to 2.6).", 1.0
    )


def main():
    values = flags.FLAGS
    with command.checking_config():
        topology = hardware.topology(values.topology)
    programs.prepare_machine(topology)
    given = {name: values[name].value for name in ("turns", "turn_tokens", "response_tokens")}
    workload = default_workload(values.config) | {"sharing": values.sharing}
    workload |= {name: value for name, value in given.items() if value is not None}
    result = plan(
        values.config, topology, model=values.model, estimate=values.estimate, workload=workload
    )
    sys.stdout.write((json.dumps(result, indent=2) if values.json else as_text(result)) + "\n")


if __name__ == "__main__":
    define_flags()
    command.run(main, required=("config", "topology"))
