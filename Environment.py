"""The rollout: the one place where an agent meets a suite.

N lanes step together. A lane whose episode ended is reset at once, with a seed of its own: every vector step is exactly N transitions and none is
spent on a reset. Frames are stacked here for acting by the rule that the replay uses: a stack never reaches back beyond `first`.
What a lane does follows from its last seed and its actions since: enough to play an episode again for a video, and to go on exactly after a restart.
"""
import atexit
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from Datasets.Specs import ActionSpec, ObsSpec
from Datasets.Suites.Suite import Suite
from Episodes import ActionLog, Episode

LANE_STATE = ('stack', 'action', 'reward', 'first', 'episode', 'lane_seed', 'score')  # arrays (N, ...) that a checkpoint holds


class EnvError(RuntimeError):
    """A simulator failed. The line says in which lane and episode, and at which action."""


@dataclass
class Step:
    """What an agent sees: obs (N, *stacked shape), first (N,) bool; reward (N,) float32 raw and prev_action (N, ...) led there, 0 at `first`."""

    obs: torch.Tensor
    first: torch.Tensor
    reward: torch.Tensor
    prev_action: torch.Tensor

    def to(self, device: torch.device | str) -> 'Step':
        return Step(self.obs.to(device), self.first.to(device), self.reward.to(device), self.prev_action.to(device))


@dataclass
class Rows:
    """N transitions and the frames that follow them, as numpy arrays.

    action: (N,) int64 or (N, A) float32. reward: (N,) float32, raw. terminated, truncated: (N,) bool, a lost life included in the former.
    obs: (N, *frame shape), the frame that opens each lane's next row; first: (N,) bool, that row opens an episode.
    final_lanes: (k,) int64, the lanes whose game ended; final_obs: (k, *frame shape), the last thing they showed.
    """

    action: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    obs: np.ndarray
    first: np.ndarray
    final_lanes: np.ndarray
    final_obs: np.ndarray

    def columns(self) -> dict[str, np.ndarray]:
        return vars(self)


