"""How much disk and time a run takes: the number of clips, times the cost of one.

Sizes are those of 16-bit FLAC and of log-mels in float16; CPU times are measured on the spot.
"""

import os
import statistics
from collections.abc import Iterator
from pathlib import Path

from pipeline.commands.doctor import calibration
from pipeline.commands.doctor.cache import Sharing
from pipeline.commands.doctor.finding import Finding
from pipeline.commands.doctor.source_size import FLAC, SourceSize, address, source_size
from pipeline.commands.download_status import gb, open_hours
from pipeline.config import Config
from pipeline.core import files, params
from pipeline.core.repository import root
from pipeline.core.settings import cores
from pipeline.core.stage import EXPECTED_ERRORS, last_record
from pipeline.corpus.fetch.cutting import local_path

DATA = ("data/clips", "data/audio16k", "data/logmel")
WORK = (".work/clips", ".work/download")
MANY_DAYS = 14  # of download, after which there is a better way
THROUGHPUT = Path("reports/throughput.csv")
# Samples per second on one H100: encoder, size of the transformer, batch (benchmarks/RESULTS.md).
H100 = {
    ("audiontt", "", 128): 59_126,
    ("audiontt", "", 1024): 92_900,
    ("vitc", "base", 128): 7_231,
}
H100_PROJECTOR = (8192, 1048)
H100_PATCH = (16, 8)


def findings(config: Config, sharing: Sharing, gpu: str) -> Iterator[Finding]:
    """Yield clips, disk and time; `gpu` describes the first GPU."""
    try:
        size = source_size(config)
    except (*EXPECTED_ERRORS, ImportError) as error:
        yield Finding("problem", "source", str(error))
        return
    if size is None:
        yield Finding("warning", "source", "too many files to count their clips at once")
        return
    seconds = size.clips * size.duration_s
    text = f"{size.clips:,} clips, {seconds / 3600:,.1f} h ({size.known_from})"
    yield Finding("ok", "source", text)
    yield from disk(config, size, sharing)
    yield from data_stages(config, size)
    yield pretraining(config, size, gpu)


def clip_bytes(config: Config, size: SourceSize) -> dict[str, float]:
    """Return the size of one clip in each form in which it is stored."""
    front_end = config.logmel
    samples = size.duration_s * front_end.sample_rate
    frames = 1 + samples // front_end.hop_length
    return {
        "as fetched": size.fetched_bytes,
        "FLAC": 2 * samples * FLAC,
        "log-mel": frames * front_end.n_mels * 2,
    }


def disk(config: Config, size: SourceSize, sharing: Sharing) -> Iterator[Finding]:
    """Yield, for each file system, the space that is needed and what is free."""
    by_form = clip_bytes(config, size)
    total = size.clips * sum(by_form.values())
    here = min(used_bytes([root() / path for path in WORK] + [Path(path) for path in DATA]), total)
    sizes = [f"{gb(size.clips * s)} {form} ({s / 1e3:,.0f} kB)" for form, s in by_form.items()]
    yield Finding("ok", "data", f"{', '.join(sizes)}: {gb(total)}, {gb(here)} of it here")
    copies = [(root().absolute(), "data")]
    copies += [(sharing.folder, "DVC's copy of them")] if sharing.is_copied else []
    by_device: dict[int, list[tuple[Path, str]]] = {}
    for path, content in copies:
        folder = files.nearest_folder(path)
        by_device.setdefault(folder.stat().st_dev, []).append((folder, content))
    for on_device in by_device.values():
        folder = on_device[0][0]
        needed, free = len(on_device) * (total - here), files.free_bytes(folder)
        contents = " and ".join(content for _, content in on_device)
        text = f"{folder}: {gb(needed)} needed for {contents}, {gb(free)} free"
        if needed > free:
            text += "; free some, move the repository or the cache (`dvc cache dir`), or take fewer"
            yield Finding("problem", "disk", f"{text} clips (`clips` of the source)")
        else:
            yield Finding("ok", "disk", text)


def used_bytes(folders: list[Path]) -> int:
    """Return the size of all files in some folders, counting hard links to one file once."""
    sizes: dict[tuple[int, int], int] = {}
    for folder in folders:
        for parent, _, names in os.walk(folder):
            for name in names:
                state = os.stat(os.path.join(parent, name), follow_symlinks=False)
                sizes[state.st_dev, state.st_ino] = state.st_size
    return sum(sizes.values())


