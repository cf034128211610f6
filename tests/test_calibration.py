"""Batch norms of the random encoder: statistics of training clips, on demand."""

import torch
from synthetic_training import trainer
from torch.nn.functional import cosine_similarity

from pipeline.encoders import checkpoint
from pipeline.pretrain.calibration import BATCH, calibrate_batch_norms
from pipeline.pretrain.outputs import Writer


def written(folder, encoder="audiontt", **changes):
    """The random encoder that a run writes."""
    (folder / "random").mkdir(parents=True)
    paths = (folder / name for name in ("random", "pretrained", "throughput.csv", "live", "work"))
    Writer(*paths).write_initial(trainer(encoder, **changes))
    return checkpoint.load(folder / "random").encoder


def test_statistics_of_the_first_layer_are_the_means_over_batches():
    encoder = trainer().model.encoder.eval()
    norm = next(m for m in encoder.modules() if isinstance(m, torch.nn.BatchNorm2d))
    inputs = []
    norm.register_forward_pre_hook(lambda module, args: inputs.append(args[0].double()))
    crops = torch.randn(2 * BATCH, 64, 32, generator=torch.Generator().manual_seed(0))
    calibrate_batch_norms(encoder, crops)
    means = torch.stack([x.mean(dim=(0, 2, 3)) for x in inputs]).mean(dim=0)
    variances = torch.stack([x.var(dim=(0, 2, 3)) for x in inputs]).mean(dim=0)
    torch.testing.assert_close(norm.running_mean.double(), means, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var.double(), variances, rtol=1e-4, atol=1e-5)
    assert not any(module.training for module in encoder.modules())


def test_weights_stay_and_without_clips_statistics_do_too(tmp_path):
    plain = written(tmp_path / "a").state_dict()
    calibrated = written(tmp_path / "b", pretrain__random_calibration_clips=64).state_dict()
    for name, value in plain.items():
        if "running" in name:
            assert torch.equal(value, torch.full_like(value, float("var" in name)))
            assert not torch.equal(value, calibrated[name])
        elif "num_batches" not in name:
            assert torch.equal(value, calibrated[name])


def test_calibrated_embeddings_of_different_clips_differ(tmp_path):
    crops = 3 * torch.randn(8, 1, 64, 32, generator=torch.Generator().manual_seed(0))
    cosine = {}
    for clips in (0, 64):
        encoder = written(tmp_path / str(clips), "vitc", pretrain__random_calibration_clips=clips)
        with torch.no_grad():
            y = encoder(crops)
        cosine[clips] = float(cosine_similarity(y[:4], y[4:]).mean())
    assert cosine[64] < cosine[0]
