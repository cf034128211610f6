"""Time of the two engines of stage `score` on embeddings of the 18 HEAR tasks' sizes.

    python -m benchmarks.hear                           # true sizes; hours with heareval
    python -m benchmarks.hear --scale 0.05 --tasks esc50 fsd50k      # a twentieth of the clips
    python -m benchmarks.hear --tasks fsd50k --profile  # where the time of `batched` goes

The embeddings are noise around one center per label. Each engine runs in its own process, as in the
stage. Both train every classifier for the same number of epochs and so do the same work;
`--epochs 0` applies HEAR's own stopping rule. One line per task: wall seconds, CPU seconds and
their ratios, heareval over batched.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.hear.embed import files
from pipeline.hear.score import scores
from pipeline.hear.score.params import ScoreParams

FRAMES = 2401  # per clip of an event task: 120 s with a hop of 50 ms
HOP_MS = 50.0
EVENT_FRAMES = 10  # per event
MIN_CLIPS = 12  # of a scene task's split
SCENE = ["top1_acc", "mAP", "d_prime", "aucroc"]
PITCH = ["pitch_acc", "chroma_acc"]
TAGS = ["mAP", "d_prime", "aucroc", "top1_acc"]
ENGINES = ("heareval", "batched")


@dataclass(frozen=True)
class Size:
    """Clips of train, valid and test (of one fold, if there are folds), and what is predicted."""

    clips: tuple[int, ...]
    classes: int
    metrics: list[str]
    folds: int = 0
    multilabel: bool = False
    events: int = 0  # per clip; 0: a scene task


SIZES = {  # rows and classes of HEAR's tasks
    "crema_d": Size((1488,), 6, SCENE, folds=5),
    "libricount": Size((1144,), 11, SCENE, folds=5),
    "speech_commands_5h": Size((16000, 2000, 4890), 12, SCENE[:1]),
    "speech_commands": Size((85511, 10102, 4890), 12, SCENE[:1]),
    "vocal_imitation": Size((1867,), 302, TAGS, folds=3),
    "vox_lingua": Size((194,), 10, SCENE, folds=5),
    "esc50": Size((400,), 50, SCENE, folds=5),
    "fsd50k": Size((36784, 4170, 10231), 200, TAGS, multilabel=True),
    "gunshot": Size((12,), 4, SCENE, folds=7),
    "beijing_opera": Size((47,), 4, SCENE, folds=5),
    "gtzan": Size((100,), 10, SCENE, folds=10),
    "gtzan_music_speech": Size((13,), 2, SCENE, folds=10),
    "mridangam_stroke": Size((1395,), 10, SCENE, folds=5),
    "mridangam_tonic": Size((1395,), 6, SCENE, folds=5),
    "nsynth_5h": Size((4000, 500, 500), 88, PITCH),
    "nsynth_50h": Size((40000, 5000, 4060), 88, PITCH),
    "dcase2016_task2": Size(
        (44, 14, 14), 11, ["event_onset_200ms_fms", "segment_1s_er"], events=40
    ),
    "maestro": Size(
        (37,),
        88,
        ["event_onset_50ms_fms", "event_onset_offset_50ms_20perc_fms"],
        folds=5,
        events=1200,
    ),
}
OWN: dict[str, dict[str, Any]] = {  # fields that a task's metadata adds
    "maestro": {
        "use_scoring_for_early_stopping": False,
        "evaluation_params": {
            "event_postprocessing_grid": {"median_filter_ms": [150], "min_duration": [50]},
            "task_specific_param_grid": {"max_epochs": [50], "check_val_every_n_epoch": [1]},
        },
    }
}


def main() -> None:
    """Print one line per task, then the totals."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--scale", type=float, default=1.0, help="share of the clips")
    parser.add_argument("--dim", type=int, default=768, help="dimensions of an embedding")
    parser.add_argument("--epochs", type=int, default=12, help="per classifier; 0: HEAR's rule")
    parser.add_argument("--grid-points", type=int, default=8)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--profile", action="store_true", help="profile the batched engine")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # in the child processes
    options = parser.parse_args()
    if options.folder:
        run_engine(options.folder, options.engines[0], options)
        return
    print(f"dim {options.dim}, scale {options.scale}, {options.epochs} epochs", flush=True)  # noqa: T201
    total: dict[str, float] = {}
    for name in options.tasks:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / name
            rows = write_task(folder, name, options.scale, options.dim, options.epochs)
            if options.profile:
                profile(folder, options)
                continue
            measured = measure(folder, options)
        total = {key: total.get(key, 0.0) + value for key, value in measured.items()}
        print(json.dumps({"task": name, "rows": rows, **with_ratios(measured)}), flush=True)  # noqa: T201
    if total:
        print(json.dumps({"task": "all", **with_ratios(total)}))  # noqa: T201


