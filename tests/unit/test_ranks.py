"""How the processes of a run find each other, meet, share and fail together."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed.distributed_c10d import _set_pg_timeout

import trainer.training.caches as caches
import trainer.training.distributed as distributed
import trainer.training.joining as joining
from tests.ranks import can_fork, on_ranks
from trainer.adapters.lora_layer import Dropouts, LoraLayer
from trainer.config.run import RunConfig
from trainer.config.training import TrainingConfig
from trainer.data.batches import BatchMaker, BatchOrder
from trainer.data.examples import Example
from trainer.data.randomness import stream_seed
from trainer.data.variants import Variant
from trainer.dataset.buckets import Bucket
from trainer.errors import Cancelled, ConfigError, NonFiniteLossError, ResourceError, RunError
from trainer.jobs import JobContext
from trainer.paths import DataFolder
from trainer.ranks import FollowingRun, Place, launch_command, num_devices, own_place
from trainer.runs import create_run
from trainer.training.caches import cache_latents
from trainer.training.distributed import Ranks
from trainer.training.joining import joined
from trainer.training.resume import save_checkpoint
from trainer.training.state import TrainState
from trainer.training.step import _own_stream

forks = pytest.mark.skipif(not can_fork(), reason="the processes are forked")


def config(**training: Any) -> RunConfig:
    return RunConfig(training=TrainingConfig(device="cpu", **training))


def test_what_the_launcher_tells_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert own_place() == Place()
    for name, value in {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert own_place() == Place(3, 4, 1, 2)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert own_place() == Place()


def test_accelerates_launcher_takes_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.commands.launch import launch_command_parser

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    run = create_run(DataFolder(tmp_path), "train", "test", {"training": {"num_devices": 2}})
    assert num_devices(run) == 2
    options = launch_command_parser().parse_args(launch_command(run, 2)[3:])
    assert (options.num_processes, options.num_machines, options.multi_gpu, options.module) == (2, 1, True, True)
    assert (options.training_script, options.training_script_args) == ("trainer.worker", [str(run.folder)])
    assert options.main_process_port == 0, "two runs at once must not want the same port"
    assert options.num_cpu_threads_per_process >= 1
    run.config_path.write_text("{", encoding="utf-8")
    assert num_devices(run) == 1, "the job itself says what is wrong with its settings"


def test_more_devices_than_there_are_are_refused_before_anything_is_done() -> None:
    with pytest.raises(ResourceError) as caught:
        joining._check_devices(torch.device("mps"), 2)
    assert "wants 2 devices, but this machine has 1" in caught.value.message
    assert caught.value.fix == "Set training.num_devices to 1."
    with pytest.raises(ConfigError, match="3 processes cannot share 4 pictures"):
        joining._join(config(batch_size=2, num_devices=2), Place(0, 3, 0, 3))


class FakeLatents:
    """Stands for the cache; remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def get(self, example: Example, variant: Variant) -> tuple[torch.Tensor, torch.Tensor]:
        self.asked.append(example.name)
        return torch.full((4, 2, 2), float(variant.flipped)), torch.ones(4, 2, 2)


def test_shares_of_a_batch_are_the_batch_in_pieces() -> None:
    settings = RunConfig.model_validate(
        {
            "data": {"caption_dropout": 0.4, "shuffle_tags": True, "horizontal_flip": True},
            "objective": {"noise_offset": 0.1, "pyramid_noise_levels": 2, "input_perturbation": 0.1},
        }
    )
    examples = [
        Example(f"{index}", Path(f"{index}.png"), f"{index}", f"a, b, c, {index}", Bucket(16, 16), (16, 16))
        for index in range(7)
    ]

    def batch(part: tuple[int, int]) -> tuple[Any, FakeLatents]:
        latents: Any = FakeLatents()
        order = BatchOrder([example.bucket for example in examples], 6, 1, "instance", 42)
        maker = BatchMaker(examples, order, latents, settings.data, settings.objective, part=part)
        assert len(maker.names(3)) == 6
        return maker.make(3, "instance", 42, 4, 0), latents

    whole, _ = batch((0, 1))
    pieces = [batch((index, 3)) for index in range(3)]
    for name in ("latents", "noise", "input_noise", "timesteps", "frames"):
        assert torch.equal(torch.cat([getattr(piece, name) for piece, _ in pieces]), getattr(whole, name))
    for name in ("examples", "captions"):
        assert sum((getattr(piece, name) for piece, _ in pieces), ()) == getattr(whole, name)
    assert all(len(latents.asked) == 2 for _, latents in pieces), "only the share's latents are read"


