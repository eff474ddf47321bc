"""The batch side: Ray round `recsys`, thin."""

import os

# Ray would start, or join whatever it finds, at the first call outside a session: then a mistake is to be an error.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
