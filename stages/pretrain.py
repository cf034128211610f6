"""Stage `pretrain`: Audio Barlow Twins on the log-mel shards.

Reads   data/logmel; data/excluded.csv, the clips that are left out
Writes  data/pretrained   checkpoint, history.csv, epochs.csv, correlation.safetensors,
                          views.safetensors, snapshots/
        data/random       the same encoder at its initialisation, the baseline of the evaluation
        reports/throughput.csv
Params  encoder, encoders.<encoder>, augment, projector, loss, pretrain

An interrupted run continues from its last state, in `.work/pretrain/`. With several devices,
torchrun runs this module once for each.
"""

from contextlib import ExitStack
from pathlib import Path

from pipeline.core import params
from pipeline.core.code_identity import code_identity
from pipeline.core.device import choose_device, make_deterministic
from pipeline.core.settings import ComputeParams
from pipeline.core.stage import Stage, arguments, run, work_root
from pipeline.encoders.params import check_encoder
from pipeline.features import excluded
from pipeline.pretrain import distributed
from pipeline.pretrain.index import load_features, sample_epoch
from pipeline.pretrain.loop import Trainer
from pipeline.pretrain.model import Settings
from pipeline.pretrain.outputs import NoWriter, Writer, data_identity, describe_device, pretrain
from pipeline.pretrain.params import AugmentParams, LossParams, PretrainParams, ProjectorParams
from pipeline.pretrain.resume import TrainingStates

FEATURES, EXCLUDED = Path("data/logmel"), Path("data/excluded.csv")


def main(stage: Stage) -> None:
    """Run the stage."""
    compute = params.load("compute", ComputeParams)
    encoder = stage.value("encoder")
    settings = Settings(
        encoder_name=encoder,
        encoder=stage.load(f"encoders.{encoder}", check_encoder(encoder)),
        augment=stage.load("augment", AugmentParams),
        projector=stage.load("projector", ProjectorParams),
        loss=stage.load("loss", LossParams),
        pretrain=stage.load("pretrain", PretrainParams),
    )
    if compute.devices > 1 and not distributed.is_launched():
        sample_epoch(2**20, settings.pretrain.batch_size, 0, 0).share(0, compute.devices)
        distributed.relaunch("stages.pretrain", compute.devices)
    if compute.deterministic:
        make_deterministic()
    with distributed.process_group(choose_device(compute.device)) as device:
        features = load_features(FEATURES).excluding(excluded.read(EXCLUDED))
        fast = None if compute.fast == "auto" else compute.fast
        trainer = Trainer(settings, features, device, fast, compute.features)
        code = code_identity(Trainer.__module__)
        data = data_identity(FEATURES, EXCLUDED)
        work = stage.work_folder(code, *data, describe_device(trainer))
        states = TrainingStates(work, compute.checkpoint_minutes, compute.checkpoints)
        with ExitStack() as outputs:
            writer = NoWriter() if distributed.rank() else writer_of(stage, work, outputs)
            pretrain(trainer, states, writer)


def writer_of(stage: Stage, work: Path, outputs: ExitStack) -> Writer:
    """Return what writes the stage's outputs, which appear when the stage ends."""
    return Writer(
        random=outputs.enter_context(stage.output("data/random")),
        pretrained=outputs.enter_context(stage.output("data/pretrained")),
        throughput=outputs.enter_context(stage.output("reports/throughput.csv", file=True)),
        live=work_root() / "live",
        work=work,
    )


if __name__ == "__main__":
    run("pretrain", main, *arguments())
