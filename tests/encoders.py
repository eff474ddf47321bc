"""Small ONNX encoders for tests, written operator by operator: no torch, no export that takes seconds."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from recsys.bundle.manifest import FoldIn

MAX_LENGTH = 4


def encoder_bytes(dim: int = 8, *, width: int | None = None, nodes: Sequence[Any] = (), constants: Sequence[Any] = ()) -> bytes:
    """user = mean of the items + 2 × the last of them, so that items, order and length tell.

    dim: of the user; width: of an item's inputs, `dim` or more. nodes, constants: more of them, used by nothing.
    """
    numbers = {"last": [-1], "cut": [0], "to": [dim], "axis": [-1], "mean_of": [1]}
    made = [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in numbers.items()]
    made.append(numpy_helper.from_array(np.array(2, np.float32), "two"))
    graph = helper.make_graph(
        [
            helper.make_node("Slice", ["items", "cut", "to", "axis"], ["narrow"]),
            helper.make_node("ReduceMean", ["narrow", "mean_of"], ["mean"], keepdims=0),
            helper.make_node("Gather", ["narrow", "last"], ["newest"], axis=1),
            helper.make_node("Squeeze", ["newest", "mean_of"], ["squeezed"]),
            helper.make_node("Mul", ["squeezed", "two"], ["twice"]),
            helper.make_node("Add", ["mean", "twice"], ["user"]),
            *nodes,
        ],
        "encoder",
        [helper.make_tensor_value_info("items", TensorProto.FLOAT, [1, "length", dim if width is None else width])],
        [helper.make_tensor_value_info("user", TensorProto.FLOAT, [1, dim])],
        [*made, *constants],
    )
    domains = {"", *(node.domain for node in nodes)}
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid(domain, 20 if not domain else 1) for domain in domains])
    model.ir_version = 10
    content: bytes = model.SerializeToString()
    return content


def encoded_by_hand(vectors: np.ndarray) -> np.ndarray:
    """[D] what `encoder_bytes` makes of [L, D], the last MAX_LENGTH of them."""
    window = vectors[-MAX_LENGTH:]
    user: np.ndarray = window.mean(0) + 2 * window[-1]
    return user


def external(name: str, location: str) -> Any:
    """A constant whose numbers lie in another file."""
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


ENCODED: dict[str, Any] = {
    "model": "sasrec",
    "known_user": "history",
    "fold_in": FoldIn(kind="onnx", parameters={"max_length": MAX_LENGTH}),
    "gram": None,
    "encoder": encoder_bytes(),
}
"""What makes `tests.bundles.write_planted` write a bundle that encodes histories."""

__all__ = ["ENCODED", "MAX_LENGTH", "encoded_by_hand", "encoder_bytes", "external"]
