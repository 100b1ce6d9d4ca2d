"""Phase cores: small modules of coupled oscillators that change a stream of vectors inside a base model.

    phase_block   per channel: θ₀ = π tanh(W_e x), S steps of θ' = ω_i + Σ_j K_ij sin(θ_j - θ_i), K = k U Vᵀ
    hook          N phases: φ' = 0.1 π tanh(W_p x) / dt + ω + K Im(Z e^{-iφ}), x (1 + 0.1 tanh(W_m sin φ))
    logits        the hook core between two projections, V -> width -> V
    carried       G Kuramoto populations z = R e^{iψ}, driven by the token (populations.py), read out, added

All are called `core(x, phases, resets, lengths, key) -> x, phases, trace`: what an earlier call left, where
documents begin, how long rows are, and the key of the noise. `legacy = True` is what was published, defects
included; without it a core starts as (almost) the identity, is causal, keeps rows apart, does the same in
training and in evaluation, and carries its phases in the cache. fp32, whatever the base model's weights are.

`knobs` are arrays [] that controllers turn between steps and that no gradient moves. `buffers` are arrays
that a call in training replaces for the next one: a step takes them from its state and leaves them there, so
they are the same compiled, resumed and in pieces.

Source: templetwo/liminal-k-ssm at 9344550, legacy/experiments: phase_block.py, phase_mamba_coupled.py,
phase_rwkv_coupled.py, phase_rwkv_simplified.py.
"""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn

from kssm_mlx.models.layers import linear
from kssm_mlx.models.populations import Populations
from kssm_mlx.ops.kuramoto_bank import TWO_PI, wrap_phases
from kssm_mlx.ops.norms import layer_norm, rms_norm
from kssm_mlx.oscillators.order import coherence, modulus, order_parameter
from kssm_mlx.oscillators.planar import Planar


class PhaseCore(nn.Module):
    """knobs, buffers: names of frozen arrays. carries: whether the phases go from token to token."""

    knobs: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()
    carries = False
    sigma: mx.array  # of a core that draws noise; one of its knobs
    no_decay = ("omega", "bias", "gate", "log_gamma", "time_step.weight")

    def turn_into_knobs(self, **values: float) -> None:
        """Frozen arrays of these values."""
        for name, value in values.items():
            setattr(self, name, mx.array(value))
        self.freeze(keys=list(values), recurse=False)

    def noise(self, shape: tuple[int, ...], key: mx.array | None) -> mx.array | float:
        """σ times a standard normal in training, nothing in evaluation."""
        return self.sigma * mx.random.normal(shape, key=key) if self.training else 0.0


class PhaseBlock(PhaseCore):
    """One phase per channel, computed anew from every token; it multiplies the channel by its cosine.

    Legacy: phases are clipped to ±2π, which breaks their period; what comes out is standardised over the
    channels, so the block is far from the identity; k_scale and dt are trained, so what a controller sets is
    overwritten by the next update.
    """

    def __init__(self, config, width: int, key: mx.array):
        super().__init__()
        keys = mx.random.split(key, 6)
        self.encoder, self.gain, self.shift = (linear(k, width, width, bias=True) for k in keys[:3])
        self.omega = 0.01 * mx.random.normal((width,), key=keys[3])
        self.U = 0.01 * mx.random.normal((width, config.rank), key=keys[4])
        self.V = 0.01 * mx.random.normal((width, config.rank), key=keys[5])
        self.turn_into_knobs(sigma=config.sigma)
        if config.legacy:
            self.k_scale, self.dt = mx.array(config.k_scale), mx.array(config.dt)
        else:
            self.turn_into_knobs(k_scale=config.k_scale)
            self.dt = config.dt
            self.gate = mx.array(0.01)  # the identity but for a hundredth
        self._steps, self._legacy = config.steps, config.legacy

    @property
    def knobs(self) -> tuple[str, ...]:
        return ("sigma",) if self._legacy else ("k_scale", "sigma")

    def __call__(self, x, phases, resets, lengths, key):
        u = x.astype(mx.float32)
        theta = self.relax_phases(math.pi * mx.tanh(self.encoder(u)), key)
        y = u * mx.cos(theta) * mx.sigmoid(self.gain(u)) + 0.01 * mx.tanh(self.shift(u))
        y = layer_norm(y, None, None, 1e-5) if self._legacy else u + self.gate * (y - u)
        return y.astype(x.dtype), None, {"R": coherence(theta)[..., None], "theta": theta}

    def relax_phases(self, theta: mx.array, key: mx.array | None) -> mx.array:
        """The phases after S steps. Shapes: theta [B, T, D]."""
        keys = [None] * self._steps if key is None else mx.random.split(key, self._steps)
        for k in keys:
            pull = self.k_scale * compute_pull(theta, self.U, self.V)
            theta = self.step_phases(theta, self.omega, pull, self.dt, self.noise(theta.shape, k))
        return theta

    def step_phases(self, theta, omega, pull, dt, noise: mx.array | float = 0.0) -> mx.array:
        theta = theta + dt * (omega + mx.clip(pull, -10, 10)) + noise
        return mx.clip(theta, -TWO_PI, TWO_PI) if self._legacy else wrap_phases(theta)

    def oscillator_step(self, theta, omega, K, dt) -> mx.array:
        """A step with all pairs coupled alike, K / N, in place of the learned matrix."""
        alike = mx.full((theta.shape[-1], 1), theta.shape[-1] ** -0.5)
        return self.step_phases(theta, omega, K * compute_pull(theta, alike, alike), dt)


