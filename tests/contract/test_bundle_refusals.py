"""Whole, well-hashed folders that are still no bundle: of another format, ill matched, or unsafe to open."""

import json
import os
import pickle
import shutil

import faiss
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from recsys.bundle import inventory, store
from recsys.bundle.arrays import read_array
from recsys.bundle.manifest import FORMAT_VERSION, MANIFEST_FILE, MANIFEST_HASH
from recsys.bundle.read import open_bundle
from recsys.config import IndexConfig
from recsys.errors import BundleError
from recsys.retrieval.recommender import Recommender
from tests.bundles import RIDGE, contents_of, planted, rehash, reseal, write_planted
from tests.encoders import ENCODED, encoder_bytes, external

# A4: format versions


def test_a_future_version_is_refused_naming_what_is_needed(bundle):
    reseal(bundle, format_version=FORMAT_VERSION + 1, writer="recsys-cluster 9.0", something="new")
    with pytest.raises(BundleError, match=r"format version 2, written by recsys-cluster 9\.0; this release reads up to 1"):
        open_bundle(bundle)


@pytest.mark.parametrize("version", [0, -1, None, "1", 1.5, True, []])
def test_a_nonsense_version_is_refused(bundle, version):
    reseal(bundle, format_version=version)
    with pytest.raises(BundleError, match="format version"):
        open_bundle(bundle)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"format_version": 1}', b"\xff", b"[" * 100_000, b'{"a": 1, "a": 1}'])
def test_a_manifest_that_is_none(bundle, content):
    (bundle / MANIFEST_FILE).write_bytes(content)
    (bundle / MANIFEST_HASH).write_bytes(inventory.hash_line(content))
    with pytest.raises(BundleError, match="manifest"):
        open_bundle(bundle)


def test_unknown_fields_are_refused(bundle):
    reseal(bundle, surprise=1)
    with pytest.raises(BundleError, match="surprise"):
        open_bundle(bundle)


# A5: whole files that do not belong together


def part(first: int, last: int, kind: str = "sum") -> dict:
    return {
        "kind": kind,
        "parameters": {"smoothing": 1.0, "power": 0.5},
        "first": first,
        "last": last,
        "weight": 1.0,
        "known": "table",
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learnt_dim": 8}, "a trend without its dimension, or the reverse"),
        ({"trend": {"half_life_days": 7.0, "weight": 1.0}}, "a trend without its dimension, or the reverse"),
        ({"trend": {"half_life_days": 7.0, "weight": 0.0}}, "a trend without the column lately"),
        ({"fold_in": {"kind": "parts"}}, "parts of a blend that do not lie side by side"),
        (
            {"fold_in": {"kind": "parts", "parts": [part(0, 2, "ridge"), part(3, 8)]}},
            "parts of a blend that do not lie side by side",
        ),
        ({"fold_in": {"kind": "parts", "parts": [part(0, 2, "ridge")]}}, "parts of a blend that do not lie side by side"),
        ({"fold_in": {"kind": "parts", "parts": [part(0, 4, "onnx"), part(4, 8, "onnx")]}}, "a blend of two encoders"),
        ({"fold_in": {"kind": "parts", "parts": [part(2, 8, "ridge"), part(0, 2)]}}, "do not lie side by side"),
    ],
)
def test_trends_and_parts_have_their_dimensions(bundle, changes, message):
    reseal(bundle, **changes)
    with pytest.raises(BundleError, match=message):
        open_bundle(bundle)


def other_world():
    return planted(seed=9)


@pytest.mark.parametrize("name", ["item_vectors.npy", "index.faiss", "fold_in_gram.npy"])
def test_parts_of_another_bundle_are_refused_by_golden_queries(bundle, root, name):
    other = write_planted(root, "other", world=other_world())
    shutil.copy(other / name, bundle / name)
    rehash(bundle, name)
    with pytest.raises(BundleError, match=r"golden|belong"):
        Recommender(open_bundle(bundle))


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("item_vectors.npy", np.zeros((59, 8), np.float32), "item_vectors"),
        ("item_vectors.npy", np.zeros((60, 8), np.float64), "float64"),
        ("item_vectors.npy", np.asfortranarray(np.random.default_rng(0).random((60, 8), np.float32)), "item_vectors"),
        ("item_vectors.npy", np.zeros((60, 16), np.float32), "item_vectors"),
        ("popular.npy", np.array([60], np.int32), "popular"),
        ("popular.npy", np.array([-1], np.int32), "popular"),
        ("popular.npy", np.array([58], np.int32), "index does not hold"),
        ("history/offsets.npy", np.arange(25, dtype=np.int64), "offsets"),
        ("users/rows.npy", np.zeros(23, np.int32), "rows"),
    ],
)
def test_shapes_and_numbers_are_checked(bundle, name, array, message):
    np.save(bundle / name, array)
    rehash(bundle, name)
    with pytest.raises(BundleError, match=message):
        open_bundle(bundle)


