"""An encoder written smaller: its matrices as bytes, multiplied as such."""

import logging
import tempfile
from pathlib import Path

import onnx


def as_bytes(content: bytes) -> bytes:
    """An ONNX model whose products with weights are of 8-bit integers, by operators of the standard alone.

    Each column of a weight has a scale of its own; what it is multiplied with is scaled as it comes (dynamic quantization).
    Weights take 7 of the 8 bits: sums of products of 8 overflow 16 bits on processors without VNNI, silently.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it recommends a preparation that this small graph does not need
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "encoder.onnx"
            quantize_dynamic(
                onnx.load_model_from_string(content), path, per_channel=True, reduce_range=True, weight_type=QuantType.QInt8
            )
            written = onnx.load_model(path)
    finally:
        logger.setLevel(level)
    onnx.checker.check_model(written, full_check=True)
    smaller: bytes = written.SerializeToString(deterministic=True)
    return smaller
