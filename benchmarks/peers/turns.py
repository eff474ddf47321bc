"""A peer's side of a benchmark: a line comes in, an epoch is trained, and a line of JSON goes out.

Between its turns a peer waits, so that those it is compared with have the machine to themselves.
"""

import json
import os
import sys
import time

# What libraries print must not come between the answers: it goes where errors go.
_answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


class Turn:
    """One epoch, from the word to begin until `tell`."""

    def __init__(self):
        if not sys.stdin.readline():
            raise SystemExit  # the benchmark is over
        self.began = time.perf_counter()

    def trained(self):
        """The epoch is over: what comes now, such as saving what was learnt, is not timed."""
        self.seconds = time.perf_counter() - self.began

    def tell(self, **figures):
        """The answer."""
        print(json.dumps({"seconds": self.seconds, **figures}), file=_answers, flush=True)
