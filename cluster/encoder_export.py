"""A model's encoder as ONNX, and how far that is from the model itself: the part of the export that needs PyTorch.

Shapes: B histories, L places, I numbers fed for each item, D dimensions of a vector as served.
"""

import logging
import statistics
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
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


def compare(bundle: Bundle, model: Any) -> EncoderReport:
    """Encode real histories with the bundle's encoder and with the model, from their events on.

    Raises BundleError where a number differs by more than TOLERANCE (of the largest, if that is above 1).
    """
    encoder = Encoder(bundle)
    histories = _histories(bundle)
    given = np.concatenate(histories)
    lengths = np.array([len(items) for items in histories])
    users = np.arange(len(histories), dtype=np.int32)
    theirs_BD = model.user_vectors(Histories.of_events(users, lengths, given)).float().cpu().numpy()
    ours_BD = np.zeros_like(theirs_BD)
    for row, items in enumerate(histories):
        vector = encoder(items)
        ours_BD[row] = 0 if vector is None else vector
    difference = float(np.abs(ours_BD - theirs_BD).max(initial=0) / np.abs(theirs_BD).max(initial=1))
    if not difference <= TOLERANCE:  # NaN is not
        raise BundleError(
            f"{bundle.folder}: the exported encoder is {difference:.1e} from the model, more than {TOLERANCE:.0e}; nothing was "
            "published. Try another release of torch or onnxruntime."
        )
    longest = histories[int(lengths.argmax())]
    return EncoderReport(
        histories=len(histories), longest=len(longest), difference=difference, milliseconds=_milliseconds(encoder, longest)
    )


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
