"""FAISS indexes by kind and by how they hold vectors: built here, searched in `ann`.

Shapes: M indexed items, D dimensions.
"""

import math
from typing import Any, Literal

import faiss
import numpy as np
from numpy.typing import NDArray

from recsys.config import IndexConfig

Floats = NDArray[np.float32]
Kind = Literal["flat", "hnsw", "ivf"]
Storage = Literal["fp32", "fp16", "int8", "pq"]
Parameters = dict[str, int]

AT_ONCE = 1 << 18  # vectors that are made directions of together
TRAIN_A_CELL = 64  # vectors a cell that k-means looks at
INNER = faiss.METRIC_INNER_PRODUCT
SCALAR = {"fp16": faiss.ScalarQuantizer.QT_fp16, "int8": faiss.ScalarQuantizer.QT_8bit}


def build(
    vectors_MD: Floats, ids: NDArray[np.int64], kind: Kind, storage: Storage, config: IndexConfig
) -> tuple[Any, Parameters]:
    """An inner-product index of `vectors_MD` under `ids` (ascending), and the settings it was made with and is searched with.

    Returns (faiss.IndexIDMap, settings).
    """
    codes = _codes(vectors_MD, storage, config)
    inner = _empty(kind, storage, vectors_MD, config, codes)
    if kind == "hnsw" and (storage != "fp32" or config.hnsw_graph == "directions"):
        index = _of_whole_graph(inner, vectors_MD, ids, config)
    else:
        index = faiss.IndexIDMap(inner)
        index.add_with_ids(vectors_MD, ids)
    rescored = {} if storage == "fp32" else {"rerank": config.rerank}
    return index, _settings(kind, inner, config) | codes | rescored


def _codes(vectors_MD: Floats, storage: Storage, config: IndexConfig) -> Parameters:
    """How a vector is cut by product quantization (Jégou, Douze & Schmid 2011). Codes of 8 bits want 256 vectors to learn from;
    fewer vectors make do with fewer bits. Parts of up to 8 dimensions are compared without BLAS, so alike in any batch."""
    if storage != "pq":
        return {}
    count, dims = vectors_MD.shape
    return {"pq_dims": math.gcd(dims, config.pq_dims), "pq_bits": max(1, min(config.pq_bits, count.bit_length() - 1))}


def _empty(kind: Kind, storage: Storage, vectors_MD: Floats, config: IndexConfig, codes: Parameters) -> Any:
    """Trained, without a vector."""
    made = {"flat": _flat, "hnsw": _hnsw, "ivf": _ivf}[kind](vectors_MD, storage, config, codes)
    if storage == "pq":
        holder: Any = faiss.downcast_index(made.storage) if kind == "hnsw" else made
        holder.pq.cp.min_points_per_centroid = 1  # so few are no fault
    if not made.is_trained:
        made.train(vectors_MD)
    return made


def _flat(vectors_MD: Floats, storage: Storage, config: IndexConfig, codes: Parameters) -> Any:
    dims = vectors_MD.shape[1]
    if storage == "fp32":
        return faiss.IndexFlatIP(dims)
    if storage == "pq":
        return faiss.IndexPQ(dims, dims // codes["pq_dims"], codes["pq_bits"], INNER)
    return faiss.IndexScalarQuantizer(dims, SCALAR[storage], INNER)


def _hnsw(vectors_MD: Floats, storage: Storage, config: IndexConfig, codes: Parameters) -> Any:
    dims = vectors_MD.shape[1]
    made: Any = faiss  # its type stubs are of an older release
    if storage == "fp32":
        index: Any = faiss.IndexHNSWFlat(dims, config.hnsw_m, INNER)
    elif storage == "pq":
        index = made.IndexHNSWPQ(dims, dims // codes["pq_dims"], config.hnsw_m, codes["pq_bits"], INNER)
    else:
        index = made.IndexHNSWSQ(dims, SCALAR[storage], config.hnsw_m, INNER)
    index.hnsw.efConstruction, index.hnsw.efSearch = config.hnsw_ef_construction, config.hnsw_ef_search
    return index


def _of_whole_graph(inner: Any, vectors_MD: Floats, ids: NDArray[np.int64], config: IndexConfig) -> Any:
    """Codes, or vectors, under a graph that was made of other vectors: the whole ones, or their directions. One made of PQ
    codes compares its neighbours by another measure than the inner product: on vectors without structure recall@10 was .37,
    and .99 with this graph."""
    graph = _graph(vectors_MD, config)
    faiss.downcast_index(graph.storage).reset()  # its links alone are wanted, and the vectors are gigabytes
    faiss.downcast_index(inner.storage).add(vectors_MD)
    index = faiss.IndexIDMap(inner)  # wants an empty one
    inner.hnsw = graph.hnsw
    inner.hnsw.is_similarity = True  # also of one that was made by distances
    inner.hnsw.efSearch = config.hnsw_ef_search
    inner.ntotal = index.ntotal = len(ids)
    faiss.copy_array_to_vector(ids, index.id_map)
    return index


def _graph(vectors_MD: Floats, config: IndexConfig) -> Any:
    if config.hnsw_graph == "products":
        graph: Any = _hnsw(vectors_MD, "fp32", config, {})
        graph.add(vectors_MD)
        return graph
    graph = faiss.IndexHNSWFlat(vectors_MD.shape[1], config.hnsw_m, faiss.METRIC_L2)
    graph.hnsw.efConstruction = config.hnsw_ef_construction
    for start in range(0, len(vectors_MD), AT_ONCE):
        part = vectors_MD[start : start + AT_ONCE]
        graph.add(part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), np.float32(1e-12)))
    return graph


def _ivf(vectors_MD: Floats, storage: Storage, config: IndexConfig, codes: Parameters) -> Any:
    """Cells found through a graph: so a query's cells do not depend on the batch, as they could by a GEMM's rounding."""
    count, dims = vectors_MD.shape
    lists = min(config.ivf_lists or int(4 * math.sqrt(count)) or 1, max(count, 1))
    quantizer: Any = faiss.IndexHNSWFlat(dims, config.hnsw_m, INNER)
    if storage == "fp32":
        index: Any = faiss.IndexIVFFlat(quantizer, dims, lists, INNER)
    elif storage == "pq":
        index = faiss.IndexIVFPQ(quantizer, dims, lists, dims // codes["pq_dims"], codes["pq_bits"], INNER)
    else:
        index = faiss.IndexIVFScalarQuantizer(quantizer, dims, lists, SCALAR[storage], INNER)
    quantizer.this.disown()
    index.own_fields = True
    index.cp.max_points_per_centroid, index.cp.min_points_per_centroid = TRAIN_A_CELL, 1
    index.nprobe = min(config.ivf_probes, lists)  # for who reads the file without our settings
    return index


def _settings(kind: Kind, inner: Any, config: IndexConfig) -> Parameters:
    if kind == "hnsw":
        made = {"m": config.hnsw_m, "ef_construction": config.hnsw_ef_construction, "ef_search": config.hnsw_ef_search}
        return made | ({"directions": 1} if config.hnsw_graph == "directions" else {})
    return {"lists": inner.nlist, "probes": inner.nprobe} if kind == "ivf" else {}
