"""Tar shards: clips of a range of rows in one file, `<clip_id>.<format>` each, in row order.

The same members make the same bytes: no times, owners or modes of the machine are stored.
"""

import io
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

SUFFIX = ".tar"
FORMATS = [  # by how a file begins
    (re.compile(rb"RIFF....WAVE", re.DOTALL), "wav"),
    (re.compile(rb"OggS"), "ogg"),
    (re.compile(rb"ID3|\xff[\xe2-\xe7\xf2-\xf7\xfa-\xff]"), "mp3"),
    (re.compile(rb"....ftyp", re.DOTALL), "m4a"),
    (re.compile(rb"FORM....AIF", re.DOTALL), "aiff"),
    (re.compile(rb"\x1aE\xdf\xa3"), "webm"),
]


def member_name(clip_id: str, content: bytes) -> str:
    """Return the name of a clip in its shard; an unknown format is taken for FLAC."""
    found = (name for start, name in FORMATS if start.match(content))
    return f"{clip_id}.{next(found, 'flac')}"


def write(path: Path, clips: Iterable[tuple[str, bytes]]) -> None:
    """Write (clip id, content) pairs in the order given."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for clip_id, content in clips:
            info = tarfile.TarInfo(member_name(clip_id, content))
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def read(path: Path, clip_ids: Sequence[str], stage: str) -> Iterator[tuple[str, bytes]]:
    """Yield (clip id, content) of a shard, which must hold exactly these clips in this order.

    Raises:
        ValueError: the shard is damaged or holds other clips than its ledger says.
    """
    remedy = f"Remove it and run `dvc pull {stage}`, or run `dvc repro -f {stage}`."
    expected = iter(clip_ids)
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                clip_id = next(expected, None)
                content = tar.extractfile(member)
                if clip_id is None or content is None or member.name.rpartition(".")[0] != clip_id:
                    raise ValueError(
                        f"{path} holds {member.name!r} where its ledger has {clip_id!r}. {remedy}"
                    )
                yield clip_id, content.read()
    except tarfile.TarError as error:
        raise ValueError(f"{path} is damaged ({error}). {remedy}") from error
    absent = next(expected, None)
    if absent is not None:
        raise ValueError(f"{path} is damaged: it lacks {absent!r}. {remedy}")