def measure(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Return wall and CPU seconds of each engine."""
    seconds = {}
    for engine in options.engines:
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.hear", "--engines", engine]
        command += ["--folder", str(folder), "--device", options.device]
        command += ["--grid-points", str(options.grid_points)]
        before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        seconds[engine] = time.perf_counter() - begin
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        seconds[f"{engine}_cpu"] = cpu
    return seconds


def with_ratios(seconds: dict[str, float]) -> dict[str, float]:
    """Return rounded seconds and, if both engines ran, the ratios."""
    result = {f"{key}_s": round(value, 1) for key, value in seconds.items()}
    for suffix in ("", "_cpu"):
        if all(f"{engine}{suffix}" in seconds for engine in ENGINES):
            ratio = seconds[f"heareval{suffix}"] / seconds[f"batched{suffix}"]
            result[f"ratio{suffix}"] = round(ratio, 2)
    return result


def run_engine(folder: Path, engine: Any, options: argparse.Namespace) -> None:
    """Score a task in this process."""
    params = ScoreParams(engine=engine, grid="default", grid_points=options.grid_points, seeds=1)
    with tempfile.TemporaryDirectory() as scratch:
        scores.score(folder, Path(scratch), params, options.device)


def profile(folder: Path, options: argparse.Namespace) -> None:
    """Print which torch operations the batched engine spends its time in."""
    from torch import profiler

    with profiler.profile(acc_events=True) as profiled:
        run_engine(folder, "batched", options)
    sort_by = "self_cuda_time_total" if options.device == "cuda" else "self_cpu_time_total"
    print(folder.name)  # noqa: T201
    print(profiled.key_averages().table(sort_by=sort_by, row_limit=20, max_name_column_width=40))  # noqa: T201


def write_task(folder: Path, name: str, scale: float, dim: int, epochs: int) -> int:
    """Write a task's embeddings as `pipeline.hear.embed` does and return the number of rows."""
    size, rng = SIZES[name], np.random.default_rng(0)
    splits = ["train", "valid", "test"]
    clips = size.clips
    if size.folds:
        splits, clips = [f"fold{i:02d}" for i in range(size.folds)], size.clips * size.folds
    min_clips = 1 if size.events else MIN_CLIPS
    content = {
        "task_name": name,
        "embedding_type": "event" if size.events else "scene",
        "prediction_type": "multilabel" if size.multilabel or size.events else "multiclass",
        "split_mode": "new_split_kfold" if size.folds else "trainvaltest",
        "splits": splits,
        "sample_duration": 1.0,
        "evaluation": size.metrics,
        **OWN.get(name, {}),
    }
    if epochs:
        own = content.setdefault("evaluation_params", {})
        settings = {**own.get("task_specific_param_grid", {}), "patience": [epochs]}
        content["evaluation_params"] = {
            **own,
            "task_specific_param_grid": {**settings, "max_epochs": [epochs]},
        }
    folder.mkdir()
    (folder / "task_metadata.json").write_text(json.dumps(content))
    labels = "".join(f"{i},l{i}\n" for i in range(size.classes))
    (folder / "labelvocabulary.csv").write_text(f"idx,label\n{labels}")
    centers = rng.standard_normal((size.classes, dim), np.float32)
    total = 0
    for split, count in zip(splits, clips, strict=True):
        total += write_split(
            folder, split, max(min_clips, round(count * scale)), size, centers, rng
        )
    return total


def write_split(
    folder: Path,
    split: str,
    clips: int,
    size: Size,
    centers: np.ndarray,
    rng: np.random.Generator,
) -> int:
    """Write one split of random embeddings; return the number of its rows."""
    if size.events:
        starts = rng.random((clips * FRAMES, size.classes)) < size.events / FRAMES / size.classes
        y = np.zeros_like(starts)
        for shift in range(EVENT_FRAMES):
            y |= np.roll(starts, shift, axis=0)
    elif size.multilabel:
        y = rng.random((clips, size.classes)) < 1.5 / size.classes
    else:
        y = np.eye(size.classes, dtype=bool)[rng.integers(0, size.classes, clips)]
    x = y.astype(np.float32) @ centers
    x += 8 * rng.standard_normal(x.shape, np.float32)
    labels = [[f"l{label}" for label in np.flatnonzero(row)] for row in y]
    names = [f"{i}.wav" for i in range(clips)]
    content: dict[str, Any] = dict(zip(names, labels, strict=False))
    if size.events:
        content = events_by_file(starts, names)
    (folder / f"{split}.json").write_text(json.dumps(content))
    embedding_type, frames, times = "scene", 1, None
    if size.events:
        embedding_type, frames, times = "event", FRAMES, HOP_MS * np.arange(FRAMES)
    own = [slice(frames * i, frames * (i + 1)) for i in range(clips)]
    rows = [files.ClipRows(i, names[i], x[own[i]], labels[own[i]], times) for i in range(clips)]
    files.write_split(folder, split, rows, clips, embedding_type)
    return len(x)


def events_by_file(starts: np.ndarray, names: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Return the events of each file of `FRAMES` frames, given where they start."""
    events: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for row, label in np.argwhere(starts):
        start = HOP_MS * (row % FRAMES)
        end = start + HOP_MS * (EVENT_FRAMES - 1)
        events[names[row // FRAMES]].append({"label": f"l{label}", "start": start, "end": end})
    return events


if __name__ == "__main__":
    main()
