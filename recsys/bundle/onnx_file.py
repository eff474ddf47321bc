"""Is an ONNX model safe to hand to a runtime? Asked before C++ parses it: one file, the standard's own operators, nothing else.

The format lets a model name other files to read its numbers from. A runtime that is given bytes follows such names from the
working folder, so they are refused here.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recsys.bundle.manifest import AGAIN
from recsys.errors import BundleError

STANDARD = ("", "ai.onnx")


def refuse_unsafe(path: Path, content: bytes) -> None:
    """Raises BundleError unless a file's bytes are a model that names no other file, and operators of the standard only."""
    import onnx  # half a second that bundles without an encoder need not wait for

    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # of whatever type the protobuf library in use raises
        raise BundleError(f"{path}: no ONNX model ({str(error)[:200]}). {AGAIN}") from None
    for part in _parts(model):
        fault = _fault(part, onnx)
        if fault:
            raise BundleError(f"{path}: {fault}, which no encoder of a bundle has. {AGAIN}")


def _fault(part: Any, onnx: Any) -> str | None:
    if isinstance(part, onnx.TensorProto) and (part.data_location != onnx.TensorProto.DEFAULT or part.external_data):
        return f"numbers of {part.name!r} outside the file"
    if isinstance(part, onnx.NodeProto) and part.domain not in STANDARD:
        return f"an operator {part.domain}.{part.op_type}"
    if isinstance(part, onnx.OperatorSetIdProto) and part.domain not in STANDARD:
        return f"operators of {part.domain!r}"
    if isinstance(part, (onnx.FunctionProto, onnx.TrainingInfoProto)):
        return "functions or training steps of its own"
    return None


def _parts(message: Any) -> Iterator[Any]:
    """A protobuf message and all messages within it, at any depth: whatever the format allows, in graphs within graphs too."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for inner in value if not hasattr(value, "ListFields") else (value,):
            yield from _parts(inner)
