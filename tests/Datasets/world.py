"""A world that a replay lives through, remembered as plain lists: what the replay must say is looked up there."""
from types import SimpleNamespace

import numpy as np
import torch

from Datasets.Replay import Extra, Replay
from Datasets.Specs import ActionSpec, ObsSpec

GAMMA = 0.9
SHAPES = [((1, 2, 4), torch.uint8), ((3, 2, 2), torch.uint8), ((1, 3, 3), torch.uint8), ((3,), torch.float32), ((4,), torch.float32)]
UID = {'uid': Extra(dtype=torch.int64)}


class World:
    """Random episodes in N lanes, written to a replay and remembered as plain lists. They end terminated or truncated, with a final observation or
    without (a lost life, ProcGen)."""
    def __init__(self, obs_spec, action_spec, num_envs, seed, length=8.0):
        self.obs_spec, self.action_spec, self.num_envs, self.length = obs_spec, action_spec, num_envs, length
        self.rng, self.uid = np.random.default_rng(seed), 0
        self.episodes = [[] for _ in range(num_envs)]  # of each lane: {obs, action, reward, end, final}
        self.rows = [[] for _ in range(num_envs)]  # closed rows of each lane: uid, or None for a final observation
        self.where = {}  # uid -> lane, episode, step

    def frame(self):
        if self.obs_spec.dtype == torch.uint8:
            return self.rng.integers(1, 256, self.obs_spec.shape, dtype=np.uint8)
        return self.rng.standard_normal(self.obs_spec.shape).astype(np.float32)

    def open(self, lane, obs):
        self.episodes[lane].append({'obs': [obs], 'action': [], 'reward': [], 'uid': [], 'end': None, 'final': False})

    def begin(self, replay):
        obs = np.stack([self.frame() for _ in range(self.num_envs)])
        for lane in range(self.num_envs):
            self.open(lane, obs[lane])
        replay.begin(obs)

    def step(self, replay, **extras):
        n = self.num_envs
        if self.action_spec.discrete:
            action = self.rng.integers(0, self.action_spec.num_actions, (n, *self.action_spec.shape))
        else:
            action = self.rng.uniform(-1, 1, (n, *self.action_spec.shape)).astype(np.float32)
        reward = (3 * self.rng.standard_normal(n)).astype(np.float32)
        ends = self.rng.random(n) < 1 / self.length
        terminated, final = ends & (self.rng.random(n) < 0.5), self.rng.random(n) < 0.6
        obs, lanes, finals = [], [], []
        uids = np.arange(self.uid, self.uid + n)
        self.uid += n
        for lane in range(n):
            episode = self.episodes[lane][-1]
            self.where[int(uids[lane])] = lane, len(self.episodes[lane]) - 1, len(episode['action'])
            for name, value in (('action', action), ('reward', reward), ('uid', uids)):
                episode[name].append(value[lane])
            self.rows[lane].append(int(uids[lane]))
            if ends[lane]:
                episode['end'], episode['final'] = 'terminated' if terminated[lane] else 'truncated', bool(final[lane])
                if final[lane]:
                    episode['obs'].append(self.frame())
                    lanes.append(lane)
                    finals.append(episode['obs'][-1])
                    self.rows[lane].append(None)
                self.open(lane, self.frame())
            else:
                episode['obs'].append(self.frame())
            obs.append(self.episodes[lane][-1]['obs'][-1])
        truncated = ends & ~terminated
        if 'uid' in replay.extras:
            extras['uid'] = uids
        finals = np.stack(finals) if finals else None
        replay.add(action, reward, terminated, truncated, np.stack(obs), ends, np.array(lanes, np.int64), finals, **extras)

    def drawable(self, capacity_per_lane):
        return [uid for rows in self.rows for uid in rows[-capacity_per_lane:] if uid is not None]

    def stack(self, frames):
        spec = self.obs_spec
        frames = list(frames[-spec.frame_stack:])
        first = np.zeros_like(frames[0]) if spec.stack_pad == 'zeros' else frames[0]
        return np.concatenate([first] * (spec.frame_stack - len(frames)) + frames, 0)

    def expected(self, uid, nstep, horizon, clip):
        lane, number, t = self.where[uid]
        episode = self.episodes[lane][number]
        rewards = [min(max(r, -clip), clip) if clip is not None else r for r in episode['reward']]
        steps = min(nstep, len(rewards) - t)
        ended = episode['end'] is not None and t + steps == len(rewards)
        alive = not ended or (episode['end'] == 'truncated' and episode['final'])
        frames = list(episode['obs'])
        if len(frames) == len(rewards):  # ended without a final observation: the next episode's first follows
            frames.append(self.episodes[lane][number + 1]['obs'][0])
        length = min(horizon, len(rewards) - t)
        real = [t + k < len(episode['obs']) and k <= length for k in range(horizon + 1)]
        return SimpleNamespace(
            obs=self.stack(frames[:t + 1]), next_obs=self.stack(frames[:t + steps + 1]), action=episode['action'][t],
            reward=sum(GAMMA ** k * float(rewards[t + k]) for k in range(steps)), discount=GAMMA ** steps if alive else 0,
            mask=[float(k < length) for k in range(horizon)], obs_mask=[float(each) for each in real],
            stacks=[self.stack(frames[:t + k + 1]) if real[k] else None for k in range(horizon + 1)],
            actions=[episode['action'][t + k] if k < length else np.zeros_like(episode['action'][t]) for k in range(horizon)],
            rewards=[rewards[t + k] if k < length else 0 for k in range(horizon)])

    def check(self, batch, nstep, horizon=0, clip=None):
        want = [self.expected(uid, nstep, horizon, clip) for uid in batch.extras['uid'].tolist()]

        def equal(got, name, tolerance=0.0):
            values = np.stack([getattr(each, name) for each in want])
            assert got.shape == values.shape and (np.abs(got.numpy() - values) <= tolerance * np.maximum(np.abs(values), 1)).all(), name

        equal(batch.obs, 'obs')
        equal(batch.next_obs, 'next_obs')
        equal(batch.action, 'action')
        equal(batch.reward, 'reward', 1e-6)
        equal(batch.discount, 'discount', 1e-6)
        if horizon:
            equal(batch.sequence.mask, 'mask')
            equal(batch.sequence.obs_mask, 'obs_mask')
            equal(batch.sequence.action, 'actions')
            equal(batch.sequence.reward, 'rewards', 1e-6)
            frame = self.obs_spec.shape[0]
            there = batch.sequence.obs_mask.bool().numpy()
            stacks = batch.sequence.obs.numpy()
            assert (stacks[there] == np.stack([stack for each in want for stack in each.stacks if stack is not None])).all()
            assert not stacks[~there][:, -frame:].any()


def specs(shape=0, stack=1, pad='zeros', discrete=True):
    shape, dtype = SHAPES[shape]
    return ObsSpec(shape, dtype, frame_stack=stack, stack_pad=pad), ActionSpec(num_actions=5) if discrete else ActionSpec((2,))


def build(obs_spec, action_spec, **options):
    options = {'num_envs': 2, 'capacity': 60, 'seed': 0, 'store': 'ram', 'extras': UID, 'discount': GAMMA, **options}
    return Replay(obs_spec, action_spec, **options)


def pair(steps=30, *, stack=2, lanes=2, length=8.0, seed=0, discrete=True, shape=0, pad='zeros', **options):
    """A world and a replay that lived through it."""
    world = World(*specs(shape, stack, pad, discrete), lanes, seed, length)
    replay = build(world.obs_spec, world.action_spec, num_envs=lanes, **options)
    world.begin(replay)
    for _ in range(steps):
        world.step(replay)
    return world, replay
