"""A training loop that resumes: several processes that average gradients, a running mean of the weights, a log.

A task is a module and its loss. The seed of a batch is made of the recipe's seed, the step and the process's rank, so a
resumed training sees the same batches as an uninterrupted one.

A training's folder holds `recipe.json`, `state.pt` (weights, optimizer, progress), `log.jsonl`, and
`weights.safetensors`: the running mean of the weights in float16, with the progress. It is a sixth of `state.pt`, and a
training whose `state.pt` is gone resumes from it.
"""

from __future__ import annotations

import copy
import json
import math
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from sgi2v.errors import ConfigError

RECIPE_FILE = "recipe.json"
STATE_FILE = "state.pt"
WEIGHTS_FILE = "weights.safetensors"
LOG_FILE = "log.jsonl"
PROGRESS_KEY = "progress"
"""Name of the progress in the metadata of `weights.safetensors`."""
SAVE_EVERY_S = 30.0
LOG_EVERY_S = 20.0


@dataclass(frozen=True)
class Recipe:
    """How a module is trained."""

    samples: int
    """Samples of the whole training. At their end the learning rate is zero."""
    batch: int
    """Samples per update, over all processes."""
    learning_rate: float
    warm_up: int = 200
    """Updates over which the learning rate rises to its full value."""
    decay: float = 0.4
    """Share of the samples, at the end, over which the learning rate falls along a cosine."""
    weight_decay: float = 0.01
    ema_half_life: float = 0.05
    """Half-life of the running mean of the weights, as a share of the samples seen so far."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon`: Muon (Jordan et al. 2024) for the inner weight matrices, AdamW for all else. `adamw`: AdamW for all."""
    seed: int = 1

    def rate_at(self, samples: float) -> float:
        """The learning rate after this many samples."""
        rise = min(1.0, (samples / self.batch + 1) / self.warm_up)
        left = max(0.0, 1 - samples / self.samples) / self.decay
        return self.learning_rate * rise * (0.5 - 0.5 * math.cos(math.pi * min(1.0, left)))


class Task(Protocol):
    """A module to train, and its loss."""

    module: nn.Module

    def loss(self, batch: int, seed: tuple[int, ...]) -> tuple[Tensor, dict[str, float]]:
        """The loss of one batch, drawn from the seed, and figures for the log."""


class Optimizer:
    """The recipe's optimizer. With Muon, AdamW updates biases, normalisations, embeddings, first and last layers."""

    def __init__(self, module: nn.Module, recipe: Recipe) -> None:
        named = dict(module.named_parameters())
        self.parameters = list(named.values())
        with_muon = recipe.optimizer == "muon"
        inner = {name for name, value in named.items() if with_muon and value.ndim >= 2 and not _is_outer(name)}
        self.inner = [value for name, value in named.items() if name in inner]
        others = [value for name, value in named.items() if name not in inner]
        adamw = torch.optim.AdamW(others, lr=0.0, betas=(0.9, 0.98), weight_decay=recipe.weight_decay)
        self.parts: dict[str, torch.optim.Optimizer] = {"adamw": adamw}
        # Muon accepts only matrices: a convolution's kernel becomes outputs x (inputs x height x width)
        self.matrices = [nn.Parameter(value.detach().flatten(1)) for value in self.inner]
        if with_muon:
            decay = recipe.weight_decay
            self.parts["muon"] = torch.optim.Muon(
                self.matrices, lr=0.0, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
            )

    def step(self, learning_rate: float) -> None:
        """Update the module with its gradients, then clear them."""
        for matrix, parameter in zip(self.matrices, self.inner, strict=True):
            matrix.grad = None if parameter.grad is None else parameter.grad.flatten(1)
        for part in self.parts.values():
            for group in part.param_groups:
                group["lr"] = learning_rate
            part.step()
        for parameter in (*self.parameters, *self.matrices):
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """State to save, so that the training can resume."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state."""
        for name, part in self.parts.items():
            part.load_state_dict(state[name])