class Environment:
    """Rolls out a suite.

    Args:
        suite: the lanes.
        seed: of the run; an episode's seed follows from it, the lane's global index and the episode's number in that lane, and from nothing else.
        lanes: (N,) global indices of the lanes; 0 … N-1 by default.

    Attributes:
        steps: agent steps taken since construction, over all lanes.
    """

    def __init__(self, suite: Suite, *, seed: int, lanes: Sequence[int] | None = None) -> None:
        self.suite, self.seed = suite, int(seed)
        self.lanes = np.arange(suite.num_envs) if lanes is None else np.asarray(lanes, np.int64)
        if len(self.lanes) != suite.num_envs:
            raise ValueError(f'lanes={list(self.lanes)}: expected one global index for each of num_envs={suite.num_envs}')
        if self.seed < 0:
            raise ValueError(f'seed={seed}: expected 0 or more')
        self.steps = 0
        self._action = np.zeros((suite.num_envs, *suite.action_spec.shape), np.int64 if suite.action_spec.discrete else np.float32)
        self._finished: list[Episode] = []
        self._before: list[tuple[np.ndarray, ...]] = []
        self._actions = ActionLog(suite.num_envs, suite.action_spec)
        self._num_actions = suite.action_spec.num_actions
        self._no_lanes = np.zeros(0, np.int64)
        self._no_frames = np.zeros((0, *suite.obs_spec.shape), suite.obs_spec.numpy_dtype)
        self._sent: np.ndarray | None = None
        self._started = False
        _open_environments.add(self)

    @property
    def num_envs(self) -> int:
        return self.suite.num_envs

    @property
    def obs_spec(self) -> ObsSpec:
        return self.suite.obs_spec

    @property
    def action_spec(self) -> ActionSpec:
        return self.suite.action_spec

    @property
    def action_repeat(self) -> int:
        return self.suite.action_repeat

    def start(self, seed: int | None = None) -> np.ndarray:
        """Begins episode 0 in every lane, whatever was going on.

        Args:
            seed: replaces the run's seed; an evaluation that starts with a seed of its own depends on nothing that ran before.

        Returns:
            (N, *frame shape), the first frames.
        """
        if self._sent is not None:
            self.receive()  # a step under way cannot be called off
        N = self.num_envs
        self.seed = self.seed if seed is None else int(seed)
        self._episode = np.zeros(N, np.int64)
        self._lane_seed = np.array([episode_seed(self.seed, lane, 0) for lane in self.lanes], np.int64)
        self._score = np.zeros(N)
        self._action, self._reward, self._first = np.zeros_like(self._action), np.zeros(N, np.float32), np.ones(N, bool)
        self._actions.clear()
        self._before = [() for _ in range(N)]
        self._finished = []
        obs = self._guard(self.suite.reset, np.ones(N, bool), self._lane_seed)
        self._stack = pad(obs, self.obs_spec)
        self._started = True
        return obs

    @property
    def frames(self) -> np.ndarray:
        """(N, *frame shape): the newest frame of each lane."""
        return self._stack[:, -self.obs_spec.shape[0]:].copy()

    def observe(self) -> Step:
        """What the agent sees now; tensors that later steps leave alone."""
        reward, action = self._reward, self._action
        if np.count_nonzero(self._first):
            reward, action = reward.copy(), action.copy()
            reward[self._first] = 0
            action[self._first] = 0
        return Step(torch.from_numpy(self._stack), torch.from_numpy(self._first), torch.from_numpy(reward), torch.from_numpy(action))

    def advance(self, action: torch.Tensor | np.ndarray) -> Rows:
        """One vector step, exactly N transitions. action: (N,) integers or (N, A) float32 in [-1, 1]."""
        self.send(action)
        return self.receive()

    def send(self, action: torch.Tensor | np.ndarray) -> None:
        """Begins a vector step, so that a learner can work while simulators that have threads or processes run.

        Raises:
            ValueError: an action of a wrong shape or out of range (the simulators would hang or break on some).
            EnvError: a simulator is dead.
        """
        if not self._started or self._sent is not None:
            raise RuntimeError('Environment.send: ' + ('call start() first' if not self._started else 'the step before was not received'))
        if isinstance(action, torch.Tensor):
            action = action.detach().cpu().numpy()
        action = np.asarray(action)
        if action.shape != self._action.shape or (self._num_actions and action.dtype.kind not in 'iu'):
            raise ValueError(f'action {action.dtype} {action.shape}: expected {self._action.dtype} {self._action.shape}')
        action = action.astype(self._action.dtype)  # a copy: the caller may write to its own before `receive`
        if self._num_actions:
            choices = action.tolist()
            if min(choices) < 0 or max(choices) >= self._num_actions:
                raise ValueError(f'action {choices}: expected 0 to {self._num_actions - 1} ({self.suite.name}/{self.suite.task})')
        elif not np.isfinite(action).all():
            raise ValueError(f'action {action.tolist()}: expected finite numbers ({self.suite.name}/{self.suite.task})')
        self._sent = action
        try:
            self.suite.send(action)
        except Exception as error:
            raise self._failure(error) from error

    def receive(self) -> Rows:
        """Ends the vector step that `send` began, and resets the lanes whose game is over.

        Raises:
            EnvError: a simulator failed.
        """
        if self._sent is None:
            raise RuntimeError('Environment.receive: no step was sent')
        try:
            obs, reward, terminated, truncated, life_lost = self.suite.recv()
        except Exception as error:
            raise self._failure(error) from error
        action, self._sent = self._sent, None
        self._actions.append(action)
        self._action, self._reward = action, reward
        self._score += reward
        self.steps += len(action)
        ended, final_lanes, final_obs = terminated | truncated, self._no_lanes, self._no_frames
        first = ended | life_lost
        if np.count_nonzero(ended):
            final_lanes = np.flatnonzero(ended)
            final_obs = obs[final_lanes]
            obs[final_lanes] = self._next_episodes(ended, final_lanes)
        self._stack = self._push(obs, first)
        self._first = first
        return Rows(action, reward, terminated | life_lost, truncated, obs, first, final_lanes, final_obs)

    @property
    def episodes(self) -> list[Episode]:
        """Games finished since they were last popped."""
        return self._finished

    def pop_episodes(self) -> list[Episode]:
        episodes, self._finished = self._finished, []
        return episodes

    def visited(self, episode: Episode) -> dict[str, set[int]]:
        """The places that a finished game visited, by kind; {} in most suites."""
        return self.suite.visited(episode.lane, episode.seed, list(episode.actions), episode.before)

    def close(self) -> None:
        _open_environments.discard(self)
        self._started = False
        self.suite.close()

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs to go on to the bit: plain Python and tensors."""
        if not self._started or self._sent is not None:
            raise RuntimeError('Environment.state_dict: call start() first' if not self._started else 'Environment.state_dict: receive() first')
        state: dict[str, Any] = {'task': f'{self.suite.name}/{self.suite.task}', 'lanes': self.lanes.tolist(), 'seed': self.seed, 'steps': self.steps}
        state |= {name: tensor(getattr(self, f'_{name}')) for name in LANE_STATE}
        state['actions'] = [tensor(self._actions.of(lane)) for lane in range(self.num_envs)]
        state['before'] = [[tensor(game) for game in before] for before in self._before]
        state['finished'] = [vars(episode) | {'actions': tensor(episode.actions), 'before': [tensor(game) for game in episode.before]}
                             for episode in self._finished]
        if hasattr(self.suite, 'get_state'):
            state['suite'] = self.suite.get_state()
        return state

    def check_state(self, state: dict[str, Any]) -> None:
        """Changes nothing. Raises: ValueError: the state is of another task or of other lanes."""
        task = f'{self.suite.name}/{self.suite.task}'
        if state['task'] != task or state['lanes'] != self.lanes.tolist():
            raise ValueError(f"a state of {state['task']} with lanes {state['lanes']} cannot go on in {task} with lanes {self.lanes.tolist()}: "
                             'resume with the task and num_envs of the run')
        if tuple(state['stack'].shape[1:]) != self.obs_spec.stacked_shape:
            raise ValueError(f"a state with observations {tuple(state['stack'].shape[1:])} cannot go on with {self.obs_spec.stacked_shape}: "
                             'resume with the task options of the run')

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was called, also in a new process. Suites without states of their own play each lane's episode again.

        Raises:
            ValueError: the state is of another task or of other lanes.

        Warns:
            RuntimeWarning: a lane shows something else than it did, so that the run will not be the one that was interrupted.
        """
        self.check_state(state)
        if self._sent is not None:
            self.receive()
        self.seed, self.steps = state['seed'], state['steps']
        for name in LANE_STATE:
            setattr(self, f'_{name}', state[name].numpy().copy())
        self._finished = [Episode(**episode | {'actions': episode['actions'].numpy(), 'before': arrays(episode['before'])})
                          for episode in state['finished']]
        self._before = [arrays(before) for before in state['before']]
        actions = arrays(state['actions'])
        if 'suite' in state and hasattr(self.suite, 'set_state'):
            self.suite.set_state(state['suite'])
        else:
            self._replay([(*before, current) for before, current in zip(self._before, actions)])
        self._actions.load(actions)
        self._started = True

    def _replay(self, games: list[tuple[np.ndarray, ...]]) -> None:
        """Plays `games`, each lane's actions since its seed, again, and checks what the lanes then show.

        All end together: a lane with fewer steps than the longest waits with action 0 before it is seeded.
        """
        N, counts = self.num_envs, np.array([sum(map(len, lane_games)) for lane_games in games])
        longest = int(counts.max())
        schedule = np.zeros((longest, *self._action.shape), self._action.dtype)
        opens = np.zeros((longest + 1, N), bool)  # a game of the lane begins at this step
        for lane, lane_games in enumerate(games):
            step = longest - counts[lane]
            for game in lane_games:
                opens[step, lane] = True
                schedule[step:step + len(game), lane] = game
                step += len(game)
        playing = counts == longest
        strayed = np.zeros(N, bool)
        obs = self._guard(self.suite.reset, np.ones(N, bool), self._lane_seed)
        for step in range(longest):
            obs, _, terminated, truncated, _ = self._guard(self.suite.step, schedule[step])
            ended, begins = terminated | truncated, counts == longest - step - 1
            strayed |= playing & (ended != opens[step + 1])
            resets = ended | opens[step + 1]
            if resets.any():
                seeds = np.where(playing & (self.suite.reseed_steps > 0), -1, self._lane_seed)
                obs[resets] = self._guard(self.suite.reset, resets, seeds[resets])[resets]
            playing |= begins
        channels = self.obs_spec.shape[0]
        strayed |= (obs != self._stack[:, -channels:]).reshape(self.num_envs, -1).any(1)
        if strayed.any():
            self._stack[:, -channels:] = obs  # the agent must see what is there
            warnings.warn(f'resume is not exact: {self.suite.name}/{self.suite.task} did not repeat itself in '
                          f'lane {", ".join(str(lane) for lane in self.lanes[strayed])}', RuntimeWarning, stacklevel=3)

    def _next_episodes(self, ended: np.ndarray, lanes: np.ndarray) -> np.ndarray:
        """Records what ended in `lanes` and resets them. → (k, *frame shape), their first frames."""
        seeds = np.full(len(lanes), -1, np.int64)
        for i, lane in enumerate(lanes):
            actions, before = self._actions.of(lane), self._before[lane]
            self._finished.append(Episode(int(self.lanes[lane]), int(self._lane_seed[lane]), float(self._score[lane]), len(actions), actions, before))
            self._actions.open(lane)
            self._episode[lane] += 1
            self._before[lane] = (*before, actions)
            if sum(map(len, self._before[lane])) >= self.suite.reseed_steps:
                seeds[i] = self._lane_seed[lane] = episode_seed(self.seed, self.lanes[lane], self._episode[lane])
                self._before[lane] = ()
        self._score[lanes] = 0
        return self._guard(self.suite.reset, ended, seeds)[lanes]

    def _push(self, obs: np.ndarray, first: np.ndarray) -> np.ndarray:
        """The stacks with one more frame, (N, *stacked shape), in memory of their own; those of `first` begin anew."""
        spec = self.obs_spec
        if spec.frame_stack == 1:
            return obs
        stack, channels = np.empty_like(self._stack), spec.shape[0]
        stack[:, :-channels] = self._stack[:, channels:]
        stack[:, -channels:] = obs
        if np.count_nonzero(first):
            stack[first] = pad(obs[first], spec)
        return stack

    def _guard(self, call: Callable[..., Any], *inputs: Any) -> Any:
        """Calls the suite; a failure is told with the lane, its seed and the action it happened at."""
        try:
            return call(*inputs)
        except Exception as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> EnvError:
        action = self._action if self._sent is None else self._sent
        broken = self.suite.broken_lane(error)
        lanes = range(min(self.num_envs, 8)) if broken is None else [broken]
        where = '; '.join(f'lane {self.lanes[lane]}, seed {self._lane_seed[lane]}, last action {action[lane].tolist()}' for lane in lanes)
        cause = ' '.join(f'{type(error).__name__}: {error}'.split())
        return EnvError(f'{self.suite.name}/{self.suite.task} failed in {"one of: " if len(lanes) > 1 else ""}{where}: {cause}')