def test_one_process_just_does_it() -> None:
    ranks = Ranks()
    assert ranks.meet(7) == [7]
    assert ranks.on_main(lambda: 5) == ranks.main_first(lambda: 5) == 5
    weight = torch.nn.Parameter(torch.zeros(2))
    ranks.average([weight], [])
    assert weight.grad is None
    assert ranks.device(torch.device("cuda", 0)) == torch.device("cuda", 0)
    assert Ranks(index=5, count=8, local_index=1).device(torch.device("cuda", 0)) == torch.device("cuda", 1)


@forks
def test_gradients_are_averaged_and_those_that_nobody_has_stay_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "_PIECE", 5)

    def part(index: int) -> None:
        weights = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((2, 3), (4,), (1,), ())]
        weights[0].grad = torch.arange(6.0).view(2, 3).mT.contiguous().mT * (index + 1)
        if index == 1:
            weights[1].grad = torch.full((4,), 3.0)
        weights[3].grad = torch.tensor(float(index))
        loss = torch.tensor(float(index * 10))
        with joined(config(num_devices=3)) as ranks:
            assert ranks.meet(index * 2) == [0, 2, 4]
            assert ranks.from_main(index + 8) == 8
            ranks.average(weights, [loss])
            assert torch.equal(weights[0].grad, torch.arange(6.0).view(2, 3) * 2)
            assert weights[1].grad is not None
            assert torch.equal(weights[1].grad, torch.ones(4))
            assert weights[2].grad is None
            assert weights[3].grad == 1
            assert loss == 10
            assert torch.equal(ranks.add_up(torch.tensor([1.0, float(index)])), torch.tensor([3.0, 3.0]))
            mains = ranks.take_mains({"a": torch.full((2, 2), float(index)), "b": torch.ones(2) * 7})
            assert torch.equal(mains["a"], torch.zeros(2, 2))
            assert ranks.all_equal("same")
            assert not ranks.all_equal(f"{index}")

    assert on_ranks(3, part, tmp_path / "log") == [0, 0, 0], (tmp_path / "log").read_text()


@forks
@pytest.mark.parametrize("beats", [True, False])
def test_others_wait_for_the_main_process_as_long_as_it_gives_signs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beats: bool
) -> None:
    # Where they are to last, a process may be held up for long beside others; where not, nothing can be too slow.
    limit, work = (4.0, 5.0) if beats else (0.8, 1.7)
    monkeypatch.setattr(distributed, "_HEARTBEAT_SECONDS", 0.4 if beats else 60.0)

    def part(index: int) -> None:
        calls: list[int] = []
        with joined(config(num_devices=2)) as ranks:
            # Not before they have found each other, for which they have as long as they need.
            ranks.meet()
            _set_pg_timeout(timedelta(seconds=limit), ranks.control)

            def write() -> str:
                calls.append(index)
                ranks.on_main(lambda: ranks.meet())  # what is done alone may ask for that again
                time.sleep(work)
                return "written"

            assert ranks.on_main(write) == (None if index else "written")
            assert calls == ([] if index else [0])
            assert ranks.main_first(lambda: calls.append(2)) is None
            assert calls[-1:] == [2]
            assert calls.count(2) == 1

    codes = on_ranks(2, part, tmp_path / "log")
    assert codes == ([0, 0] if beats else [99, 99]), (tmp_path / "log").read_text()
    if not beats:
        assert "did not answer any more" in (tmp_path / "log").read_text()


