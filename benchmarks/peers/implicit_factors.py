"""Factors by implicit, an iteration a turn: BayesianPersonalizedRanking or AlternatingLeastSquares.

TRAIN: npz of user, item [E] and users, items, how many there are. OUT: npz, after each turn users [U, D] and items [N, D],
whose inner products are the scores.
"""

import argparse

import numpy as np
import scipy.sparse
from implicit.cpu.als import AlternatingLeastSquares
from implicit.cpu.bpr import BayesianPersonalizedRanking
from turns import Turn


def main():
    options = arguments()
    given = np.load(options.train)
    turn = Turn()
    ones = np.full(len(given["user"]), options.weight, np.float32)
    shape = int(given["users"]), int(given["items"])
    matrix = scipy.sparse.csr_matrix((ones, (given["user"], given["item"])), shape=shape)
    model = model_of(options)

    def iterated(iteration, seconds, loss=None, skipped=0):
        nonlocal turn
        turn.trained()
        np.savez(options.out, users=model.user_factors, items=model.item_factors)
        # A negative that its user has watched is left out, and the positive with it.
        turn.tell(events=len(ones) - skipped)
        turn = Turn()

    model.fit(matrix, show_progress=False, callback=iterated)


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("model", choices=["bpr", "als"])
    parser.add_argument("train")
    parser.add_argument("out")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--weight", type=float, default=1.0, help="of an event, others having 1 (als)")
    parser.add_argument("--penalty", type=float, default=0.01)
    parser.add_argument("--learning-rate", type=float, default=0.01, help="bpr")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def model_of(options):
    common = {
        "factors": options.dim,
        "regularization": options.penalty,
        "iterations": 1_000_000,  # until there is no turn more
        "num_threads": options.threads,
        "random_state": options.seed,
    }
    if options.model == "als":
        return AlternatingLeastSquares(**common)
    return BayesianPersonalizedRanking(learning_rate=options.learning_rate, **common)


if __name__ == "__main__":
    main()
