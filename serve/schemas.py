"""What goes in and out, as OpenAPI shows it. Bodies of requests are checked by these models; answers are built as plain
dicts, for speed, and the tests hold them to these models."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from recsys.retrieval.audit import AuditReport
from serve.args import MAX_EVENTS, MAX_FILTERS, MAX_ID_LENGTH, MAX_LIST, MAX_QUERY_LENGTH, MAX_VALUES

Id = Annotated[str, Field(min_length=1, max_length=MAX_ID_LENGTH)]
Column = Annotated[str, Field(min_length=1, max_length=MAX_ID_LENGTH)]
INT64 = 2**63


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)


class _Out(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class HistoryEvent(_In):
    """One item somebody took, and how he liked it."""

    item: Id
    """The item's id, as in the data: always a string."""
    rating: float | None = Field(None, allow_inf_nan=False, ge=-1e6, le=1e6)
    """In the data's own scale; left out: as if he liked it."""
    time: int | None = Field(None, ge=-INT64, lt=INT64)
    """Unix seconds."""


Value = str | bool | int | Annotated[float, Field(allow_inf_nan=False)]
Values = Annotated[list[Value], Field(max_length=MAX_VALUES)]


class ColumnFilter(_In):
    """What an item must have in a column; where several are given, all of them. A missing value is none."""

    any: Values | None = None
    """At least one of these."""
    all: Values | None = None
    """Every one of these; only where items have several, such as genres."""
    none: Values | None = None
    """Not one of these."""
    equals: Value | None = None
    """This; only where items have one."""
    min: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """At least this, of numbers such as years."""
    max: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """At most this."""


class RecommendRequest(_In):
    """Who asks: a known `user`, a `history`, or neither (a stranger, who gets what is popular)."""

    user: Id | None = None
    """A user's id, as in the data: always a string."""
    history: list[HistoryEvent] | None = Field(None, max_length=MAX_LIST)
    """What he took, oldest first; where events have times, these order them. Nothing needs to be known about him."""
    k: int = Field(10, ge=1)
    """How many items; fewer come back only where fewer are left."""
    exclude_seen: bool | None = None
    """Leave out what he has taken; left out: as the bundle says."""
    exclude: list[Id] = Field(default_factory=list, max_length=MAX_LIST, json_schema_extra={"default": []})
    """Items that must not come."""
    allow: list[Id] | None = Field(None, max_length=MAX_LIST)
    """Only these items may come."""
    filter: dict[Column, ColumnFilter] = Field(default_factory=dict, max_length=MAX_FILTERS, json_schema_extra={"default": {}})
    """By column of the catalogue (`/v1/bundle` names them): only items that meet all of it may come."""
    mode: Literal["auto", "ann", "exact"] = "auto"
    """How to search: approximately, exactly, or as the bundle's measured recall allows."""
    diversity: float = Field(0, ge=0, le=1)
    """How much unlike one another the items should be: 0 not at all, .1 somewhat, .5 a great deal, 1 at any price."""
    popularity: float = Field(0, ge=-1, le=1)
    """More of what is popular (up to 1), or of what is not (down to -1). What a stranger gets is popular all the same."""
    recency: float = Field(0, ge=-1, le=1)
    """More of what came lately (up to 1), or long ago (down to -1); only where events have times."""
    explain: bool = False
    """Say of each item what in the history pulled it up."""


class _Asked(BaseModel):
    """What stands behind the question mark of an address: text, so that numbers are read from it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Titles(_Asked):
    """Of which titles."""

    query: Annotated[str, Field(max_length=MAX_QUERY_LENGTH)]
    """Words of the title."""
    limit: int = Field(10, ge=1, le=100)
    """Most items that come back."""


class Latest(_Asked):
    """How much of a user."""

    limit: int = Field(100, ge=1, le=1000)
    """Most events that come back."""


class Alike(_Asked):
    """How many similar items."""

    k: int = Field(10, ge=1)
    """How many items."""


class NewEvent(_In):
    """Somebody took an item just now."""

    user: Id
    """His id; of whom nothing was known, something is from now on."""
    item: Id
    """The item's id, which must be in the catalogue."""
    rating: float | None = Field(None, allow_inf_nan=False, ge=0, le=1e6)
    """In the data's own scale, never negative; left out: as if he liked it."""
    kind: str | None = Field(None, min_length=1, max_length=64)
    """What he did, such as `view`; it is kept beside the event and has no effect."""
    time: int | None = Field(None, ge=0, lt=INT64)
    """Unix seconds, not of a day to come; left out: now."""
    id: Id | None = None
    """Names the event, among those of all users: sent again, of whomever, it counts once. Left out: one is made, and sending
    again is another event."""


