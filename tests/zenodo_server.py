"""A local server of a Zenodo record, with the 18 HEAR tasks in miniature.

Each archive has the real name, layout, kind, splits and metrics, but few clips and three labels.
"""

import contextlib
import hashlib
import io
import json
import re
import socket
import tarfile
import threading
import zlib
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import soundfile

RATE = 48_000
RECORD = 6332517
SECONDS = 0.1  # per scene
EVENT_SECONDS = 0.6
CLIPS = 6  # per split
SCENE = ["top1_acc", "mAP", "d_prime", "aucroc"]
TAGGING = ["mAP", "d_prime", "aucroc", "top1_acc"]
PITCH = ["pitch_acc", "chroma_acc"]
ONSETS = ["event_onset_200ms_fms", "segment_1s_er"]
NOTES = ["event_onset_50ms_fms", "event_onset_offset_50ms_20perc_fms"]
WORDS = ["Cough, dry", 'the "p" sound', "piano"]  # labels that CSV must quote


@dataclass(frozen=True)
class Miniature:
    """Properties of a task; `audio` names its recordings, which two tasks may share."""

    folds: int = 0  # 0: train, valid, test
    evaluation: list = field(default_factory=lambda: SCENE)
    labels: list = field(default_factory=lambda: WORDS)
    audio: str = ""
    multilabel: bool = False
    events: bool = False
    train_clips: int = CLIPS
    metadata: dict = field(default_factory=dict)


MIDI = [60, 61, 72]
TASKS = {
    "tfds_crema_d-1.0.0-full": Miniature(folds=5),
    "libricount-v1.0.0-hear2021-full": Miniature(folds=5, labels=[0, 1, 10]),
    "speech_commands-v0.0.2-5h": Miniature(audio="commands", evaluation=["top1_acc"]),
    "speech_commands-v0.0.2-full": Miniature(
        audio="commands", evaluation=["top1_acc"], train_clips=2 * CLIPS
    ),
    "vocal_imitation-v1.1.3-full": Miniature(folds=3, evaluation=TAGGING),
    "vox_lingua_top10-hear2021-full": Miniature(folds=5),
    "esc50-v2.0.0-full": Miniature(folds=5, metadata={"split_mode": "presplit_kfold"}),
    "fsd50k-v1.0-full": Miniature(
        multilabel=True, evaluation=TAGGING, metadata={"sample_duration": None}
    ),
    "gunshot_triangulation-v1.0-full": Miniature(folds=7),
    "beijing_opera-v1.0-hear2021-full": Miniature(folds=5),
    "tfds_gtzan-1.0.0-full": Miniature(folds=10),
    "tfds_gtzan_music_speech-1.0.0-full": Miniature(folds=10),
    "mridangam_stroke-v1.5-full": Miniature(folds=5, audio="mridangam"),
    "mridangam_tonic-v1.5-full": Miniature(folds=5, audio="mridangam", labels=["B", "C", "D#"]),
    "nsynth_pitch-v2.2.3-5h": Miniature(audio="nsynth", evaluation=PITCH, labels=MIDI),
    "nsynth_pitch-v2.2.3-50h": Miniature(
        audio="nsynth", evaluation=PITCH, labels=MIDI, train_clips=2 * CLIPS
    ),
    "dcase2016_task2-hear2021-full": Miniature(events=True, evaluation=ONSETS),
    "maestro-v3.0.0-5h": Miniature(
        folds=5,
        events=True,
        evaluation=NOTES,
        labels=MIDI,
        metadata={
            "use_scoring_for_early_stopping": False,
            "evaluation_params": {
                "event_postprocessing_grid": {"median_filter_ms": [150], "min_duration": [50]},
                "task_specific_param_grid": {"max_epochs": [50], "check_val_every_n_epoch": [1]},
            },
        },
    ),
}


def splits(task: Miniature) -> list[str]:
    """Names of a task's splits."""
    return [f"fold{i:02d}" for i in range(task.folds)] or ["train", "valid", "test"]


def metadata(name: str) -> dict:
    """Return task_metadata.json, including some fields that only hear-preprocess uses."""
    task = TASKS[name]
    task_name, version, mode = re.fullmatch(r"([a-z_0-9]+)-(.+)-([^-]+)", name).groups()
    return {
        "task_name": task_name,
        "version": version,
        "mode": mode,
        "default_mode": mode,
        "nfolds": task.folds or None,
        "download_urls": [],
        "max_task_duration_by_split": {split: None for split in splits(task)},
        "embedding_type": "event" if task.events else "scene",
        "prediction_type": "multilabel" if task.multilabel or task.events else "multiclass",
        "split_mode": "new_split_kfold" if task.folds else "trainvaltest",
        "splits": splits(task),
        "sample_duration": EVENT_SECONDS if task.events else SECONDS,
        "evaluation": task.evaluation,
        **task.metadata,
    }


def labels(task: Miniature, clip: int) -> list:
    """Return the labels of a clip; those of an event task have times."""
    chosen = task.labels[clip % 3]
    if task.events:
        return [{"label": chosen, "start": 100.0, "end": 400.0}]
    return [chosen, task.labels[0]][: clip % 4] if task.multilabel else [chosen]


