"""The two views: Mixup, noise, random resize crop, random linear fader (paper sections 2.1, C.1).

Everything works on batches [B, F, T] of normalized log-mels (standard deviations of the dataset)
on the training device, with an explicit generator; each item and each view is drawn separately.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from pipeline.pretrain.distributed import global_moments
from pipeline.pretrain.params import AugmentParams

EPSILON = torch.finfo(torch.float32).eps
CUBIC_A = -0.75  # of the bicubic kernel, as in torch.nn.functional.interpolate


class Views:
    """Draws two views of each crop; holds the bank of earlier crops for Mixup."""

    def __init__(
        self, params: AugmentParams, n_mels: int, frames: int, generator: Generator
    ) -> None:
        self.params = params
        self.generator = generator
        self.uses_bank = params.mixup and params.mixup_background == "bank"
        entries = params.mixup_bank if self.uses_bank else 0
        device = generator.device
        self.bank = torch.zeros(entries, n_mels, frames, device=device)
        self.bank_clip = torch.full((entries,), -1, device=device)  # -1: empty
        self.bank_next = torch.zeros((), dtype=torch.long, device=device)

    def __call__(
        self, x: Float[Tensor, "B F T"], clip: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B F T"], Float[Tensor, "B F T"]]:
        """Return two views of each crop; `clip` holds the number of each crop's clip."""
        if self.params.pre_post_norm:
            x = standardize(x)
        views = self._view(x, clip)
        if self.params.pre_post_norm:
            views = standardize(views)
        if self.uses_bank:
            self._store(x, clip)
        view_1, view_2 = views.chunk(2)
        return view_1, view_2

    def state_dict(self) -> dict[str, Tensor]:
        """Return the bank's tensors themselves, which later calls change."""
        return {"bank": self.bank, "bank_clip": self.bank_clip, "bank_next": self.bank_next}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copy a saved bank into this one's tensors, which stay in place.

        Raises:
            ValueError: the bank has another size.
        """
        for name, tensor in self.state_dict().items():
            if tensor.shape != state[name].shape:
                raise ValueError(
                    f"{name} of the saved views has shape {[*state[name].shape]}, expected "
                    f"{[*tensor.shape]}: augment.mixup_bank or the size of the crops differs."
                )
            tensor.copy_(state[name])

    def _view(self, x: Float[Tensor, "B F T"], clip: Int[Tensor, " B"]) -> Float[Tensor, "V F T"]:
        """Return both views, concatenated along the batch."""
        p, generator = self.params, self.generator
        view = x.repeat(2, 1, 1)
        if p.mixup:
            weight = p.mixup_alpha * torch.rand(len(view), generator=generator, device=x.device)
            crops, crop_clip = (self.bank, self.bank_clip) if self.uses_bank else (x, clip)
            entry, exists = self._draw_background(clip.repeat(2), crop_clip)
            view = mixup(view, crops[entry], weight * exists)
        if p.noise == "additive":
            view = view + draw_noise(view, p.noise_max, generator)[1]
        if p.noise == "reference":
            view = mix_noise(view, *draw_noise(view, p.noise_max, generator))
        if p.rrc:
            view = random_resize_crop(view, p, generator)
        if p.rlf:
            view = random_linear_fader(view, p.rlf_gain, generator)
        return view

    def _draw_background(
        self, clip: Int[Tensor, " V"], crop_clip: Int[Tensor, " crops"]
    ) -> tuple[Int[Tensor, " V"], Bool[Tensor, " V"]]:
        """Draw a crop of another clip for each item, and return whether there is one."""
        allowed = (crop_clip >= 0) & (crop_clip != clip[:, None])  # [V, crops]
        order = torch.rand(allowed.shape, generator=self.generator, device=clip.device)
        best = order.masked_fill(~allowed, -1.0).max(dim=1)
        return best.indices, best.values >= 0

    def _store(self, x: Tensor, clip: Tensor) -> None:
        """Put the unmixed crops into the bank, in place of the oldest."""
        x, clip = x[-len(self.bank) :], clip[-len(self.bank) :]
        slots = (self.bank_next + torch.arange(len(x), device=x.device)) % len(self.bank)
        self.bank[slots] = x
        self.bank_clip[slots] = clip
        self.bank_next.add_(len(x)).remainder_(len(self.bank))


def standardize(x: Float[Tensor, "B F T"]) -> Float[Tensor, "B F T"]:
    """Return x with mean 0 and standard deviation 1 over the values of all processes.

    The normalization by the dataset before makes no difference. Equal values become 0.
    """
    variance, mean = torch.var_mean(x, correction=0)
    mean, variance = global_moments(mean, variance)
    return (x - mean) / variance.sqrt().clamp_min(EPSILON)


def mixup(
    x: Float[Tensor, "B F T"], background: Float[Tensor, "B F T"], weight: Float[Tensor, " B"]
) -> Float[Tensor, "B F T"]:
    """Mix in the linear domain: log((1 - weight) exp(x) + weight exp(background) + eps).

    The exponential is that of the normalized log-mel, as in BYOL-A and the paper. Items of weight 0
    are returned unchanged.
    """
    w = weight[:, None, None]
    mixed = ((1 - w) * x.exp() + w * background.exp() + EPSILON).log()
    return torch.where(w > 0, mixed, x)


def draw_noise(
    x: Float[Tensor, "B F T"], noise_max: float, generator: Generator
) -> tuple[Float[Tensor, " B"], Float[Tensor, "B F T"]]:
    """Draw for each item s ~ U(0, noise_max) and noise of standard deviation s."""
    s = noise_max * torch.rand(len(x), generator=generator, device=x.device)
    noise = torch.randn(x.shape, generator=generator, device=x.device)
    return s, s[:, None, None] * noise


def mix_noise(
    x: Float[Tensor, "B F T"], s: Float[Tensor, " B"], noise: Float[Tensor, "B F T"]
) -> Float[Tensor, "B F T"]:
    """Mix noise in as the authors' code does: log((1 - s) exp(x) + exp(noise) + eps).

    The noise has full weight, which compresses x and leaves hardly any values below 0.
    """
    return ((1 - s[:, None, None]) * x.exp() + noise.exp() + EPSILON).log()


def random_resize_crop(
    x: Float[Tensor, "B F T"], params: AugmentParams, generator: Generator
) -> Float[Tensor, "B F T"]:
    """Cut a random box out of a canvas of zeros around x and resize it to x's size, bicubically.

    Zero is the dataset's mean level. Along each axis, the box's size is uniform in the range of
    scales times the input's size, limited by the canvas; its position is uniform.
    """
    mel_weights, frame_weights = (
        resize_weights(*_draw_box(len(x), size, canvas, scales, generator), size, canvas)
        for size, canvas, scales in (
            (x.shape[1], int(params.rrc_canvas_mels * x.shape[1]), params.rrc_mel_scale),
            (x.shape[2], int(params.rrc_canvas_frames * x.shape[2]), params.rrc_frame_scale),
        )
    )
    return mel_weights @ x @ frame_weights.transpose(1, 2)


def _draw_box(
    batch: int, size: int, canvas: int, scales: list[float], generator: Generator
) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"]]:
    """Draw the box along one axis of the canvas: first position and length for each item."""
    scale, position = torch.rand(2, batch, generator=generator, device=generator.device)
    low, high = scales
    length = ((low + (high - low) * scale) * size).long().clamp(1, canvas)
    start = (position * (canvas - length + 1)).long().clamp_max(canvas - length)
    return start, length


def resize_weights(
    start: Int[Tensor, " B"], length: Int[Tensor, " B"], size: int, canvas: int
) -> Float[Tensor, "B size size"]:
    """Return matrices that crop [start, start + length) of a canvas and resize it to `size`.

    Row o holds the input's weights for output o: the bicubic kernel of
    `interpolate(mode="bicubic", align_corners=True)`, with taps clamped to the crop. Taps on the
    canvas around the input, which is zero, have no column.
    """
    output = torch.arange(size, device=start.device)
    position = output * ((length[:, None] - 1) / max(size - 1, 1))  # [B, size], inside the crop
    base = position.floor()
    taps = base.long()[..., None] + torch.arange(-1, 3, device=start.device)  # [B, size, 4]
    taps = torch.minimum(taps.clamp_min(0), (length - 1)[:, None, None])
    column = start[:, None, None] + taps - (canvas - size) // 2
    values = _cubic_weights(position - base)
    weights = torch.zeros(len(start), size, size, device=start.device)
    for tap in range(4):  # added rather than scattered, to fix the order of the sum
        weights = weights + values[..., tap, None] * (column[..., tap, None] == output)
    return weights


def _cubic_weights(t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape 4"]:
    """Return the weights of the taps at -1, 0, 1, 2 for positions t in [0, 1) (Keys 1981)."""
    distance = torch.stack([1 + t, t, 1 - t, 2 - t], dim=-1)
    near = ((CUBIC_A + 2) * distance - (CUBIC_A + 3)) * distance**2 + 1
    far = CUBIC_A * (((distance - 5) * distance + 8) * distance - 4)
    return torch.where(distance <= 1, near, far)


def random_linear_fader(
    x: Float[Tensor, "B F T"], gain: float, generator: Generator
) -> Float[Tensor, "B F T"]:
    """Add a straight line over time, its ends drawn from U(-gain, gain): a fade in or out."""
    ends = gain * (2 * torch.rand(2, len(x), 1, 1, generator=generator, device=x.device) - 1)
    return x + torch.lerp(ends[0], ends[1], torch.linspace(0, 1, x.shape[2], device=x.device))
