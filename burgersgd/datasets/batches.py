"""The order of training examples: the examples of each run's batch at each gradient evaluation."""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor

from burgersgd.streams import Purpose, integers, permutations

TABLES_BYTES = 1 << 25
"""Approximate number of bytes for the orders of several epochs on a GPU."""


def evaluations_per_epoch(n: int, batch_size: int, drop_last: bool) -> int:
    """Return the number of gradient evaluations of one epoch of n examples, the same with and without replacement."""
    return n // batch_size if drop_last else -(-n // batch_size)


class Batches:
    """The order in which R runs see the training examples, on the device and determined by (seed, epoch) alone.

    Without replacement every epoch is a new permutation of the n examples, whose last batch is short or dropped; a
    batch of all n examples keeps their order. With replacement each batch consists of batch_size independent draws, and
    epochs are only counted.

    Implements Eq. (2.13).
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        seeds: Int64[Tensor, " runs"],
        with_replacement: bool = False,
        drop_last: bool = False,
        purpose: int = Purpose.BATCHES,
        variants: int = 1,
    ) -> None:
        """Prepare batches of n examples on the device of seeds. Raises ValueError where batch_size is not in 1..n.

        purpose is the word of the streams' counter for the orders. If examples have several variants, one of them is
        drawn at each use: variant v of example i has the number i + n v.
        """
        if not 1 <= batch_size <= n:
            raise ValueError(
                f"trainer.batch_size={batch_size}: must be between 1 and {n}, the number of training examples"
            )
        self.n = n
        self.batch_size = batch_size
        self.seeds = seeds
        self.drop_last, self.purpose, self.variants = drop_last, purpose, variants
        self.with_replacement = with_replacement
        self.evaluations_per_epoch = evaluations_per_epoch(n, batch_size, drop_last)
        """Number of gradient evaluations of an epoch."""
        whole = drop_last or with_replacement
        self._last_size = batch_size if whole else n - (self.evaluations_per_epoch - 1) * batch_size
        self._tables: dict[int, Tensor] = {}
        on_cpu = seeds.device.type == "cpu"
        self.epochs_at_once = 1 if on_cpu else max(1, min(8, TABLES_BYTES // (8 * len(seeds) * n)))
        """Number of epochs whose orders are drawn together: a GPU sorts eight orders in the time of one."""

    def of_purpose(self, purpose: int) -> Batches:
        """Return the same batches with the order of another stream of the same runs."""
        whole = (self.with_replacement, self.drop_last)
        return Batches(self.n, self.batch_size, self.seeds, *whole, purpose, self.variants)

    def size(self, step: int) -> int:
        """Return the number of examples in the batch of gradient evaluation step = 0, 1, 2, ..."""
        last = step % self.evaluations_per_epoch == self.evaluations_per_epoch - 1
        return self._last_size if last else self.batch_size

    def indices(self, first: int, count: int) -> Int64[Tensor, "steps runs batch_size"]:
        """Return the examples of evaluations first ... first + count - 1; callers must not change the tensor.

        Only the first size(step) entries of a batch are valid: a short batch is padded by repeating its beginning.
        """
        examples = self._examples(first, count)
        if self.variants == 1:
            return examples
        purpose = self.purpose + Purpose.AUGMENT - Purpose.BATCHES
        drawn = integers(self.seeds, purpose, first, count, self.batch_size)
        return examples + self.n * ((drawn * self.variants) >> 32)

    @property
    def ordered(self) -> bool:
        """Whether every batch consists of all examples, without variants, in their order."""
        return self.batch_size == self.n and not self.with_replacement and self.variants == 1

    def _examples(self, first: int, count: int) -> Int64[Tensor, "steps runs batch_size"]:
        if self.with_replacement:
            drawn = integers(self.seeds, self.purpose, first, count, self.batch_size)  # uniform in [0, 2^32)
            return (drawn * self.n) >> 32
        pieces = []
        while count > 0:
            epoch, position = divmod(first, self.evaluations_per_epoch)
            piece = self._epoch_table(epoch)[position : position + count]
            pieces.append(piece)
            first, count = first + len(piece), count - len(piece)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _epoch_table(self, epoch: int) -> Int64[Tensor, "evaluations runs batch_size"]:
        """Return all batches of an epoch; those of the latest epochs are cached."""
        if self.batch_size == self.n:
            return torch.arange(self.n, device=self.seeds.device).expand(1, len(self.seeds), self.n)
        if epoch not in self._tables:
            orders = permutations(self.seeds, epoch, self.epochs_at_once, self.n, purpose=self.purpose)
            per_epoch = self.evaluations_per_epoch
            self._tables = {epoch + i: _cut(order, per_epoch, self.batch_size) for i, order in enumerate(orders)}
        return self._tables[epoch]


def _cut(order: Int64[Tensor, "runs n"], evaluations: int, batch_size: int) -> Int64[Tensor, "evaluations runs batch"]:
    """Return order divided into batches, the last one padded by repeating its beginning."""
    runs, n = order.shape
    missing = evaluations * batch_size - n
    if missing > 0:
        last = order[:, (evaluations - 1) * batch_size :]
        filling = last.repeat(1, -(-missing // last.shape[1]))[:, :missing]
        order = torch.cat([order, filling], dim=1)
    return order[:, : evaluations * batch_size].reshape(runs, evaluations, batch_size).transpose(0, 1).contiguous()
