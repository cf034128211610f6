"""The objective against equations 1 and 2 written out, and its known values."""

import pytest
import torch

from pipeline.config import load_config
from pipeline.pretrain.loss import barlow_twins_loss, cross_correlation, noise_floor

PAPER = load_config().loss


def random_pair(batch, dim, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, batch, dim, generator=generator, dtype=dtype).unbind()


@pytest.mark.parametrize("hsic", [False, True])
def test_equals_equations_1_and_2_written_as_loops(hsic):
    z, z_prime = random_pair(5, 3)
    zn, zpn = ((v - v.mean(0)) / (v.var(0, correction=0) + 1e-5).sqrt() for v in (z, z_prime))
    params = PAPER.model_copy(update={"alpha": 0.7, "lambda_": 0.03, "hsic": hsic})
    invariance = redundancy = 0.0
    for i in range(3):
        for j in range(3):
            c_ij = sum(float(zn[b, i] * zpn[b, j]) for b in range(5)) / 5
            if i == j:
                invariance += 0.7 * (1 - c_ij) ** 2
            else:
                redundancy += 0.03 * (c_ij + 1 if hsic else c_ij) ** 2
    terms = barlow_twins_loss(cross_correlation(z, z_prime), params)
    assert float(terms.invariance) == pytest.approx(invariance, rel=1e-5)
    assert float(terms.redundancy) == pytest.approx(redundancy, rel=1e-5)


def test_identical_views_have_no_invariance_term():
    z, _ = random_pair(256, 16)
    assert float(barlow_twins_loss(cross_correlation(z, z), PAPER).invariance) < 1e-5


def test_collapsed_embeddings_cost_the_whole_invariance_term():
    z = torch.ones(16, 8)
    assert float(sum(barlow_twins_loss(cross_correlation(z, z), PAPER))) == pytest.approx(8.0)


def test_independent_embeddings_at_the_papers_size_cost_1106_of_which_43_is_the_noise_floor():
    z, z_prime = random_pair(128, 1048)
    terms = barlow_twins_loss(cross_correlation(z, z_prime), PAPER)
    floor = noise_floor(PAPER, 1048, 128)
    assert floor == pytest.approx(0.005 * 1048 * 1047 / 128)
    assert float(terms.redundancy) == pytest.approx(floor, rel=0.02)
    assert float(sum(terms)) == pytest.approx(1106, rel=0.02)


def test_hsics_floor_at_the_papers_size_is_5527():
    params = PAPER.model_copy(update={"hsic": True})
    terms = barlow_twins_loss(cross_correlation(*random_pair(128, 1048)), params)
    floor = noise_floor(params, 1048, 128)
    assert floor == pytest.approx(0.005 * 1048 * 1047 * (1 + 1 / 128))
    assert floor == pytest.approx(5527, rel=0.001)  # abt 6.2
    assert float(terms.redundancy) == pytest.approx(floor, rel=0.02)


def test_swapping_the_views_transposes_c_and_keeps_the_loss():
    z, z_prime = random_pair(64, 8)
    c, swapped = cross_correlation(z, z_prime), cross_correlation(z_prime, z)
    torch.testing.assert_close(c.T, swapped)
    assert float(sum(barlow_twins_loss(c, PAPER))) == pytest.approx(
        float(sum(barlow_twins_loss(swapped, PAPER)))
    )


def test_scale_and_offset_of_a_dimension_do_not_matter():
    z, z_prime = random_pair(64, 8)
    scale, offset = torch.linspace(1, 50, 8), torch.linspace(-3, 3, 8)
    torch.testing.assert_close(
        cross_correlation(z * scale + offset, z_prime),
        cross_correlation(z, z_prime),
        rtol=1e-3,
        atol=1e-4,
    )


def test_half_precision_embeddings_are_correlated_in_float32():
    z, z_prime = random_pair(512, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        c = cross_correlation(z, z_prime)
    assert c.dtype == torch.float32
    torch.testing.assert_close(c, cross_correlation(z, z_prime), rtol=0, atol=0)


def test_a_single_item_has_no_variance():
    with pytest.raises(ValueError, match="batch of at least 2, got 1"):
        cross_correlation(torch.ones(1, 4), torch.ones(1, 4))
