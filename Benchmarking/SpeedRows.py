"""What `make bench` measures: our side of each row, and the rows themselves with their targets. To add one, write a builder and a `Row`.

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


@dataclass(frozen=True)
class Row:
    """One measurement.

    Args:
        name: what `rows=` selects by.
        ours: builds our side: a callable, or for a size the number itself.
        unit: what is counted, or the number's unit.
        plain, settings: the plain loop's name and arguments (those with `num_envs` are bare simulators and get our number of threads). Without one the
            figure itself is held against the target.
        apart: the plain loop runs in a process of its own: two renderers in one process corrupt each other's frames.
        beside: builds what takes the plain loop's place where that is work of our own, or a bare call of torch.
        at_least, at_most: the target, of the ratio (speed, ours / plain) where there is a plain loop.
        bf16: the target is only demanded of a CPU with bf16 units.
        note: what is compared, for the JSON and the reader."""

    name: str
    ours: Callable[[Bench], Work | float]
    unit: str
    plain: str = ''
    settings: dict[str, Any] = field(default_factory=dict)
    at_least: float | None = None
    at_most: float | None = None
    bf16: bool = False
    note: str = ''
    apart: bool = False
    beside: Callable[[Bench], Work] | None = None


# --- our side

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


def classifying(*settings: Any, **options: Any) -> Callable[[Bench], Work]:
    """See SpeedLabelled, which imports torch: not before the number of threads is set."""
    def build(bench: Bench) -> Work:
        from Benchmarking import SpeedLabelled
        return SpeedLabelled.classifying(*settings, **options)(bench)
    return build


def cifar_memory(bench: Bench) -> float:
    from Benchmarking import SpeedLabelled
    return SpeedLabelled.cifar_memory(bench)


def loop(*overrides: str, steps: int) -> Callable[[Bench], Work]:
    """A whole run without evaluation: Session's turns, from where learning is under way. One call is `steps` agent steps."""
    def build(bench: Bench) -> Work:
        from Hparams.Compose import compose_args
        from Session import Session
        values = compose_args([*QUIET, f'root={bench.folder}', f'threads={bench.options.threads}', 'train_steps=1000000000', f'seed_steps={WARMUP}',
                               f'explore_steps={WARMUP}', 'replay.capacity=20000', 'learn_per_steps=4', 'env_threads=1', *overrides])
        with contextlib.redirect_stdout(io.StringIO()):
            session = Session(values)
        bench.after.callback(session.close)

        def turns() -> None:
            for _ in range(steps // session.environment.num_envs):
                session.advance()
                session.records()
        while session.step < WARMUP + 8 * steps:
            turns()
        return counted(turns, steps)
    return build


ENV_NOTE = 'plain: ale-py vector env alone, engine stack 4 and episodic life; ours: engine unstacked, stacking and life loss in Environment, raw rewards'
REPLAY_NOTE = f'{STORED:,} transitions in 16 lanes; plain: ring without episode ends, with action and reward columns'
UPDATE_NOTE = 'Nature CNN, 6 actions, double, Huber, Adam 1e-4; plain is eager fp32 NCHW in every row'
LOOP_NOTE = 'one update of 32 per 4 steps, double, replay 20k, one thread for the emulators of either side; plain is fp32'
PLAIN_RING = {'columns': True, 'lanes': 16}
SAC_NOTE = '17 numbers, 6 joints, batch 256, two hidden layers without layer norm, one step of critic, actor and temperature; plain is eager fp32'
PIXEL_NOTE = 'batch 128, hidden 1024, actor and targets at every second update, CURL in each; ours with its draws from the replay; plain is eager fp32 NCHW'
RENDER_NOTE = 'cheetah_run, 84×84, EGL in software; ours one lane in a process, simulation, transport and stacking included; plain physics.render alone'

CLASSIFY_NOTE = 'batch 256, batch norm, cross-entropy alone (RL=false), no augmentation; ours draws each image once a pass; plain is eager fp32 NCHW'
RESNET = ('Eyes=ResNet18', 'pool=AvgPool')

ROWS = [
    Row('env atari 1', environment('atari', 'pong', 1), 'steps', 'env_atari_1', {'num_envs': 1}, at_least=0.9, note=ENV_NOTE),
    Row('env atari 16', environment('atari', 'pong', 16), 'steps', 'env_atari_16', {'num_envs': 16}, at_least=0.9, note=ENV_NOTE),
    Row('replay size', replay_bytes, 'GB', at_most=7.5, note='1,000,000 Atari transitions and the slack of the default checkpoints'),
    *(Row(f'replay draw {size}{store}', draw(size, store.strip() or 'map'), 'batches', 'replay_ring_atari', PLAIN_RING | {'batch_size': size},
          at_least=1 / 1.25, note=f'{REPLAY_NOTE}; ours in {"RAM too" if store else "a file-backed map, the default"}')
      for store in ('', ' ram') for size in (32, 256)),
    Row('replay add 16', add, 'steps', at_least=30_000, note='16 lanes, a file-backed map'),
    *(Row(f'dqn update {size} {form}', dqn_update(f'batch_size={size}', *overrides), 'updates', f'dqn_update_b{size}', at_least=at_least,
          bf16='bf16' in form, note=UPDATE_NOTE)
      for size in (32, 256)
      for form, overrides, at_least in (('fp32', (), 1 / 1.05), ('bf16', ('precision=bf16',), 1 / 0.65), ('fp32 compile', ('compile=true',), None),
                                        ('bf16 compile', ('precision=bf16', 'compile=true'), None))),
    *(Row(f'loop pong {envs} {precision}', loop(*DQN, f'num_envs={envs}', f'precision={precision}', steps=max(4, envs)), 'steps', plain,
          at_least=at_least, bf16=precision == 'bf16', note=LOOP_NOTE)
      for envs, plain, targets in ((1, 'dqn_pong_loop', (1.1, 1.5)), (16, 'dqn_pong_loop_16', (1.25, 1.8)))
      for precision, at_least in zip(('fp32', 'bf16'), targets)),
    *(Row(f'env dmc state {envs}', environment('dmc', 'cheetah_run', envs, obs='state'), 'steps', 'env_dmc_state', at_least=0.9,
          note='cheetah_run, action repeat 2, all lanes in one process; plain: dm_control alone') for envs in (1, 16)),
    *(Row(f'env dmc pixels {quality}', environment('dmc', 'cheetah_run', 1, obs='pixels', action_repeat=1, render_quality=quality), 'frames', 'render_dmc',
          apart=True, at_least=at_least, note=RENDER_NOTE) for quality, at_least in (('full', 1.2), ('near', 2.0), ('fast', 5.0))),
    Row('env dmc pixels 2 workers', environment('dmc', 'cheetah_run', 2, obs='pixels', num_threads=2), 'steps', at_least=1.6,
        beside=environment('dmc', 'cheetah_run', 2, obs='pixels', num_threads=1), note='two lanes, in two processes beside in one; needs two free cores'),
    *(Row(f'sac update {hidden} {form}', sac_update(f'hidden_dim={hidden}', *overrides), 'updates', f'sac_update_{hidden}', at_least=at_least,
          bf16='bf16' in form, note=SAC_NOTE)
      for hidden, targets in ((256, (1 / 0.85, None)), (1024, (1 / 0.95, 1 / 0.5)))
      for form, overrides, at_least in (('fp32', (), targets[0]), ('bf16', ('precision=bf16',), targets[1]), ('fp32 compile', ('compile=true',), None),
                                        ('bf16 compile', ('precision=bf16', 'compile=true'), None))),
    Row('auxisac update', learning(state_specs, *SAC, *AUXI), 'updates', at_least=1 / 2.5, beside=learning(state_specs, *SAC),
        note='256×2, batch 256: SAC with the dense encoder and A2-winner, beside SAC on the state itself; both with their draws from the replay'),
    *(Row(f'pixel sac curl {precision}', learning(lambda: pixel_specs(100), *PIXEL_CURL, f'precision={precision}', stored=2000), 'updates', 'pixel_curl_update',
          bf16=precision == 'bf16', note=PIXEL_NOTE) for precision in ('fp32', 'bf16')),
    Row('replay sequences 9', sequences(9), 'batches', at_least=1 / 1.25, beside=bare_gather(15),
        note='256 samples of 3 + 9 frames and the 3 of next_obs; beside: bare windows of 15 frames'),
    *(Row(f'classify resnet18 {precision}', classifying((3, 32, 32), 2048, *RESNET, f'precision={precision}'), 'images', 'resnet18_cifar',
          at_least=at_least, bf16=precision == 'bf16', note=CLASSIFY_NOTE) for precision, at_least in (('fp32', 0.95), ('bf16', 2.0))),
    *(Row(f'classify small {precision}', classifying((1, 28, 28), 8192, 'Eyes=Benchmarking.SpeedLabelled.SmallEyes', f'precision={precision}'), 'images',
          'small_cnn', at_least=0.9 if precision == 'fp32' else None, note=CLASSIFY_NOTE) for precision in ('fp32', 'bf16')),
    Row('classify stream', classifying((3, 32, 32), 2048, *RESNET, stream=True, workers=1), 'images', at_least=0.9,
        beside=classifying((3, 32, 32), 2048, *RESNET), note='ResNet18; PNG files decoded by one process beside the same from memory; needs two free cores'),
    Row('cifar10 memory', cifar_memory, 'MB', at_most=200, note="50,000 images from CIFAR-10's files: loaded, summarised and drawn from"),
    Row('loop cartpole random', loop(*DEFAULTS, 'Agent=Agents.Random', 'task=gym/CartPole-v1', 'num_envs=1', steps=16), 'steps',
        note='no learning: all that a step costs'),
]
