"""Stage `fingerprint`: audio fingerprints of the pre-training clips, for the stage `leaks`.

Reads   data/logmel
Writes  data/fingerprints: HDF5 shards, manifest.json
"""

from pathlib import Path

from pipeline.core import params, shard_folder
from pipeline.core.settings import ComputeParams
from pipeline.core.stage import Stage, arguments, run
from pipeline.features import hdf5_shards
from pipeline.leaks.fingerprint import STAGE, SUFFIX, fingerprint_shard
from pipeline.parallel.processes import map_shards

FEATURES = Path("data/logmel")


def main(stage: Stage) -> None:
    """Run the stage."""
    compute = params.load("compute", ComputeParams)
    manifest = shard_folder.verify(FEATURES, hdf5_shards.SUFFIX, stage="logmel")
    with stage.output("data/fingerprints") as folder:
        sources = shard_folder.shard_paths(FEATURES, manifest, hdf5_shards.SUFFIX)
        targets = shard_folder.shard_paths(folder, manifest, SUFFIX)
        jobs = list(zip(sources, targets, strict=True))
        map_shards(fingerprint_shard, jobs, compute.local_workers, STAGE)
        shard_folder.write(folder, manifest)


if __name__ == "__main__":
    run("fingerprint", main, *arguments())