def dealt(states: Sequence[dict[str, Any]], lanes: Sequence[int]) -> dict[str, Any]:
    """The state of some lanes, from those of environments that together had them. Raises: ValueError: their simulators' states are not by lanes."""
    home = {lane: (state, i) for state in states for i, lane in enumerate(state['lanes'])}
    chosen = [home[lane] for lane in lanes]
    made: dict[str, Any] = {'task': states[0]['task'], 'lanes': list(lanes), 'seed': states[0]['seed'],
                            'steps': sum(state['steps'] for state in states) * len(lanes) // len(home)}
    made |= {name: torch.stack([state[name][i] for state, i in chosen]) for name in LANE_STATE}
    made |= {name: [state[name][i] for state, i in chosen] for name in ('actions', 'before')}
    made['finished'] = [episode for state in states for episode in state['finished'] if episode['lane'] in lanes]
    if 'suite' in states[0]:
        if not isinstance(states[0]['suite'], list):
            raise ValueError(f"{made['task']}: the state of its simulator is not one of each lane: resume with as many processes as it was saved with")
        made['suite'] = [state['suite'][i] for state, i in chosen]
    return made


def episode_seed(seed: int, lane: int, episode: int) -> int:
    """31 bits that depend on the run's seed, the lane's global index and the episode's number, and on nothing else."""
    return int(np.random.SeedSequence(int(seed), spawn_key=(int(lane), int(episode))).generate_state(1)[0] >> 1)


def pad(obs: np.ndarray, spec: ObsSpec) -> np.ndarray:
    """The stack at an episode's first frame: (n, *frame shape) → (n, *stacked shape)."""
    before = obs if spec.stack_pad == 'repeat' else np.zeros_like(obs)
    return np.concatenate([*[before] * (spec.frame_stack - 1), obs], 1)


def arrays(tensors: Sequence[torch.Tensor]) -> tuple[np.ndarray, ...]:
    """What a checkpoint holds as tensors."""
    return tuple(one.numpy() for one in tensors)


def tensor(array: np.ndarray) -> torch.Tensor:
    """A copy as a tensor, which checkpoints take."""
    return torch.from_numpy(array.copy())


_open_environments: 'weakref.WeakSet[Environment]' = weakref.WeakSet()


@atexit.register
def close_all() -> None:
    """Ends simulators that a program left open; some renderers and workers complain if the interpreter ends before them."""
    for environment in list(_open_environments):
        environment.close()
