"""A vector for a history by the bundle's encoder, on ONNX Runtime. No torch.

Shapes: N items, I numbers that the encoder is fed for each, L places, D dimensions.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.bundle.manifest import AGAIN, ENCODER
from recsys.bundle.read import Bundle
from recsys.data.histories import Histories
from recsys.data.windows import last_windows
from recsys.errors import BundleError

INPUT, OUTPUT = "items", "user"
REMEMBERED = 1024  # windows whose vectors are kept: a megabyte or so, and a list asked for again costs no encoding
FATAL = 4  # ONNX Runtime's log: what goes wrong is raised, and need not be printed too

Floats = NDArray[np.float32]


class Encoder:
    """What a history says, of a blend its part: [D], whose inner product with an item's learnt vector is its score. Threads may
    share it.

    Each history is encoded alone and at its own length. Together they would be padded, or be products of other shapes that
    round otherwise, and a list would depend on who else asked. It would gain little: one thread per replica is busy either way.
    """

    def __init__(self, bundle: Bundle) -> None:
        """Raises BundleError where the encoder cannot be run or does not fit the bundle."""
        assert bundle.encoder is not None and bundle.item_vectors is not None and bundle.indexed is not None
        self._path = bundle.folder / ENCODER
        part = bundle.manifest.encoded_part
        self._inputs_NI = bundle.learnt_vectors[:, part.first : part.last] if bundle.item_inputs is None else bundle.item_inputs
        self._known = np.zeros(len(self._inputs_NI), bool)
        self._known[bundle.indexed] = True
        self.max_length = int(part.parameters.get("max_length", 0))
        self._session = self._start(bundle.encoder)
        self._check(part.last - part.first)
        self.encode = _encoding(self._session, self._inputs_NI)
        """[D] for the bytes of a window, without looking whether it is remembered."""
        self._remembered = lru_cache(REMEMBERED)(self.encode)

    def __call__(self, items: NDArray[np.int32]) -> Floats | None:
        """[D] for the items of a history in their order, cut as in training; None where none of them was trained on."""
        window = self.window(items)
        return self._remembered(window.tobytes()) if len(window) else None

    def window(self, items: NDArray[np.int32]) -> NDArray[np.int32]:
        """[L] what the encoder sees of a history: the last `max_length` of its items that were trained on."""
        history = Histories.of_events(np.zeros(1, np.int32), np.array([len(items)]), items)
        windows = last_windows(history, self.max_length, self._known)
        return windows.item[windows.first[0] : windows.last[0]]

    def _start(self, content: bytes) -> Any:
        import onnxruntime as ort  # a fifth of a second that bundles without an encoder need not wait for

        options = ort.SessionOptions()
        # Replicas are what uses the cores: a second thread would take from a neighbour, and spinning ones all day long.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.enable_mem_pattern = False  # it keeps a plan for every length
        options.log_severity_level = FATAL
        try:
            return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own types have no base but this
            raise BundleError(f"{self._path}: ONNX Runtime cannot run it ({str(error)[:300]}). {AGAIN}") from None

    def _check(self, dim: int) -> None:
        """That it takes these inputs and gives vectors of this bundle, tried at the shortest and at the longest."""
        taken, given = self._session.get_inputs(), self._session.get_outputs()
        width = self._inputs_NI.shape[1]
        if [one.name for one in taken] != [INPUT] or [one.name for one in given] != [OUTPUT] or self.max_length < 1:
            raise BundleError(f"{self._path}: does not turn {INPUT!r} into {OUTPUT!r}. {AGAIN}")
        for length in (1, self.max_length):
            try:
                found = self._session.run([OUTPUT], {INPUT: np.zeros((1, length, width), np.float32)})[0]
            except Exception as error:
                raise BundleError(f"{self._path}: fails at {length} items ({str(error)[:300]}). {AGAIN}") from None
            if found.shape != (1, dim) or found.dtype != np.float32:
                raise BundleError(f"{self._path}: gives {found.dtype} {found.shape}, not {dim} dimensions. {AGAIN}")


def _encoding(session: Any, inputs_NI: Floats) -> Callable[[bytes], Floats]:
    """From the bytes of a window to its vector. Holds no encoder: with its cache, which the encoder holds, that were a ring,
    and Ray's replicas collect none of what they begin with."""

    def encode(window: bytes) -> Floats:
        inputs_LI = inputs_NI[np.frombuffer(window, np.int32)]
        vector: Floats = session.run([OUTPUT], {INPUT: inputs_LI[None]})[0][0]
        vector.setflags(write=False)  # it is remembered
        return vector

    return encode
