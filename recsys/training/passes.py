"""Models that learn by whole passes over their events: what a pass is, by `Model.learns`."""

from recsys.training import alternating, subspace

# Each has train_epoch(model, events, on_block), settle_users(the same) and blocks_of(model, events).
PASSES = {"alternating": alternating, "subspace": subspace}
