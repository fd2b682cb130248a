"""A plain single-file loop of random network distillation on Atari, beside which `make bench` times Agents.RND: what a careful reader of the paper
(1810.12894) writes straight down in eager torch. No part of the library.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from Benchmarking.SpeedWorks import Bench, Work


def plain_rnd(game: str, num_envs: int, num_steps: int = 128, epochs: int = 4, minibatches: int = 4) -> Any:
    """Builds the loop; one call is a rollout of num_envs × num_steps and its epochs."""
    def build(bench: Bench) -> Work:
        import numpy as np
        import torch
        import torch.nn.functional as F
        from ale_py.vector_env import AtariVectorEnv
        from gymnasium.vector import AutoresetMode
        from torch import nn

        from Benchmarking.SpeedWorks import counted, env_threads

        class Policy(nn.Module):
            def __init__(self, actions: int) -> None:
                super().__init__()
                self.eyes = nn.Sequential(nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(), nn.Conv2d(64, 64, 4, 1), nn.ReLU(),
                                          nn.Flatten(), nn.Linear(2304, 256), nn.ReLU(), nn.Linear(256, 448), nn.ReLU())
                self.policy, self.value = nn.Linear(448, 448), nn.Linear(448, 448)
                self.logits, self.external, self.internal = nn.Linear(448, actions), nn.Linear(448, 1), nn.Linear(448, 1)

            def forward(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
                x = self.eyes(obs.float() / 255)
                v = x + F.relu(self.value(x))
                return self.logits(x + F.relu(self.policy(x))), self.external(v).squeeze(-1), self.internal(v).squeeze(-1)

        def convolutions() -> list[nn.Module]:
            return [nn.Conv2d(1, 32, 8, 4), nn.LeakyReLU(), nn.Conv2d(32, 64, 4, 2), nn.LeakyReLU(), nn.Conv2d(64, 64, 3, 1), nn.LeakyReLU(), nn.Flatten()]

        env = AtariVectorEnv(game, num_envs, num_threads=env_threads(bench.options, num_envs), autoreset_mode=AutoresetMode.SAME_STEP,
                             repeat_action_probability=0.25, noop_max=0, use_fire_reset=False, reward_clipping=False)
        bench.after.callback(env.close)
        policy = Policy(int(env.single_action_space.n))  # type: ignore[attr-defined]
        target = nn.Sequential(*convolutions(), nn.Linear(3136, 512)).requires_grad_(False)
        predictor = nn.Sequential(*convolutions(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512))
        learned = [*policy.parameters(), *predictor.parameters()]
        optim = torch.optim.Adam(learned, lr=1e-4, fused=True)
        keep, T, N = min(1.0, 32 / num_envs), num_steps, num_envs
        mean, var, count = np.zeros((1, 84, 84)), np.ones((1, 84, 84)), 1e-4
        ret_mean, ret_var, ret_count, filtered = 0.0, 1.0, 1e-4, np.zeros(N)

        def merged(mean: Any, var: Any, count: float, x: np.ndarray) -> tuple[Any, Any, float]:
            m, v, n = x.mean(0), x.var(0), len(x)
            delta, total = m - mean, count + n
            return mean + delta * n / total, (var * count + v * n + delta ** 2 * count * n / total) / total, total

        def normalised(frames: torch.Tensor) -> torch.Tensor:
            return ((frames - torch.from_numpy(mean)) / torch.from_numpy(np.sqrt(var))).clamp(-5, 5).float()

        obs = torch.from_numpy(env.reset(seed=0)[0].copy())
        mean, var, count = merged(mean, var, count, obs[:, -1:].numpy().astype(np.float64))
        O = torch.zeros(T, N, 4, 84, 84, dtype=torch.uint8)  # noqa: E741
        NEXT = torch.zeros(T, N, 1, 84, 84, dtype=torch.uint8)
        A, D = torch.zeros(T, N, dtype=torch.int64), torch.zeros(T, N)
        LP, R, I, VE, VI = (torch.zeros(T, N) for _ in range(5))

        @torch.no_grad()
        def rollout() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            nonlocal obs, mean, var, count, ret_mean, ret_var, ret_count, filtered
            for t in range(T):
                logits, VE[t], VI[t] = policy(obs)
                choice = torch.distributions.Categorical(logits=logits)
                O[t], A[t] = obs, choice.sample()
                LP[t] = choice.log_prob(A[t])
                shown, reward, terminated, truncated, _ = env.step(A[t].numpy())
                obs, D[t] = torch.from_numpy(shown.copy()), torch.from_numpy(terminated | truncated).float()
                R[t], NEXT[t] = torch.from_numpy(np.sign(reward).astype(np.float32)), obs[:, -1:]
                x = normalised(NEXT[t])
                I[t] = (predictor(x) - target(x)).square().mean(1)
            returns = []
            for t in range(T):
                filtered = filtered * 0.99 + I[t].numpy()
                returns.append(filtered)
            ret_mean, ret_var, ret_count = merged(ret_mean, ret_var, ret_count, np.concatenate(returns))
            bonus = I / float(np.sqrt(ret_var))
            mean, var, count = merged(mean, var, count, O[:, :, -1:].flatten(0, 1).numpy().astype(np.float64))
            _, next_external, next_internal = policy(obs)
            external, internal, last_e, last_i = torch.zeros(T, N), torch.zeros(T, N), torch.zeros(N), torch.zeros(N)
            for t in reversed(range(T)):
                alive = 1 - D[t]
                last_e = R[t] + 0.999 * alive * next_external - VE[t] + 0.999 * 0.95 * alive * last_e
                last_i = bonus[t] + 0.99 * next_internal - VI[t] + 0.99 * 0.95 * last_i
                external[t], internal[t], next_external, next_internal = last_e, last_i, VE[t], VI[t]
            return external, internal, 2 * external + internal

        def step() -> None:
            external, internal, advantage = rollout()
            o, following, a, lp, adv, re, ri = (x.flatten(0, 1) for x in (O, NEXT, A, LP, advantage, external + VE, internal + VI))
            for _ in range(epochs):
                for k in torch.randperm(T * N).chunk(minibatches):
                    logits, e, i = policy(o[k])
                    choice = torch.distributions.Categorical(logits=logits)
                    ratio = (choice.log_prob(a[k]) - lp[k]).exp()
                    loss = torch.max(-adv[k] * ratio, -adv[k] * ratio.clamp(0.9, 1.1)).mean() - 0.001 * choice.entropy().mean()
                    loss = loss + 0.5 * (e - re[k]).square().mean() + 0.5 * (i - ri[k]).square().mean()
                    x = normalised(following[k])
                    error = (predictor(x) - target(x)).square().mean(1)
                    mask = (torch.rand(len(k)) < keep).float()
                    loss = loss + (error * mask).sum() / mask.sum().clamp(min=1)
                    optim.zero_grad()
                    loss.backward()
                    optim.step()
        return counted(step, T * N)
    return build