def compute_pull(theta: mx.array, U: mx.array, V: mx.array) -> mx.array:
    """Σ_j (U Vᵀ)_ij sin(θ_j - θ_i), without the N x N matrix. Shapes: theta [..., N]; U, V [N, rank]."""
    sin, cos = mx.sin(theta), mx.cos(theta)
    return cos * (sin @ V @ U.T) - sin * (cos @ V @ U.T)


class HookCore(PhaseCore):
    """N phases that the tokens push and that scale the channels by at most a tenth.

    Legacy: one push from the mean over batch and time, so rows and times see each other; phases in a buffer,
    so calls see each other, and R drifts whatever is read; `acts` "in training", which leaves the model as it
    was in evaluation, or "never", which returns what came in. Evaluation reads the buffer and leaves it.
    """

    knobs = ("K", "sigma")

    def __init__(self, config, width: int, key: mx.array, acts: str = "always"):
        super().__init__()
        N, keys = config.oscillators, mx.random.split(key, 3)
        self.omega = 0.01 * mx.random.normal((N,), key=keys[0])
        self.encoder = linear(keys[1], width, N, bias=True)
        # Repaired, the gains start within a hundredth of 1.
        self.modulator = linear(keys[2], N, width, bias=True, std=None if config.legacy else 0.1 * N**-0.5)
        self.turn_into_knobs(K=config.K, sigma=config.sigma)
        self._dt, self._acts, self._legacy = config.dt, acts, config.legacy
        # Equal phases would be R = 1 by construction; spread evenly, R = 0.
        self._start = TWO_PI * mx.arange(N) / N - math.pi
        self.carries = not config.legacy
        if config.legacy:
            self.phases = mx.zeros((N,))
            self.freeze(keys=["phases"], recurse=False)

    @property
    def buffers(self) -> tuple[str, ...]:
        return ("phases",) if self._legacy else ()

    def __call__(self, x, phases, resets, lengths, key):
        u = x.astype(mx.float32)
        if self._legacy:
            theta = self.pool_phases(u, key)
        else:
            theta = self.walk(self.push(u, key), phases, resets, lengths)
        trace = {"R": coherence(theta)[..., None], "theta": theta}
        y = u * (1 + 0.1 * mx.tanh(self.modulator(mx.sin(theta))))
        acts = self._acts == "always" or (self._acts == "in training" and self.training)
        return (y.astype(x.dtype) if acts else x), None if self._legacy else theta[:, -1], trace

    def push(self, u: mx.array, key: mx.array | None) -> mx.array:
        push = 0.1 * math.pi * mx.tanh(self.encoder(u))
        return push + self.noise(push.shape, key)

    def pool_phases(self, u: mx.array, key: mx.array | None) -> mx.array:
        """The legacy phases of a call, the same everywhere, which the next call in training goes on from."""
        theta = self.step(self.phases + self.push(u.mean((0, 1), keepdims=True), key)[0, 0])
        if self.training:
            self.phases = mx.stop_gradient(theta)
        return mx.broadcast_to(theta, (*u.shape[:2], theta.size))

    def walk(self, push: mx.array, phases, resets, lengths) -> mx.array:
        """Phases after every token. Shapes: push [B, T, N], phases [B, N] or None -> [B, T, N]."""
        B, T, N = push.shape
        theta, path = mx.broadcast_to(self._start, (B, N)) if phases is None else phases, []
        for t in range(T):
            begun = theta if resets is None else mx.where(resets[:, t, None], self._start, theta)
            moved = self.step(begun + push[:, t])
            theta = moved if lengths is None else mx.where(t < lengths[:, None], moved, theta)
            path.append(theta)
        return mx.stack(path, axis=1)

    def step(self, theta: mx.array) -> mx.array:
        return self.oscillator_step(theta, self.omega, self.K, self._dt)

    def oscillator_step(self, theta, omega, K, dt) -> mx.array:
        """θ + dt (ω + K Im(Z e^{-iθ})), wrapped: all pairs coupled through their mean."""
        x, y = (z[..., None] for z in order_parameter(theta))
        return wrap_phases(theta + dt * (omega + K * (y * mx.cos(theta) - x * mx.sin(theta))))


