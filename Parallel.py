"""More than one process: K equal runs that share gradients and running statistics. `torchrun --nproc_per_node K Run.py …` starts them.

Lanes and batches are dealt to the processes, so that K of them do what one does: each steps its share of `num_envs` lanes and learns from its share of
`batch_size` samples; one flat all-reduce makes the gradients those of the whole batch. What decides anything, a step count or the divergence at which PPO
stops, is the same number everywhere. Without torchrun every function here is the identity.
"""
from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

PATIENCE = timedelta(hours=12)  # that processes wait for one another: for an evaluation, say. One that dies is noticed at once, by torchrun

rank, world_size = 0, 1  # which of how many processes this is


class Gone(OSError):
    """Another process of the run has ended. It has been said."""


class Elsewhere(ValueError):
    """What keeps this process from going on was told by another."""


def start(device: str) -> str:
    """Joins the processes that torchrun started, if it did. → the device of this one.

    Args:
        device: as it was asked for.

    Raises:
        ValueError: a GPU was named, which several processes cannot share out."""
    global rank, world_size
    count = int(os.environ.get('WORLD_SIZE', 1)) if 'RANK' in os.environ else 1
    if count == 1:
        return device
    if ':' in device:
        raise ValueError(f'device={device}: {count} processes take a GPU each; device=auto, or leave torchrun out')
    gpus = torch.cuda.device_count() if device in ('auto', 'cuda') else 0
    local, here = int(os.environ.get('LOCAL_RANK', 0)), int(os.environ.get('LOCAL_WORLD_SIZE', count))
    if not dist.is_initialized():
        enough = 0 < here <= gpus  # NCCL wants a GPU for each process
        if gpus and not enough and local == 0:
            print(f'{here} processes share {gpus} GPUs, and exchange gradients through main memory', flush=True)
        dist.init_process_group('cpu:gloo,cuda:nccl' if enough else 'gloo', timeout=PATIENCE)
        rank, world_size = dist.get_rank(), dist.get_world_size()
    if not gpus:
        return device
    torch.cuda.set_device(local % gpus)
    return f'cuda:{local % gpus}'


