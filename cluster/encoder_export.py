"""A model's encoder as ONNX, and how far that is from the model itself: the part of the export that needs PyTorch.

Shapes: B histories, L places, I numbers fed for each item, D dimensions of a vector as served.
"""

import logging
import statistics
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from recsys.bundle.manifest import EncoderReport
from recsys.bundle.read import Bundle
from recsys.data.histories import Histories
from recsys.errors import BundleError
from recsys.retrieval.encoder import INPUT, OUTPUT, Encoder

COMPARED = 256  # users whose histories are encoded by both
TIMED = 15
# Sums in another order move a number by less than 1e-6; positions, a mask or a window that are not the model's by 1e-2 and more
# (docs/log.md). Golden queries allow scores as much.
TOLERANCE = 1e-4
# Cosine below which vectors of a rounded encoder are taken for a mistake: rounding to bytes leaves .999 and more.
ROUNDED_ALIKE = 0.98

Floats = NDArray[np.float32]


def to_onnx(model: Any, width: int) -> bytes:
    """`model.served()` on the CPU, from [1, L, `width`] item inputs to [1, D], for L of 1 to the model's `max_length`.

    Bytes of one file: numbers within, operators of the standard only, and no trace of where and by whom it was made.
    Raises BundleError where PyTorch cannot write it.
    """
    example = torch.zeros(1, min(model.max_length, 7), width)
    lengths = {1: torch.export.Dim.DYNAMIC} if model.max_length > 1 else None
    with _quietly():
        try:
            program = torch.onnx.export(
                model.served().eval(),
                (example,),
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=(lengths,),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise BundleError(f"This encoder cannot be written as ONNX: {error}. Train another model.") from None
    assert program is not None
    written = program.model_proto
    _forget_origin(written)
    onnx.checker.check_model(written, full_check=True)
    content: bytes = written.SerializeToString(deterministic=True)
    return content


def compare(bundle: Bundle, model: Any, plain: bytes | None = None, whole: Any = None) -> EncoderReport:
    """Encode real histories with the bundle's encoder and with the model, from their events on.

    plain: the encoder as `to_onnx` wrote it, where the bundle's is a rounded one. whole: the model before it was pruned.
    Raises BundleError where a number of the plain encoder differs from the model's by more than TOLERANCE (of the largest, if
    that is above 1), or a rounded one's vectors point elsewhere.
    """
    histories = _histories(bundle)
    encoder = Encoder(bundle)
    ours_BD, theirs_BD = _encoded(encoder, histories), _of_model(model, histories)
    difference = _difference(ours_BD, theirs_BD)
    exact = (
        difference if plain is None else _difference(_encoded(Encoder(replace(bundle, encoder=plain)), histories), theirs_BD)
    )
    if not exact <= TOLERANCE:  # NaN is not
        raise BundleError(
            f"{bundle.folder}: the exported encoder is {exact:.1e} from the model, more than {TOLERANCE:.0e}; nothing was "
            "published. Try another release of torch or onnxruntime."
        )
    rounded = None if plain is None else _cosine(ours_BD, theirs_BD)
    if rounded is not None and not rounded >= ROUNDED_ALIKE:
        raise BundleError(
            f"{bundle.folder}: vectors by the encoder of bytes have a cosine of {rounded:.3f} with the model's, less than "
            f"{ROUNDED_ALIKE}; nothing was published. Export with encoder.storage = fp32."
        )
    longest = max(histories, key=len)
    return EncoderReport(
        histories=len(histories),
        longest=len(longest),
        difference=difference,
        milliseconds=_milliseconds(encoder, longest),
        cosine=rounded if whole is None else _cosine(ours_BD, _of_model(whole, histories)),
    )


def _encoded(encoder: Encoder, histories: Sequence[NDArray[np.int32]]) -> Floats:
    """[B, D] by the encoder; zeros where it has nothing to encode."""
    vectors = [encoder(items) for items in histories]
    width = next((len(vector) for vector in vectors if vector is not None), 0)
    return np.stack([np.zeros(width, np.float32) if vector is None else vector for vector in vectors])


def _of_model(model: Any, histories: Sequence[NDArray[np.int32]]) -> Floats:
    """[B, D] by the model."""
    lengths, users = np.array([len(items) for items in histories]), np.arange(len(histories), dtype=np.int32)
    vectors: Floats = model.user_vectors(Histories.of_events(users, lengths, np.concatenate(histories))).float().cpu().numpy()
    return vectors


def _difference(ours_BD: Floats, theirs_BD: Floats) -> float:
    if not ours_BD.size:
        return 0.0 if not theirs_BD.any() else float("inf")
    return float(np.abs(ours_BD - theirs_BD).max(initial=0) / np.abs(theirs_BD).max(initial=1))


def _cosine(ours_BD: Floats, theirs_BD: Floats) -> float:
    """Of the vectors of those that have one, on average."""
    lengths = np.linalg.norm(ours_BD, axis=1) * np.linalg.norm(theirs_BD, axis=1)
    has = lengths > 0
    return float(((ours_BD * theirs_BD).sum(1)[has] / lengths[has]).mean()) if has.any() else 1.0


def _histories(bundle: Bundle) -> list[NDArray[np.int32]]:
    """Items of users spread over all, whole; of some the first event alone; and all of these after one another, which is longer
    than any window."""
    rows = np.unique(np.linspace(0, len(bundle.users) - 1, min(COMPARED, len(bundle.users))).astype(int))
    stored = [np.array(bundle.histories.item[bundle.histories.events(int(row), "end")]) for row in rows]
    return [*stored, *(items[:1] for items in stored[::8]), np.concatenate([*stored, np.zeros(0, np.int32)])]


def _milliseconds(encoder: Encoder, items: NDArray[np.int32]) -> float:
    window, taken = encoder.window(items).tobytes(), []
    for _ in range(TIMED):
        began = time.perf_counter()
        encoder.encode(window)
        taken.append(1000 * (time.perf_counter() - began))
    return statistics.median(taken)


def _forget_origin(message: Any) -> None:
    """Remove what the exporter notes beside every part: names and lines of this machine's files among them."""
    for field, value in message.ListFields():
        if field.name in ("metadata_props", "doc_string"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for inner in value if not hasattr(value, "ListFields") else (value,):
                _forget_origin(inner)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what the exporter says of operators that are not used here."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
