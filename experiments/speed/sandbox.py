"""Measures programs in the sandbox against a fresh interpreter for each.

    python -m experiments.benchmark sandbox --rounds=100

A round runs every program once in the sandbox and once as `python -I -c`, one after the other. Both
times are from the call to the result. Then 2 and 8 threads run many short programs, in turns with
fewer of them in fresh interpreters. Both ways start with numpy and sympy in the page cache; the
sandbox has them loaded already, which is its purpose.

    p50, p95     milliseconds of one program
    ratio        median over rounds of fresh / sandbox
    per_second   programs a second, print(1); the median over the turns
"""

import concurrent.futures
import json
import statistics
import subprocess
import sys
import time

from absl import flags, logging

from tools.sandbox import client, selftest

PROGRAMS = {
    "print": "print(1)",
    "numpy": "import numpy as np\nprint(np.linalg.det(np.eye(3) * 2))",
    "sympy": "import sympy\nx = sympy.Symbol('x')\nprint(sympy.solve(x**2 - 2, x))",
}
THREADS = (2, 8)
TURNS = 3


def in_sandbox(box, code):
    result = box.run(code, seconds=60.0, max_output_bytes=4096, memory_bytes=512 * 2**20)
    return result.output


def in_fresh_interpreter(code):
    arguments = [sys.executable, "-I", "-c", code]
    ended = subprocess.run(arguments, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return ended.stdout.strip()


def measure(*, rounds, programs):
    """Measures `rounds` of latency, then `programs` by each number of threads: {name: number}."""
    started = time.perf_counter()
    box = client.Sandbox()
    numbers = {"start_s": time.perf_counter() - started}
    facts = selftest.examine(box)
    ways = {"sandbox": lambda code: in_sandbox(box, code), "fresh": in_fresh_interpreter}
    names = [name for name in PROGRAMS if name == "print" or name in facts["packages"]]
    seconds = {(way, name): [] for way in ways for name in names}
    for _ in range(rounds):
        for name in names:
            outputs = set()
            for way, work in ways.items():
                start = time.perf_counter()
                outputs.add(work(PROGRAMS[name]))
                seconds[way, name].append(time.perf_counter() - start)
            if len(outputs) > 1:
                raise ValueError(f"{name} gives {sorted(outputs)}, not the same in both.")
    for name in names:
        for way in ways:
            times = sorted(seconds[way, name])
            numbers[f"{name}/{way}/p50"] = 1e3 * statistics.median(times)
            numbers[f"{name}/{way}/p95"] = 1e3 * times[int(0.95 * (len(times) - 1))]
        pairs = zip(seconds["fresh", name], seconds["sandbox", name], strict=True)
        numbers[f"{name}/ratio"] = statistics.median(fresh / inside for fresh, inside in pairs)
    for threads in THREADS:
        rates = {way: [] for way in ways}
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            for _ in range(TURNS):
                for way, work in ways.items():
                    count = programs if way == "sandbox" else max(threads, programs // 5)
                    start = time.perf_counter()
                    list(pool.map(work, [PROGRAMS["print"]] * count))
                    rates[way].append(count / (time.perf_counter() - start))
        for way in ways:
            numbers[f"threads{threads}/{way}/per_second"] = statistics.median(rates[way])
    box.close()
    return numbers | {"level": facts["level"]}


def define_flags():
    flags.DEFINE_integer("rounds", 50, "Times that each program runs, for its latency.", 1)
    flags.DEFINE_integer("programs", 300, "Programs of one turn, for the throughput.", 1)


def main():
    numbers = measure(rounds=flags.FLAGS.rounds, programs=flags.FLAGS.programs)
    rounded = {
        name: value if isinstance(value, str) else round(value, 2)
        for name, value in numbers.items()
    }
    logging.info("sandbox %s", json.dumps(rounded))
