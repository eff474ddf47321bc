"""What a run's epochs say, as scalars for TensorBoard: written as they come, one point an epoch however often it resumes.

`tensorboard/` holds the model's curves and `tensorboard/popularity/` popularity's under the same names, so that TensorBoard
draws both in one chart. Each is a single event file, since TensorBoard keeps every one it finds open.

SummaryWriter would not do: it writes from a thread of its own, and where the disk is full that thread dies and the next call
waits for it without end.
"""

import logging
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER, POPULARITY = "tensorboard", "popularity"
EVENT_FILE = "events.out.tfevents.recsys"

TAGS = {
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/gradient_norm",
    "events_per_second": "speed/events_per_second",
    "wait_share": "speed/wait_share",
    "utilisation": "speed/utilisation",
}

# A record is its length, a checksum of those eight bytes, the data, and a checksum of the data.
HEAD_BYTES, TAIL_BYTES = 12, 4

log = logging.getLogger(__name__)


def write_epoch(folder: Path, row: dict[str, Any]) -> None:
    """Add a finished epoch to a run's scalars; what is there of this epoch and later ones is replaced.

    folder: of the run. row: of metrics.jsonl; what it lacks is left out. Raises nothing: a failure is a warning.
    """
    try:
        _write(folder / FOLDER, row["epoch"], _named(row, TAGS) | _validation(row.get("metrics")))
        if popularity := _validation(row.get("popularity")):
            _write(folder / FOLDER / POPULARITY, row["epoch"], popularity)
    except Exception as error:  # whatever it is, hours of training are worth more than a second copy of their curves
        log.warning("%s: epoch %s was not written for TensorBoard: %s", folder / FOLDER, row.get("epoch"), error)


def _named(row: Mapping[str, Any], tags: Mapping[str, str]) -> dict[str, float]:
    return {tag: float(row[name]) for name, tag in tags.items() if row.get(name) is not None}


def _validation(metrics: Mapping[str, Any] | None) -> dict[str, float]:
    return _named(metrics or {}, {name: f"validation/{name}" for name in metrics or {}})


def _write(folder: Path, epoch: int, scalars: Mapping[str, float]) -> None:
    """Cut the event file after the last whole record of an earlier epoch, and go on from there."""
    from tensorboardX.proto.event_pb2 import Event  # here, because it loads torch and more
    from tensorboardX.proto.summary_pb2 import Summary

    folder.mkdir(parents=True, exist_ok=True)
    values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
    events = [Event(wall_time=time.time(), step=epoch, summary=Summary(value=values))]
    with (folder / EVENT_FILE).open("a+b") as file:
        file.seek(0)
        end = _end_before(epoch, file.read())
        if end == 0:
            events.insert(0, Event(wall_time=time.time(), file_version="brain.Event:2"))
        file.truncate(end)
        file.write(b"".join(_record(event.SerializeToString()) for event in events))


def _end_before(epoch: int, content: bytes) -> int:
    """Bytes up to where the whole records of earlier epochs end: a full disk or a crash may have cut the last one."""
    from tensorboardX.proto.event_pb2 import Event

    end = 0
    while (data := _data_at(end, content)) is not None and Event.FromString(data).step < epoch:
        end += HEAD_BYTES + len(data) + TAIL_BYTES
    return end


def _data_at(start: int, content: bytes) -> bytes | None:
    """What the record that begins there holds, or None if there is no whole one."""
    if len(content) < start + HEAD_BYTES or content[start + 8 : start + HEAD_BYTES] != _checksum(content[start : start + 8]):
        return None
    (length,) = struct.unpack_from("<Q", content, start)
    end = start + HEAD_BYTES + length
    return content[start + HEAD_BYTES : end] if end + TAIL_BYTES <= len(content) else None


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + _checksum(length) + data + _checksum(data)


def _checksum(data: bytes) -> bytes:
    from tensorboardX.record_writer import masked_crc32c

    return struct.pack("<I", masked_crc32c(data))
