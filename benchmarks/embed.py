"""Speed of embedding: scenes against decoding alone, timestamps against one window at a time.

    python -m benchmarks.embed                        # a small AudioNTT
    python -m benchmarks.embed --size paper           # the paper's
    python -m benchmarks.embed --encoder vitc         # ViT_C tiny; base with --size paper

`scenes`: clips per second from WAV files of `--clip-s` seconds to embeddings; `decode`: the same
files, decoding only; `log_mel`: their log-mels only. `timestamps`: windows per second of one long
clip, every 50 ms; `one_by_one`: the first `--windows` of them as clips, each with its own STFT and
forward pass. Ratios are within one run; the weights are random, which does not affect speed.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch.nn import functional

from pipeline.config import load_config
from pipeline.core.device import choose_device
from pipeline.encoders import checkpoint
from pipeline.encoders.build import build_encoder
from pipeline.encoders.checkpoint import Checkpoint
from pipeline.hear import api
from pipeline.hear.api.inputs import deterministic
from pipeline.hear.embed.embed import HearModule, embed_files
from pipeline.hear.tasks.audio import read_clips

REPEATS = 3
SIZES = {
    ("audiontt", "small"): {"channels": 16, "hidden_dim": 64, "embed_dim": 320},
    ("vitc", "small"): {"size": "tiny"},
    ("vitc", "paper"): {"size": "base"},
}


def main() -> None:
    """Print one line per kind of embedding."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", default="audiontt", choices=["audiontt", "vitc"])
    parser.add_argument("--size", default="small", choices=["small", "paper"])
    parser.add_argument("--clips", type=int, default=400, help="scenes")
    parser.add_argument("--clip-s", type=float, default=1.0, help="seconds of a scene")
    parser.add_argument("--seconds", type=float, default=120.0, help="of the long clip")
    parser.add_argument("--windows", type=int, default=200, help="to embed one by one")
    parser.add_argument("--workers", type=int, default=2, help="decoding threads")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = random_model(Path(folder), options.encoder, options.size)
        module = HearModule(api, model.to(choose_device(options.device)))
        for line in (scenes(module, Path(folder), options), timestamps(module, options)):
            print(json.dumps(line), flush=True)  # noqa: T201


def random_model(folder: Path, encoder: str, size: str) -> api.HearModel:
    """Return a model with random weights, loaded from a checkpoint."""
    config = load_config()
    params = getattr(config.encoders, encoder).model_copy(update=SIZES.get((encoder, size), {}))
    network = build_encoder(encoder, params, config.logmel.n_mels, 96)
    checkpoint.save(Checkpoint(network, encoder, params, config.logmel, -7.0, 4.5, 96), folder)
    return api.load_model(str(folder))


def scenes(module: HearModule, folder: Path, options: argparse.Namespace) -> dict:
    """Measure scene embeddings, decoding alone and log-mels alone."""
    generator = np.random.default_rng(0)
    paths = [folder / f"{i}.wav" for i in range(options.clips)]
    for path in paths:
        noise = 0.1 * generator.standard_normal(round(options.clip_s * module.sample_rate))
        soundfile.write(path, noise, module.sample_rate)
    front_end = module.model.front_end
    waves = torch.from_numpy(np.stack([wave for wave, _ in read_clips(paths, 1)])).split(64)
    best = fastest(
        {
            "scenes": lambda: list(embed_files(paths, module, "scene", options.workers)),
            "decode": lambda: list(read_clips(paths, options.workers)),
            "log_mel": lambda: [front_end.clips(batch) for batch in waves],
        }
    )
    rates = {f"{name}_per_s": round(len(paths) / seconds) for name, seconds in best.items()}
    return rates | {"share_of_decode": round(best["decode"] / best["scenes"], 2)}


def timestamps(module: HearModule, options: argparse.Namespace) -> dict:
    """Measure all windows of a clip at once, and one by one."""
    model = module.model
    assert isinstance(model, api.HearModel)
    clip = 0.1 * torch.randn(1, round(options.seconds * module.sample_rate))
    steps = model.front_end.window_steps[0] * model.front_end.stft_hop
    hop = model.front_end.hop_steps * model.front_end.stft_hop
    padded = functional.pad(clip[0], (steps // 2, steps // 2)).unfold(0, steps, hop)
    count = min(options.windows, len(padded))

    def one_by_one() -> list[torch.Tensor]:
        with torch.inference_mode(), deterministic(model):
            windows = (
                window[None].to(next(model.parameters()).device) for window in padded[:count]
            )
            return [model.scene_embeddings(window).cpu() for window in windows]

    best = fastest({"timestamps": lambda: module(clip, "event")[0].cpu(), "one": one_by_one})
    together, alone = len(padded) / best["timestamps"], count / best["one"]
    rates = {"timestamps_per_s": round(together), "one_by_one_per_s": round(alone)}
    return rates | {"ratio": round(together / alone, 1)}


def fastest(tasks: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Return the shortest time of each task, in seconds, over several rounds."""
    best: dict[str, float] = {}
    for _ in range(REPEATS):
        for name, task in tasks.items():
            begin = time.perf_counter()
            task()
            best[name] = min(time.perf_counter() - begin, best.get(name, float("inf")))
    return best


if __name__ == "__main__":
    main()