def label_files(name: str) -> dict[str, dict]:
    """Return the content of each <split>.json of a task."""
    task = TASKS[name]
    counts = {split: CLIPS for split in splits(task)} | {"train": task.train_clips}
    return {
        split: {f"{split}_{i}.wav": labels(task, i) for i in range(counts[split])}
        for split in splits(task)
    }


@cache
def clip(recordings: str, name: str, seconds: float) -> bytes:
    """Return a 48 kHz WAV file: a tone for the clip's first label, and noise of its own."""
    rng = np.random.default_rng(zlib.crc32(f"{recordings}/{name}".encode()))
    number = int(re.search(r"\d+(?=\.wav)", name)[0])
    time = np.arange(round(seconds * RATE)) / RATE
    tone = 0.3 * np.sin(2 * np.pi * 500 * 2 ** (number % 3) * time)
    file = io.BytesIO()
    soundfile.write(file, tone + 0.01 * rng.standard_normal(len(time)), RATE, format="WAV")
    return file.getvalue()


def vocabulary(task: Miniature) -> str:
    """Return labelvocabulary.csv, quoted as by hear-preprocess."""
    quoted = [
        '"' + x.replace('"', '""') + '"' if set(str(x)) & {",", '"'} else str(x)
        for x in task.labels
    ]
    return "\r\n".join(["idx,label", *(f"{i},{x}" for i, x in enumerate(quoted))]) + "\r\n"


def files(name: str) -> dict[str, bytes]:
    """Return path in the archive -> content for every file of a task, audio first."""
    task = TASKS[name]
    seconds = EVENT_SECONDS if task.events else SECONDS
    content = label_files(name)
    audio = {
        f"{RATE}/{split}/{file}": clip(task.audio or name, file, seconds)
        for split, listed in content.items()
        for file in listed
    }
    lists = {f"{split}.json": json.dumps(listed).encode() for split, listed in content.items()}
    return {
        f"tasks/{name}/{path}": data
        for path, data in {
            **audio,
            **lists,
            "labelvocabulary.csv": vocabulary(task).encode(),
            "task_metadata.json": json.dumps(metadata(name)).encode(),
        }.items()
    }


def pack(contents: dict[str, bytes], *members: tarfile.TarInfo) -> bytes:
    """Return a gzip-compressed tar file of these files, and of members without content."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1) as tar:
        for member in members:
            tar.addfile(member)
        for path, data in contents.items():
            member = tarfile.TarInfo(path)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def key(name: str) -> str:
    """Return the name of a task's archive."""
    return f"hear2021-{name}-{RATE}.tar.gz"


class Zenodo(ThreadingHTTPServer):
    """Serve one record. `faults` lists the responses to the next requests for a path.

    A number is a status; "break": half of the requested bytes; "corrupt": other bytes; "whole": the
    whole file, whatever the requested range.
    """

    daemon_threads = True

    def __init__(self, archives: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.archives = archives
        self.faults: dict[str, list[int | str]] = defaultdict(list)
        self.retry_after = "0"
        self.requests: list[tuple[str, str]] = []  # (file name, requested range)

    @property
    def listing(self) -> str:
        """Template of the record's address."""
        return f"http://127.0.0.1:{self.server_port}/api/records/{{record}}"

    def record(self) -> dict:
        """Return the API's description of the record."""
        address = self.listing.replace("{record}", str(RECORD))
        files = [
            {
                "id": name,
                "key": name,
                "size": len(content),
                "checksum": f"md5:{hashlib.md5(content).hexdigest()}",
                "links": {"self": f"{address}/files/{name}/content"},
            }
            for name, content in self.archives.items()
        ]
        return {"id": RECORD, "metadata": {"title": "HEAR 2021"}, "files": files}


class Handler(BaseHTTPRequestHandler):
    """Answer one request."""

    protocol_version = "HTTP/1.1"
    server: Zenodo

    def log_message(self, format, *args) -> None:
        """Stay quiet."""

    def do_GET(self) -> None:
        name = self.path.removesuffix("/content").rsplit("/", 1)[-1]
        self.server.requests.append((name, self.headers.get("Range", "")))
        faults = self.server.faults[name]
        fault = faults.pop(0) if faults else ""
        with contextlib.suppress(ConnectionError):
            if self.path == f"/api/records/{RECORD}":
                body = json.dumps(self.server.record()).encode()
            elif name in self.server.archives and self.path.startswith(f"/api/records/{RECORD}/"):
                body = self.server.archives[name]
            else:
                fault, body = fault or 404, b""
            self.answer(body, fault)

    def answer(self, body: bytes, fault: int | str) -> None:
        if isinstance(fault, int):
            self.send_response(fault)
            self.send_header("Retry-After", self.server.retry_after)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(match[1]) if match and fault != "whole" else 0
        self.send_response(206 if match and fault != "whole" else 200)
        self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        rest = body[start:]
        if fault == "corrupt":
            rest = bytes(len(rest))
        self.wfile.write(rest[: len(rest) // 2] if fault == "break" else rest)
        if fault == "break":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def serve(archives: dict[str, bytes]):
    """Run a record until the block ends."""
    zenodo = Zenodo(archives)
    thread = threading.Thread(target=zenodo.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield zenodo
    finally:
        zenodo.shutdown()
        thread.join()
        zenodo.server_close()