def spread(overrides: list[str]) -> None:
    """Where this machine has several GPUs, the same command again with a process for each (`parallel=true`); with one or none, nothing."""
    if 'RANK' in os.environ or (gpus := torch.cuda.device_count()) < 2:
        return
    run = str(Path(__file__).with_name('Run.py'))
    os.execv(sys.executable, [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={gpus}', run, *overrides])


def leave(error: BaseException | None) -> None:
    """Ends a process that has others beside it, when all is said and done; one without others goes on.

    At once, without the destructors of libraries: those of gloo's threads abort the process now and then where another has just closed its end.

    Args:
        error: what ends it, if anything."""
    if world_size == 1 or not dist.is_initialized():
        return
    if error is None:
        with contextlib.suppress(Gone):
            any_of(False)  # nobody closes before all are through
    sys.stdout.flush()
    sys.stderr.flush()
    code = error.code if isinstance(error, SystemExit) else int(error is not None)
    os._exit(code if isinstance(code, int) else 1)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """What one process does without the others."""
    global rank, world_size
    before = rank, world_size
    rank, world_size = 0, 1
    try:
        yield
    finally:
        rank, world_size = before


def is_main() -> bool:
    """Whether this process is the one that writes and tells."""
    return rank == 0


def here() -> int:
    """Processes on this machine, which share its cores."""
    return int(os.environ.get('LOCAL_WORLD_SIZE', 1)) if world_size > 1 else 1


def share(total: int, key: str) -> int:
    """This process's part of something that is asked for as a whole. Raises: ValueError: it cannot be shared out evenly."""
    if total % world_size:
        raise ValueError(f'{key}={total}: expected a multiple of {world_size}, the number of processes')
    return total // world_size


def lanes(num_envs: int) -> range:
    """The global indices of this process's lanes."""
    count = share(num_envs, 'num_envs')
    return range(rank * count, (rank + 1) * count)


# --- tensors

@contextlib.contextmanager
def together() -> Iterator[None]:
    """Around whatever waits for the others."""
    try:
        yield
    except (RuntimeError, dist.DistBackendError) as error:
        line = (f'another process of this run has ended (process {rank} of {world_size} heard: {str(error).splitlines()[0][:120]}); '
                'what was saved last is intact, load=true goes on from there')
        os.write(2, f'{line}\n'.encode())  # at once: torchrun is about to end this process too
        raise Gone(line) from error


def sum_up(x: Tensor) -> Tensor:
    """x becomes the sum over the processes, in place, without gradient."""
    if world_size > 1:
        with together():
            dist.all_reduce(x)
    return x


class Total(torch.autograd.Function):
    """The sum over the processes. Its gradient is the sum of theirs: each process's loss may depend on every process's x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return sum_up(x.clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return sum_up(gradient.contiguous().clone())


def total(x: Tensor) -> Tensor:
    """The sum of x over the processes, with gradient."""
    return Total.apply(x) if world_size > 1 else x


def mean(x: Tensor) -> Tensor:
    """The mean of x over the processes, with gradient. That of means is the mean of all samples, as every process has as many."""
    return total(x) / world_size if world_size > 1 else x


def joined(x: Tensor) -> Tensor:
    """The x (B, …) of all processes one after the other, (K · B, …), without gradient."""
    if world_size == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(world_size)]
    with together():
        dist.all_gather(parts, x.detach().contiguous())
    return torch.cat(parts)


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Gradients become their means over the processes: one all-reduce of one flat buffer. Where there is none, there is none on any of them."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if world_size == 1 or not gradients:
        return
    flat = sum_up(torch.cat([gradient.reshape(-1) for gradient in gradients])).div_(world_size)
    torch._foreach_copy_(gradients, [part.view_as(gradient) for part, gradient in zip(flat.split([g.numel() for g in gradients]), gradients, strict=True)])


def merged_moments(n: int, mean: Tensor, var: Tensor) -> tuple[float, Tensor, Tensor]:
    """Number, mean and population variance of the samples of all processes together, in float64, in two passes."""
    if world_size == 1:
        return n, mean, var
    sums = sum_up(torch.cat([mean.reshape(-1) * n, mean.new_tensor([n])]))
    count = float(sums[-1])
    whole = (sums[:-1] / count).view_as(mean)
    return count, whole, sum_up((var + (mean - whole) ** 2) * n) / count


def broadcast(module: nn.Module, without: Iterable[str] = ()) -> None:
    """Parameters and buffers become those of the first process, but for buffers whose names end like one of `without`."""
    if world_size > 1:
        with together(), torch.no_grad():
            for name, value in module.state_dict().items():
                if name.rpartition('.')[2] not in without:
                    dist.broadcast(value, 0)


class BatchNorm(nn.Module):
    """A batch norm of torch's whose moments are those of all processes together, on any device."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.__dict__.update(norm.__dict__)  # the same parameters, buffers and numbers under the same names

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)  # type: ignore[arg-type]
        axes = [axis for axis in range(x.dim()) if axis != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        wide = x.float()
        mean_ = mean(wide.mean(axes))
        var = mean((wide - mean_.view(shape)).square().mean(axes))
        if self.track_running_stats:
            with torch.no_grad():
                n = x.numel() // x.shape[1] * world_size
                self.num_batches_tracked.add_(1)  # type: ignore[operator]
                momentum: Any = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
                self.running_mean.lerp_(mean_, momentum)  # type: ignore[operator]
                self.running_var.lerp_(var * n / (n - 1), momentum)  # type: ignore[operator]
        out = (wide - mean_.view(shape)) * (var + self.eps).rsqrt().view(shape)  # type: ignore[operator]
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)  # type: ignore[operator]
        return out.to(x.dtype)


def sync_batch_norms(module: nn.Module) -> None:
    """Has every batch norm below a module take the moments of all processes."""
    if world_size > 1:
        for part in module.modules():
            for name, child in part.named_children():
                if isinstance(child, nn.modules.batchnorm._BatchNorm):
                    setattr(part, name, BatchNorm(child))


# --- plain Python

def gather(value: Any) -> list[Any] | None:
    """The values of all processes in the order of their ranks, on the first; None on the others."""
    if world_size == 1:
        return [value]
    values: list[Any] | None = [None] * world_size if is_main() else None
    with together():
        dist.gather_object(value, values, dst=0)
    return values


def everywhere(value: Any) -> Any:
    """The first process's value."""
    if world_size == 1:
        return value
    box = [value]
    with together():
        dist.broadcast_object_list(box, src=0)
    return box[0]


def any_of(flag: bool) -> bool:
    """Whether it holds in any process."""
    return flag if world_size == 1 else bool(sum_up(torch.tensor(int(flag))).item())


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """The body runs in the first process, then in the others. Raises: Elsewhere: it failed in the first, which has said so."""
    if not is_main() and not everywhere(None):
        raise Elsewhere('the first process could not go on')
    try:
        yield
    except BaseException:
        if is_main():
            everywhere(False)
        raise
    if is_main():
        everywhere(True)


def dealt(parts: list[Mapping[str, Any]], key: str) -> list[Any]:
    """What the processes of an earlier session kept for each of their lanes, in the order of all lanes."""
    return [one for part in parts for one in part[key]]
