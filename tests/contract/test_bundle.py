"""What a bundle promises: whatever is written comes back, and nothing that was altered, cut or half-written is opened."""

import contextlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys.bundle import inventory, receipt, store
from recsys.bundle.manifest import MANIFEST_FILE
from recsys.bundle.read import open_bundle
from recsys.bundle.users import UserBlock
from recsys.bundle.write import write_bundle
from recsys.config import IndexConfig
from recsys.data.histories import Histories
from recsys.errors import BundleError
from tests.bundles import contents_of, flip, planted, write_planted
from tests.encoders import ENCODED

# What is written comes back


def test_round_trip(bundle):
    world, opened = planted(), open_bundle(bundle)
    assert (opened.item_vectors == world.item_vectors).all()
    assert (opened.user_vectors == world.user_vectors).all()
    assert opened.items.column("title").to_pylist() == [f"Film {item}" for item in range(60)]
    for user, seen in enumerate(world.seen):
        row = opened.users.row(f"u{user}")
        assert row == user and opened.users.id(row) == f"u{user}"
        assert opened.histories.item[opened.histories.events(row, "end")].tolist() == seen.tolist()
        assert opened.histories.item[opened.histories.events(row, "test")].tolist() == seen[:-1].tolist()
        assert opened.histories.item[opened.histories.events(row, "valid")].tolist() == seen[:-2].tolist()
    assert opened.indexed.tolist() == list(range(57))
    assert opened.users.row("u") is None and opened.users.row("\ud800") is None


def test_arrays_are_mapped_not_read(bundle):
    opened = open_bundle(bundle)
    for array in (opened.item_vectors, opened.user_vectors, opened.histories.item, opened.users.hashes):
        assert not array.flags.writeable and not array.flags.owndata


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
def test_every_index_comes_back(root, kind):
    world = planted(items=500)
    opened = open_bundle(write_planted(root, world=world, index=IndexConfig(kind=kind, ivf_lists=8, ivf_probes=8)))
    ids = opened.index.search(world.user_vectors, 10)[1]
    assert opened.manifest.index.kind == kind and opened.manifest.index.recall_at_10 == 1
    assert ids[3, :5].tolist() == [int(i) for i in np.argsort(-(world.item_vectors[:497] @ world.user_vectors[3]))[:5]]


def test_an_encoder_comes_back(encoded):
    opened = open_bundle(encoded)
    assert opened.encoder == ENCODED["encoder"] and opened.manifest.fold_in == ENCODED["fold_in"]
    assert opened.user_vectors is None and opened.gram is None and opened.item_inputs is None


def test_popularity_has_no_vectors(root):
    opened = open_bundle(write_planted(root, model="popularity"))
    assert opened.item_vectors is None and opened.index is None and opened.manifest.dim == 0


@given(
    st.lists(st.text(max_size=20), unique=True, min_size=1, max_size=6),
    st.lists(st.text(max_size=20), min_size=60, max_size=60),
)
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_ids_and_titles(tmp_path, ids, titles):
    world = planted(users=len(ids))
    contents = contents_of(world, titles=titles)
    block = replace(next(iter(contents.blocks)), ids=pa.array(ids, pa.string()))
    opened = open_bundle(write_bundle(tmp_path / "any", "n", replace(contents, blocks=[block])))
    assert [opened.users.row(user_id) for user_id in ids] == list(range(len(ids)))
    assert opened.items.column("title").to_pylist() == titles


def test_two_ids_of_one_hash_are_told_apart(root, monkeypatch):
    monkeypatch.setattr("recsys.bundle.ids.hash_id", lambda user_id: len(user_id) % 2)
    users = open_bundle(write_planted(root)).users
    assert [users.row(f"u{user}") for user in range(24)] == list(range(24))
    assert users.row("u99") is None


def test_users_stream_through(root):
    world = planted()
    contents = contents_of(world)
    whole = next(iter(contents.blocks))
    parts = [
        UserBlock(
            whole.ids[first : first + 5],
            whole.histories.take(np.arange(first, min(first + 5, 24))),
            whole.vectors[first : first + 5],
        )
        for first in range(0, 24, 5)
    ]
    streamed = write_bundle(root, "a", replace(contents, blocks=iter(parts)))
    at_once = write_bundle(root, "b", contents)
    files = [
        {k: v.sha256 for k, v in open_bundle(folder).manifest.files.items() if "ids" not in k} for folder in (streamed, at_once)
    ]
    assert files[0] == files[1]
    assert open_bundle(streamed).users.row("u23") == 23


# A1: any flipped bit


