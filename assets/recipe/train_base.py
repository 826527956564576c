"""Train the embedded base model, a very small Stable Diffusion 1.x, from drawn scenes.

Stages, in order (each is skipped once its result lies in the work folder, and goes on from its checkpoint when it
was interrupted)::

    python train_base.py --work WORK --stages tokenizer,vae,decoder,unet,export --out ../models/inkwash-tiny

Every draw of a step is seeded by its number: a run that was interrupted ends in the same weights.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import torch
from export import export_pipeline
from tokenizer import build_tokenizer
from train_unet import train_unet
from train_vae import train_decoder, train_vae


def main() -> None:
    """Run the stages asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints, outside of the repository")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "models" / "inkwash-tiny")
    parser.add_argument("--stages", default="tokenizer,vae,decoder,unet,export")
    parser.add_argument("--pictures", type=int, default=12000)
    parser.add_argument("--doodles", type=int, default=8000)
    parser.add_argument("--vae-steps", type=int, default=1400)
    parser.add_argument("--decoder-steps", type=int, default=500)
    parser.add_argument("--unet-steps", type=int, default=2600)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 2)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    for stage in args.stages.split(","):
        print(f"[{time.strftime('%H:%M:%S')}] stage {stage}", flush=True)
        if stage == "tokenizer":
            build_tokenizer(args.work / "tokenizer")
        elif stage == "vae":
            train_vae(args.work, args.pictures, args.doodles, args.vae_steps)
        elif stage == "decoder":
            train_decoder(args.work, args.pictures, args.doodles, args.decoder_steps)
        elif stage == "unet":
            train_unet(args.work, args.pictures, args.doodles, args.unet_steps)
        elif stage == "export":
            export_pipeline(args.work, args.out)
        else:
            parser.error(f"no such stage: {stage}")


if __name__ == "__main__":
    main()
