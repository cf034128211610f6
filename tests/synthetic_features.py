"""A folder of log-mel shards, as the stage `logmel` leaves it."""

import json

import numpy as np

from pipeline.config import load_config
from pipeline.core import shard_folder
from pipeline.core.files import sha256
from pipeline.core.shard_folder import Manifest
from pipeline.features import hdf5_shards
from pipeline.features.stats import Totals

LOG_MEL = load_config().logmel


def write_folder(folder, lengths, log_mel=LOG_MEL):
    """Shards of clips of some lengths in frames; clip c of shard s is 100 * s + 10 * c + frame."""
    for i, shard in enumerate(lengths):
        clips = []
        for j, frames in enumerate(shard):
            column = 100.0 * i + 10 * j + np.arange(frames)[:, None]
            values = column.repeat(log_mel.n_mels, axis=1).astype(np.float16)
            clip = hdf5_shards.Clip(f"s{i}c{j}", "", values, Totals.from_array(values))
            clips.append(clip)
        hdf5_shards.write(shard_folder.shard_path(folder, i, ".h5"), clips, log_mel)
    shards = sorted(folder.glob("*.h5"))
    shard_folder.write_sums(folder, {path.name: sha256(path) for path in shards})
    clips = sum(map(len, lengths))
    shard_folder.write(folder, Manifest(len(lengths), 10 * len(lengths), clips, 10))
    (folder / "stats.json").write_text(json.dumps({"mean": 1.5, "std": 2.5}))
    return folder
