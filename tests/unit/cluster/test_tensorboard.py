"""TensorBoard's event files hold what the rows say, once an epoch, and cost no training its life."""

import logging
import resource
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from cluster.tensorboard import write_epoch


def row(epoch, **more):
    return {
        "epoch": epoch,
        "loss": 2.0 / epoch,
        "learning_rate": 0.25,
        "grad_norm": 0.5,
        "events": 4096,
        "events_per_second": 1000.0 * epoch,
        "wait_share": 0.125,
        "utilisation": 0.75,
        "read_from": "files",
        "metrics": {"ndcg@10": 0.125 * epoch, "hr@10": 0.5},
        "popularity": {"ndcg@10": 0.0625, "hr@10": 0.25},
        "best": True,
        **more,
    }


def events_of(path: Path) -> Iterator[Event]:
    """Every record of an event file, read as its format says and with its checksums verified."""
    with path.open("rb") as file:
        while length := file.read(8):
            assert struct.unpack("<I", file.read(4)) == (masked_crc32c(length),)
            data = file.read(*struct.unpack("<Q", length))
            assert struct.unpack("<I", file.read(4)) == (masked_crc32c(data),)
            yield Event.FromString(data)


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Scalars of the one event file that TensorBoard would find right in a folder: (step, value) by tag."""
    (path,) = [path for path in folder.iterdir() if "tfevents" in path.name]
    version, *events = events_of(path)
    assert version.file_version == "brain.Event:2"
    found: dict[str, list[tuple[int, float]]] = {}
    for event in events:
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


@contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process can grow: writing to one fails, as where no room is left."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_values_of_every_epoch_are_found_again(tmp_path):
    for epoch in (1, 2):
        write_epoch(tmp_path, row(epoch))
    assert points(tmp_path / "tensorboard") == {
        "train/loss": [(1, 2.0), (2, 1.0)],
        "train/learning_rate": [(1, 0.25), (2, 0.25)],
        "train/gradient_norm": [(1, 0.5), (2, 0.5)],
        "speed/events_per_second": [(1, 1000.0), (2, 2000.0)],
        "speed/wait_share": [(1, 0.125), (2, 0.125)],
        "speed/utilisation": [(1, 0.75), (2, 0.75)],
        "validation/ndcg@10": [(1, 0.125), (2, 0.25)],
        "validation/hr@10": [(1, 0.5), (2, 0.5)],
    }
    assert points(tmp_path / "tensorboard" / "popularity") == {
        "validation/ndcg@10": [(1, 0.0625), (2, 0.0625)],
        "validation/hr@10": [(1, 0.25), (2, 0.25)],
    }


def test_an_epoch_trained_again_has_one_point_and_takes_back_the_later_ones(tmp_path):
    for epoch in (1, 2, 3, 4):
        write_epoch(tmp_path, row(epoch))
    write_epoch(tmp_path, row(3, loss=7.0))
    assert points(tmp_path / "tensorboard")["train/loss"] == [(1, 2.0), (2, 1.0), (3, 7.0)]
    assert [step for step, _ in points(tmp_path / "tensorboard" / "popularity")["validation/hr@10"]] == [1, 2, 3]
    write_epoch(tmp_path, row(1, loss=9.0))
    assert points(tmp_path / "tensorboard")["train/loss"] == [(1, 9.0)]


def test_what_a_row_lacks_is_left_out(tmp_path):
    write_epoch(tmp_path, {"epoch": 1, "loss": 0.5, "grad_norm": None, "metrics": {}, "popularity": {}})  # as of a refit
    write_epoch(tmp_path, {"epoch": 2, "loss": 0.25})
    assert points(tmp_path / "tensorboard") == {"train/loss": [(1, 0.5), (2, 0.25)]}
    assert not (tmp_path / "tensorboard" / "popularity").exists()


@pytest.mark.parametrize("tail", ["cut", "zeros"])
def test_a_record_that_a_crash_spoilt_is_dropped(tmp_path, tail):
    for epoch in (1, 2):
        write_epoch(tmp_path, row(epoch))
    path = next((tmp_path / "tensorboard").glob("*tfevents*"))
    content = path.read_bytes()
    path.write_bytes(content[:-5] if tail == "cut" else content + bytes(100))
    write_epoch(tmp_path, row(3))
    kept = [1, 3] if tail == "cut" else [1, 2, 3]
    assert [step for step, _ in points(tmp_path / "tensorboard")["train/loss"]] == kept


def test_a_full_disk_is_a_warning_and_the_next_epoch_goes_on(tmp_path, caplog):
    write_epoch(tmp_path, row(1))
    with full_disk(), caplog.at_level(logging.WARNING):
        write_epoch(tmp_path, row(2))
    assert "epoch 2 was not written for TensorBoard" in caplog.text
    write_epoch(tmp_path, row(3))
    assert [step for step, _ in points(tmp_path / "tensorboard")["train/loss"]] == [1, 3]


@pytest.mark.parametrize("bad", [{"loss": 1.0}, {"epoch": 1, "loss": "high"}, {"epoch": 1, "metrics": 3}])
def test_a_row_that_makes_no_sense_is_a_warning(tmp_path, caplog, bad):
    write_epoch(tmp_path, bad)
    assert "was not written for TensorBoard" in caplog.text


def test_a_folder_that_cannot_be_made_is_a_warning(tmp_path, caplog):
    (tmp_path / "tensorboard").write_text("a file in its place")
    write_epoch(tmp_path, row(1))
    assert "was not written for TensorBoard" in caplog.text
