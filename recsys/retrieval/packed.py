"""Products of bytes, added up as integers, on ONNX Runtime: NumPy and FAISS have none that use what processors have for them.

Shapes: B queries, R items, D dimensions.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

PRODUCT, EXTRA = "MatMulIntegerToFloat", "com.microsoft"  # an operator of ONNX Runtime's own
FATAL = 4  # ONNX Runtime's log: what goes wrong is raised


class PackedItems:
    """Some items' bytes as the processor likes them, each with a step that its sums are taken times."""

    def __init__(self, codes_DR: NDArray[np.int8], steps_R: NDArray[np.float32], zero: int) -> None:
        """zero: what a query's bytes have for 0. Holds the bytes twice, as they are and packed."""
        import onnxruntime as ort  # with onnx, 30 MB that who ranks nothing by bytes need not hold

        # Handed over as they lie, to be kept as long as the session: inside the model they would be held three times.
        self._items = ort.OrtValue.ortvalue_from_numpy(codes_DR)
        options = ort.SessionOptions()
        options.add_external_initializers(["items"], [self._items])
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # as encoders have: replicas are what uses the cores
        options.enable_cpu_mem_arena = False  # it would keep the scores of the largest batch
        options.enable_mem_pattern = False  # and a plan for each size of batch
        options.log_severity_level = FATAL
        model = _model(codes_DR.shape, steps_R, zero)
        self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def multiply(self, queries_BD: NDArray[np.uint8], out_BR: NDArray[np.float32]) -> None:
        """Write the products, taken times the items' steps, to contiguous memory."""
        bound = self._session.io_binding()
        bound.bind_cpu_input("queries", queries_BD)
        bound.bind_output("scores", "cpu", 0, np.float32, out_BR.shape, out_BR.ctypes.data)
        self._session.run_with_iobinding(bound)


def _model(shape: tuple[int, ...], steps_R: NDArray[np.float32], zero: int) -> bytes:
    """An ONNX model of one product, the items not in it but named."""
    from onnx import TensorProto, helper, numpy_helper

    dims, count = shape
    items = TensorProto(name="items", data_type=TensorProto.INT8, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": "handed over", "offset": 0, "length": dims * count}.items():
        items.external_data.add(key=key, value=str(value))
    constants: dict[str, NDArray[Any]] = {"steps": steps_R, "one": np.ones((), np.float32), "zero": np.array(zero, np.uint8)}
    product = helper.make_node(PRODUCT, ["queries", "items", "one", "steps", "zero"], ["scores"], domain=EXTRA)
    graph = helper.make_graph(
        [product],
        "products",
        [helper.make_tensor_value_info("queries", TensorProto.UINT8, ["B", dims])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["B", count])],
        [items, *(numpy_helper.from_array(value, name) for name, value in constants.items())],
    )
    domains = [helper.make_opsetid("", 17), helper.make_opsetid(EXTRA, 1)]
    model: bytes = helper.make_model(graph, opset_imports=domains, ir_version=8).SerializeToString()
    return model
