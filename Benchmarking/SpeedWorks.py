"""Our side of what `make bench` measures: builders of the work.

A builder gets a `Bench` and returns a callable that does some units of work, or a number.
"""
from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from Datasets.Batch import Batch

# The plain DQN's settings, pinned here: no preset's choice for a task changes what is compared
DEFAULTS = ('~paper@_global_', 'device=cpu')
DQN = (*DEFAULTS, 'Agent=Agents.DQN', 'task=atari/pong', 'batch_size=32', 'nstep=1', 'lr=1e-4', 'adam_eps=1e-8', 'hidden_dim=512', 'agent.double=true',
       'agent.dueling=false', 'agent.num_critics=1', 'agent.huber=true', 'agent.depth=1', 'agent.exploration=epsilon', 'agent.epsilon=0.05',
       'agent.target_tau=1', 'agent.target_per_updates=1000')
SAC = ('Agent=Agents.SAC', 'task=dmc/cheetah_run', 'obs=state', 'batch_size=256', 'hidden_dim=256', 'lr=3e-4', 'layer_norm=false', 'agent.critic_tau=0.005')
AUXI = ('aux=a2_winner', 'encoder=ofe', 'encoder_hidden_dim=40')
PIXEL_CURL = ('Agent=Agents.CURL', 'task=dmc/cheetah_run', 'batch_size=128')
QUIET = ('logger.progress=false', 'logger.tensorboard=false', 'plotting.plot=false', 'plot_per_steps=0', 'evaluate_per_steps=0')
WARMUP = 1000  # agent steps before the first update, as in the plain loops
PPO = (*DEFAULTS, 'Agent=Agents.PPO', 'task=atari/pong', 'agent.anneal=1.0')
RND = ('device=cpu', 'Agent=Agents.RND', 'task=atari/montezuma_revenge', 'explore.rnd.warmup_steps=128')
CARTPOLE = ('device=cpu', 'Agent=Agents.PPO', 'task=gym/CartPole-v1')
STORED = 100_000  # transitions in the replays that are drawn from


class Options(Protocol):
    """What builders read of the command line."""

    threads: int
    env_threads: int


@dataclass
class Bench:
    """What a builder may use: the options, a folder, and `after` for what is to be closed when its row is done."""

    options: Options
    folder: Path
    after: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)


Work = Callable[[], object]  # `per_call`: how many units one call is


def counted(work: Work, per_call: int) -> Work:
    work.per_call = per_call  # type: ignore[attr-defined]
    return work


def environment(suite: str, task: str, num_envs: int, **options: Any) -> Callable[[Bench], Work]:
    """Random actions, drawn in advance, through Environment: own stacking, resets, episode records."""
    def build(bench: Bench) -> Work:
        import numpy as np

        from Datasets.Suites import make
        from Environment import Environment
        threads = {} if 'num_threads' in options else {'num_threads': env_threads(bench.options, num_envs)}
        lanes = Environment(make(suite, task, num_envs, **options | threads), seed=0)
        bench.after.callback(lanes.close)
        lanes.start()
        rng, spec, i = np.random.default_rng(0), lanes.action_spec, 0
        actions = (rng.integers(0, spec.num_actions, (4096, num_envs)) if spec.num_actions
                   else rng.uniform(-1, 1, (4096, num_envs, *spec.shape)).astype(np.float32))

        def step() -> None:
            nonlocal i
            i += 1
            lanes.advance(actions[i & 4095])
            lanes.pop_episodes()
        return counted(step, num_envs)
    return build


def env_threads(options: Options, num_envs: int) -> int:
    from Utils import free_cores
    return options.env_threads or min(free_cores(), num_envs)


def atari_replay(bench: Bench, num_envs: int, capacity: int, store: str) -> Any:
    """An empty replay of Pong's shapes."""
    from Datasets.Replay import Replay
    replay = Replay(*atari_specs(), num_envs=num_envs, capacity=capacity, seed=0, reward_clip=1, window=1, store=store,
                    path=bench.folder / 'replay' if store == 'map' else None)
    bench.after.callback(replay.discard)
    return replay


def atari_specs() -> tuple[Any, Any]:
    import torch

    from Datasets.Specs import ActionSpec, ObsSpec
    return ObsSpec((1, 84, 84), torch.uint8, frame_stack=4), ActionSpec(num_actions=6)


