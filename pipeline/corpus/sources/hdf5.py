"""Source `hdf5`: AudioSet packed for PANNs or PaSST, one row per recording.

    audio_name    text [N]                     file name; the Y of "Y<YouTube id>.wav" is dropped
    waveform      int16 [N, S]                 PANNs; the attribute `sample_rate` of the file, in Hz
    mp3           variable-length bytes [N]    or PaSST; MP3 files
    target        bool [N, classes]            PANNs, or packed bits as uint8, PaSST; optional

PANNs' packer leaves rows without a name where it had no recording; here they are lost clips. It
also pads short recordings with zeros, which cannot be distinguished from silence.
"""

import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from pipeline import audio
from pipeline.corpus import labels
from pipeline.corpus.fetch.failures import UnavailableError, check_machine
from pipeline.corpus.params import Hdf5Params
from pipeline.corpus.sources.source import too_large
from pipeline.corpus.sources.whole_recordings import MultiRecordingFiles

KEY = "sources.hdf5.path"
BLOCK = 4096  # rows of names and targets read at a time
YOUTUBE_ID = 11  # characters


class Location(NamedTuple):
    """Where a recording is, and whether its row is empty."""

    path: str
    row: int
    empty: bool


class Hdf5(MultiRecordingFiles[Location]):
    """See `source.Container`."""

    def __init__(self, params: Hdf5Params) -> None:
        super().__init__("hdf5", params.path, {".h5", ".hdf", ".hdf5"}, params.segments)
        self._sample_rate = params.sample_rate
        self._classes = labels.read_ids(Path(params.classes)) if params.classes else []

    def _recordings(self) -> Iterator[tuple[str, str, Location]]:
        for path in self._files:
            with open_file(path) as file:
                names = file["audio_name"]
                for start in range(0, len(names), BLOCK):
                    block = names.asstr("utf-8", "surrogateescape")[start : start + BLOCK]
                    targets = self._labels(file, start, len(block))
                    for row, (name, label) in enumerate(zip(block, targets, strict=True), start):
                        location = Location(str(path), row, not name)
                        yield recording_id(name) or f"{path.stem}-row-{row}", label, location

    def _labels(self, file: h5py.File, start: int, count: int) -> list[str]:
        if "target" not in file:
            return [""] * count
        target = file["target"][start : start + count]
        if target.dtype == np.uint8:
            target = np.unpackbits(target, axis=1)
        return [",".join(map(self._label, np.flatnonzero(row > 0).tolist())) for row in target]

    def _label(self, number: int) -> str:
        return self._classes[number] if number < len(self._classes) else str(number)

    def _contents(
        self, found: Sequence[tuple[str, Location]], max_bytes: float
    ) -> Iterator[bytes | UnavailableError]:
        for path, in_file in groupby(found, key=lambda item: item[1].path):
            with open_file(Path(path)) as file:
                yield from (self._content(file, location, max_bytes) for _, location in in_file)

    def _content(
        self, file: h5py.File, location: Location, max_bytes: float
    ) -> bytes | UnavailableError:
        if location.empty:
            return UnavailableError("gone", "it was missing when the HDF5 file was packed")
        name = f"row {location.row} of {location.path}"
        try:
            if "mp3" in file:
                mp3 = file["mp3"][location.row]
                return (
                    mp3.tobytes()
                    if mp3.nbytes <= max_bytes
                    else too_large(name, mp3.nbytes, max_bytes)
                )
            size = file["waveform"].nbytes // len(file["waveform"])
            if size > max_bytes:
                return too_large(name, size, max_bytes)
            samples = file["waveform"][location.row]
        except OSError as error:
            check_machine(error)
            return UnavailableError("corrupt", f"its row cannot be read: {error}")
        return audio.encode_flac(samples, self._rate(file))

    def _rate(self, file: h5py.File) -> int:
        attribute = file["waveform"].attrs.get("sample_rate", file.attrs.get("sample_rate", 0))
        try:
            rate = int(np.asarray(attribute).item())
        except (TypeError, ValueError, OverflowError):
            rate = -1
        if rate < 0:
            raise ValueError(
                f"{file.filename}: the attribute `sample_rate` is {attribute!r}, expected a "
                "number of Hz such as 32000. Correct it in the file, or remove it and set "
                "sources.hdf5.sample_rate in params.yaml."
            )
        rate = rate or self._sample_rate
        if not rate:
            raise ValueError(
                f"{file.filename} does not say its sample rate (attribute `sample_rate`). Set "
                "sources.hdf5.sample_rate in params.yaml."
            )
        return rate


def recording_id(name: str) -> str:
    """Return a file name without its suffix, and without the Y before a YouTube id."""
    stem = os.path.splitext(name)[0]
    return stem[1:] if len(stem) == YOUTUBE_ID + 1 and stem.startswith("Y") else stem


def open_file(path: Path) -> h5py.File:
    """Open an HDF5 file and check its layout.

    Raises:
        ValueError: it is damaged, not an HDF5 file, or not of the layout above.
    """
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(
            f"{path} is damaged, or not an HDF5 file: {error}. Fetch it again."
        ) from error
    audio = [name for name in ("mp3", "waveform") if name in file]
    content = ", ".join(f"{name} {item.dtype} {item.shape}" for name, item in _datasets(file))
    wave = file["waveform"] if audio == ["waveform"] else None
    is_named = "audio_name" in file and h5py.check_string_dtype(file["audio_name"].dtype)
    if not is_named or not audio or (wave is not None and wave.dtype != np.int16):
        file.close()
        raise ValueError(
            f"{path} holds {content or 'nothing'}; expected audio_name (text), and mp3 (bytes) "
            f"or waveform (int16 [N, S]). Move it out of {path.parent}, or set {KEY} to the "
            "files with the audio alone (for PANNs, its folder waveforms)."
        )
    for name in {audio[0], "target"} & file.keys():
        if len(file[name]) != len(file["audio_name"]):
            file.close()
            raise ValueError(f"{path}: audio_name and {name} have different lengths ({content}).")
    return file


def _datasets(file: h5py.File) -> list[tuple[str, h5py.Dataset]]:
    return [(name, item) for name, item in file.items() if isinstance(item, h5py.Dataset)]
