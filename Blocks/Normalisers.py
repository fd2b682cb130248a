"""Running normalisers of observations and returns. Their statistics are buffers, so they are saved with the agent."""
from __future__ import annotations

import torch
from torch import Tensor, nn

import Parallel


class RunningMoments(nn.Module):
    """Mean and variance of a stream, merged batch by batch without loss (Chan et al. 1979), in float64.

    Args:
        count: samples that the first values, mean 0 and variance 1, stand for."""

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, shape: tuple[int, ...] = (), count: float = 0.0) -> None:
        super().__init__()
        self.register_buffer('mean', torch.zeros(shape, dtype=torch.float64))
        self.register_buffer('var', torch.ones(shape, dtype=torch.float64))
        self.register_buffer('count', torch.tensor(count, dtype=torch.float64))

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """x: (B, *shape), with those of all other processes."""
        self.merge(*Parallel.merged_moments(*moments(x)))

    def merge(self, n: float | Tensor, mean: Tensor, var: Tensor) -> None:
        """Takes in n samples by their mean and population variance."""
        self.count += n
        share = n / self.count
        rest = 1 - share
        delta = mean - self.mean
        self.var.mul_(rest).addcmul_(torch.addcmul(var, delta * delta, rest), share)
        self.mean.addcmul_(delta, share)


def moments(x: Tensor) -> tuple[int, Tensor, Tensor]:
    """Number, mean and population variance of x (B, *shape) over B, in float64. Bytes are summed as integers, which is exact and takes no copy in float64."""
    n = x.shape[0]
    if x.dtype != torch.uint8:
        var, mean = torch.var_mean(x.double(), 0, correction=0)
        return n, mean, var
    total, squares = torch.zeros(2, *x.shape[1:], dtype=torch.int64, device=x.device)
    for part in x.split(1024):  # squares of 1,024 bytes add up to less than 2³¹
        part = part.int()
        total += part.sum(0, dtype=torch.int32)
        squares += part.square_().sum(0, dtype=torch.int32)
    return n, total.double() / n, (n * squares - total.square()).double() / n ** 2


class ObservationNormaliser(RunningMoments):
    """(x − mean) / std of all observations seen, clipped to ±`clip`: (B, *shape) float32."""

    def __init__(self, shape: tuple[int, ...], clip: float = 10.0) -> None:
        super().__init__(shape)
        self.clip = clip

    def forward(self, x: Tensor) -> Tensor:
        return ((x - self.mean) / torch.sqrt(self.var + 1e-8)).clamp_(-self.clip, self.clip).float()


LANE_BUFFERS = ('filtered', 'returns')  # names of buffers with a number for each lane of this process, which no other has


class ReturnNormaliser(RunningMoments):
    """Divides rewards by the running standard deviation of the discounted return of each lane (PPO's reward scaling)."""

    returns: Tensor

    def __init__(self, num_envs: int, discount: float = 0.99, clip: float = 10.0) -> None:
        super().__init__(())
        self.register_buffer('returns', torch.zeros(num_envs, dtype=torch.float64))
        self.discount, self.clip = discount, clip

    @torch.no_grad()
    def forward(self, reward: Tensor, ended: Tensor) -> Tensor:
        """(N, T) rewards of consecutive steps, each divided by the deviation that includes it. ended: (N, T) bool."""
        returns = torch.empty_like(reward, dtype=torch.float64)
        for t, over in enumerate(ended.unbind(1)):
            self.returns.mul_(self.discount).add_(reward[:, t])
            returns[:, t] = self.returns
            self.returns.masked_fill_(over, 0.0)
        var = self.merge_in_turn(*Parallel.merged_moments(*moments(returns)))
        return (reward / torch.sqrt(var + 1e-8)).clamp(-self.clip, self.clip).float()

    def merge_in_turn(self, n: float | Tensor, means: Tensor, variances: Tensor) -> Tensor:
        """Takes in the n samples of each of T steps, by moments (T,). → the variance behind each step, (T,): one merge after the other would have it so."""
        centre = means.mean()  # sums of squares lose nothing around a point that lies among them
        mean, means = self.mean - centre, means - centre
        counts = self.count + n * torch.arange(1, len(means) + 1, device=means.device)
        behind = (self.count * mean + n * means.cumsum(0)) / counts
        squares = self.count * (self.var + mean.square()) + n * (variances + means.square()).cumsum(0)
        var = (squares / counts - behind.square()).clamp_min_(0)
        self.count.copy_(counts[-1])
        self.mean.copy_(behind[-1] + centre)
        self.var.copy_(var[-1])
        return var
