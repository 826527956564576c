"""Time until our preset has learned as much as diffusers' DreamBooth-LoRA script with the settings of its guide.

    python benchmarks/same_loss.py --work WORK                      (embedded model, bundled ink wash; some minutes)
    python benchmarks/same_loss.py --work WORK --seeds 0 1 2 --rate 0.005       (the script at the preset's rate)

Both trainings run in our engine, whose step gives what the script's gives (see the tests of the layer and the loss), so that one validation
loss measures both: the same held-out pictures, noise and timesteps. The script's settings are those of its guide: rank 4 on the attention
layers, a constant rate of 1e-4 (`--rate` for another), batches of one, no weights of timesteps. Looked for is the first step at which the preset's loss is no
higher than the least that the script's settings reach. What a step costs is measured beside the script by `training.py`:

    time of the preset / time of the script
        = steps of the preset / steps of the script * (ours of the preset / ours of the script's settings) / (script / ours)

Losses are kept in WORK and not made again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))
PRESET = "embedded-quick"
SCRIPT: dict[str, Any] = {
    "adapter.unet.rank": 4,
    "adapter.unet.alpha": 4.0,
    "adapter.unet.targets": "attention",
    "objective.min_snr_gamma": 0.0,
    "schedule.kind": "constant",
    "schedule.warmup_share": 0.0,
    "training.batch_size": 1,
    "data.caption_dropout": 0.0,
}
"""What the guide of diffusers' script says, in our names."""
QUIET = {
    "preview.every": 0,
    "preview.num_inference_steps": 1,
    "save.checkpoint_every": 0,
    "validation.num_timesteps": 8,
}


def losses(work: Path, name: str, changes: dict[str, Any]) -> dict[int, float]:
    """The validation losses of a training by their steps; 0 is before the first."""
    kept = work / f"{name}.json"
    if not kept.exists():
        settings = [part for path, value in {**QUIET, **changes}.items() for part in (f"--{path}", str(value))]
        run = work / "runs" / name
        command = [sys.executable, "-m", "trainer", "train", "--preset", PRESET, "--dataset", "ink-wash"]
        subprocess.run(
            [*command, *settings, "--run", str(run), "--data-dir", str(work / "data"), "--json"],
            check=True,
            cwd=PROJECT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        events = [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
        found = {event["step"]: event["loss"] for event in events if event["type"] == "validation"}
        kept.write_text(json.dumps(found), encoding="utf-8")
    return {int(step): loss for step, loss in json.loads(kept.read_text(encoding="utf-8")).items()}


def ratio(work: Path, name: str, *options: str) -> float:
    """What `training.py` measures on the embedded model: the other's time of a step over ours."""
    kept = work / f"{name}.jsonl"
    command = [sys.executable, str(PROJECT / "benchmarks" / "training.py"), "--out", str(kept), "--clock", "processor"]
    subprocess.run(
        [*command, "--threads", "1", *options],
        check=True,
        cwd=PROJECT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    result = json.loads(kept.read_text(encoding="utf-8").splitlines()[-1])
    return float(result.get("script_to_ours") or result["other_to_ours"])


def main() -> None:
    """Train, measure, and say by how much sooner."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a folder for what is made")
    parser.add_argument("--steps", type=int, default=500, help="of the script: its guide has 500")
    parser.add_argument("--rate", type=float, default=1e-4, help="of the script; the preset has 0.005")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    work: Path = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    # At the script's settings ours beside the script; then ours with the script's settings beside ours with the preset's.
    script = ratio(work, "script", "--batch-size", "1", "--rank", "4", "--steps", "40")
    preset = {"training.batch_size": 8, "adapter.unet.rank": 16, "adapter.unet.targets": "all+conv"}
    changes = [part for path, value in preset.items() for part in ("--set", f"{path}={json.dumps(value)}")]
    longer = ratio(work, "preset", "--batch-size", "1", "--rank", "4", "--against", "ours", "--steps", "40", *changes)
    print(f"a step of the script: {script:.2f} of ours; a step of the preset: {longer:.2f} of ours")
    shares = []
    for seed in options.seeds:
        every = {"validation.every": max(1, options.steps // 20), "training.seed": seed}
        settings = {**SCRIPT, **every, "training.steps": options.steps, "optimizer.unet_learning_rate": options.rate}
        theirs = losses(work, f"script-{options.steps}-{options.rate:g}-{seed}", settings)
        ours = losses(work, f"preset-{seed}", {"validation.every": 2, "training.seed": seed})
        wanted_step, wanted = min(theirs.items(), key=lambda pair: pair[1])
        reached = next((step for step, loss in sorted(ours.items()) if loss <= wanted), None)
        if reached is None:
            print(f"seed {seed}: the preset never has {wanted:.4f}; its least is {min(ours.values()):.4f}")
            continue
        share = reached / wanted_step * longer / script
        shares.append(share)
        print(
            f"seed {seed}: at first {theirs[0]:.4f}; the script's settings {wanted:.4f} after {wanted_step} steps, the preset after "
            f"{reached}: {share:.3f} of the time; the preset ends at {ours[max(ours)]:.4f}"
        )
    if shares:
        print(f"median {median(shares):.3f} of the time")


if __name__ == "__main__":
    main()
