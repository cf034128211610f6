"""Run by test_fused in a process of its own: the compiled bfloat16 step against plain float32.

One line of JSON for each encoder: relative differences of loss and gradient, and the number of
graphs compiled. AudioNTT's are compiled to C++ if there is a compiler; ViT_C's are only traced, and
run by PyTorch's own kernels, since compiling a transformer takes minutes.
"""

import json
import shutil

import torch
from synthetic_training import trainer

from pipeline.encoders import vit

BACKENDS = {
    "audiontt": "inductor" if shutil.which("g++") else "aot_eager",
    "vitc": "aot_eager",
}


def loss_and_gradient(function, views, weights):
    """The loss of two views and its gradient, as one vector."""
    loss = sum(function(*views))
    grads = torch.autograd.grad(loss, weights)
    return loss.detach(), torch.cat([grad.flatten() for grad in grads])


torch.set_num_threads(1)
vit.DEPTH = 3  # its blocks are compiled one by one
for name, backend in BACKENDS.items():
    changes = {"encoder__dropout": 0.0} if name == "audiontt" else {}
    run = trainer(name, fast=False, pretrain__batch_size=32, **changes)
    run.model.train()
    clips = torch.arange(32)
    views = run.updater.views(run.loader.crops(clips, torch.linspace(0, 0.99, 32)), clips)
    weights = [p for p in run.model.parameters() if p.ndim > 1 and p.requires_grad]
    plain = loss_and_gradient(run.updater._loss, views, weights)
    run.updater.fast = run.updater.both_views_at_once = True
    counter = torch._dynamo.utils.counters["stats"]
    compiled = loss_and_gradient(torch.compile(run.updater._loss, backend=backend), views, weights)
    pairs = zip(compiled, plain, strict=True)
    loss, gradient = (float((a - b).norm() / b.norm()) for a, b in pairs)
    result = {"loss": loss, "gradient": gradient, "graphs": counter["unique_graphs"]}
    print(json.dumps(result))  # noqa: T201