def played(num_envs: int, length: int = 64) -> list[dict[str, Any]]:
    """Columns of vector steps to add: random frames; in every last one of them a lane's game ends."""
    import numpy as np
    rng, steps = np.random.default_rng(0), []
    for i in range(length):
        ended = np.arange(num_envs) == (0 if i == length - 1 else -1)
        obs = rng.integers(0, 256, (num_envs, 1, 84, 84), np.uint8)
        steps.append(dict(action=rng.integers(0, 6, num_envs), reward=np.zeros(num_envs, np.float32), terminated=ended, truncated=np.zeros(num_envs, bool),
                          obs=obs, first=ended, final_lanes=np.flatnonzero(ended), final_obs=obs[ended]))
    return steps


def add(bench: Bench) -> Work:
    steps, i = played(16), 0
    replay = atari_replay(bench, 16, STORED, 'map')
    replay.begin(steps[0]['obs'])

    def step() -> None:
        nonlocal i
        i += 1
        replay.add(**steps[i & 63])
    return counted(step, 16)


def draw(batch_size: int, store: str) -> Callable[[Bench], Work]:
    """draw + gather of whole batches, with all their columns."""
    def build(bench: Bench) -> Work:
        steps = played(16)
        replay = atari_replay(bench, 16, STORED + STORED // 64, store)
        replay.begin(steps[0]['obs'])
        for i in range(STORED // 16):
            replay.add(**steps[i & 63])
        return counted(lambda: replay.gather(replay.draw(batch_size)), 1)
    return build


def replay_bytes(bench: Bench) -> float:
    """GB of a million transitions in 16 lanes, with the slack that the default checkpoints need."""
    from Datasets.Replay import Replay
    from Datasets.RunReplay import slack
    from Hparams.Compose import compose_args
    from Utils import Args
    args = Args(compose_args([*DEFAULTS, 'num_envs=16', 'train_steps=1000000']))
    return Replay.bytes_needed(*atari_specs(), num_envs=16, capacity=1_000_000, slack=slack(args)) / 1e9


def dqn_update(*overrides: str) -> Callable[[Bench], Work]:
    """The agent that a run would build, on one fixed batch such as the replay hands out."""
    def build(bench: Bench) -> Work:
        agent = made_agent(atari_specs(), (*DQN, *overrides))
        batch = fixed_batch(agent.batch_size)
        return counted(lambda: agent.update(batch), 1)
    return build


def state_specs() -> tuple[Any, Any]:
    """Cheetah's: 17 numbers, 6 joints."""
    import torch

    from Datasets.Specs import ActionSpec, ObsSpec
    return ObsSpec((17,), torch.float32, float('-inf'), float('inf')), ActionSpec((6,))


def pixel_specs(size: int) -> tuple[Any, Any]:
    import torch

    from Datasets.Specs import ActionSpec, ObsSpec
    return ObsSpec((3, size, size), torch.uint8, frame_stack=3, stack_pad='repeat'), ActionSpec((6,))


def made_agent(specs: tuple[Any, Any], overrides: tuple[str, ...]) -> Any:
    """The agent that a run would build, with its auxiliary losses."""
    import torch

    from Hparams.Compose import compose_args
    from Utils import Args, build
    args = Args(compose_args([*DEFAULTS, *overrides]))
    values = {key: value for key, value in args.items() if not isinstance(value, dict)}
    agent = build(args.agent, '', 'agent', obs_spec=specs[0], action_spec=specs[1], recipes=args.recipes, **values | {'device': torch.device('cpu')})
    agent.attach(args.aux, *specs, lr=args.lr, batch_size=args.batch_size)
    return agent


def sac_update(*overrides: str) -> Callable[[Bench], Work]:
    """One fixed batch of 256; the plain loop has no layer norm."""
    def build(bench: Bench) -> Work:
        import torch

        from Datasets.Batch import Batch
        agent, random = made_agent(state_specs(), (*SAC, *overrides)), torch.Generator().manual_seed(0)
        batch = Batch(torch.randn(256, 17, generator=random), torch.rand(256, 6, generator=random) * 2 - 1, torch.randn(256, generator=random),
                      torch.full((256,), 0.99), torch.randn(256, 17, generator=random), torch.arange(256), torch.ones(256))
        return counted(lambda: agent.update(batch), 1)
    return build


def learning(specs: Callable[[], tuple[Any, Any]], *overrides: str, stored: int = 20_000) -> Callable[[Bench], Work]:
    """All that a run does for one call of learn, auxiliary losses included: draws from a replay, updates."""
    def build(bench: Bench) -> Work:
        agent = made_agent(specs(), overrides)
        replay = control_replay(bench, specs(), stored, agent.horizon)
        return counted(lambda: agent.improve(replay), 1)
    return build


def control_replay(bench: Bench, specs: tuple[Any, Any], stored: int, window: int) -> Any:
    """A replay in memory of one lane's random steps, in episodes of 250."""
    import numpy as np

    from Datasets.Replay import Replay
    obs_spec, action_spec = specs
    replay, rng = Replay(obs_spec, action_spec, num_envs=1, capacity=stored, seed=0, store='ram', window=max(1, window)), np.random.default_rng(0)
    bench.after.callback(replay.discard)

    def frame() -> np.ndarray:
        return rng.integers(0, 256, (1, *obs_spec.shape), np.uint8) if obs_spec.is_image else rng.normal(size=(1, *obs_spec.shape)).astype(np.float32)

    replay.begin(frame())
    for step in range(stored):
        ended, lanes = np.array([step % 250 == 249]), np.arange(step % 250 == 249)
        replay.add(rng.uniform(-1, 1, (1, 6)).astype(np.float32), rng.random(1).astype(np.float32), np.zeros(1, bool), ended, frame(), ended,
                   lanes, frame()[lanes])
    return replay


def sequences(horizon: int) -> Callable[[Bench], Work]:
    """Batches of 256 from DMC pixels with the sequence behind each transition."""
    def build(bench: Bench) -> Work:
        replay = control_replay(bench, pixel_specs(84), 20_000, horizon)
        return counted(lambda: replay.sample(256, horizon=horizon), 1)
    return build


def bare_gather(frames: int) -> Callable[[Bench], Work]:
    """The same bytes without a replay: 256 random windows of consecutive frames, one `index_select`, into a kept buffer."""
    def build(bench: Bench) -> Work:
        import torch
        words, stored = 3 * 84 * 84 // 8, 20_000
        ring = torch.randint(0, 2 ** 62, (stored, words), dtype=torch.int64)
        windows = ring.as_strided((stored - frames + 1, frames * words), (words, 1))
        out, random = torch.empty((256, frames * words), dtype=torch.int64), torch.Generator().manual_seed(0)
        return counted(lambda: torch.index_select(windows, 0, torch.randint(0, len(windows), (256,), generator=random), out=out), 1)
    return build


def fixed_batch(size: int) -> Batch:
    """Random windows of 5 frames, of which obs and next_obs are views, as gathered."""
    import torch

    from Datasets.Batch import Batch
    random = torch.Generator().manual_seed(0)
    windows = torch.randint(0, 256, (size, 5, 84, 84), generator=random, dtype=torch.uint8)
    return Batch(windows[:, :4], torch.randint(0, 6, (size,), generator=random), torch.randn(size, generator=random), torch.full((size,), 0.99),
                 windows[:, 1:], torch.arange(size), torch.ones(size))


def rollouts(*overrides: str) -> Callable[[Bench], Work]:
    """A whole run of an on-policy agent without evaluation. One call is a rollout and what is learned from it."""
    def build(bench: Bench) -> Work:
        session = begun(bench, *overrides)
        steps = session.agent.rollout_steps * session.args.num_envs

        def turns() -> None:
            for _ in range(session.agent.rollout_steps):
                session.advance()
                session.records()
        turns()
        return counted(turns, steps)
    return build


def begun(bench: Bench, *overrides: str) -> Any:
    """A session that goes on for ever, says nothing and evaluates nothing."""
    from Hparams.Compose import compose_args
    from Session import Session
    values = compose_args([*QUIET, f'root={bench.folder}', f'threads={bench.options.threads}', 'train_steps=1000000000', *overrides])
    with contextlib.redirect_stdout(io.StringIO()):
        session = Session(values)
    bench.after.callback(session.close)
    return session


def loop(*overrides: str, steps: int) -> Callable[[Bench], Work]:
    """A whole run without evaluation: Session's turns, from where learning is under way. One call is `steps` agent steps."""
    def build(bench: Bench) -> Work:
        session = begun(bench, f'seed_steps={WARMUP}', f'explore_steps={WARMUP}', 'replay.capacity=20000', 'learn_per_steps=4', 'env_threads=1', *overrides)

        def turns() -> None:
            for _ in range(steps // session.environment.num_envs):
                session.advance()
                session.records()
        while session.step < WARMUP + 8 * steps:
            turns()
        return counted(turns, steps)
    return build