class LogitCore(PhaseCore):
    """The hook core on the logits, seen through `width` channels.

    Repaired, it adds to the logits, nothing at the start. Legacy, it replaces them.
    """

    def __init__(self, config, width: int, key: mx.array):
        super().__init__()
        k_down, k_core, k_up = mx.random.split(key, 3)
        self.down = linear(k_down, width, config.width, bias=True)
        self.core = HookCore(config, config.width, k_core)
        self.up = linear(k_up, config.width, width, bias=True, std=None if config.legacy else 0.0)
        self.carries, self._legacy = self.core.carries, config.legacy

    @property
    def knobs(self) -> tuple[str, ...]:
        return tuple(f"core.{name}" for name in self.core.knobs)

    @property
    def buffers(self) -> tuple[str, ...]:
        return tuple(f"core.{name}" for name in self.core.buffers)

    @property
    def oscillator_step(self):
        return self.core.oscillator_step

    def __call__(self, x, phases, resets, lengths, key):
        y, phases, trace = self.core(self.down(x.astype(mx.float32)), phases, resets, lengths, key)
        y = self.up(y)
        return (y if self._legacy else x + y).astype(x.dtype), phases, trace


class CarriedCore(PhaseCore):
    """Kuramoto populations whose phase and coherence are recurrent state: one token, one step.

    Each turns at its own frequency, forgets at its own rate (its spread of frequencies, learned), and is
    pulled by a field that the token sets. k_scale is the coupling to that field: 0 leaves the populations
    alone and incoherent. The state is scanned in parallel over time (ops/mobius_scan.py).
    """

    knobs = ("k_scale",)
    carries = True

    def __init__(self, config, width: int, key: mx.array):
        super().__init__()
        G, (k_populations, k_readout) = config.groups, mx.random.split(key)
        self.populations = Populations(
            k_populations, width, G, memory=config.memory, kappa=1.0, leaf="kick", coupled=False
        )
        # Zero: the base model is unchanged at the start, to the bit.
        self.readout = linear(k_readout, 2 * G * config.harmonics, width, std=0.0)
        self.turn_into_knobs(k_scale=config.k_scale)
        self._harmonics = config.harmonics

    def __call__(self, x, phases, resets, lengths, key):
        u = rms_norm(x.astype(mx.float32), None, 1e-6)
        h, dt = self.populations.drive(u, None)
        valid = None if lengths is None else mx.arange(x.shape[1])[None] < lengths[:, None]
        before = None if phases is None else Planar(phases[:, 0], phases[:, 1])
        z = self.populations.evolve(h * self.k_scale, dt, before, (), resets, valid)
        powers = [z**n for n in range(1, self._harmonics + 1)]
        features = mx.concatenate([part for p in powers for part in (p.re, p.im)], axis=-1)
        trace = {"R": modulus(z.re, z.im), "psi": mx.arctan2(z.im, z.re), "dt": dt}
        carried = mx.stack([z.re[:, -1], z.im[:, -1]], axis=1)
        return x + self.readout(features).astype(x.dtype), carried, trace