def _is_outer(name: str) -> bool:
    """Whether a parameter belongs to a first or last layer, or to an embedding."""
    return any(part in name for part in ("conv_in", "conv_out", "quant_conv", "embed", "mix_factor"))


@dataclass
class Progress:
    """Samples seen and seconds spent by a training."""

    samples: int = 0
    seconds: float = 0.0


def fit(
    make_task: Callable[[torch.device], Task],
    recipe: Recipe,
    folder: Path,
    processes: int | None = None,
    limit_s: float | None = None,
) -> None:
    """Train to the end of the recipe, and resume if `folder` has a saved state.

    make_task: called in each process. processes: None is one per CPU core, or one on CUDA. limit_s: seconds after which
    to stop if the recipe has not ended; the learning rate then falls to zero by then, as at the end of the recipe.
    Raises ConfigError if the folder has a training with another recipe.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _check_recipe(recipe, folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    in_processes(train_worker, (port, make_task, recipe, folder, limit_s), processes)


def in_processes(work: Callable[..., None], arguments: tuple[Any, ...], processes: int | None = None) -> None:
    """Call work(rank, count, *arguments) in `count` processes.

    processes: None is one per CPU core. On CUDA it is always one.
    """
    count = 1 if torch.cuda.is_available() else processes or len(os.sched_getaffinity(0))
    spawn(_work_and_exit, (work, count, *arguments), nprocs=count)  # type: ignore[no-untyped-call]


def _work_and_exit(rank: int, work: Callable[..., None], count: int, *arguments: Any) -> None:
    """Exit without cleanup: a thread of Gloo may still run, and would abort the process."""
    work(rank, count, *arguments)
    sys.stdout.flush()
    os._exit(0)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device has arithmetic in bfloat16. One without it takes many times as long as in float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16"))


def print_progress(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)  # noqa: T201


def load_trained(module: nn.Module, folder: Path) -> Progress:
    """Load the running mean of the weights from a training's folder into `module`."""
    state = torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)
    module.load_state_dict(state["ema"])
    return Progress(**state["progress"])


def _check_recipe(recipe: Recipe, folder: Path) -> None:
    file = folder / RECIPE_FILE
    now = json.dumps(asdict(recipe), indent=2) + "\n"
    if file.exists() and file.read_text() != now:
        raise ConfigError(f"{file} has another recipe than\n{now}Train in another folder, or remove {folder}")
    file.write_text(now)


