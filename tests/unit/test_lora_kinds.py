"""Every kind of adapter: ΔW against the formula written out here, and through a file and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.errors import LoraFileError
from trainer.lora_files.file import AdapterModule, read_lora, write_lora

NAME = "lora_unet_down_blocks_0_resnets_0_conv1"
Parts = dict[str, Tensor]
Dense = Callable[[Parts, np.ndarray], np.ndarray]


class Draw:
    """Random sizes and tensors of one seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.rank = self.number(1, 5)
        self.alpha = float(self.number(1, 9)) / 2

    def number(self, low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def tensor(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator) * 0.5

    def kernel(self) -> tuple[int, ...]:
        return [(), (1, 1), (3, 3)][self.number(0, 2)]


def f64(parts: Parts) -> dict[str, np.ndarray]:
    return {key: tensor.double().numpy() for key, tensor in parts.items()}


def flat(array: np.ndarray) -> np.ndarray:
    return array.reshape(array.shape[0], -1)


# Each case draws a weight's shape and parts, and says ΔW by loops and einsum in float64.


def lora(draw: Draw) -> tuple[tuple[int, ...], Parts, Dense]:
    out, inputs, kernel, r = draw.number(1, 9), draw.number(1, 9), draw.kernel(), draw.rank
    parts = {
        "lora_down.weight": draw.tensor(r, inputs, *kernel),
        "lora_up.weight": draw.tensor(out, r, *(1 for _ in kernel)),
        "alpha": torch.tensor(draw.alpha),
    }

    def dense(p: dict, w: np.ndarray) -> np.ndarray:
        change = np.zeros((out, flat(w).shape[1]))
        for index in range(r):
            change += np.outer(flat(p["lora_up.weight"])[:, index], flat(p["lora_down.weight"])[index])
        return (change * p["alpha"] / r).reshape(w.shape)

    return (out, inputs, *kernel), parts, dense


def tucker(draw: Draw) -> tuple[tuple[int, ...], Parts, Dense]:
    out, inputs, r = draw.number(1, 7), draw.number(1, 7), draw.rank
    parts = {
        "lora_down.weight": draw.tensor(r, inputs, 1, 1),
        "lora_up.weight": draw.tensor(out, r, 1, 1),
        "lora_mid.weight": draw.tensor(r, r, 3, 3),
        "alpha": torch.tensor(draw.alpha),
    }

    def dense(p: dict, w: np.ndarray) -> np.ndarray:
        up, mid, down = flat(p["lora_up.weight"]), p["lora_mid.weight"], flat(p["lora_down.weight"])
        return np.einsum("om,mnkl,ni->oikl", up, mid, down) * p["alpha"] / r

    return (out, inputs, 3, 3), parts, dense


def loha(draw: Draw) -> tuple[tuple[int, ...], Parts, Dense]:
    out, inputs, kernel, r = draw.number(1, 9), draw.number(1, 9), draw.kernel(), draw.rank
    columns = inputs * int(np.prod(kernel))
    parts = {f"hada_w{n}_a": draw.tensor(out, r) for n in "12"}
    parts |= {f"hada_w{n}_b": draw.tensor(r, columns) for n in "12"} | {"alpha": torch.tensor(draw.alpha)}

    def dense(p: dict, w: np.ndarray) -> np.ndarray:
        first, second = p["hada_w1_a"].dot(p["hada_w1_b"]), p["hada_w2_a"].dot(p["hada_w2_b"])
        return (first * second * p["alpha"] / r).reshape(w.shape)

    return (out, inputs, *kernel), parts, dense


def loha_tucker(draw: Draw) -> tuple[tuple[int, ...], Parts, Dense]:
    out, inputs, r = draw.number(1, 7), draw.number(1, 7), draw.rank
    parts = {f"hada_w{n}_a": draw.tensor(r, out) for n in "12"}
    parts |= {f"hada_w{n}_b": draw.tensor(r, inputs) for n in "12"}
    parts |= {f"hada_t{n}": draw.tensor(r, r, 3, 3) for n in "12"} | {"alpha": torch.tensor(draw.alpha)}

    def dense(p: dict, w: np.ndarray) -> np.ndarray:
        # As published: einsum("i j k l, j r, i p -> p r k l", t, w_b, w_a).
        one, two = (np.einsum("ijkl,jr,ip->prkl", p[f"hada_t{n}"], p[f"hada_w{n}_b"], p[f"hada_w{n}_a"]) for n in "12")
        return one * two * p["alpha"] / r

    return (out, inputs, 3, 3), parts, dense


def lokr(draw: Draw) -> tuple[tuple[int, ...], Parts, Dense]:
    (o1, i1, o2, i2), r = (draw.number(1, 4) for _ in range(4)), draw.rank
    kernel, form1, form2 = draw.kernel(), draw.number(0, 1), draw.number(0, 2)
    form2 = 1 if form2 == 2 and len(kernel) == 0 else form2
    parts = {"alpha": torch.tensor(draw.alpha)}
    if form1:
        parts |= {"lokr_w1_a": draw.tensor(o1, r), "lokr_w1_b": draw.tensor(r, i1)}
    else:
        parts["lokr_w1"] = draw.tensor(o1, i1)
    if form2 == 2:
        parts |= {
            "lokr_t2": draw.tensor(r, r, *kernel),
            "lokr_w2_a": draw.tensor(r, o2),
            "lokr_w2_b": draw.tensor(r, i2),
        }
    elif form2:
        parts |= {"lokr_w2_a": draw.tensor(o2, r), "lokr_w2_b": draw.tensor(r, i2 * int(np.prod(kernel)))}
    else:
        parts["lokr_w2"] = draw.tensor(o2, i2, *kernel)

    def dense(p: dict, w: np.ndarray) -> np.ndarray:
        first = p["lokr_w1"] if "lokr_w1" in p else p["lokr_w1_a"] @ p["lokr_w1_b"]
        if "lokr_t2" in p:
            second = np.einsum("mnkl,mo,ni->oikl", p["lokr_t2"], p["lokr_w2_a"], p["lokr_w2_b"])
        else:
            second = p["lokr_w2"] if "lokr_w2" in p else p["lokr_w2_a"] @ p["lokr_w2_b"]
        second = second.reshape(o2, i2, *kernel)
        change = np.zeros((o1 * o2, i1 * i2, *kernel))
        for a in range(o1):
            for b in range(i1):
                change[a * o2 : (a + 1) * o2, b * i2 : (b + 1) * i2] = first[a, b] * second
        is_whole = "lokr_w1" in p and "lokr_w2" in p
        return change * (1.0 if is_whole else p["alpha"] / r)

    return (o1 * o2, i1 * i2, *kernel), parts, dense


def full(draw: Draw) -> tuple[tuple[int, ...], Parts, Dense]:
    shape = (draw.number(1, 9), draw.number(1, 9), *draw.kernel())
    return shape, {"diff": draw.tensor(*shape)}, lambda p, _w: p["diff"]


def norm(draw: Draw) -> tuple[tuple[int, ...], Parts, Dense]:
    shape = (draw.number(1, 9),)
    return shape, {"w_norm": draw.tensor(*shape)}, lambda p, _w: p["w_norm"]


def dora(inner: Callable, axis: int) -> Callable:
    def case(draw: Draw) -> tuple[tuple[int, ...], Parts, Dense]:
        shape, parts, change = inner(draw)
        sides = [1] * len(shape)
        sides[axis] = shape[axis]
        parts["dora_scale"] = draw.tensor(*sides).abs() + 0.1

        def dense(p: dict, w: np.ndarray) -> np.ndarray:
            v = w + change(p, w)
            result = np.empty_like(v)
            for channel in range(shape[axis]):
                index = (slice(None),) * axis + (channel,)
                result[index] = p["dora_scale"].flatten()[channel] * v[index] / np.sqrt((v[index] ** 2).sum())
            return result - w

        return shape, parts, dense

    return case


def ia3(draw: Draw) -> tuple[tuple[int, ...], Parts, Dense]:
    shape, on_input = (draw.number(1, 9), draw.number(1, 9), *draw.kernel()), draw.number(0, 1)
    channels = shape[1] if on_input else shape[0]
    weight = draw.tensor(1, channels, *(1 for _ in shape[2:])) if len(shape) > 2 else draw.tensor(channels)

    def dense(p: dict, w: np.ndarray) -> np.ndarray:
        numbers = p["weight"].flatten()
        return np.einsum("oi...,i->oi..." if on_input else "oi...,o->oi...", w, numbers)

    return shape, {"weight": weight, "on_input": torch.tensor(on_input)}, dense


def cayley(q: np.ndarray) -> np.ndarray:
    return np.matmul(np.eye(len(q)) + q, np.linalg.inv(np.eye(len(q)) - q))


def oft(draw: Draw) -> tuple[tuple[int, ...], Parts, Dense]:
    count, size, constraint = draw.number(1, 3), draw.number(1, 4), draw.number(0, 1) * 0.1
    shape = (count * size, draw.number(1, 9), *draw.kernel())
    parts = {"oft_blocks": draw.tensor(count, size, size), "alpha": torch.tensor(constraint)}
    if draw.number(0, 1):
        parts["rescale"] = draw.tensor(shape[0], *(1 for _ in shape[1:]))

    def dense(p: dict, w: np.ndarray) -> np.ndarray:
        q = p["oft_blocks"] - p["oft_blocks"].transpose(0, 2, 1)
        limit = float(p["alpha"]) * shape[0]
        if limit and np.sqrt((q**2).sum()) > limit:
            q = q * limit / np.sqrt((q**2).sum())
        rotated = np.zeros_like(w)
        for block in range(count):
            r = cayley(q[block])
            for m in range(size):
                for n in range(size):
                    rotated[block * size + m] += r[n, m] * w[block * size + n]
        return rotated * p.get("rescale", np.ones([1] * w.ndim)) - w

    return shape, parts, dense


def boft(draw: Draw) -> tuple[tuple[int, ...], Parts, Dense]:
    stages, half = draw.number(1, 3), draw.number(1, 2)
    count, size = 2 ** (stages - 1) * draw.number(1, 2), 2 * half
    shape = (count * size, draw.number(1, 5), *draw.kernel())
    parts = {"oft_blocks": draw.tensor(stages, count, size, size), "alpha": torch.tensor(0.0)}

    def dense(p: dict, w: np.ndarray) -> np.ndarray:
        total = np.eye(shape[0])
        for stage in range(stages):
            q = p["oft_blocks"][stage] - p["oft_blocks"][stage].transpose(0, 2, 1)
            matrix = np.zeros((shape[0], shape[0]))
            for block in range(count):
                matrix[block * size : (block + 1) * size, block * size : (block + 1) * size] = cayley(q[block])
            # (c g k) -> (c k g): the row that stands at c, k, g afterwards came from c, g, k.
            k = 2**stage * half
            order = np.arange(shape[0]).reshape(-1, 2, k).transpose(0, 2, 1).flatten()
            shuffle = np.eye(shape[0])[order]
            total = shuffle.T @ matrix @ shuffle @ total
        return (total @ flat(w)).reshape(w.shape) - w

    return shape, parts, dense


CASES: dict[str, Callable[[Draw], tuple[tuple[int, ...], Parts, Dense]]] = {
    "lora": lora,
    "tucker": tucker,
    "loha": loha,
    "loha tucker": loha_tucker,
    "lokr": lokr,
    "full": full,
    "norm": norm,
    "dora of lora, rows": dora(lora, 0),
    "dora of lora, columns": dora(lora, 1),
    "dora of loha": dora(loha, 1),
    "dora of lokr": dora(lokr, 0),
    "dora of tucker": dora(tucker, 1),
    "ia3": ia3,
    "oft": oft,
    "boft": boft,
}
SEEDS = range(12)


def in_file(path: Path, parts: Parts, name: str = NAME) -> dict[str, AdapterModule]:
    save_file({f"{name}.{part}": tensor.contiguous() for part, tensor in parts.items()}, path)
    return dict(read_lora(path).modules)


@pytest.mark.parametrize("case", CASES)
def test_the_change_is_the_formula_and_survives_writing(tmp_path: Path, case: str) -> None:
    for seed in SEEDS:
        draw = Draw(seed)
        shape, parts, dense = CASES[case](draw)
        weight = draw.tensor(*shape)
        expected = torch.from_numpy(np.asarray(dense(f64(parts), weight.double().numpy()), dtype=np.float32))
        module = in_file(tmp_path / "a.safetensors", parts)[NAME]
        assert module.fits(shape)
        found = module.delta_weight(weight)
        assert (found.shape, found.dtype) == (weight.shape, torch.float32)
        torch.testing.assert_close(found, expected.reshape(shape), atol=2e-4, rtol=2e-4)
        pair = module.factors()
        if pair is not None:
            torch.testing.assert_close((pair[0] @ pair[1]).reshape(shape), found)
        if not module.needs_original():
            torch.testing.assert_close(module.delta_weight(torch.zeros(shape)), found)
        for dtype, tolerance in (("fp32", 1e-5), ("fp16", 2e-2), ("bf16", 0.12)):
            write_lora(tmp_path / "b.safetensors", {NAME: module}, {}, dtype)
            again = read_lora(tmp_path / "b.safetensors").modules[NAME]
            assert (again.kind, again.rank) == (module.kind, module.rank)
            difference = (again.delta_weight(weight) - found).norm()
            assert difference <= tolerance * (found.norm() + weight.norm() * module.needs_original()), (seed, dtype)


@pytest.mark.parametrize("case", CASES)
def test_other_shapes_do_not_fit(tmp_path: Path, case: str) -> None:
    shape, parts, _ = CASES[case](Draw(3))
    module = in_file(tmp_path / "a.safetensors", parts)[NAME]
    assert not module.fits((shape[0] + 1, *(side + 1 for side in shape[1:])))


def test_shapes_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    for case in CASES:
        _, parts, _ = CASES[case](Draw(5))
        if len(parts) - ("alpha" in parts) < 2:
            continue
        for part, tensor in parts.items():
            if part in ("alpha", "on_input", "weight") or tensor.ndim < 2:
                continue
            # Every matrix of a layer hangs together with another one by each of its sides but the outer ones.
            broken = parts | {part: torch.zeros(tensor.shape[0] + 1, *(side + 1 for side in tensor.shape[1:]))}
            if part == "oft_blocks" or (case == "lokr" and part in ("lokr_w1", "lokr_w2")):
                continue
            assert not reads_and_fits(tmp_path / "a.safetensors", broken, CASES[case](Draw(5))[0]), (case, part)


def reads_and_fits(path: Path, parts: Parts, shape: tuple[int, ...]) -> bool:
    try:
        return in_file(path, parts)[NAME].fits(shape)
    except LoraFileError:
        return False


@pytest.mark.parametrize("part", ["diff_b", "b_norm"])
def test_biases_are_modules_of_their_own(tmp_path: Path, part: str) -> None:
    bias = torch.arange(4.0)
    modules = in_file(tmp_path / "a.safetensors", {"diff": torch.ones(4, 3), part: bias})
    assert modules.keys() == {NAME, f"{NAME}.bias"}
    assert modules[f"{NAME}.bias"].kind == "bias"
    assert torch.equal(modules[f"{NAME}.bias"].delta_weight(torch.zeros(4)), bias)
    write_lora(tmp_path / "b.safetensors", modules, {}, "fp32")
    assert torch.equal(load_file(tmp_path / "b.safetensors")[f"{NAME}.{part}"], bias)
    alone = in_file(tmp_path / "c.safetensors", {part: bias})
    assert alone.keys() == {f"{NAME}.bias"}


def test_a_whole_lokr_ignores_its_infinite_alpha(tmp_path: Path) -> None:
    parts = {"lokr_w1": torch.ones(2, 2), "lokr_w2": torch.ones(3, 3), "alpha": torch.tensor(float("inf")).half()}
    module = in_file(tmp_path / "a.safetensors", parts)[NAME]
    assert torch.equal(module.delta_weight(torch.zeros(6, 6)), torch.ones(6, 6))
    write_lora(tmp_path / "b.safetensors", {NAME: module}, {}, "fp16")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_fp8_is_read_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    down, up = torch.tensor([[0.5, -448.0], [0.015625, 3.0]]).to(dtype), torch.tensor([[2.0, 0.25]]).to(dtype)
    module = in_file(tmp_path / "a.safetensors", {"lora_down.weight": down, "lora_up.weight": up})[NAME]
    assert torch.equal(module.delta_weight(torch.zeros(1, 2)), up.float() @ down.float())


def test_an_absurd_rank_is_refused(tmp_path: Path) -> None:
    parts = {"lora_down.weight": torch.zeros(20_000, 1), "lora_up.weight": torch.zeros(1, 20_000)}
    with pytest.raises(LoraFileError, match="rank 20000"):
        in_file(tmp_path / "a.safetensors", parts)


def test_magnitudes_of_peft_are_of_the_output(tmp_path: Path) -> None:
    shape, parts, dense = dora(lora, 0)(Draw(1))
    weight = Draw(9).tensor(*shape)
    expected = torch.from_numpy(dense(f64(parts), weight.double().numpy())).float()
    for magnitude in (parts["dora_scale"].flatten(), parts["dora_scale"].reshape(1, -1, *(1 for _ in shape[2:]))):
        other = {key: tensor for key, tensor in parts.items() if key != "dora_scale"}
        module = in_file(tmp_path / "a.safetensors", other | {"lora_magnitude_vector": magnitude})[NAME]
        torch.testing.assert_close(module.delta_weight(weight), expected, atol=1e-4, rtol=1e-4)