def data_stages(config: Config, size: SourceSize) -> Iterator[Finding]:
    """Yield the time that each data stage takes on this machine's cores."""
    try:
        measured = calibration.measure(config)
    except (*EXPECTED_ERRORS, ImportError) as error:
        yield Finding("problem", "time", f"a synthetic clip cannot be processed: {error}")
        return
    workers = config.compute.local_workers or cores()
    share = size.duration_s / calibration.DURATION_S
    for stage, cpu_s in measured.items():
        took = cpu_s * share * size.clips / min(workers, cores())
        text = f"{duration(took)}: {1e3 * cpu_s * share:.1f} ms of CPU per clip"
        if stage == "download":
            yield downloading(config, size, text)
        else:
            yield Finding("ok", stage, text)


def downloading(config: Config, size: SourceSize, from_files: str) -> Finding:
    """Return the time of the stage `download`, which depends on the rate for a web site."""
    url, network = address(config), config.network
    if not url:
        return Finding("ok", "download", f"a copy of {gb(size.clips * size.fetched_bytes)}")
    if local_path(url) is not None:
        return Finding("ok", "download", from_files)
    if not network.clips_per_hour:
        text = f"as fast as the site serves; on this machine {from_files}"
        return Finding("ok", "download", text)
    days = size.clips / network.clips_per_hour / open_hours(network)
    text = (
        f"{days:,.1f} days at {network.clips_per_hour:g} clips an hour (what is left: python -m "
        "pipeline.commands.queue status)"
    )
    if days <= MANY_DAYS:
        return Finding("ok", "download", text)
    remedy = "take fewer clips (`clips`), or raise network.clips_per_hour as far as the site allows"
    if config.source == "audioset":
        remedy = (
            "mirrors of AudioSet need no request to the site (docs/data.md, presets/audioset-16khz "
            f"and audioset-parquet); or {remedy}"
        )
    return Finding("warning", "download", f"{text}; {remedy}")


def pretraining(config: Config, size: SourceSize, gpu: str) -> Finding:
    """Return the time of pre-training at a speed measured before."""
    samples = config.pretrain.epochs * size.clips * config.pretrain.crops_per_clip
    speed, where = recorded(config), "as the last run here"
    if not speed and "H100" in gpu and config.compute.device != "cpu":
        speed, where = on_h100(config), "as measured on an H100 (benchmarks/RESULTS.md)"
    if not speed:
        return Finding("ok", "pretrain", "unknown: run it for an epoch (pretrain.epochs = 1)")
    text = f"{duration(samples / speed)}: {speed:,.0f} samples/s, {where}"
    return Finding("ok", "pretrain", text)


def recorded(config: Config) -> float:
    """Return the samples per second of the last run here, 0 if its networks differed."""
    record = last_record("pretrain")
    if record is None or not THROUGHPUT.exists():
        return 0.0
    now = params.read()
    before = record["params"]
    same = ["encoder", f"encoders.{config.encoder}", "projector"]
    if any(before.get(key) != params.load_value(key) for key in same):
        return 0.0
    if any(before["pretrain"].get(k) != now["pretrain"][k] for k in ("batch_size", "crop_frames")):
        return 0.0
    rows = [line.split(",") for line in THROUGHPUT.read_text().splitlines()]
    column = rows[0].index("samples_per_s")
    return statistics.median(float(row[column]) for row in rows[1:]) if len(rows) > 1 else 0.0


def on_h100(config: Config) -> float:
    """Return the samples per second measured with the paper's networks, 0 for any other."""
    encoder = getattr(config.encoders, config.encoder)
    size = getattr(encoder, "size", "")
    patch = (getattr(encoder, "patch_mels", 16), getattr(encoder, "patch_frames", 8))
    projector = (config.projector.hidden_dim, config.projector.out_dim)
    if projector != H100_PROJECTOR or patch != H100_PATCH:
        return 0.0
    return float(H100.get((config.encoder, size, config.pretrain.batch_size), 0))


def duration(seconds: int | float) -> str:
    """Return a time in a suitable unit."""
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.0f} s"
