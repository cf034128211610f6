"""Work shared by overlapping windows: equal to the encoder on each window separately."""

import pytest
import torch
from synthetic_hear import CONFIG, SMALL

from pipeline.encoders.build import build_encoder
from pipeline.hear.api import sliding

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}  # of values around 1


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    params = CONFIG.encoders.audiontt.model_copy(update=SMALL)
    encoder = build_encoder("audiontt", params, n_mels=64, crop_frames=96)
    encoder.train()(2 * torch.randn(8, 1, 64, 96) + 0.5)
    return encoder.eval()


@pytest.mark.parametrize("hop", [1, 2, 3, 4, 5, 7, 10, 12])
@pytest.mark.parametrize("frames", [96, 97, 98, 99])  # each remainder of the pooling
@torch.no_grad()
def test_every_window_is_embedded_as_by_the_encoder(encoder, frames, hop):
    log_mel = torch.randn(
        64, frames + 6 * hop + hop - 1, generator=torch.Generator().manual_seed(1)
    )
    windows = torch.stack([log_mel[:, i * hop : i * hop + frames] for i in range(7)])
    expected = encoder(windows[:, None])
    torch.testing.assert_close(sliding.slide(encoder, log_mel, frames, hop), expected, **TOLERANCE)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("frames", [12, 13, 14, 15, 16])
@torch.no_grad()
def test_the_shortest_windows_and_fewer_windows_than_groupings(encoder, frames, count):
    log_mel = torch.randn(64, frames + count - 1, generator=torch.Generator().manual_seed(1))
    windows = log_mel.unfold(-1, frames, 1).movedim(1, 0)
    embeddings = sliding.slide(encoder, log_mel, frames, 1)
    torch.testing.assert_close(embeddings, encoder(windows[:, None]), **TOLERANCE)


@pytest.mark.parametrize("name", ["_first_frame", "_last_frame"])
@torch.no_grad()
def test_the_zero_padding_of_a_window_matters(encoder, monkeypatch, name):
    """Replicated edge frames in place of the zeros are noticed."""
    log_mel = torch.randn(64, 96 + 20, generator=torch.Generator().manual_seed(1))
    expected = encoder(log_mel.unfold(-1, 96, 5).movedim(1, 0)[:, None])
    original = sliding._convolve
    inside = [False]

    def without_zeros(block, x, padding):
        if inside[0]:
            x = torch.nn.functional.pad(x, (*padding, 0, 0), mode="replicate")
            padding = (0, 0)
        return original(block, x, padding)

    def marked(*arguments):
        inside[0] = True
        try:
            return frame(*arguments)
        finally:
            inside[0] = False

    frame = getattr(sliding, name)
    monkeypatch.setattr(sliding, "_convolve", without_zeros)
    monkeypatch.setattr(sliding, name, marked)
    embeddings = sliding.slide(encoder, log_mel, 96, 5)
    assert (embeddings - expected).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("frames", "hop", "shared"), [(96, 5, True), (96, 10, True), (17, 5, False), (96, 96, False)]
)
def test_work_is_shared_only_if_windows_overlap_enough(frames, hop, shared):
    assert sliding.shares_work(frames, hop) is shared
