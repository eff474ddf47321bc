"""What every test stands on."""

import cluster  # noqa: F401 - before any test imports Ray, which reads its settings when it is imported
