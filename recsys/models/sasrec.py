"""SASRec (Kang & McAuley, ICDM 2018): a user is what a causal transformer makes of his events; items are one table.

Shapes: T events to be told, N negatives, B users, L places, D dimensions.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.config import ModelConfig
from recsys.data.histories import Histories
from recsys.data.seeds import seed_of
from recsys.data.windows import Padded, Sequences, Windows, last_windows
from recsys.models import losses
from recsys.models.base import Catalogue, negatives_of, padded_to_eight
from recsys.models.teacher import Scored, Teacher, wide
from recsys.models.transformer import Encoder

# Tokens encoded at once, padding counted, where no gradients are made.
EVALUATED = 1 << 15

# Of the items' vectors to begin with. Small, so that scores begin alike: after 260 steps of 32 users of ml-1m NDCG@10 on
# validation was .090, and with vectors of length 1 .037.
DEVIATION = 0.02


class SASRec(nn.Module):
    """score(u, i) = encoder(items of u's history) · v_i, or their cosine. The vectors v are the encoder's input, too.

    At every event the next one is to be told, by softmax over the step's negatives or all trained items, or by gBCE.
    """

    batch: ClassVar[type[Histories]] = Histories
    known_user: ClassVar[Literal["table", "history"]] = "history"
    fold_in: ClassVar[Literal["ridge", "onnx"]] = "onnx"
    teacher: Teacher | None = None
    trained: Tensor
    log_q: Tensor

    def __init__(self, config: ModelConfig, catalogue: Catalogue, seed: int) -> None:
        super().__init__()
        self.config, self.max_length = config, config.max_length
        self.corrects = config.logq and config.negative_source != "uniform"
        negatives = negatives_of(config, catalogue.trained)
        self.confidence = losses.gbce_confidence(negatives, catalogue.trained, config.calibration)
        # Where every step touches every item, its gradient is as large as the table: sparse would be the slower way.
        self.touches_all = config.negative_source == "uniform" and negatives >= catalogue.trained
        # Length 1 where only the direction counts.
        deviation = config.dim**-0.5 if config.cosine else DEVIATION
        generator = torch.Generator().manual_seed(seed_of(seed, "items"))
        self.item_table = nn.Parameter(torch.randn(catalogue.items, config.dim, generator=generator) * deviation)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, "encoder"))
            self.encoder = Encoder(
                config.dim,
                length=config.max_length,
                blocks=config.blocks,
                heads=config.heads,
                width=config.width,
                dropout=config.dropout,
            )
        self.known = catalogue.item_counts > 0
        self.register_buffer("trained", torch.from_numpy(self.known), persistent=False)
        self.register_buffer("log_q", torch.from_numpy(catalogue.log_chance()), persistent=False)

    def forward(self, batch: Sequences) -> Tensor:
        """The loss of a step's local events, summed and divided by the step's global count."""
        scored = self.scored(batch)
        loss = self._loss(scored, batch)
        if self.teacher is not None:
            loss = self.teacher.mixed(loss, scored, batch)
        return loss / (batch.total if batch.total is not None else max(len(batch), 1))

    def scored(self, batch: Sequences) -> Scored:
        """What the logits of a step's local events are made of, before logQ."""
        padded = batch.windows.padded()
        hidden_TD = self._encoded(batch.windows, padded)[self._tensor(padded.place)]
        item = self._tensor(batch.windows.item[padded.event + 1])
        return Scored(
            user=self._directed(wide(hidden_TD)),
            positive=self._items(item),
            negatives=self._items(batch.negatives),
            hits=losses.accidental_hits(item, batch.negatives),
            sharpness=1.0 if self.config.loss == "gbce" else 1 / self.config.temperature,
        )

    @torch.no_grad()
    def user_vectors(self, histories: Histories) -> Tensor:
        """[B, D] from all events given, D a multiple of 8; zeros for a user without an event on a trained item."""
        windows = last_windows(histories, self.max_length, self.known)
        users = self.item_table.new_zeros(len(windows), self.config.dim)
        with _evaluating(self):
            for rows in windows.buckets(EVALUATED):
                users[self._tensor(rows)] = self._after_last(windows.take(rows))
        users[self._tensor(windows.lengths == 0)] = 0
        return padded_to_eight(users)

    @torch.no_grad()
    def item_vectors(self) -> Tensor:
        """[N, D]; zero for an item without a train event."""
        return padded_to_eight(self._directed(self.item_table) * self.trained[:, None])

    def fold_in_parameters(self) -> dict[str, float]:
        """None: a history becomes a vector by the encoder."""
        return {}

    def tables(self) -> dict[str, nn.Parameter]:
        """The items'."""
        return {"item": self.item_table}

    def row_tables(self) -> dict[str, nn.Parameter]:
        """The items', unless every step touches every one of them."""
        return {} if self.touches_all else self.tables()

    def _loss(self, scored: Scored, batch: Sequences) -> Tensor:
        parts = scored[:4]
        if self.config.loss == "gbce":
            return losses.gbce(*parts, confidence=self.confidence)
        log_q = None
        if self.corrects:
            log_q = self.log_q[self._tensor(batch.positives)], self.log_q[batch.negatives]
        return losses.sampled_softmax(*parts, temperature=self.config.temperature, log_q=log_q)

    def _encoded(self, windows: Windows, padded: Padded) -> Tensor:
        """[W · L, D] what the encoder makes of windows. Padding is zeros and is not looked up, so it touches no item."""
        tokens_TD = self._items(self._tensor(windows.item[padded.event]))
        shape = (padded.shape[0] * padded.shape[1], self.config.dim)
        laid_out = tokens_TD.new_zeros(shape).index_copy(0, self._tensor(padded.place), tokens_TD)
        encoded: Tensor = self.encoder(laid_out.view(*padded.shape, -1))
        return encoded.flatten(0, 1)

    def _after_last(self, windows: Windows) -> Tensor:
        padded = windows.padded()
        return self._directed(self._encoded(windows, padded)[self._tensor(padded.last)].float())

    def _items(self, item: Tensor) -> Tensor:
        return self._directed(F.embedding(item, self.item_table, sparse=not self.touches_all))

    def _directed(self, rows: Tensor) -> Tensor:
        return losses.unit(rows) if self.config.cosine else rows

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array).to(self.item_table.device, non_blocking=True)
        return tensor if tensor.dtype == torch.bool else tensor.long()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