@forks
@pytest.mark.parametrize("error", [Cancelled("Stopped."), ResourceError("Full.", fix="Empty it."), ValueError("odd")])
@pytest.mark.parametrize("where", [0, 1])
def test_all_raise_the_error_of_one_wherever_they_are(tmp_path: Path, error: Exception, where: int) -> None:
    def part(index: int) -> int:
        try:
            with joined(config(num_devices=2)) as ranks:
                ranks.meet()
                if index == where:
                    raise error
                ranks.on_main(lambda: time.sleep(0.1))
                ranks.average([], [torch.zeros(1)])
        except Exception as raised:
            if index == where:
                return 10 if raised is error else 1
            if isinstance(error, ValueError):
                return 10 if f"device {where + 1}" in str(raised) and "ValueError: odd" in str(raised) else 2
            return 10 if type(raised) is type(error) and raised.args == error.args and raised.fix == error.fix else 3  # type: ignore[attr-defined]
        return 4

    assert on_ranks(2, part, tmp_path / "log") == [10, 10], (tmp_path / "log").read_text()


@forks
def test_a_stop_while_latents_are_made_is_heard_by_all_after_a_few_pictures(tmp_path: Path) -> None:
    run = create_run(DataFolder(tmp_path), "train", "test", {})

    def part(index: int) -> int:
        made: list[int] = []

        class Latents:
            def __init__(self, *_: object) -> None:
                pass

            def key(self, example: int, variant: str) -> int:
                return example

            def distinct(self, wanted: list[tuple[int, str]]) -> dict[int, tuple[int, str]]:
                return {example: (example, variant) for example, variant in wanted}

            def prepare(self, wanted: list[tuple[int, str]], progress: Any) -> int:
                for done, (example, _) in enumerate(wanted):
                    progress(done, len(wanted))
                    made.append(example)
                    if example == 204:  # the third of the main process, in the second round
                        run.request("stop")
                return len(made)

        caches.LatentCache = Latents  # type: ignore[assignment,misc] - in this process only
        context = JobContext(FollowingRun(run.folder) if index else run, lambda event: None)
        components: Any = SimpleNamespace(fingerprint=lambda part: part)
        try:
            with joined(config(num_devices=2)) as ranks:
                for first, count in ((0, 33), (200, 200)):  # in shares of unlike length, and then of many
                    made.clear()
                    wanted: Any = [(number, "plain") for number in range(first, first + count)]
                    cache_latents(context, DataFolder(tmp_path), components, wanted, ranks)
        except Cancelled:
            return 10 if len(made) <= 8 else 1
        return 2

    assert on_ranks(2, part, tmp_path / "log") == [10, 10], (tmp_path / "log").read_text()


@forks
def test_broken_weights_are_found_by_all_so_that_all_go_back(tmp_path: Path) -> None:
    def part(index: int) -> None:
        weights = {"unet.a.down": torch.tensor([1.0, float("nan")])}
        context = SimpleNamespace(stage=lambda name: None)
        with joined(config(num_devices=2)) as ranks:
            parts: Any = SimpleNamespace(
                ranks=ranks, context=context, adapter=SimpleNamespace(state_dict=lambda: weights)
            )
            with pytest.raises(NonFiniteLossError, match="after step 3: no checkpoint"):
                save_checkpoint(parts, TrainState(step=3))

    assert on_ranks(2, part, tmp_path / "log") == [0, 0], (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("adapter", "is_own"),
    [
        ({"dropout": 0.1}, True),
        ({"method": "rslora", "rank_dropout": 0.1}, True),
        ({"method": "lokr", "rank_dropout": 0.1}, False),
        ({"module_dropout": 0.1}, False),
    ],
)
def test_what_is_dropped_for_each_picture_is_drawn_by_each_process(adapter: dict[str, Any], is_own: bool) -> None:
    settings = RunConfig.model_validate({"adapter": adapter})

    def draws(index: int) -> list[float]:
        parts: Any = SimpleNamespace(config=settings, ranks=Ranks(index=index, count=2))
        torch.manual_seed(stream_seed("torch", 42, 1, 0, *_own_stream(parts)))
        layer = LoraLayer(torch.nn.Linear(4, 4), 8, 1.0, Dropouts(ranks=0.5), torch.device("cpu"))
        return layer._thinned(torch.ones(1, 8)).tolist()[0]

    assert (draws(0) != draws(1)) is is_own


@forks
def test_processes_with_other_settings_do_not_train_together(tmp_path: Path) -> None:
    def part(index: int) -> None:
        with pytest.raises(RunError, match="see different settings"), joined(config(num_devices=2, seed=index)):
            pass

    assert on_ranks(2, part, tmp_path / "log") == [0, 0], (tmp_path / "log").read_text()
