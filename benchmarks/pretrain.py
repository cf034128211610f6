"""Speed of pre-training, with the real trainer on features read from HDF5 shards.

    python -m benchmarks.pretrain                                   # the paper's networks
    python -m benchmarks.pretrain audiontt:1024 --profile           # one of them, with its kernels
    python -m benchmarks.pretrain audiontt:16 --clips 64 --tiny     # what a CPU can do

A configuration is encoder:batch_size. One sample is one clip, of which the step makes two views.
The corpus is noise, written as shards of ten-second clips and read back. `share` is that of the
rate of a large matrix product in bfloat16, measured here, counting the multiplications of the
plain model.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from pipeline.config import Config, load_config
from pipeline.core import shard_folder
from pipeline.core.device import choose_device
from pipeline.core.files import sha256
from pipeline.core.shard_folder import Manifest
from pipeline.features import hdf5_shards, stats
from pipeline.pretrain.index import Features, load_features, sample_epoch
from pipeline.pretrain.loop import Trainer
from pipeline.pretrain.model import Settings, build_model

DEFAULT = ["audiontt:128", "audiontt:1024", "vitc:128"]
CLIP_FRAMES = 1001  # of ten seconds
CLIPS_PER_SHARD = 4096
AUDIOSET_SAMPLES = 100 * 1_629_756  # 100 epochs of the paper's download
REPEATS = 5


def main() -> None:
    """Print one line per configuration."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configurations", nargs="*", default=DEFAULT, help="encoder:batch_size")
    parser.add_argument("--clips", type=int, default=20_000, help="size of the corpus")
    parser.add_argument("--steps", type=int, default=100, help="per repeat")
    parser.add_argument("--tiny", action="store_true", help="the sizes of params.yaml")
    parser.add_argument("--plain", action="store_true", help="without the fast path")
    parser.add_argument("--profile", action="store_true", help="print the kernels of a step")
    parser.add_argument("--features", default="auto", choices=["auto", "device", "host", "disk"])
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    options = parser.parse_args()
    device = choose_device(options.device)
    peak = matrix_peak(device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, matrix peak {peak / 1e12:.3g} TFLOP/s")  # noqa: T201
    config = load_config()
    with tempfile.TemporaryDirectory() as folder:
        write_corpus(Path(folder), options.clips, config)
        features = load_features(Path(folder))
        for text in options.configurations:
            encoder, batch_size = text.split(":")
            settings = choose_settings(config, encoder, int(batch_size), options.tiny)
            result = measure(settings, features, device, options, peak)
            print(json.dumps({"configuration": text, **result}), flush=True)  # noqa: T201


def choose_settings(config: Config, encoder: str, batch_size: int, tiny: bool) -> Settings:
    """Return the paper's settings, or with `tiny` those of params.yaml, at a batch size."""
    params = getattr(config.encoders, encoder)
    projector = config.projector
    if not tiny:
        projector = projector.model_copy(update={"hidden_dim": 8192, "out_dim": 1048})
        if encoder != "audiontt":
            params = params.model_copy(update={"size": "base"})
    pretrain = {"batch_size": batch_size, "epochs": 100, "log_every": 10}
    return Settings(
        encoder_name=encoder,
        encoder=params,
        augment=config.augment,
        projector=projector,
        loss=config.loss,
        pretrain=config.pretrain.model_copy(update=pretrain),
    )


def write_corpus(folder: Path, clips: int, config: Config) -> None:
    """Write shards of noise with the spread of log-mels, and their manifest and statistics."""
    generator = np.random.default_rng(0)
    noise = generator.standard_normal((CLIP_FRAMES + CLIPS_PER_SHARD, 64), np.float32)
    noise = (4.6 * noise - 0.8).astype(np.float16)
    sizes = [min(CLIPS_PER_SHARD, clips - i) for i in range(0, clips, CLIPS_PER_SHARD)]
    for shard, size in enumerate(sizes):
        content = [
            hdf5_shards.Clip(f"s{shard}c{i}", "", noise[i : i + CLIP_FRAMES], stats.Totals())
            for i in range(size)
        ]
        hdf5_shards.write(folder / f"{shard:05d}.h5", content, config.logmel)
    shards = sorted(folder.glob("*.h5"))
    shard_folder.write_sums(folder, {path.name: sha256(path) for path in shards})
    shard_folder.write(folder, Manifest(len(sizes), clips, clips, CLIPS_PER_SHARD))
    (folder / "stats.json").write_text(json.dumps({"mean": -0.8, "std": 4.6}))


def measure(
    settings: Settings,
    features: Features,
    device: torch.device,
    options: argparse.Namespace,
    peak: float,
) -> dict[str, float]:
    """Train for a while and return what it took; the median of some repeats."""
    torch.compiler.reset()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    fast = False if options.plain else None
    trainer = Trainer(settings, features, device, fast, options.features)
    trainer.model.train()
    run(trainer, 1)
    first_step_s = time.perf_counter() - begin
    run(trainer, 20)
    if options.profile:
        print_profile(trainer)
    samples = settings.pretrain.batch_size * options.steps
    speed = samples / statistics.median(run(trainer, options.steps) for _ in range(REPEATS))
    memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0
    return {
        "samples_per_s": round(speed, 1),
        "ms_per_step": round(1000 * settings.pretrain.batch_size / speed, 3),
        "share_of_peak": round(speed * flops_per_sample(settings) / peak, 3),
        "peak_memory_gib": round(memory, 2),
        "first_step_s": round(first_step_s, 1),
        "audioset_100_epochs_h": round(AUDIOSET_SAMPLES / speed / 3600, 2),
        "loss": round(float(trainer.history_table()["loss"].iloc[-1]), 2),
    }


def run(trainer: Trainer, steps: int) -> float:
    """Train for some steps, as `Trainer.run` does, and return the seconds that they took."""
    p, clips = trainer.settings.pretrain, len(trainer.features)
    synchronize(trainer.device)
    begin, last = time.perf_counter(), trainer.step + steps
    while trainer.step < last:
        plan = sample_epoch(clips, p.batch_size, p.seed, trainer.step)
        first = max(len(plan.clip) - (last - trainer.step), 0)
        for batch in trainer.loader.batches(plan, first):
            trainer.train_step(*batch)
    synchronize(trainer.device)
    return time.perf_counter() - begin


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def flops_per_sample(settings: Settings) -> float:
    """Floating-point operations of the plain model: forward, and twice as many backward."""
    with torch.device("meta"):
        model = build_model(settings, 64)
        view = torch.empty(2, 64, settings.pretrain.crop_frames)
    with FlopCounterMode(display=False) as counter:
        model(view, view)
    return 3 * counter.get_total_flops() / len(view)


def matrix_peak(device: torch.device) -> float:
    """Operations per second of a large matrix product in bfloat16, the median of some."""
    size = 8192 if device.type == "cuda" else 512
    a, b = torch.randn(2, size, size, device=device, dtype=torch.bfloat16)
    times = []
    for _ in range(20):
        synchronize(device)
        begin = time.perf_counter()
        a @ b
        synchronize(device)
        times.append(time.perf_counter() - begin)
    return 2 * size**3 / statistics.median(times)


def print_profile(trainer: Trainer, steps: int = 10, rows: int = 40) -> None:
    """Print the kernels that take most of a step."""
    gpu = trainer.device.type == "cuda"
    activity = ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU
    with profile(activities=[activity]) as record:
        run(trainer, steps)
    events = record.key_averages()
    took = {e.key: (e.device_time_total if gpu else e.self_cpu_time_total) for e in events}
    print(f"{sum(took.values()) / 1000 / steps:8.3f} ms in all")  # noqa: T201
    for event in sorted(events, key=lambda e: -took[e.key])[:rows]:
        ms, calls = took[event.key] / 1000 / steps, event.count / steps
        print(f"{ms:8.3f} ms {calls:5.1f} x {event.key[:110]}")  # noqa: T201


if __name__ == "__main__":
    main()
