"""All that can be set about serving, typed, bounded and documented once."""

import ipaddress
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from recsys.errors import ConfigError

MAX_ID_LENGTH = 512
"""Longest id of a user or an item that is looked up, in characters; a longer one is refused unread."""
MAX_QUERY_LENGTH = 200
"""Longest text to search titles for, in characters."""
MAX_LIST = 10_000
"""Longest history, `exclude` or `allow` of one request."""
MAX_FILTERS = 32
"""Most columns of one request's `filter`."""
MAX_EVENTS = 1_000
"""Most events of one body."""
MAX_EVENT_BODIES = 1_064
"""Most bodies of events that a replica has in line or at work."""
SPARE = 64
"""For health, state and pages, in what a replica has under way at a time."""
MAX_VALUES = 1_000
"""Most values of one of its lists."""
PROFILES: dict[str, dict[str, Any]] = {"laptop": {}, "production": {"ingress": "haproxy", "log_format": "json"}}
"""Settings that go together; what is given beside them holds."""
LOOPBACK_NAMES = ("localhost", "ip6-localhost")


class ServeArgs(BaseModel):
    """What `recsys serve` and `serve run serve.app:build key=value …` understand. Strings are converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)

    bundles: str
    """Folder with the bundles of one name or of several, or one version's own folder."""
    name: str | None = None
    """Which name, where the folder holds several."""
    keys: str | None = None
    """TOML file of the keys that may ask (`serve/keys.py`), read again when it changes. Without, only this machine may."""
    open: bool = False
    """Listen beyond this machine without keys: only where something else guards the door."""
    host: str = Field("127.0.0.1", min_length=1)
    """Address to listen on; beyond loopback only if you say so, such as 0.0.0.0."""
    port: int = Field(8000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    ingress: Literal["ray", "haproxy"] = "ray"
    """Who accepts connections: Ray's own proxy, or HAProxy: faster, but its ports 8404 and 9101 listen on all interfaces."""
    replicas: int = Field(1, ge=1, le=1000)
    """Processes that answer; on one host they share the bundle's memory."""
    cpus: float = Field(1, gt=0)
    """Logical CPUs a replica reserves."""
    gpus: float | None = Field(None, ge=0)
    """GPUs a replica reserves, or what part of one; then it searches there, exactly, through all items. Unset: those of this
    machine, where `recsys serve` starts Ray itself and PyTorch is installed, else none."""
    threads: int = Field(1, ge=1)
    """Threads a replica computes with."""
    max_k: int = Field(1000, ge=1, le=100_000)
    """Most items one answer may hold."""
    max_requests: int = Field(256, ge=1)
    """Most requests in one body's list."""
    max_body_bytes: int = Field(1 << 20, ge=1024)
    """Largest body of a request."""
    receive_timeout_s: float = Field(10, gt=0)
    """After this long a body that has not come whole is not waited for any more: 408."""
    max_batch: int = Field(64, ge=1)
    """Most users answered together as one matrix."""
    max_queued: int = Field(1024, ge=1)
    """Most users waiting in one replica; beyond it 503 with Retry-After."""
    batch_wait_ms: float = Field(0, ge=0, le=1000)
    """How long a first request waits for company; 0: only for what has already arrived."""
    batch_in_thread: bool = False
    """Compute in a thread of its own instead of on the event loop."""
    events: str = Field("auto", min_length=1)
    """Where events are kept that come while serving: `auto`, a file beside the bundles; a file's path; `redis`, where
    $RECSYS_REDIS_URL says, or an address, for replicas on several hosts; `none`."""
    watch_s: float = Field(5, ge=0, le=3600)
    """Seconds after which a replica looks again which bundle is to be served, and takes a new one; 0: never."""
    audit_share: float = Field(0.01, ge=0, le=1)
    """Share of a replica's time in which it answers queries a second time, exactly, to see what the index misses; 0: none."""
    exact_share: float = Field(0.5, ge=0, le=1)
    """Share of its time that exact search may take where the index misses too much; beyond it, the index answers, marked so."""
    metrics_port: int | None = Field(None, ge=1, le=65535)
    """Port at which Prometheus finds this host's metrics, where `recsys serve` starts Ray itself; unset: a free one. A Ray that
    runs has its own."""
    access_log: bool = False
    """Write a line for every request into Serve's logs."""
    log_format: Literal["text", "json"] = "text"
    """How a replica writes its logs: lines for people, or JSON with request ids as fields."""
    request_timeout_s: float = Field(30, gt=0)
    """After this long Ray gives a request up."""

    @model_validator(mode="after")
    def _fits_together(self) -> "ServeArgs":
        if self.max_queued < self.max_requests:
            raise ValueError(f"max_queued must be at least max_requests ({self.max_requests}), or a full list never fits")
        if not self.is_loopback and self.keys is None and not self.open:
            raise ValueError(
                "beyond this machine only with keys: give --keys FILE (keys=FILE), or --open (open=true) where something else "
                "guards the door"
            )
        if self.metrics_port == self.port:
            raise ValueError(f"metrics_port is port ({self.port}): choose another for one of them")
        if self.ingress == "haproxy" and self.is_loopback:
            raise ValueError(
                "ingress=haproxy opens port 8404 on all interfaces: give --host 0.0.0.0 (host=0.0.0.0) too, behind a firewall"
            )
        return self

    @property
    def max_ongoing(self) -> int:
        """HTTP requests that Ray sends to one replica at a time: more than its queues hold, so that what is too much is refused
        by a queue, at once and in the service's own words, and no kind of request keeps another waiting in Ray's proxy."""
        lists, aside = self.max_queued + self.max_batch, 2 * (self.max_requests + 1)  # explanations, and the catalogue
        return lists + aside + MAX_EVENT_BODIES + SPARE

    @property
    def max_passed_on(self) -> int:
        """Questions that Ray's proxy has under way: more than all replicas have explanations in line, for whose sake lists
        would be refused."""
        return self.replicas * max(512, 2 * (self.max_requests + 1))

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the service."""
        if self.host in LOOPBACK_NAMES:
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def make_args(profile: str = "laptop", **values: Any) -> ServeArgs:
    """ServeArgs of a profile and what is given beside it, or ConfigError saying which argument cannot be, and why."""
    if profile not in PROFILES:
        raise ConfigError(f"serve: profile {profile}: there is {', '.join(PROFILES)}.")
    try:
        return ServeArgs.model_validate(PROFILES[profile] | values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"])) or "arguments"
        raise ConfigError(f"serve: {name}: {first['msg'].removeprefix('Value error, ')}.") from None
