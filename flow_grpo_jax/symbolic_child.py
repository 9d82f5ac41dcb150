"""Compares formulas with math-verify; started by `symbolic` as a script, never imported.

Argument: bytes of memory. A line of JSON in, {"gold", "answer", "seconds"}; a line out: true or
false. Past its seconds the process ends by SIGALRM, whatever sympy is doing.
"""

import json
import resource
import signal
import sys


def main():
    memory = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    import math_verify

    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        ask = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, ask["seconds"])
        # Its own time limits are off: they would replace the alarm.
        gold, answer = (
            math_verify.parse(f"${ask[name]}$", parsing_timeout=None) for name in ("gold", "answer")
        )
        equal = bool(gold) and math_verify.verify(gold, answer, timeout_seconds=None)
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.stdout.write(json.dumps(bool(equal)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