def index_of(vectors, ids, metric=faiss.METRIC_INNER_PRODUCT):
    index = faiss.IndexIDMap(faiss.IndexFlat(vectors.shape[1], metric))
    index.add_with_ids(vectors, np.array(ids, np.int64))
    return index


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (index_of(np.ones((57, 4), np.float32), range(57)), "vectors of 4"),
        (index_of(np.ones((56, 8), np.float32), range(56)), "56 vectors"),
        (index_of(np.ones((57, 8), np.float32), range(57), faiss.METRIC_L2), "otherwise"),
        (index_of(np.ones((57, 8), np.float32), [*range(56), 60]), "id map"),
        (index_of(np.ones((57, 8), np.float32), [*range(56), -1]), "id map"),
        (index_of(np.ones((57, 8), np.float32), [*range(56), 55]), "id map"),
        (faiss.IndexFlatIP(8), "vectors"),
        (b"IxFI\xff\xff\xff\x7f" * 8, "FAISS"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(bundle, index, message):
    content = index if isinstance(index, bytes) else faiss.serialize_index(index).tobytes()
    (bundle / "index.faiss").write_bytes(content)
    rehash(bundle, "index.faiss")
    with pytest.raises(BundleError, match=message):
        open_bundle(bundle)


@pytest.mark.parametrize(("named", "held"), [("flat", "hnsw"), ("hnsw", "ivf"), ("ivf", "flat")])
def test_an_index_of_another_kind_is_refused(root, named, held):
    bundle, other = (write_planted(root, kind, index=IndexConfig(kind=kind, ivf_lists=4)) for kind in (named, held))
    shutil.copy(other / "index.faiss", bundle / "index.faiss")
    rehash(bundle, "index.faiss")
    with pytest.raises(BundleError, match=f"the manifest says {named}"):
        open_bundle(bundle)


def test_golden_queries_see_shuffled_vectors(bundle):
    vectors = np.load(bundle / "item_vectors.npy")
    vectors[:57] = vectors[:57][::-1]
    np.save(bundle / "item_vectors.npy", vectors)
    rehash(bundle, "item_vectors.npy")
    with pytest.raises(BundleError, match="golden"):
        Recommender(open_bundle(bundle))


def test_rounding_of_another_processor_is_no_fault(bundle):
    golden = json.loads((bundle / MANIFEST_FILE).read_bytes())["golden"]
    for query in golden:
        query["scores"] = [score * (1 + 1e-6) for score in query["scores"]]
    reseal(bundle, golden=golden)
    Recommender(open_bundle(bundle))
    golden[0]["answer"][:2] = golden[0]["answer"][1::-1]
    reseal(bundle, golden=golden)
    with pytest.raises(BundleError, match="golden"):
        Recommender(open_bundle(bundle))


def test_golden_queries_see_shuffled_vectors_behind_an_encoder(encoded):
    vectors = np.load(encoded / "item_vectors.npy")
    vectors[:57] = vectors[:57][::-1]
    np.save(encoded / "item_vectors.npy", vectors)
    rehash(encoded, "item_vectors.npy")
    with pytest.raises(BundleError, match="golden"):
        Recommender(open_bundle(encoded))


@pytest.mark.parametrize(
    "changes",
    [
        {"encoder": None},
        {"fold_in": RIDGE},
        {"gram": np.eye(8)},
        {"item_inputs": np.zeros((59, 8), np.float32)},
        {"item_inputs": np.full((60, 8), np.nan, np.float32)},
    ],
)
def test_an_encoder_and_what_goes_with_it_are_there_or_not_together(root, changes):
    with pytest.raises(BundleError):
        write_planted(root, **(ENCODED | changes))
    with pytest.raises(BundleError, match="fold-in by an encoder"):
        write_planted(root, encoder=ENCODED["encoder"])  # beside a ridge that is whole


# A6: what is unsafe to open


def plain(name, op="Identity", domain="", **attributes):
    return helper.make_node(op, ["items"], [name], domain=domain, **attributes)


def in_a_branch(tensor):
    """A constant hidden in a graph within the graph."""
    inner = helper.make_graph([], "inner", [], [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])], [tensor])
    return helper.make_node("If", ["two"], ["y"], then_branch=inner, else_branch=inner)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "fails|ONNX"),
        (b"\xff" * 64, "no ONNX model"),
        (encoder_bytes(constants=[external("w", "secret.bin")]), "'w' outside the file"),
        (encoder_bytes(constants=[external("w", "../../etc/passwd")]), "outside the file"),
        (encoder_bytes(nodes=[helper.make_node("Constant", [], ["c"], value=external("v", "secret.bin"))]), "outside the file"),
        (encoder_bytes(nodes=[in_a_branch(external("deep", "secret.bin"))]), "'deep' outside the file"),
        (encoder_bytes(nodes=[plain("z", "EPContext", "com.microsoft", embed_mode=0)]), "com.microsoft"),
        (encoder_bytes(nodes=[plain("z", "Own", "own.domain")]), "own.domain"),
    ],
)
def test_an_encoder_that_reaches_out_of_its_file_is_refused(encoded, tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.bin").write_bytes(bytes(16))  # where a runtime given bytes would look
    (encoded / "encoder.onnx").write_bytes(content)
    rehash(encoded, "encoder.onnx")
    with pytest.raises(BundleError, match=message):
        Recommender(open_bundle(encoded))


def test_a_file_beside_the_encoder_is_refused(encoded):
    (encoded / "encoder.onnx.data").write_bytes(bytes(16))
    with pytest.raises(BundleError, match=r"encoder\.onnx\.data: not in the manifest"):
        open_bundle(encoded)


@pytest.mark.parametrize(
    "name", ["../escape.npy", "/etc/passwd", "a/../../b", "C:\\x", "ITEMS.arrow", "items.arrow/", "\x00", "encoder.pkl", ""]
)
def test_names_that_are_no_file_of_a_bundle(bundle, name):
    files = json.loads((bundle / MANIFEST_FILE).read_bytes())["files"]
    reseal(bundle, files=files | {name: files["items.arrow"]})
    with pytest.raises(BundleError, match="no file of a bundle"):
        open_bundle(bundle)


@given(name=st.text(max_size=30) | st.from_regex(r"(\.\.?/|/|[a-z]+/)*[a-z.]+", fullmatch=True))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_name_leads_out_of_the_bundle(shared_bundle, name):
    good = (shared_bundle / MANIFEST_FILE).read_bytes(), (shared_bundle / MANIFEST_HASH).read_bytes()
    files = json.loads(good[0])["files"]
    try:
        reseal(shared_bundle, files=files | {name: {"size": 0, "sha256": "0" * 64}})
        with pytest.raises(BundleError):
            open_bundle(shared_bundle)
    finally:
        (shared_bundle / MANIFEST_FILE).write_bytes(good[0])
        (shared_bundle / MANIFEST_HASH).write_bytes(good[1])


@pytest.mark.parametrize("name", ["item_vectors.npy", "history/item.npy", MANIFEST_FILE, MANIFEST_HASH])
def test_links_are_refused(bundle, tmp_path, name):
    real = (bundle / name).rename(tmp_path / "real")
    (bundle / name).symlink_to(real)
    with pytest.raises(BundleError, match="link"):
        open_bundle(bundle)


def test_a_linked_folder_and_a_pipe_are_refused(bundle, tmp_path):
    real = (bundle / "history").rename(tmp_path / "history")
    (bundle / "history").symlink_to(real)
    with pytest.raises(BundleError, match="link"):
        open_bundle(bundle)
    (bundle / "history").unlink()
    real.rename(bundle / "history")
    (bundle / "popular.npy").unlink()
    os.mkfifo(bundle / "popular.npy")
    with pytest.raises(BundleError, match="special"):
        open_bundle(bundle)


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("a pickle was opened",)


def test_pickles_are_refused(bundle, tmp_path):
    np.save(bundle / "popular.npy", np.array([Bomb()], object), allow_pickle=True)
    rehash(bundle, "popular.npy")
    with pytest.raises(BundleError, match="object"):
        open_bundle(bundle)


def test_values_that_a_library_may_unpickle_are_refused(root):
    told = {b"ARROW:extension:name": b"ray.data.arrow_pickled_object", b"ARROW:extension:metadata": b""}
    items = contents_of(planted()).items
    field = pa.field("poster", pa.large_binary(), metadata=told)
    with pytest.raises(BundleError, match=r"items\.arrow: column poster is of an extension type"):
        write_planted(root, items=items.append_column(field, pa.array([pickle.dumps(Bomb())] * len(items), field.type)))
    assert store.listing(root) == []


@pytest.mark.parametrize(
    "content", [b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff\xff{}", b"\x93NUMPY\x03\x00" + b"\x10\0\0\0" + b" " * 16]
)
def test_headers_that_are_none(tmp_path, content):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(BundleError, match="npy"):
        read_array(tmp_path / "a.npy", np.int32, (None,))


def test_an_array_with_a_tail_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(3, dtype=np.int32))
    with (tmp_path / "a.npy").open("ab") as file:
        file.write(b"tail")
    with pytest.raises(BundleError, match="longer"):
        read_array(tmp_path / "a.npy", np.int32, (None,))
