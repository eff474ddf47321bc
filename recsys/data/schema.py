"""Names of columns and files, spelled once, and the Arrow schemas of the dataset folder."""

import pyarrow as pa

# Columns of the uniform events table that every source is turned into (one row an event) ...
USER_ID = "user_id"
ITEM_ID = "item_id"
RATING = "rating"
TIME = "time"
ORDER = "order"  # place in the source: range << 40 | row, so that ties keep the source's order
ROLE = "role"  # segment of a published split: one of SEGMENTS

# ... and of the dataset folder (one row a user; one row an item).
USER = "user"
ITEM = "item"
VALID_FROM = "valid_from"
TEST_FROM = "test_from"
TITLE = "title"
YEAR = "year"
GENRES = "genres"
COUNT = "count"
LATELY = "lately"  # only in bundles: events by `recsys.data.recent`, where lists follow what is popular now
ARRIVED = "arrived"  # only in bundles: the time of an item's first event, where events have times
OWN_OF_BUNDLES = (ITEM, LATELY, ARRIVED)

EXTENSION = b"ARROW:extension:name"  # where Arrow's files name a type that a library gives a meaning of its own
REFUSED = (
    "column {} is of an extension type, of which reading a value can run code that is in it. "
    "Make it text, numbers or lists of them."
)

TRAIN, VALID, TEST = "train", "valid", "test"
SEGMENTS = (TRAIN, VALID, TEST)
END = "end"  # behind the last segment, where VALID and TEST name the borders before them
ALL = "all"
ROLES = (ALL, TRAIN, VALID, TEST)

DATASET_FILE = "dataset.json"
ITEMS_FILE = "items.parquet"
NEGATIVES_FILE = "negatives.parquet"
USERS_FOLDER = "users"
REJECTS_FOLDER = "rejects"

EVENTS = pa.schema(
    [
        (USER_ID, pa.string()),
        (ITEM_ID, pa.string()),
        (RATING, pa.float32()),
        (TIME, pa.int64()),
        (ORDER, pa.int64()),
        (ROLE, pa.int8()),
    ]
)

USERS = pa.schema(
    [
        (USER, pa.int32()),
        (USER_ID, pa.string()),
        (ITEM, pa.list_(pa.int32())),
        (RATING, pa.list_(pa.float32())),
        (TIME, pa.list_(pa.int64())),
        (VALID_FROM, pa.int32()),
        (TEST_FROM, pa.int32()),
    ]
)

# The columns every items.parquet begins with; other attributes follow, COUNT comes last.
ITEMS = pa.schema(
    [
        (ITEM, pa.int32()),
        (ITEM_ID, pa.string()),
        (TITLE, pa.string()),
        (YEAR, pa.int32()),
        (GENRES, pa.list_(pa.string())),
    ]
)

NEGATIVES = pa.schema([(USER, pa.int32()), (ITEM, pa.list_(pa.int32()))])

REJECTS = pa.schema(
    [
        ("file", pa.string()),
        ("position", pa.int64()),
        ("reason", pa.string()),
        ("raw", pa.string()),
    ]
)


def extension_column(columns: pa.Schema) -> str | None:
    """The first column that is or holds an extension type, whether this process knows it or not; None where there is none.

    Ray Data unpickles the values of one of its own when they are looked at, in every process that has imported it.
    """
    return next((field.name for field in columns if _is_extension(field)), None)


def _is_extension(field: pa.Field) -> bool:
    kind = field.type
    if isinstance(kind, pa.BaseExtensionType) or EXTENSION in (field.metadata or {}):
        return True
    if pa.types.is_dictionary(kind):
        return _is_extension(pa.field("", kind.value_type))
    return any(_is_extension(kind.field(number)) for number in range(kind.num_fields))