def train_worker(
    rank: int,
    count: int,
    port: int,
    make_task: Callable[[torch.device], Task],
    recipe: Recipe,
    folder: Path,
    limit_s: float | None = None,
) -> None:
    """One process of a training."""
    torch.set_num_threads(1)
    if count > 1:
        dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=count)
    torch.manual_seed(recipe.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    task = make_task(device)
    module = task.module
    optimizer = Optimizer(module, recipe)
    ema = copy.deepcopy(module).requires_grad_(False)
    progress = _resume(folder, module, ema, optimizer, device)
    begun = saved = time.monotonic()
    started, logged = begun - progress.seconds, 0.0
    share = 0.0  # of the time limit
    sums: dict[str, list[float]] = {}
    parent = os.getppid()
    while progress.samples < recipe.samples and share < 1:
        if os.getppid() != parent:
            return  # the parent has died
        seed = (recipe.seed, progress.samples // recipe.batch, rank)
        loss, figures = task.loss(recipe.batch // count, seed)
        loss.backward()  # type: ignore[no-untyped-call]
        _average_gradients(module, count)
        norm = float(nn.utils.clip_grad_norm_(module.parameters(), 1.0))
        optimizer.step(recipe.rate_at(max(progress.samples, share * recipe.samples)))
        progress.samples += recipe.batch
        progress.seconds = time.monotonic() - started
        _update_ema(ema, module, 0.5 ** (recipe.batch / max(1.0, recipe.ema_half_life * progress.samples)))
        for name, value in {"loss": float(loss.detach()), "norm": norm, **figures}.items():
            sums.setdefault(name, []).append(value)
        share = 0.0 if limit_s is None else _slowest(time.monotonic() - begun, count) / limit_s
        is_last = progress.samples >= recipe.samples or share >= 1
        if rank == 0 and (is_last or time.monotonic() - logged > LOG_EVERY_S):
            _log(folder, progress, recipe, sums)
            sums, logged = {}, time.monotonic()
        if rank == 0 and (is_last or time.monotonic() - saved > SAVE_EVERY_S):
            _save(folder, module, ema, optimizer, progress)
            saved = time.monotonic()
    if count > 1:
        dist.destroy_process_group()


def _resume(folder: Path, module: nn.Module, ema: nn.Module, optimizer: Optimizer, device: torch.device) -> Progress:
    if not (folder / STATE_FILE).exists():
        return _resume_from_weights(folder / WEIGHTS_FILE, module, ema)
    state = torch.load(folder / STATE_FILE, map_location=device, weights_only=True)
    module.load_state_dict(state["module"])
    ema.load_state_dict(state["ema"])
    optimizer.load_state_dict(state["optimizer"])
    return Progress(**state["progress"])


def _resume_from_weights(file: Path, module: nn.Module, ema: nn.Module) -> Progress:
    if not file.exists():
        return Progress()
    for part in (module, ema):
        part.load_state_dict(load_file(file))
    return read_progress(file)


def read_progress(file: Path) -> Progress:
    """The progress in a file of weights."""
    with safe_open(file, framework="pt") as opened:
        return Progress(**json.loads(opened.metadata()[PROGRESS_KEY]))


def write_weights(file: Path, weights: Mapping[str, Tensor], progress: Progress) -> None:
    """Write weights in float16, from which a training can resume or begin. A reader never sees a part of them."""
    halves = {name: value.detach().to("cpu", torch.float16).contiguous() for name, value in weights.items()}
    partial = file.with_suffix(".partial")
    partial.write_bytes(save(halves, {"format": "pt", PROGRESS_KEY: json.dumps(asdict(progress))}))
    partial.replace(file)


def _save(folder: Path, module: nn.Module, ema: nn.Module, optimizer: Optimizer, progress: Progress) -> None:
    state: dict[str, Any] = {
        "module": module.state_dict(),
        "ema": ema.state_dict(),
        "optimizer": optimizer.state_dict(),
        "progress": asdict(progress),
    }
    partial = folder / f"{STATE_FILE}.partial"
    torch.save(state, partial)
    partial.replace(folder / STATE_FILE)
    write_weights(folder / WEIGHTS_FILE, ema.state_dict(), progress)


def _log(folder: Path, progress: Progress, recipe: Recipe, sums: dict[str, list[float]]) -> None:
    means = {name: round(math.fsum(values) / len(values), 5) for name, values in sums.items()}
    line = {"samples": progress.samples, "seconds": round(progress.seconds), **means}
    with (folder / LOG_FILE).open("a") as log:
        log.write(json.dumps(line) + "\n")
    rate = progress.samples / progress.seconds
    left = (recipe.samples - progress.samples) / rate / 60
    figures = ", ".join(f"{name} {value:.4f}" for name, value in means.items())
    print_progress(f"{progress.samples} of {recipe.samples} samples, {rate:.1f}/s, {left:.0f} min left: {figures}")


def _slowest(seconds: float, count: int) -> float:
    """The largest of all processes' values, so that they all stop after the same update."""
    if count == 1:
        return seconds
    slowest = torch.tensor(seconds, dtype=torch.float64)
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    return float(slowest)


def _average_gradients(module: nn.Module, count: int) -> None:
    if count == 1:
        return
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    at = 0
    for gradient in gradients:
        gradient.copy_(flat[at : at + gradient.numel()].view_as(gradient) / count)
        at += gradient.numel()


def _update_ema(ema: nn.Module, module: nn.Module, decay: float) -> None:
    update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    update(list(ema.parameters()), list(module.parameters()), 0)