class NewEvents(_In):
    """Several; all are kept, or none."""

    events: list[NewEvent] = Field(min_length=1, max_length=MAX_EVENTS)


class Kept(_Out):
    """The events are on disk, and every request from now on knows of them."""

    kept: int
    """How many are new."""
    repeated: int
    """How many were there already, by their ids."""
    ids: list[str]
    """Of all of them, in order."""


class Item(_Out):
    """An item of the catalogue, with whatever other attributes the data has."""

    model_config = ConfigDict(extra="allow")

    item_id: str
    title: str | None = None
    year: int | None = None
    genres: list[str] | None = None


class Cause(_Out):
    """An item of the history that pulled another up."""

    item_id: str
    title: str
    gain: float
    """What the score would lose without it."""


class ScoredItem(Item):
    score: float
    """Larger is better; comparable within one answer only. Diversity and the dials change the order, not the score."""
    because: list[Cause] | None = None
    """Where `explain` was asked: what in the history pulled the item up, most first; of the latest 20."""


class Recommendation(_Out):
    """The best items, best first, and how they were found."""

    items: list[ScoredItem]
    path: Literal["ann", "exact", "popular"]
    """What made the list: approximate search, exact search, or the popularity list."""
    fallback: bool
    """Whether this is less than was asked for, such as popular items for a user nobody knows."""
    reason: str | None
    """Why that, why the list was searched for exactly, or why it is short."""
    unknown_items: list[str]
    """Ids of the request that the catalogue does not have; they were passed over."""
    bundle: str
    """Version of the bundle that answered."""


class ProblemDocument(_Out):
    """`application/problem+json`, RFC 9457."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    code: str
    """For programs; every code is listed in /docs."""
    detail: str
    """What to do."""
    request_id: str


class Refusal(_Out):
    """In place of one answer of several."""

    problem: ProblemDocument


class Recommendations(_Out):
    """One answer, or one refusal, for each request, in order."""

    answers: list[Recommendation | Refusal]


class ItemList(_Out):
    """Items whose titles match."""

    items: list[Item]
    bundle: str


class KnownEvent(Item):
    rating: float | None = None
    time: int | None = None


class User(_Out):
    """A known user and what he took."""

    user_id: str
    events: int
    """How many events are known of him."""
    history: list[KnownEvent]
    """The latest of them, newest first."""
    bundle: str


class CanaryInfo(_Out):
    """A bundle that answers a share of the users, by their ids."""

    version: str
    share: float


class Rejected(_Out):
    """A bundle that was not taken."""

    version: str
    why: str


class BundleInfo(_Out):
    """What is served, what made it and how good it measured."""

    name: str
    version: str
    created: str
    model: str
    items: int
    users: int
    events: int
    dim: int
    dataset: str
    metrics_on: str
    metrics: dict[str, float]
    popularity: dict[str, float]
    known_user: str
    exclude_seen: bool
    recall_floor: float
    index: dict[str, Any] | None
    max_k: int
    columns: list[str]
    """What a request can filter by."""
    takes_events: bool
    """Whether events are taken at /v1/events."""
    canary: CanaryInfo | None
    """What else is served, if there is something."""
    rejected: Rejected | None
    """The latest bundle that was to be served and is not, being bad."""
    audit: AuditReport | None
    """None where the index leaves nothing out, or there is none."""


class Health(_Out):
    status: Literal["ok"]


class Ready(Health):
    bundle: str


def request_model(max_k: int) -> type[RecommendRequest]:
    """RecommendRequest with this service's `max_k` in it, so that checking and OpenAPI say the same."""
    k = (int, Field(min(10, max_k), ge=1, le=max_k, description=RecommendRequest.model_fields["k"].description))
    return create_model("RecommendRequest", __base__=RecommendRequest, __doc__=RecommendRequest.__doc__, k=k)


def alike_model(max_k: int) -> type[Alike]:
    """Alike with this service's `max_k` in it."""
    k = (int, Field(min(10, max_k), ge=1, le=max_k, description=Alike.model_fields["k"].description))
    return create_model("Alike", __base__=Alike, __doc__=Alike.__doc__, k=k)


MANY = "Several requests; each is answered, or refused, by itself."


def many_model(request: type[RecommendRequest], max_requests: int) -> type[BaseModel]:
    """RecommendMany of such requests."""
    requests = (list[request], Field(min_length=1, max_length=max_requests))  # type: ignore[valid-type]
    return create_model("RecommendMany", __base__=_In, __doc__=MANY, requests=requests)
