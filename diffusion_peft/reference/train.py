"""Trains the reference latent diffusion model on the drawn world: `python -m diffusion_peft.reference.train`.

First the autoencoder, then UNet and text encoder. The state is written every few minutes; started again, the script
goes on where it was, with the same result. `--export` writes the pipeline as it stands, without training.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from peft_data.world.cache import folder
from safetensors.torch import load_file

from peft_core.jobs.runs.training_state import keep

from . import PIPELINE, autoencoder, denoiser
from .build import FULL, TINY, new_scheduler, new_text_encoder, new_tokenizer, new_unet, new_vae, write_pipeline
from .progress import Progress


def parser() -> argparse.ArgumentParser:
    """The options."""
    out = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--state", type=Path, default=folder() / "reference-diffusion", help="folder of the states")
    out.add_argument("--out", type=Path, default=PIPELINE, help="folder of the pipeline")
    out.add_argument("--seed", type=int, default=0)
    out.add_argument("--vae-steps", type=int, default=4000)
    out.add_argument("--vae-lr", type=float, default=1.5e-3)
    out.add_argument("--steps", type=int, default=12_500, help="of UNet and text encoder")
    out.add_argument("--batch", type=int, default=32)
    out.add_argument("--lr", type=float, default=1e-3)
    out.add_argument("--blocks", type=int, default=192, help="blocks of pictures to train on, a multiple of 16")
    out.add_argument("--pictures", type=int, default=500, help="pictures a block")
    out.add_argument("--every", type=int, default=250, help="steps between two writings of the state")
    out.add_argument("--export", action="store_true", help="write the pipeline from the state as it is")
    out.add_argument("--tiny", action="store_true", help="networks of a few thousand parameters, for tests")
    return out


def main(arguments: list[str] | None = None) -> None:
    """Trains or exports, as the arguments say."""
    args = parser().parse_args(arguments)
    shape = TINY if args.tiny else FULL
    torch.manual_seed(args.seed)
    tokenizer = new_tokenizer(args.state / "tokenizer")
    vae, unet, text_encoder = new_vae(shape), new_unet(shape), new_text_encoder(shape, tokenizer)
    finished = args.state / "vae.safetensors"
    if not finished.is_file():
        autoencoder.train(vae, args.state / "autoencoder.safetensors", args.seed, args.vae_steps, args.vae_lr,
                          args.every, args.pictures)  # fmt: skip
        keep(vae.state_dict(), finished)
        print(f"autoencoder: {autoencoder.signal_to_noise(vae, args.seed):.1f} dB on held-out pictures", flush=True)
    vae.load_state_dict(load_file(finished))
    vae.eval().requires_grad_(False)
    path, models = args.state / "denoiser.safetensors", {"unet": unet, "text_encoder": text_encoder}
    if args.export:
        progress = Progress(models, args.lr, args.steps, path)
        done = progress.done
        for model in models.values():
            autoencoder.settle(model, progress)
    else:
        latents = denoiser.Latents(vae, args.state / "latents", args.seed, args.blocks, args.pictures)
        denoiser.train(unet, text_encoder, tokenizer, new_scheduler(), latents, path, args.steps, args.lr, args.every,
                       args.batch)  # fmt: skip
        done = args.steps
    parts = {"vae": vae, "unet": unet, "text_encoder": text_encoder}
    card = {
        "parameters": {name: sum(p.numel() for p in model.parameters()) for name, model in parts.items()},
        "seed": args.seed, "autoencoder steps": args.vae_steps, "steps": done, "batch": args.batch,
        "pictures": args.blocks * args.pictures, "command": "python -m diffusion_peft.reference.train",
        "held-out pictures after encoding and decoding, dB": round(autoencoder.signal_to_noise(vae, args.seed), 1),
    }  # fmt: skip
    write_pipeline(vae, unet, text_encoder, tokenizer, args.out)
    args.out.with_name("card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {args.out} after {done} steps", flush=True)


if __name__ == "__main__":
    main()
