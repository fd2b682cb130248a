"""What `Environment` asks of a simulator, and the few things that every suite shares."""
import inspect
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from Datasets.Specs import ActionSpec, ObsSpec
from Datasets.Suites.Names import nearest


class Transition(NamedTuple):
    """What one vector step brought, in arrays of its own.

    obs: (N, *frame shape), what each lane shows after the action, so the final observation of a lane that ended.
    reward: (N,) float32, raw. terminated, truncated: (N,) bool, the episode is over. life_lost: (N,) bool, a life was lost and the game goes on.
    """

    obs: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    life_lost: np.ndarray


class Suite:
    """N lanes of one task, around a `gymnasium.vector.VectorEnv`. A suite never resets a lane by itself and never changes a reward.

    Simulators that can save their exact state also offer `get_state() -> plain Python and tensors` and `set_state(state)`.

    Attributes:
        reseed_steps: agent steps of a lane below which its resets are not seeded but go on with the lane's own random stream, where seeding is slow.

    Args:
        name: the suite, as in `task=<name>/<task>`.
        task: the task's canonical name.
        num_envs: lanes N.
        obs_spec, action_spec: of one lane.
        action_repeat: simulator frames in one agent step.
    """

    reseed_steps = 0

    def __init__(self, *, name: str, task: str, num_envs: int, obs_spec: ObsSpec, action_spec: ActionSpec, action_repeat: int = 1) -> None:
        self.name, self.task, self.num_envs = name, task, num_envs
        self.obs_spec, self.action_spec, self.action_repeat = obs_spec, action_spec, action_repeat

    def reset(self, mask: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        """Starts a new episode in the lanes of `mask` and leaves the others as they are.

        Args:
            mask: (N,) bool. The first call must name every lane.
            seeds: (mask.sum(),) int64, what each new episode is drawn from; -1, where `reseed_steps` is set, goes on with the lane's stream.

        Returns:
            (N, *frame shape): the first frame of the lanes of `mask`; what stands in the others means nothing.
        """
        raise NotImplementedError

    def send(self, actions: np.ndarray) -> None:
        """Begins a vector step. actions: (N,) int64 below `num_actions`, or (N, A) float32 in [-1, 1], which the suite rescales."""
        raise NotImplementedError

    def recv(self) -> Transition:
        """Waits for the vector step that `send` began."""
        raise NotImplementedError

    def step(self, actions: np.ndarray) -> Transition:
        self.send(actions)
        return self.recv()

    def render_episode(self, seed: int, actions: Sequence[Any], before: Sequence[Any] = ()) -> Iterator[np.ndarray]:
        """Plays an episode again in an environment of its own and yields (H, W, 3) uint8 frames, the first one before the first action.

        Args:
            seed: of the lane's last seeded reset.
            actions: of the episode.
            before: actions of each episode between that reset and this one.
        """
        raise NotImplementedError

    def visited(self, lane: int, seed: int, actions: Sequence[Any], before: Sequence[Any] = ()) -> dict[str, set[int]]:
        """The places that a finished episode visited, by kind of place, where the suite tells places apart: a game's rooms by their numbers.

        Args:
            lane: global index. A lane's episodes are best asked for in their order.
            seed, actions, before: as `render_episode`'s.
        """
        return {}

    def broken_lane(self, error: BaseException) -> int | None:
        """The lane in which `error` arose, where that can be known."""
        return getattr(error, 'lane', None)

    def close(self) -> None:
        """Ends the simulator; may be called twice."""


def given(options: dict[str, Any], suite: type[Suite]) -> dict[str, Any]:
    """The options that were given a value; None leaves one at its default, that of the suite's constructor.

    Raises:
        ValueError: the constructor knows no such option.
    """
    known = [name for name in inspect.signature(suite).parameters if name not in ('task', 'num_envs')]
    for option in options:
        if option not in known:
            raise ValueError(f'environment.{option}: {suite.__name__} has no such option; nearest: {", ".join(nearest(option, known) or known)}')
    return {option: value for option, value in options.items() if value is not None}


def check_at_least(minimum: int, **options: Any) -> None:
    """Raises ValueError for an option that is not a whole number of at least `minimum`."""
    for option, value in options.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < minimum:
            raise ValueError(f'environment.{option}={value!r}: expected a whole number of at least {minimum}')
