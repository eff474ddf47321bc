"""What models have in common whose users are what an encoder makes of their histories.

Shapes: T events to be told, N negatives, B users, W windows, L places, I numbers an encoder is fed for an item, D dimensions.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recsys.config import ModelConfig
from recsys.data.histories import Histories
from recsys.data.seeds import seed_of
from recsys.data.windows import Padded, Sequences, Windows, last_windows
from recsys.models import losses
from recsys.models.base import Catalogue, FoldsIn, Learns, negatives_of, padded_to_eight
from recsys.models.teacher import Scored, Teacher, wide

# Tokens encoded at once, padding counted, where no gradients are made.
EVALUATED = 1 << 15

# Of the items' rows to begin with. Small, so that scores begin alike: after 260 steps of 32 users of ml-1m NDCG@10 of sasrec on
# validation was .090, and with vectors of length 1 .037.
DEVIATION = 0.02


class LookedUp(NamedTuple):
    """What a step is made of: fed [T, I] what the encoder is given of each event, told [T, D] vectors of the events to be told,
    negatives [N, D]."""

    fed: Tensor
    told: Tensor
    negatives: Tensor


class SequenceModel(nn.Module):
    """score(u, i) = encoder(u's history) · v_i, or their cosine. There is no table of users.

    At every event the next one is to be told, by softmax over the step's negatives or all trained items, or by gBCE.
    """

    batch: ClassVar[type[Histories]] = Histories
    learns: ClassVar[Learns] = "gradients"
    known_user: ClassVar[Literal["table", "history"]] = "history"
    fold_in: FoldsIn = "onnx"
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
            self.encoder = self.made_encoder(config)
        self.listed = catalogue.item_counts > 0
        self.register_buffer("trained", torch.from_numpy(self.listed), persistent=False)
        self.register_buffer("log_q", torch.from_numpy(catalogue.log_chance()), persistent=False)

    def made_encoder(self, config: ModelConfig) -> nn.Module:
        """[B, L, I] → [B, L, D] no place seeing a later one, padding being zeros; its weights drawn from torch's generator."""
        raise NotImplementedError

    def look_up(self, item_T: Tensor, told_T: Tensor, negatives_N: Tensor) -> LookedUp:
        """For a step that is learnt from."""
        raise NotImplementedError

    def inputs(self, item_T: Tensor) -> Tensor:
        """[T, I] what the encoder is fed of items."""
        raise NotImplementedError

    def item_vectors(self) -> Tensor:
        """[N, D]"""
        raise NotImplementedError

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
        item, told = (self._tensor(batch.windows.item[event]) for event in (padded.event, padded.event + 1))
        found = self.look_up(item, told, batch.negatives)
        hidden_TD = self._encoded(found.fed, padded)[self._tensor(padded.place)]
        return Scored(
            user=self.directed(wide(hidden_TD)),
            positive=found.told,
            negatives=found.negatives,
            hits=losses.accidental_hits(told, batch.negatives),
            sharpness=1 / self.config.temperature,
        )

    @torch.no_grad()
    def user_vectors(self, histories: Histories) -> Tensor:
        """[B, D] from all events given, D a multiple of 8; zeros for a user without an event on a listed item."""
        windows = last_windows(histories, self.max_length, self.listed)
        users = self.item_table.new_zeros(len(windows), self.config.dim)
        with evaluating(self):
            for rows in windows.buckets(EVALUATED):
                users[self._tensor(rows)] = self._after_last(windows.take(rows))
        users[self._tensor(windows.lengths == 0)] = 0
        return padded_to_eight(users)

    def served(self) -> nn.Module:
        """[1, L, I or more] one history's inputs → [1, D], as `user_vectors` ends."""
        return Served(self.encoder, self.config.dim, cosine=self.config.cosine)

    def fold_in_parameters(self) -> dict[str, float]:
        """None: a history becomes a vector by the encoder."""
        return {}

    def tables(self) -> dict[str, nn.Parameter]:
        """The items'."""
        return {"item": self.item_table}

    def row_tables(self) -> dict[str, nn.Parameter]:
        """The items', unless every step touches every one of them."""
        return {} if self.touches_all else {"item": self.item_table}

    def directed(self, rows: Tensor) -> Tensor:
        """Of length 1 where vectors are compared by cosine."""
        return losses.unit(rows) if self.config.cosine else rows

    def _loss(self, scored: Scored, batch: Sequences) -> Tensor:
        parts = scored[:4]
        if self.config.loss == "gbce":
            return losses.gbce(*parts, confidence=self.confidence, temperature=self.config.temperature)
        log_q = None
        if self.corrects:
            log_q = self.log_q[self._tensor(batch.positives)], self.log_q[batch.negatives]
        return losses.sampled_softmax(*parts, temperature=self.config.temperature, log_q=log_q)

    def _encoded(self, fed_TI: Tensor, padded: Padded) -> Tensor:
        """[W · L, D] what the encoder makes of windows. Padding is zeros and is not looked up, so it touches no item."""
        shape = (padded.shape[0] * padded.shape[1], fed_TI.shape[1])
        laid_out = fed_TI.new_zeros(shape).index_copy(0, self._tensor(padded.place), fed_TI)
        encoded: Tensor = self.encoder(laid_out.view(*padded.shape, -1))
        return encoded.flatten(0, 1)

    def _after_last(self, windows: Windows) -> Tensor:
        padded = windows.padded()
        fed_TI = self.inputs(self._tensor(windows.item[padded.event]))
        return self.directed(self._encoded(fed_TI, padded)[self._tensor(padded.last)].float())

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array).to(self.item_table.device, non_blocking=True)
        return tensor if tensor.dtype == torch.bool else tensor.long()


class Served(nn.Module):
    """[1, L, I] what is fed for the items of one history → [1, D] the vector of its user, padded to a multiple of 8."""

    def __init__(self, encoder: nn.Module, dim: int, *, cosine: bool) -> None:
        super().__init__()
        self.encoder, self.dim, self.cosine = encoder, dim, cosine

    def forward(self, items: Tensor) -> Tensor:
        """Item vectors are padded to a multiple of 8, of which the encoder knows nothing."""
        user = self.encoder(items[:, :, : self.dim])[:, -1]
        return padded_to_eight(losses.unit(user) if self.cosine else user)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
