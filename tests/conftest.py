"""What every test stands on."""

import os

import hypothesis

import cluster  # noqa: F401 - before any test imports Ray, which reads its settings when it is imported

# Before any test loads PyTorch: beside Ray's processes a thread that spins while it waits keeps the cores from all others.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# How long an example takes says how busy the machine is; speed is for benchmarks.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")
