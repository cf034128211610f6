"""The fast path against the plain modules: values, gradients, running statistics."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Generator
from torch.nn import functional

from pipeline.config import load_config
from pipeline.encoders.build import build_encoder
from pipeline.pretrain.fused import audiontt, vit
from pipeline.pretrain.fused.views import embed_views
from pipeline.pretrain.index import Features
from pipeline.pretrain.loop import Trainer
from pipeline.pretrain.loss import barlow_twins_loss, cross_correlation
from pipeline.pretrain.masking import draw_visible
from pipeline.pretrain.model import BarlowTwins, Settings
from pipeline.pretrain.projector import build_projector

pytestmark = pytest.mark.usefixtures("shallow")

CONFIG = load_config()
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_gpu)]


def model(name, crop_frames=32, random_scales=True, **changes):
    """A small model whose batch norms have scales of both signs, biases anywhere."""
    torch.manual_seed(0)
    small = {"channels": 16, "hidden_dim": 48, "embed_dim": 320, "dropout": 0.0}
    if name != "audiontt":
        small = {"size": "tiny", "patch_mels": 16, "patch_frames": 8}
    params = getattr(CONFIG.encoders, name).model_copy(update={**small, **changes})
    encoder = build_encoder(name, params, 64, crop_frames)
    sizes = {"hidden_layers": 2, "hidden_dim": 64, "out_dim": 24}
    projector = build_projector(CONFIG.projector.model_copy(update=sizes), encoder.embed_dim)
    net = BarlowTwins(encoder, projector).train()
    if not random_scales:
        return net
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.weight)
    for parameter in net.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter)
    return net


def run(embed, net, views):
    """Embeddings, gradients and buffers after one pass and a random loss."""
    z = torch.cat(embed(*views))
    torch.manual_seed(1)
    (z * torch.randn(z.shape, dtype=torch.float64).to(z)).sum().backward()
    grads = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return z.detach(), grads, dict(net.named_buffers())


def compare(net, views, **tolerance):
    """Assert that the fast path does what the plain modules do."""
    fast = copy.deepcopy(net)
    z, grads, buffers = run(net, net, views)
    actual = run(lambda *v: embed_views(fast.encoder, fast.projector, *v), fast, views)
    torch.testing.assert_close(actual[0], z, **tolerance)
    torch.testing.assert_close(actual[2], buffers, **tolerance)
    scale = max(float(g.abs().max()) for g in grads.values())
    for name, grad in grads.items():
        if name in actual[1]:
            torch.testing.assert_close(actual[1][name], grad, **tolerance)
        else:  # a bias before a batch norm
            assert name.endswith("bias")
            assert grad.abs().max() < 1e-6 * scale


def two_views(batch, frames, dtype=torch.float64, seed=2):
    g = Generator().manual_seed(seed)
    x = torch.randn(2, batch, 64, frames, generator=g, dtype=dtype)
    return x[0], 2 * x[1].cumsum(2) / 5 + 1  # statistics of the views differ


@pytest.mark.parametrize("name", ["audiontt", "vit", "vitc"])
@pytest.mark.parametrize("frames", [32, 40])
def test_both_views_at_once_equal_two_passes_of_the_plain_modules(name, frames):
    net = model(name, crop_frames=frames).double()
    compare(net, two_views(4, frames), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["vit", "vitc"])
@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("ratio", [0.0, 0.2, 0.75])
def test_a_masked_view_equals_the_plain_modules_and_leaves_the_other_whole(name, pool, ratio):
    encoder = model(name, pool=pool).double().encoder.eval()
    visible = draw_visible(4, 16, ratio, Generator().manual_seed(1))
    grid = encoder.stem(torch.cat(two_views(4, 32))[:, None]).detach().requires_grad_()
    parameters = [grid, encoder.cls, *encoder.blocks.parameters(), *encoder.norm.parameters()]

    def with_gradients(y):
        upstream = torch.randn(y.shape, generator=Generator().manual_seed(2)).double()
        return y, *torch.autograd.grad((y * upstream).sum(), parameters)

    plain = torch.cat([encoder.encode(grid[:4], visible), encoder.encode(grid[4:])])
    expected = with_gradients(plain)
    actual = with_gradients(vit.encode(encoder, grid, visible))
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-7)
    if ratio == 0:
        unmasked = with_gradients(vit.encode(encoder, grid))
        torch.testing.assert_close(actual, unmasked, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("channels", "frames"), [(16, 30), (12, 32), (4, 32)])
def test_sizes_that_the_kernels_do_not_cover_take_the_plain_layers(channels, frames):
    net = model("audiontt", channels=channels).double()
    views = two_views(4, frames)
    assert not audiontt.suits(net.encoder, torch.cat(views))
    compare(net, views, rtol=1e-6, atol=1e-7)


def test_patch_statistics_are_mean_and_covariance_of_all_patches_of_a_view():
    x = torch.randn(6, 5, 7, dtype=torch.float64)
    mean, covariance = audiontt.patch_statistics(x)
    padded = functional.pad(x, (1, 1, 1, 1))
    for view, items in enumerate(padded.chunk(2)):
        patches = torch.stack(
            [
                item[r : r + 3, c : c + 3].flatten()
                for item in items
                for r in range(5)
                for c in range(7)
            ]
        )
        torch.testing.assert_close(mean[view], patches.mean(0))
        torch.testing.assert_close(covariance[view], torch.cov(patches.T, correction=0))


def test_the_extreme_of_a_channel_with_negative_scale_is_its_minimum():
    x = torch.randn(2, 4, 4, 16)
    sign = torch.where(torch.arange(16) % 3 == 0, -1.0, 1.0)
    top, mean, variance = audiontt.pool_with_statistics(x, sign)
    for channel in range(16):
        block = x[1, 2:4, 0:2, channel]
        expected = block.min() if channel % 3 == 0 else block.max()
        assert top[1, 1, 0, channel] == expected
    torch.testing.assert_close(mean[1], x[1].mean((0, 1)))
    torch.testing.assert_close(variance[0], x[0].var((0, 1), correction=0))


def correlation_and_gradient(embed, net, views):
    net.zero_grad()
    c = cross_correlation(*embed(*views))
    sum(barlow_twins_loss(c, CONFIG.loss)).backward()
    return c, torch.cat([p.grad.flatten() for p in net.parameters() if p.ndim > 1])


@pytest.mark.parametrize("name", ["audiontt", "vitc"])
def test_bfloat16_agrees_with_plain_float32_as_well_as_plain_autocast_does(name):
    g = Generator().manual_seed(5)
    fade = torch.randn(128, 1, 1, generator=g) * torch.linspace(-1, 1, 32)
    sound = 2 * torch.randn(128, 64, 1, generator=g) + fade
    views = [sound + 0.3 * torch.randn(128, 64, 32, generator=g) for _ in range(2)]
    net = model(name, random_scales=False)
    fast = copy.deepcopy(net)
    expected = correlation_and_gradient(net, net, views)
    with torch.autocast("cpu", torch.bfloat16):
        plain = correlation_and_gradient(net, net, views)
        actual = correlation_and_gradient(
            lambda *v: embed_views(fast.encoder, fast.projector, *v), fast, views
        )
    assert actual[0].dtype == torch.float32
    for result, autocast, exact, limit in zip(actual, plain, expected, (0.03, 0.3), strict=True):
        assert relative(result, exact) < min(limit, 1.5 * relative(autocast, exact))


def relative(actual, expected):
    actual, expected = actual.detach().cpu().double(), expected.detach().cpu().double()
    return float((actual - expected).norm() / expected.norm())


def assert_equal_on_gpu(function, inputs, tolerance=1e-5, dtype=torch.float32):
    """Compare results and gradients of a function on the GPU with float64 on the CPU."""
    results = []
    for device, kind in (("cuda", dtype), ("cpu", torch.float64)):
        leaves = [x.to(dtype).to(device, kind).requires_grad_() for x in inputs]
        outputs = function(*leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        g = Generator().manual_seed(3)
        upstream = [torch.randn(o.shape, generator=g).to(device, o.dtype) for o in outputs]
        sum((o * u).sum() for o, u in zip(outputs, upstream, strict=True)).backward()
        results.append([*outputs, *(x.grad for x in leaves)])
    for actual, expected in zip(*results, strict=True):
        assert relative(actual, expected) < tolerance


@needs_gpu
@pytest.mark.parametrize("channels", [16, 64])
@pytest.mark.parametrize("frames", [32, 96, 100])
def test_kernels_of_audiontt_equal_their_definitions(channels, frames):
    g = Generator().manual_seed(0)
    x = torch.cat(two_views(16, frames, torch.float32))
    mean, covariance = audiontt.patch_statistics(x.cuda())
    expected_mean, expected_covariance = audiontt.patch_statistics(x.double())
    assert relative(mean, expected_mean) < 1e-5
    assert relative(covariance, expected_covariance) < 1e-5
    kernel = torch.randn(2, 16, channels, generator=g)
    kernel[:, 10:] = 0
    assert_equal_on_gpu(
        lambda k: audiontt.conv_relu_pool(x.to(k.device, k.dtype), k), [kernel], 1e-3
    )
    z = torch.randn(32, 16, frames // 4 * 2, channels, generator=g) + 3
    sign = torch.randn(channels, generator=g)
    assert_equal_on_gpu(lambda z: audiontt.pool_with_statistics(z, sign.to(z.device, z.dtype)), [z])


@needs_gpu
@pytest.mark.parametrize("tokens", [5, 13, 49, 97])
def test_kernels_of_vit_equal_their_definitions(tokens):
    def normal(*shape):
        return torch.randn(shape, generator=g)

    g = Generator().manual_seed(0)
    qkv = [normal(6, tokens, 3 * 192), normal(192), normal(192)]
    assert_equal_on_gpu(lambda *x: vit.attend(*x, 3), qkv, 1e-5)
    assert_equal_on_gpu(lambda *x: vit.attend(*x, 3), qkv[:1] + [q * 0 for q in qkv[1:]], 1e-2)
    inputs = [normal(6, tokens, 192) + 1, normal(6, tokens, 192), normal(192)]
    norm = torch.nn.LayerNorm(192, eps=1e-6)
    for p in norm.parameters():
        torch.nn.init.normal_(p)
    norms = {"cuda": copy.deepcopy(norm).cuda(), "cpu": norm.double()}
    assert_equal_on_gpu(lambda *x: vit.add_and_norm(*x, norms[x[0].device.type]), inputs)
    for on_gpu, on_cpu in zip(norms["cuda"].parameters(), norms["cpu"].parameters(), strict=True):
        assert relative(on_gpu.grad, on_cpu.grad) < 1e-5
    assert_equal_on_gpu(vit.gelu, [normal(6, tokens, 200), normal(200)])


def settings(name, batch_size=64, dropout=0.0):
    params = getattr(CONFIG.encoders, name)
    if name == "audiontt":
        params = params.model_copy(update={"dropout": dropout})
    sizes = {"hidden_dim": 1024, "out_dim": 128}
    run = {"batch_size": batch_size, "epochs": 5, "warmup_epochs": 0.5, "log_every": 1}
    return Settings(
        encoder_name=name,
        encoder=params,
        augment=CONFIG.augment,
        projector=CONFIG.projector.model_copy(update=sizes),
        loss=CONFIG.loss,
        pretrain=CONFIG.pretrain.model_copy(update=run),
    )


def features(clips=1024, frames=200):
    g = Generator().manual_seed(0)
    level = 3 * torch.randn(clips, 1, 64, generator=g)
    fade = torch.randn(clips, 1, 1, generator=g) * torch.linspace(-1, 1, frames)[:, None]
    log_mel = (level + fade + 0.5 * torch.randn(clips, frames, 64, generator=g)).half()
    start = torch.arange(clips + 1) * frames
    names = [str(i) for i in range(clips)]
    return Features(log_mel.flatten(0, 1), start, names, CONFIG.logmel, 0.0, float(log_mel.std()))


@pytest.fixture
def without_type_checks(request):
    if request.config.getoption("--jaxtyping-packages", None):
        pytest.skip("torch.compile cannot trace run-time type checks: run with -o addopts=''")


def trainer(name, fast, **changes):
    training = Trainer(settings(name, **changes), features(), torch.device("cuda"), fast=fast)
    torch.backends.cudnn.deterministic = True
    torch.manual_seed(0)
    training.model.train()
    return training


def train(training, steps):
    order = torch.randperm(1024, generator=Generator().manual_seed(1)).cuda()
    draw = torch.linspace(0, 0.99, 64).cuda()
    for step in range(steps):
        training.train_step(order.roll(-64 * step)[:64], draw)
    return training.history_table()["loss"]


@pytest.mark.slow
def test_compiled_bfloat16_agrees_with_plain_float32_on_a_cpu():
    """In a process of its own: torch.compile cannot trace the suite's run-time type checks."""
    script = Path(__file__).parent / "compiled_step.py"
    path = os.pathsep.join(str(folder) for folder in (script.parents[1], script.parent))
    scalar = {"TORCHINDUCTOR_VEC_ISA_OK": "0"}  # vector kernels take twice as long to compile
    done = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | scalar,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for line in done.stdout.splitlines():
        result = json.loads(line)
        assert result["graphs"] >= 1
        assert result["loss"] < 0.03, result
        assert result["gradient"] < 0.3, result  # as of plain modules under autocast


