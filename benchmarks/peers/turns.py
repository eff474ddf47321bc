"""A peer's side of a benchmark: a line comes in, an epoch is trained, and a line of JSON goes out; before the first an
empty one, once it is ready to train.

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

    is_first = True

    def __init__(self):
        if Turn.is_first:
            Turn.is_first = False
            _answer({})
        if not sys.stdin.readline():
            raise SystemExit  # the benchmark is over
        self.began = time.perf_counter()

    def trained(self):
        """The epoch is over: what comes now, such as saving what was learnt, is not timed."""
        self.seconds = time.perf_counter() - self.began

    def tell(self, **figures):
        """The answer."""
        _answer({"seconds": self.seconds, **figures})


def _answer(content):
    print(json.dumps(content), file=_answers, flush=True)
