"""Training that goes on from what it saved: processes that average gradients, a running mean of weights, a log.

A task is a module and its loss. Each process draws its own batches from a seed of its own, its rank's and its step's,
so a run that was interrupted goes on with the batches that it would have seen.
"""

from __future__ import annotations

import copy
import json
import math
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from sgi2v.errors import ConfigError

STATE_FILE = "state.pt"
LOG_FILE = "log.jsonl"
SAVE_EVERY_S = 120.0
LOG_EVERY_S = 20.0


@dataclass(frozen=True)
class Recipe:
    """How a module is trained."""

    samples: int
    """Seen in all; the learning rate falls to zero at their end."""
    batch: int
    """Samples per update, over all processes."""
    learning_rate: float
    warm_up: int = 200
    """Updates over which the learning rate rises."""
    decay: float = 0.4
    """The last share of the samples, over which the learning rate falls along a cosine."""
    weight_decay: float = 0.01
    ema_half_life: float = 0.05
    """Of the running mean of the weights, as a share of the samples seen so far."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """Muon (Jordan et al. 2024) for what multiplies, AdamW for the rest; or AdamW for all."""
    seed: int = 1

    def rate_at(self, samples: int) -> float:
        """The learning rate after this many samples."""
        rise = min(1.0, (samples / self.batch + 1) / self.warm_up)
        left = max(0.0, 1 - samples / self.samples) / self.decay
        return self.learning_rate * rise * (0.5 - 0.5 * math.cos(math.pi * min(1.0, left)))


class Task(Protocol):
    """What is trained."""

    module: nn.Module

    def loss(self, batch: int, seed: tuple[int, ...]) -> tuple[Tensor, dict[str, float]]:
        """The loss of one batch, drawn from the seed, and figures for the log."""


class Optimizer:
    """As the recipe says; with Muon, AdamW has biases, normalisations, embeddings, the first and the last layer."""

    def __init__(self, module: nn.Module, recipe: Recipe) -> None:
        named = dict(module.named_parameters())
        self.parameters = list(named.values())
        with_muon = recipe.optimizer == "muon"
        self.hidden = [each for name, each in named.items() if with_muon and each.ndim >= 2 and not _is_outer(name)]
        hidden = {id(each) for each in self.hidden}
        others = [each for each in self.parameters if id(each) not in hidden]
        adamw = torch.optim.AdamW(others, lr=0.0, betas=(0.9, 0.98), weight_decay=recipe.weight_decay)
        self.parts: dict[str, torch.optim.Optimizer] = {"adamw": adamw}
        # Muon takes matrices alone: a convolution's kernel is its outputs by all that each is made of
        self.matrices = [nn.Parameter(each.detach().flatten(1)) for each in self.hidden]
        if with_muon:
            decay = recipe.weight_decay
            self.parts["muon"] = torch.optim.Muon(
                self.matrices, lr=0.0, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
            )

    def step(self, learning_rate: float) -> None:
        """Update the module by its gradients, and forget them."""
        for matrix, parameter in zip(self.matrices, self.hidden, strict=True):
            matrix.grad = None if parameter.grad is None else parameter.grad.flatten(1)
        for each in self.parts.values():
            for group in each.param_groups:
                group["lr"] = learning_rate
            each.step()
        for parameter in (*self.parameters, *self.matrices):
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """What has to be kept to go on."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with what was kept."""
        for name, part in self.parts.items():
            part.load_state_dict(state[name])


def _is_outer(name: str) -> bool:
    return any(part in name for part in ("conv_in", "conv_out", "quant_conv", "embed", "mix_factor"))


@dataclass
class Progress:
    """Where a training stands."""

    samples: int = 0
    seconds: float = 0.0


def fit(make_task: Callable[[torch.device], Task], recipe: Recipe, folder: Path, processes: int | None = None) -> None:
    """Train to the recipe's end, from what `folder` holds. processes: None is one per CPU core, or one on CUDA.

    make_task is called in each process. Raises ConfigError where the folder holds a training by another recipe.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _same_recipe(recipe, folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    in_processes(_train, (port, make_task, recipe, folder), processes)


def in_processes(work: Callable[..., None], arguments: tuple[Any, ...], processes: int | None = None) -> None:
    """Call work(rank, count, *arguments) in processes of one thread each: one per CPU core, or one alone on CUDA."""
    count = 1 if torch.cuda.is_available() else processes or len(os.sched_getaffinity(0))
    spawn(_work_and_leave, (work, count, *arguments), nprocs=count)  # type: ignore[no-untyped-call]


def _work_and_leave(rank: int, work: Callable[..., None], count: int, *arguments: Any) -> None:
    """Leave at once when the work is done: a thread of Gloo's may still be there, and would abort the process."""
    work(rank, count, *arguments)
    sys.stdout.flush()
    os._exit(0)


