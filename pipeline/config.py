"""The whole of params.yaml as one class, for checking it before any work starts."""

from pathlib import Path

from pydantic import model_validator

from pipeline.core.params import PARAMS_FILE, Section, check, read
from pipeline.core.settings import ComputeParams, NetworkParams
from pipeline.corpus.params import SOURCES, DownloadParams, ResampleParams, Sources
from pipeline.encoders.params import EncoderParams, Encoders, check_encoder
from pipeline.features.params import LogMelParams
from pipeline.hear.api.windows import duration_hops, window_hops
from pipeline.hear.params import HearParams, ProbeParams, check_layers
from pipeline.hear.score.params import ScoreParams
from pipeline.leaks.params import LeaksParams
from pipeline.pretrain.params import AugmentParams, LossParams, PretrainParams, ProjectorParams
from pipeline.report.params import ReportParams

FINGERPRINT_MELS = 36  # mel bins of which `pipeline.leaks.fingerprint` makes its 32 bits


class Config(Section):
    """All of params.yaml."""

    source: str
    sources: Sources
    download: DownloadParams
    resample: ResampleParams
    logmel: LogMelParams
    leaks: LeaksParams
    encoder: str
    encoders: Encoders
    augment: AugmentParams
    projector: ProjectorParams
    loss: LossParams
    pretrain: PretrainParams
    hear: HearParams
    score: ScoreParams
    probe: ProbeParams
    report: ReportParams
    compute: ComputeParams
    network: NetworkParams

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        check_encoder(self.encoder)
        if self.source not in SOURCES:
            raise ValueError(f"source = {self.source!r}: must be one of {', '.join(SOURCES)}.")
        encoder: EncoderParams = getattr(self.encoders, self.encoder)
        encoder.check_input(self.logmel.n_mels, self.pretrain.crop_frames)
        if self.logmel.n_mels < FINGERPRINT_MELS:
            raise ValueError(
                f"logmel.n_mels = {self.logmel.n_mels} is too low: the fingerprints by which test "
                f"clips are found in the pre-training data need {FINGERPRINT_MELS} or more."
            )
        for window_ms in self.hear.window_ms:
            window_hops(window_ms, self.logmel)
        duration_hops("hop_ms", self.hear.hop_ms, self.logmel)
        check_layers(self.hear.layers, self.encoder)
        self._check_probe()
        self._check_tasks_apart()
        return self

    def _check_probe(self) -> None:
        """Only the tasks of `hear.tasks` are prepared."""
        unknown = [task for task in self.probe.tasks or () if task not in self.hear.tasks]
        if unknown:
            raise ValueError(
                f"probe.tasks: {', '.join(unknown)} must be among hear.tasks "
                f"({', '.join(self.hear.tasks)}). Add it there, or set probe.tasks to auto."
            )

    def _check_tasks_apart(self) -> None:
        """The source `folder` reads every recording below its path, also those of tasks."""
        tasks = self.hear.sources.folder.path
        corpus = self.sources.folder.path
        if self.source != "folder" or self.hear.source != "folder":
            return
        if Path(tasks).resolve().is_relative_to(Path(corpus).resolve()):
            raise ValueError(
                f"hear.sources.folder.path = {tasks!r} lies in sources.folder.path = {corpus!r}: "
                "the encoder would be pre-trained on what it is tested with. Set one elsewhere."
            )


def load_config(path: Path = PARAMS_FILE) -> Config:
    """Return the whole file, checked.

    Raises:
        ValueError: names every faulty key, its value and what was expected.
    """
    return check(read(path), Config, path=path)
