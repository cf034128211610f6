"""`manifest.json`: what the output folder of a data stage holds when it is complete.

    {"shards": n, "rows": n, "clips": n, "clips_per_shard": n}

Shard i is the file "<i, five digits>.<suffix>" and holds the usable clips among the rows
[i * clips_per_shard, (i + 1) * clips_per_shard) of the segment list, in their order.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from pipeline.core.files import sha256

Row = TypeVar("Row")
SUMS = "SHA256SUMS"


@dataclass(frozen=True)
class Manifest:
    """Content of `manifest.json`."""

    shards: int
    rows: int
    clips: int
    clips_per_shard: int

    def rows_of(self, rows: Sequence[Row]) -> list[list[Row]]:
        """Return the rows of a ledger shard by shard."""
        size = self.clips_per_shard
        return [list(rows[i * size : (i + 1) * size]) for i in range(self.shards)]


def shard_count(rows: int, clips_per_shard: int) -> int:
    """Return how many shards hold a number of rows."""
    return -(-rows // clips_per_shard)


def manifest_of(usable: Sequence[bool], clips_per_shard: int) -> Manifest:
    """Return the manifest of a folder, given whether each row has a clip."""
    return Manifest(
        shards=shard_count(len(usable), clips_per_shard),
        rows=len(usable),
        clips=sum(usable),
        clips_per_shard=clips_per_shard,
    )


def write(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json`."""
    (folder / "manifest.json").write_text(json.dumps(asdict(manifest), indent=2) + "\n")


def rebuild_hint(stage: str) -> str:
    """Return how to replace a damaged output of a stage, in words."""
    return f"Run `dvc repro -f {stage}`, or `dvc pull --force {stage}` if it was pushed."


def shard_path(folder: Path, shard: int, suffix: str) -> Path:
    """Return the path of shard number `shard`, for example clips/00003.tar."""
    return folder / f"{shard:05d}{suffix}"


def shard_paths(folder: Path, manifest: Manifest, suffix: str) -> list[Path]:
    """Return the paths of all shards, in order."""
    return [shard_path(folder, shard, suffix) for shard in range(manifest.shards)]


def verify(folder: Path, suffix: str, stage: str) -> Manifest:
    """Return the manifest of a stage's output folder after checking that no shard is missing.

    Raises:
        FileNotFoundError: there is no manifest, or a shard is missing (a partial `dvc pull`).
        ValueError: the manifest is broken, or the folder holds no clips or shards of another run.
    """
    remedy = f"Run `dvc repro {stage}`, or `dvc pull {stage}` if it was pushed."
    try:
        manifest = _parse(json.loads((folder / "manifest.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"There is no {folder}/manifest.json, so {folder} is missing or incomplete. {remedy}"
        ) from None
    except ValueError as error:
        raise ValueError(
            f"{folder}/manifest.json is broken ({error}). {rebuild_hint(stage)}"
        ) from error
    expected = shard_paths(folder, manifest, suffix)
    missing = [p.name for p in expected if not p.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} lacks {len(missing)} of {manifest.shards} shards, first {missing[0]}. "
            f"{remedy}"
        )
    unknown = sorted(set(folder.glob(f"*{suffix}")) - set(expected))
    if unknown:
        raise ValueError(
            f"{folder} holds {unknown[0].name}, but its manifest.json has {manifest.shards} "
            f"shards only: they are of different runs. {rebuild_hint(stage)}"
        )
    if manifest.clips == 0:
        raise ValueError(f"{folder} holds no clips; see why in its ledger.csv. {remedy}")
    return manifest


def _parse(values: Any) -> Manifest:
    """Return a manifest after checking it.

    Raises:
        ValueError: it is not an object of four consistent counts.
    """
    names = [field.name for field in fields(Manifest)]
    if not isinstance(values, dict) or set(values) != set(names):
        raise ValueError(f"expected an object with {', '.join(names)}, got {values!r}")
    for name, value in values.items():
        least = 1 if name == "clips_per_shard" else 0
        if type(value) is not int or value < least:
            raise ValueError(f"{name} is {value!r}, expected a whole number of {least} or more")
    manifest = Manifest(**values)
    shards = shard_count(manifest.rows, manifest.clips_per_shard)
    if manifest.shards != shards or manifest.clips > manifest.rows:
        raise ValueError(
            f"{manifest.rows} rows at {manifest.clips_per_shard} per shard are {shards} shards "
            f"with {manifest.rows} clips at most, got {manifest.shards} with {manifest.clips}"
        )
    return manifest


def write_sums(folder: Path, sums: Mapping[str, str]) -> None:
    """Write the SHA-256 of each shard, given by file name, as `sha256sum --check` reads it."""
    lines = [f"{checksum}  {name}\n" for name, checksum in sums.items()]
    (folder / SUMS).write_text("".join(lines))


def read_sums(folder: Path, shards: int, stage: str) -> list[str]:
    """Return the SHA-256 of each shard of an output.

    Raises:
        FileNotFoundError: the list is missing.
        ValueError: it lists another number of shards.
    """
    try:
        sums = [line.split()[0] for line in (folder / SUMS).read_text().splitlines()]
    except (FileNotFoundError, IndexError):
        raise FileNotFoundError(
            f"There is no {folder}/{SUMS}, or it is broken. {rebuild_hint(stage)}"
        ) from None
    if len(sums) != shards:
        raise ValueError(
            f"{folder}/{SUMS} has {len(sums)} lines, expected {shards}. {rebuild_hint(stage)}"
        )
    return sums


def check_sum(path: Path, expected: str, stage: str) -> None:
    """Check that a shard is the one that was published.

    Raises:
        ValueError: its SHA-256 is another.
    """
    if (found := sha256(path)) != expected:
        raise ValueError(
            f"{path} is damaged: its SHA-256 is {found}, expected {expected} as in {SUMS} beside "
            f"it. {rebuild_hint(stage)}"
        )
