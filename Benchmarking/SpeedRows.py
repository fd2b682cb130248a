"""What `make bench` measures: the rows with their targets. To add one, write a builder (see SpeedWorks) and a `Row`."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from Benchmarking.SpeedPlain import plain_rnd
from Benchmarking.SpeedProcesses import processes
from Benchmarking.SpeedWorks import (
    AUXI,
    CARTPOLE,
    DEFAULTS,
    DQN,
    PIXEL_CURL,
    PPO,
    RND,
    SAC,
    STORED,
    Bench,
    Work,
    add,
    bare_gather,
    dqn_update,
    draw,
    environment,
    learning,
    loop,
    pixel_specs,
    replay_bytes,
    rollouts,
    sac_update,
    sequences,
    state_specs,
)


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
        note: what is compared, for the JSON and the reader."""

    name: str
    ours: Callable[[Bench], Work | float]
    unit: str
    plain: str = ''
    settings: dict[str, Any] = field(default_factory=dict)
    at_least: float | None = None
    at_most: float | None = None
    note: str = ''
    apart: bool = False
    beside: Callable[[Bench], Work] | None = None

    @property
    def bf16(self) -> bool:
        """Whether the CPU needs units for bf16."""
        return 'bf16' in self.name


def classifying(*settings: Any, **options: Any) -> Callable[[Bench], Work]:
    """See SpeedLabelled, which imports torch: not before the number of threads is set."""
    def build(bench: Bench) -> Work:
        from Benchmarking import SpeedLabelled
        return SpeedLabelled.classifying(*settings, **options)(bench)
    return build


def cifar_memory(bench: Bench) -> float:
    from Benchmarking import SpeedLabelled
    return SpeedLabelled.cifar_memory(bench)


