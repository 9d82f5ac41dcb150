"""A peer's side of the talk: one JSON request a line on stdin, one JSON reply a line on stdout.

A request is {"do": NAME, ...arguments}. An exception ends the process; the other side then shows
the end of its stderr. This file runs in the peer's environment and imports the standard library
alone.
"""

import json
import os
import resource
import sys


def serve(handlers):
    """Answers until stdin ends.

    Args:
      handlers: name -> function of the request's other fields that returns a dict of plain values.
    """
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(
        sys.stderr.fileno(), sys.stdout.fileno()
    )  # what a library prints must not look like a reply
    for line in sys.stdin:
        request = json.loads(line)
        reply = handlers[request.pop("do")](**request)
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def host_peak_bytes():
    """Returns the largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
