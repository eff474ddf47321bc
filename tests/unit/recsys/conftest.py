"""What several of these modules stand on."""

import pytest
from threadpoolctl import threadpool_limits


@pytest.fixture(scope="module")
def own_receipts_and_one_thread(tmp_path_factory):
    """Receipts where nobody else looks; and tiny products only wait for a second thread."""
    with pytest.MonkeyPatch.context() as patch, threadpool_limits(1):
        patch.setenv("RECSYS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
