"""What the measured rounds of a load of requests amount to: values, and a table of them."""

import numpy as np

from experiments.speed import decoding, measure

PEERS = {  # name -> (program, how it is loaded)
    "torch": ("torch", dict(how="static")),
    "torch-continuous": ("torch", dict(how="continuous")),
    "tunix": ("tunix", {}),
}
OURS = "ours"


def summarise(reports, load, limit, slots):
    """Returns {name: values} of a measured load."""
    seconds = {name: np.array([r["seconds"] for r in rounds]) for name, rounds in reports.items()}
    shared = max((r.get("could_share", 0) for r in reports[OURS]), default=0)
    shortest = limit.seconds(load, slots, shared)
    results = {}
    for name, rounds in reports.items():
        median = float(np.median(seconds[name]))
        first = np.concatenate([r["first"] for r in rounds])
        middle = lambda key, rounds=rounds: _median([r.get(key) for r in rounds])
        results[name] = {
            "seconds": seconds[name].tolist(),
            "median_seconds": median,
            "tokens_per_second": load.new_tokens / median,
            "prompt_tokens_per_second": load.prompt_tokens / median,
            "first_seconds": {f"p{q}": float(np.percentile(first, q)) for q in (50, 95)},
            **{
                key: middle(key)
                for key in (
                    "fill",
                    "fill_queued",
                    "wasted",
                    "waited",
                    "hits",
                    "hits_in_pages",
                    "steps",
                    "decode_calls",
                    "prefill_calls",
                    "prefill_fill",
                )
            },
            "compiled": rounds[-1].get("compiled"),
            "compile_seconds": rounds[-1].get("compile_seconds"),
            "peak_bytes": rounds[-1]["peak_bytes"],
            "limit": shortest / median,
            "decode_limit": decode_share(rounds, load, limit),
            "faster_than": {
                other: measure.spread(seconds[other] / seconds[name])
                for other in PEERS
                if other in reports and other != name
            },
        }
    return results


def _median(values):
    return None if None in values else float(np.median(values))


def decode_share(rounds, load, limit):
    """Returns the share of the limit in steps that only decode; None where there are none."""
    steps_alone = [step for r in rounds for step in r.get("decoding", ())]
    if not steps_alone:
        return None
    seen = decoding.context(load) / max(1, sum(turn.new - 1 for turn in load.turns))
    best = sum(
        limit.decode_seconds(steps, tokens, tokens * seen) for _, steps, tokens in steps_alone
    )
    return best / sum(seconds for seconds, *_ in steps_alone)


def table(results):
    """Returns the lines of a table."""
    peers = [name for name in PEERS if name in results]
    percent = lambda share: "-" if share is None else f"{100 * share:.0f} %"
    number = lambda value, spec="": "-" if value is None else format(value, spec)
    head = ["", "s", "tok/s", "prompt", "first", "fill", "queued", "wasted", "hits", "pages"]
    head += ["programs", "compile s", "GiB", "limit", "decode", *[f"x {peer}" for peer in peers]]
    rows = [head]
    for name, r in results.items():
        ratios = [r["faster_than"].get(peer) for peer in peers]
        first = [f"{1e3 * r['first_seconds'][q]:,.0f}" for q in ("p50", "p95")]
        rows.append(
            [
                name,
                f"{r['median_seconds']:.2f}",
                f"{r['tokens_per_second']:,.0f}",
                f"{r['prompt_tokens_per_second']:,.0f}",
                " / ".join(first),
                percent(r["fill"]),
                percent(r["fill_queued"]),
                percent(r["wasted"]),
                number(r["hits"], ".3f"),
                number(r["hits_in_pages"], ".3f"),
                number(r["compiled"]),
                number(r["compile_seconds"], ".1f"),
                f"{r['peak_bytes'] / 2**30:.2f}",
                number(r["limit"], ".3f"),
                number(r["decode_limit"], ".3f"),
                *["-" if q is None else measure.as_text(q) for q in ratios],
            ]
        )
    return measure.aligned(rows)