ENV_NOTE = 'plain: ale-py vector env alone, engine stack 4 and episodic life; ours: engine unstacked, stacking and life loss in Environment, raw rewards'
REPLAY_NOTE = f'{STORED:,} transitions in 16 lanes; plain: ring without episode ends, with action and reward columns'
UPDATE_NOTE = 'Nature CNN, 6 actions, double, Huber, Adam 1e-4; plain is eager fp32 NCHW in every row'
LOOP_NOTE = 'one update of 32 per 4 steps, double, replay 20k, one thread for the emulators of either side; plain is fp32'
PPO_NOTE = 'rollouts of 128, four passes in four parts, GAE, checkpoints on their cadence; plain is eager fp32 NCHW over the same vector env'
RND_NOTE = '32 lanes, rollouts of 128, the networks and numbers of the paper; beside: the plain single-file loop of Benchmarking/SpeedPlain.py, fp32'
PROCESSES_NOTE = ('16 lanes in all, fp32, one torch thread each, gloo; beside: one such process; needs two free cores. runs: two that share nothing, '
                  '16 lanes each, which is what the machine can do')
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
    *(Row(f'dqn update {size} {form}', dqn_update(f'batch_size={size}', *overrides), 'updates', f'dqn_update_b{size}', at_least=at_least, note=UPDATE_NOTE)
      for size in (32, 256)
      for form, overrides, at_least in (('fp32', (), 1 / 1.05), ('bf16', ('precision=bf16',), 1 / 0.65), ('fp32 compile', ('compile=true',), None),
                                        ('bf16 compile', ('precision=bf16', 'compile=true'), None))),
    *(Row(f'loop pong {envs} {precision}', loop(*DQN, f'num_envs={envs}', f'precision={precision}', steps=max(4, envs)), 'steps', plain,
          at_least=at_least, note=LOOP_NOTE)
      for envs, plain, targets in ((1, 'dqn_pong_loop', (1.1, 1.5)), (16, 'dqn_pong_loop_16', (1.25, 1.8)))
      for precision, at_least in zip(('fp32', 'bf16'), targets)),
    *(Row(f'env dmc state {envs}', environment('dmc', 'cheetah_run', envs, obs='state'), 'steps', 'env_dmc_state', at_least=0.9,
          note='cheetah_run, action repeat 2, all lanes in one process; plain: dm_control alone') for envs in (1, 16)),
    *(Row(f'env dmc pixels {quality}', environment('dmc', 'cheetah_run', 1, obs='pixels', action_repeat=1, render_quality=quality), 'frames', 'render_dmc',
          apart=True, at_least=at_least, note=RENDER_NOTE) for quality, at_least in (('full', 1.2), ('near', 2.0), ('fast', 5.0))),
    Row('env dmc pixels 2 workers', environment('dmc', 'cheetah_run', 2, obs='pixels', num_threads=2), 'steps', at_least=1.6,
        beside=environment('dmc', 'cheetah_run', 2, obs='pixels', num_threads=1), note='two lanes, in two processes beside in one; needs two free cores'),
    *(Row(f'sac update {hidden} {form}', sac_update(f'hidden_dim={hidden}', *overrides), 'updates', f'sac_update_{hidden}', at_least=at_least, note=SAC_NOTE)
      for hidden, targets in ((256, (1 / 0.85, None)), (1024, (1 / 0.95, 1 / 0.5)))
      for form, overrides, at_least in (('fp32', (), targets[0]), ('bf16', ('precision=bf16',), targets[1]), ('fp32 compile', ('compile=true',), None),
                                        ('bf16 compile', ('precision=bf16', 'compile=true'), None))),
    Row('auxisac update', learning(state_specs, *SAC, *AUXI), 'updates', at_least=1 / 2.5, beside=learning(state_specs, *SAC),
        note='256×2, batch 256: SAC with the dense encoder and A2-winner, beside SAC on the state itself; both with their draws from the replay'),
    *(Row(f'pixel sac curl {precision}', learning(lambda: pixel_specs(100), *PIXEL_CURL, f'precision={precision}', stored=2000), 'updates', 'pixel_curl_update',
          note=PIXEL_NOTE) for precision in ('fp32', 'bf16')),
    Row('replay sequences 9', sequences(9), 'batches', at_least=1 / 1.25, beside=bare_gather(15),
        note='256 samples of 3 + 9 frames and the 3 of next_obs; beside: bare windows of 15 frames'),
    *(Row(f'classify resnet18 {precision}', classifying((3, 32, 32), 2048, *RESNET, f'precision={precision}'), 'images', 'resnet18_cifar',
          at_least=at_least, note=CLASSIFY_NOTE) for precision, at_least in (('fp32', 0.95), ('bf16', 2.0))),
    *(Row(f'classify small {precision}', classifying((1, 28, 28), 8192, 'Eyes=Benchmarking.SpeedLabelled.SmallEyes', f'precision={precision}'), 'images',
          'small_cnn', at_least=0.9 if precision == 'fp32' else None, note=CLASSIFY_NOTE) for precision in ('fp32', 'bf16')),
    Row('classify stream', classifying((3, 32, 32), 2048, *RESNET, stream=True, workers=1), 'images', at_least=0.9,
        beside=classifying((3, 32, 32), 2048, *RESNET), note='ResNet18; PNG files decoded by one process beside the same from memory; needs two free cores'),
    Row('cifar10 memory', cifar_memory, 'MB', at_most=200, note="50,000 images from CIFAR-10's files: loaded, summarised and drawn from"),
    *(Row(f'loop ppo pong {envs} {precision}', rollouts(*PPO, f'num_envs={envs}', f'precision={precision}'), 'steps', 'ppo_pong_loop',
          {'num_envs': envs}, at_least=at_least, note=PPO_NOTE)
      for envs in (8, 32) for precision, at_least in (('fp32', 1.2), ('bf16', 1.8))),
    *(Row(f'loop rnd montezuma {precision}', rollouts(*RND, 'num_envs=32', f'precision={precision}'), 'steps', beside=plain_rnd('montezuma_revenge', 32),
          at_least=at_least, note=RND_NOTE) for precision, at_least in (('fp32', 1.3), ('bf16', None))),
    *(Row(f'loop ppo pong 2 {name}', processes(2, *PPO, 'num_envs=16', together=together), 'steps', at_least=at_least,
          beside=processes(1, *PPO, 'num_envs=16'), note=PROCESSES_NOTE)
      for name, together, at_least in (('processes', True, 1.6), ('runs', False, None))),
    Row('loop ppo cartpole 64', rollouts(*CARTPOLE, 'num_envs=64', 'agent.rollout_steps=128', 'agent.epochs=4', 'agent.minibatches=4'), 'steps',
        at_least=20_000, note='rollouts of 128, four passes in four parts, as the peers have it'),
    Row('loop ppo cartpole 64 preset', rollouts(*CARTPOLE, 'num_envs=64'), 'steps', note="the preset's numbers: rollouts of 32, twenty passes"),
    Row('loop cartpole random', loop(*DEFAULTS, 'Agent=Agents.Random', 'task=gym/CartPole-v1', 'num_envs=1', steps=16), 'steps',
        note='no learning: all that a step costs'),
]
