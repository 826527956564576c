"""Data parallelism: the processes of a run, each with a device and its share of every batch, and how they stay together.

Why not `DistributedDataParallel`: the trained weights lie inside frozen modules of several models (UNet, one or two text
encoders), partly without being modules' parameters of their own, and are used once or twice an update (prior preservation).
DDP would want one module around all of them, a forward pass through it, and hooks that count uses. What it gives, gradients
that are averaged while the backward pass still runs, is worth little here: an adapter's gradients are a hundredth of a
model's. So they are averaged once an update, after the last micro-batch, in float32 and in large pieces.

All else goes over a second group of processes, which works on the CPU and notices at once when a process is gone: before each
exchange all *meet*. Who fails says so at the next meeting, and all raise the same error there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.errors import InkwashError, ResourceError, RunError, error_from_dict, is_out_of_memory

log = logging.getLogger(__name__)
Result = TypeVar("Result")
_HEARTBEAT_SECONDS = 20.0
_HERE, _BUSY, _FAILED = 0, 1, 2
_PIECE = 8 * 2**20
"""Numbers in a piece of gradients, 32 MiB: large enough for full speed, small beside a model."""


@dataclass
class Ranks:
    """The processes of a run. With one, the default, everything here does nothing or just calls the function it is given."""

    index: int = 0
    count: int = 1
    local_index: int = 0
    control: dist.ProcessGroup | None = None
    _is_alone: bool = field(default=False, repr=False)
    _is_over: bool = field(default=False, repr=False)

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes and reports."""
        return self.index == 0

    def device(self, device: torch.device) -> torch.device:
        """This process's own device of a kind."""
        if self.count == 1 or device.type not in ("cuda", "xpu"):
            return device
        return torch.device(device.type, self.local_index)

    def meet(self, value: int = 0) -> list[int]:
        """Wait until all are here. Returns each one's `value`, a 64-bit integer.

        Raises: the error of a process that failed; RunError: one is gone.
        """
        if self.control is None or self._is_alone:
            return [value]
        return [int(row[1]) for row in self._exchange(_HERE, value)]

    def from_main(self, value: int) -> int:
        """The main process's `value`."""
        return self.meet(value)[0]

    def on_main(self, function: Callable[[], Result]) -> Result | None:
        """Let the main process do something, however long it takes, while the others wait; they get None.

        Raises: what the function raises, in all processes.
        """
        if self.control is None or self._is_alone:
            return function()
        if not self.is_main:
            while int(self._exchange(_HERE, 0)[0][0]) == _BUSY:
                pass
            return None
        with self._heartbeat():
            result = function()
        self._exchange(_HERE, 0)
        return result

    def main_first(self, function: Callable[[], Result]) -> Result:
        """Let the main process do what fills a cache, then the others, who find it there."""
        result = self.on_main(function)
        return cast(Result, result) if self.is_main else function()

    @contextmanager
    def _heartbeat(self) -> Iterator[None]:
        """Tell those who wait that there is still something to wait for, so that no wait is too long for a time limit."""
        done, errors = threading.Event(), list[InkwashError]()

        def beat() -> None:
            try:
                while not done.wait(_HEARTBEAT_SECONDS):
                    self._exchange(_BUSY, 0)
            except InkwashError as error:
                errors.append(error)

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        self._is_alone = True
        try:
            yield
        finally:
            self._is_alone = False
            done.set()
            thread.join()
            if errors:
                raise errors[0]

    def _exchange(self, status: int, value: int) -> list[Tensor]:
        gathered = [torch.zeros(2, dtype=torch.int64) for _ in range(self.count)]
        with self._same_fate():
            dist.all_gather(gathered, torch.tensor([status, value]), group=self.control)
        failed = next((index for index, row in enumerate(gathered) if int(row[0]) == _FAILED), None)
        if failed is not None and status != _FAILED:
            self._is_over = True
            raise self._receive(failed, int(gathered[failed][1]))
        return gathered

    def _receive(self, source: int, length: int) -> InkwashError:
        data = torch.zeros(length, dtype=torch.uint8)
        with self._same_fate():
            dist.broadcast(data, source, group=self.control)
        return error_from_dict(json.loads(bytes(data.tolist())))

    def tell(self, error: Exception) -> None:
        """Say at the next meeting that this process cannot go on, so that the others end with this error."""
        if self.control is None or self._is_over:
            return
        self._is_over = True
        text = json.dumps(_as_told(error, self.index).to_dict()).encode()
        try:
            gathered = self._exchange(_FAILED, len(text))
            failed = next(index for index, row in enumerate(gathered) if int(row[0]) == _FAILED)
            data = torch.tensor(list(text), dtype=torch.uint8)
            if failed != self.index:
                data = torch.zeros(int(gathered[failed][1]), dtype=torch.uint8)
            with self._same_fate():
                dist.broadcast(data, failed, group=self.control)
        except InkwashError:
            log.exception("The others could not be told")

    @contextmanager
    def _same_fate(self) -> Iterator[None]:
        """Turn what torch says where a process is gone into a sentence."""
        try:
            yield
        except RuntimeError as error:
            self._is_over = True
            raise RunError(
                "Another process of this run, on another device, ended or did not answer any more.",
                fix="The log has what it said last; most often memory was not enough. Resume the run: it goes on from its "
                "last checkpoint.",
            ) from error

    def average(self, weights: Sequence[nn.Parameter], results: Sequence[Tensor]) -> None:
        """Replace gradients, and the `results` (float32 scalars), by their means over the processes, equal to the bit in all.

        A weight that has no gradient anywhere keeps none.
        """
        if self.control is None:
            return
        if any(self.meet(sum(weight.grad is None for weight in weights))):
            there = torch.tensor([weight.grad is not None for weight in weights], dtype=torch.uint8)
            with self._same_fate():
                dist.all_reduce(there, dist.ReduceOp.MAX, group=self.control)
            for weight, is_there in zip(weights, there.tolist(), strict=True):
                if is_there and weight.grad is None:
                    weight.grad = torch.zeros_like(weight)
        tensors = [weight.grad for weight in weights if weight.grad is not None] + list(results)
        for piece in _pieces(tensors):
            flat = torch.cat([tensor.detach().reshape(-1).float() for tensor in piece])
            with self._same_fate():
                dist.all_reduce(flat)
            flat /= self.count
            for tensor, mean in zip(piece, flat.split([tensor.numel() for tensor in piece]), strict=True):
                tensor.copy_(mean.view_as(tensor))

    def add_up(self, values: Tensor) -> Tensor:
        """The sum over the processes of a tensor on the CPU."""
        if self.control is None:
            return values
        self.meet()
        total = values.clone()
        with self._same_fate():
            dist.all_reduce(total, group=self.control)
        return total

    def take_mains(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies of tensors as the main process has them."""
        copies = {
            name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
        }
        if self.control is not None:
            self.meet()
            for copy in copies.values():
                with self._same_fate():
                    dist.broadcast(copy, 0, group=self.control if copy.device.type == "cpu" else None)
        return copies

    def all_equal(self, fingerprint: str) -> bool:
        """Whether all processes have the same."""
        number = int.from_bytes(hashlib.sha256(fingerprint.encode()).digest()[:8], "little") >> 1
        return len(set(self.meet(number))) == 1


def _as_told(error: Exception, index: int) -> InkwashError:
    """An error as the other processes are told it."""
    if isinstance(error, InkwashError):
        return error
    if is_out_of_memory(error):
        return ResourceError(
            f"The memory of device {index + 1} of this run was not enough.",
            fix="Lower the batch size or the resolution, turn on gradient checkpointing, or close other programs.",
        )
    return InkwashError(
        f"Something went wrong on device {index + 1} of this run that Inkwash did not expect ({type(error).__name__}: {error}).",
        fix="The log has the details. If it happens again, report it with that log.",
    )


def _pieces(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors in groups of about `_PIECE` numbers."""
    piece, size = list[Tensor](), 0
    for tensor in tensors:
        if piece and size + tensor.numel() > _PIECE:
            yield piece
            piece, size = [], 0
        piece.append(tensor)
        size += tensor.numel()
    if piece:
        yield piece


def fingerprint_of(tensors: Mapping[str, Tensor]) -> str:
    """A hash of tensors' bytes."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(name.encode())
        digest.update(tensor.detach().to("cpu").contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