def all_files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_flipped_bit_in_any_file_is_refused(any_bundle):
    for path in all_files(any_bundle):
        good = path.read_bytes()
        for place in {0, len(good) // 2, len(good) - 1}:
            path.write_bytes(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
            with pytest.raises(BundleError) as refused:
                open_bundle(any_bundle)
            assert path.name.split(".")[0] in str(refused.value)
        path.write_bytes(good)
    open_bundle(any_bundle)


@given(data=st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_flips_and_cuts_are_refused(data, shared_bundle):
    path = data.draw(st.sampled_from(all_files(shared_bundle)))
    good = path.read_bytes()
    place = data.draw(st.integers(0, len(good) - 1))
    cut = data.draw(st.booleans())
    bit = data.draw(st.integers(0, 7))
    try:
        path.write_bytes(good[:place] if cut else good[:place] + bytes([good[place] ^ (1 << bit)]) + good[place + 1 :])
        with pytest.raises(BundleError):
            open_bundle(shared_bundle)
    finally:
        path.write_bytes(good)


@pytest.mark.parametrize("name", ["index.faiss", "encoder.onnx"])
def test_what_cpp_parses_is_hashed_at_every_open(encoded, monkeypatch, name):
    open_bundle(encoded)
    trust_every_receipt(monkeypatch)
    flip(encoded / name)
    with pytest.raises(BundleError, match=f"{name}: altered"):
        open_bundle(encoded)


def trust_every_receipt(monkeypatch):
    monkeypatch.setattr(
        receipt,
        "read",
        lambda folder, digest: {path.relative_to(folder).as_posix(): receipt.stamp(path) for path in all_files(folder)},
    )


def test_the_second_open_hashes_nothing_but_what_cpp_parses(any_bundle, monkeypatch):
    open_bundle(any_bundle)
    monkeypatch.setattr(inventory, "file_sha256", lambda path: pytest.fail(f"{path} was hashed again"))
    open_bundle(any_bundle)


def test_a_touched_file_is_hashed_again(bundle):
    open_bundle(bundle)
    path = bundle / "user_vectors.npy"
    before = path.stat()
    flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # the time of the last change cannot be set back
    with pytest.raises(BundleError, match="user_vectors"):
        open_bundle(bundle)


def test_verify_hashes_everything_whatever_the_receipt(bundle, monkeypatch):
    open_bundle(bundle)
    trust_every_receipt(monkeypatch)
    flip(bundle / "user_vectors.npy")
    with pytest.raises(BundleError, match="user_vectors"):
        store.verify(bundle)


def test_a_broken_or_unwritable_receipt_only_costs_time(bundle, tmp_path, monkeypatch, caplog):
    open_bundle(bundle)
    (written,) = (tmp_path / "cache" / "receipts").iterdir()
    for content in (b"\xff{", b"[]", b'{"files": 1}'):
        written.write_bytes(content)
        open_bundle(bundle)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "file"))
    open_bundle(bundle)
    assert "RECSYS_CACHE" in caplog.text


# A2, A3: missing, unexpected and half-written files


def test_every_missing_file_is_named(any_bundle):
    for path in all_files(any_bundle):
        aside = path.rename(any_bundle.parent.parent / "aside")
        with pytest.raises(BundleError, match=path.name):
            open_bundle(any_bundle)
        aside.rename(path)


@pytest.mark.parametrize("name", ["extra.npy", "history/extra", "users/deep/er.txt", ".hidden"])
def test_an_unexpected_file_is_named(any_bundle, name):
    (any_bundle / name).parent.mkdir(exist_ok=True)
    (any_bundle / name).write_bytes(b"")
    with pytest.raises(BundleError, match=Path(name).name):
        open_bundle(any_bundle)


def test_no_folder_no_bundle(tmp_path):
    with pytest.raises(BundleError, match=r"manifest\.json"):
        open_bundle(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="make one"):
        store.resolve(tmp_path)


def test_a_crash_while_writing_leaves_nothing_to_see(root, monkeypatch):
    first = write_planted(root)
    for step in ("_write_files", "_draft", "_seal", "_check"):
        with monkeypatch.context() as patch:
            patch.setattr(f"recsys.bundle.write.{step}", failing)
            with contextlib.suppress(OSError):
                write_planted(root)
        assert store.versions(root / "films") == [first.name] and store.current(root / "films") == first
    assert [path.name for path in (root / "films").iterdir() if path.name.startswith(".staging")] == []


def failing(*_args, **_kwargs):
    raise OSError(28, "No space left on device")


def test_what_a_killed_publisher_left_is_invisible_and_swept_later(root):
    first = write_planted(root)
    left = root / "films" / ".staging-killed"
    shutil.copytree(first, left)
    assert [b.version for b in store.listing(root)] == [first.name]
    os.utime(left, (0, 0))
    write_planted(root)
    assert not left.exists()


def test_files_without_a_manifest_are_no_version(bundle):
    half = bundle.with_name("29990101T000000.000000Z")
    shutil.copytree(bundle, half)
    (half / MANIFEST_FILE).unlink()
    assert store.versions(bundle.parent) == [bundle.name]


# A8: what must not be published


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["item_vectors", "user_vectors", "gram", "rating"])
def test_numbers_that_are_none_stop_the_export(root, name, value):
    contents = contents_of(planted())
    block = next(iter(contents.blocks))
    if name == "user_vectors":
        contents = replace(contents, blocks=[replace(block, vectors=spoilt(block.vectors, value))])
    elif name == "rating":
        histories = Histories(**{**vars(block.histories), "rating": spoilt(block.histories.rating, value)})
        contents = replace(contents, blocks=[replace(block, histories=histories)])
    else:
        contents = replace(contents, **{name: spoilt(getattr(contents, name), value)})
    with pytest.raises(BundleError, match="not finite"):
        write_bundle(root, "films", contents)
    assert store.versions(root / "films") == []


def test_a_row_that_is_not_finite_is_named_wherever_it_lies(root, monkeypatch):
    monkeypatch.setattr("recsys.bundle.arrays.AT_ONCE", 4)
    contents = contents_of(planted())
    spoiled = np.array(contents.item_vectors)
    spoiled[6, 1] = np.nan
    with pytest.raises(BundleError, match="row 6 is not finite"):
        write_bundle(root, "films", replace(contents, item_vectors=spoiled))


def spoilt(array, value):
    array = np.array(array)
    array[-1] = value
    return array


def test_blocks_that_do_not_add_up_stop_the_export(root):
    with pytest.raises(BundleError, match="came"):
        write_bundle(root, "films", replace(contents_of(planted()), users=23))
    with pytest.raises(BundleError, match="came"):
        write_bundle(root, "films", replace(contents_of(planted()), events=121))


def test_bundle_errors_end_the_command_with_4():
    assert BundleError("x").exit_code == 4
