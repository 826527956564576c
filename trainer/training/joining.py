"""How the processes of a run find each other, after what can be refused has been refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, PartialState

from trainer.config.run import RunConfig
from trainer.errors import ConfigError, ResourceError, RunError
from trainer.models.devices import pick_device
from trainer.ranks import Place, own_place
from trainer.training.distributed import Ranks

JOIN_TIMEOUT = timedelta(minutes=10)
"""How long processes wait for each other at the start, and for gradients."""
MEET_TIMEOUT = timedelta(minutes=30)
"""How long they wait where one may be slower than the others: loading a model, computing a step on a processor."""


@contextmanager
def joined(config: RunConfig) -> Iterator[Ranks]:
    """Find the other processes of this run, if it has any, and leave them again at the end.

    Raises: ResourceError: there are fewer devices than processes. ConfigError: the batch cannot be shared. RunError: the
    others did not come, or see another run.
    """
    place = own_place()
    if place.count == 1:
        yield Ranks()
        return
    ranks = _join(config, place)
    try:
        if not ranks.all_equal(config.model_dump_json()):
            raise RunError(
                "The processes of this run see different settings.",
                fix="The data folder and the run must lie on a disk that all machines share.",
            )
        yield ranks
        ranks.meet()
    except Exception as error:
        ranks.tell(error)
        raise
    dist.destroy_process_group()


def _join(config: RunConfig, place: Place) -> Ranks:
    device = pick_device(config.training.device)
    if place.local_index == 0:
        # One speaks for its machine, before it waits for others who would only wait for it.
        _check_devices(device, place.local_count)
    if config.training.global_batch_size % place.count:
        raise ConfigError(
            f"{place.count} processes cannot share {config.training.global_batch_size} pictures an update.",
            where="training.num_devices",
            fix=f"Start as many processes as training.num_devices says ({config.training.num_devices}), or a number that "
            "divides training.batch_size × training.num_devices.",
        )
    try:
        # Whatever this process did before was not done with the others.
        AcceleratorState._reset_state(reset_partial_state=True)
        state = PartialState(cpu=device.type == "cpu", timeout=JOIN_TIMEOUT)
        control = dist.new_group(backend="gloo", timeout=MEET_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise RunError(
            f"The {place.count} processes of this run could not find each other ({str(error).splitlines()[0]}).",
            fix="The log has the details. On several machines: check the address and port of the main one, and the firewall.",
        ) from error
    if not isinstance(control, dist.ProcessGroup):
        raise RuntimeError("this process is not in the group of all")
    return Ranks(state.process_index, state.num_processes, state.local_process_index, control)


def _check_devices(device: torch.device, wanted: int) -> None:
    counts = {"cuda": torch.cuda.device_count, "xpu": torch.xpu.device_count, "mps": lambda: 1}
    there = counts[device.type]() if device.type in counts else wanted
    if wanted > there:
        raise ResourceError(
            f"The run wants {wanted} devices, but this machine has {there} of the kind '{device.type}'.",
            where="training.num_devices",
            fix=f"Set training.num_devices to {there}" + (", or lower." if there > 1 else "."),
        )
    if device.type == "cuda" and not dist.is_nccl_available():
        raise ResourceError(
            "PyTorch cannot use several graphics cards together on this system (it has no NCCL).",
            where="training.num_devices",
            fix="Set training.num_devices to 1, or train on Linux.",
        )