def say(line: str) -> None:
    """Tell the person who waits."""
    print(line, flush=True)  # noqa: T201


def trained(module: nn.Module, folder: Path) -> Progress:
    """Load the running mean of the weights that `folder` holds into `module`."""
    state = torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)
    module.load_state_dict(state["ema"])
    return Progress(**state["progress"])


def _same_recipe(recipe: Recipe, folder: Path) -> None:
    file = folder / "recipe.json"
    now = json.dumps(asdict(recipe), indent=2) + "\n"
    if file.exists() and file.read_text() != now:
        raise ConfigError(f"{file} is of another recipe than\n{now}train into another folder, or remove this one")
    file.write_text(now)


def _train(
    rank: int, count: int, port: int, make_task: Callable[[torch.device], Task], recipe: Recipe, folder: Path
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=count)
    torch.manual_seed(recipe.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    task = make_task(device)
    module = task.module
    optimizer = Optimizer(module, recipe)
    ema = copy.deepcopy(module).requires_grad_(False)
    progress = _resume(folder, module, ema, optimizer, device)
    started, saved, logged = time.monotonic() - progress.seconds, time.monotonic(), 0.0
    sums: dict[str, list[float]] = {}
    parent = os.getppid()
    while progress.samples < recipe.samples:
        if os.getppid() != parent:
            return  # the one that waits for this process is dead
        seed = (recipe.seed, progress.samples // recipe.batch, rank)
        loss, figures = task.loss(recipe.batch // count, seed)
        loss.backward()  # type: ignore[no-untyped-call]
        _average_gradients(module, count)
        norm = float(nn.utils.clip_grad_norm_(module.parameters(), 1.0))
        optimizer.step(recipe.rate_at(progress.samples))
        progress.samples += recipe.batch
        progress.seconds = time.monotonic() - started
        _follow(ema, module, 0.5 ** (recipe.batch / max(1.0, recipe.ema_half_life * progress.samples)))
        for name, value in {"loss": float(loss.detach()), "norm": norm, **figures}.items():
            sums.setdefault(name, []).append(value)
        is_last = progress.samples >= recipe.samples
        if rank == 0 and (is_last or time.monotonic() - logged > LOG_EVERY_S):
            _log(folder, progress, recipe, sums)
            sums, logged = {}, time.monotonic()
        if rank == 0 and (is_last or time.monotonic() - saved > SAVE_EVERY_S):
            _save(folder, module, ema, optimizer, progress)
            saved = time.monotonic()
    dist.destroy_process_group()


def _resume(folder: Path, module: nn.Module, ema: nn.Module, optimizer: Optimizer, device: torch.device) -> Progress:
    if not (folder / STATE_FILE).exists():
        return Progress()
    state = torch.load(folder / STATE_FILE, map_location=device, weights_only=True)
    module.load_state_dict(state["module"])
    ema.load_state_dict(state["ema"])
    optimizer.load_state_dict(state["optimizer"])
    return Progress(**state["progress"])


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


def _log(folder: Path, progress: Progress, recipe: Recipe, sums: dict[str, list[float]]) -> None:
    means = {name: round(math.fsum(values) / len(values), 5) for name, values in sums.items()}
    line = {"samples": progress.samples, "seconds": round(progress.seconds), **means}
    with (folder / LOG_FILE).open("a") as log:
        log.write(json.dumps(line) + "\n")
    rate = progress.samples / progress.seconds
    left = (recipe.samples - progress.samples) / rate / 60
    figures = ", ".join(f"{name} {value:.4f}" for name, value in means.items())
    say(f"{progress.samples} of {recipe.samples} samples, {rate:.1f}/s, {left:.0f} min left: {figures}")


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


@torch.no_grad()
def _follow(ema: nn.Module, module: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(ema.parameters()), list(module.parameters()), 1 - decay)