@needs_gpu
@pytest.mark.slow
@pytest.mark.parametrize("name", ["audiontt", "vitc"])
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("without_type_checks")
def test_compiled_bfloat16_agrees_with_plain_float32(name):
    fast, plain = trainer(name, True), trainer(name, False)
    losses = [train(training, 1) for training in (fast, plain)]  # at rate 0: the weights stay
    assert losses[0][0] == pytest.approx(losses[1][0], rel=0.02)
    grads = [
        {n: p.grad for n, p in training.model.named_parameters()} for training in (fast, plain)
    ]
    named = [n for n, grad in grads[0].items() if grad is not None]
    flat = [torch.cat([g[n].float().flatten() for n in named]) for g in grads]
    assert relative(*flat) < 0.3  # as of plain modules under autocast
    for (key, actual), expected in zip(
        fast.model.named_buffers(), plain.model.buffers(), strict=True
    ):
        assert relative(actual.float(), expected.float()) < 0.01, key
    curves = [train(training, 50)[1:] for training in (fast, plain)]
    for window in (slice(0, 10), slice(20, 30), slice(40, 50)):
        assert curves[0][window].mean() == pytest.approx(curves[1][window].mean(), rel=0.05)


@needs_gpu
@pytest.mark.slow
@pytest.mark.parametrize("name", ["audiontt", "vitc"])
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("without_type_checks")
def test_a_captured_run_equals_an_uncaptured_one_and_needs_no_more_memory_with_time(name):
    captured, uncaptured = trainer(name, True, dropout=0.3), trainer(name, True, dropout=0.3)
    uncaptured.updater.update = uncaptured.updater._update
    curve = train(captured, 20)
    random = torch.cuda.get_rng_state()
    memory = torch.cuda.memory_allocated()
    torch.manual_seed(0)
    assert list(curve) == list(train(uncaptured, 20))
    assert torch.equal(
        captured.updater.generator.get_state(), uncaptured.updater.generator.get_state()
    )
    assert torch.equal(random, torch.cuda.get_rng_state())
    state = uncaptured.model.state_dict()
    torch.testing.assert_close(captured.model.state_dict(), state, rtol=0, atol=0)
    del uncaptured, state
    torch.cuda.empty_cache()
    memory = torch.cuda.memory_allocated()
    train(captured, 300)
    assert torch.cuda.memory_allocated() <= memory + 2**20
