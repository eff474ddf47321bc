"""What several of these modules stand on."""

import pytest

from cluster.session import session
from recsys.config import ClusterConfig


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Receipts of opened bundles, where nobody else looks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECSYS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def small_ray(cache):
    """A Ray for one worker."""
    with session(ClusterConfig(readers=1, object_store_bytes=100 << 20)):
        yield


@pytest.fixture(scope="module")
def ray_for_two(cache):
    """A Ray for two workers."""
    with session(ClusterConfig(num_workers=2, readers=1, object_store_bytes=100 << 20)):
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory, request):
    """A folder for what a module makes."""
    return tmp_path_factory.mktemp(request.module.__name__.removeprefix("test_"))
