"""Which rooms of a game an episode visited. The vector engine shows no memory: the episode's actions are played again in a plain emulator, which does.

The plain emulator draws its sticky actions from the same stream, frame by frame, so it walks the same way. It processes no picture and takes about
six tenths of the engine's time; the engine's memory itself lies behind no interface, and its pictures do not number their rooms.
"""
from collections.abc import Sequence
from typing import Any

import ale_py
import numpy as np
from ale_py import Action, ALEInterface, roms
from ale_py.vector_env import AtariVectorEnv

ROOM_BYTES = {'montezuma_revenge': 3, 'pitfall': 1}  # of the console's 128 bytes of memory, the one that numbers the room


class Rooms:
    """The rooms of finished episodes.

    Args:
        task: a game of ROOM_BYTES.
        engine: the settings of the vector engine that the episodes were played in.
    """

    def __init__(self, task: str, engine: dict[str, Any]) -> None:
        self.task, self.engine = task, engine
        self.consoles: dict[int, Console] = {}

    def __call__(self, lane: int, seed: int, actions: Sequence[Any], before: Sequence[Any] = ()) -> set[int]:
        """The rooms in which an episode began and stood after each agent step. Arguments as `Suite.visited`'s."""
        console = self.consoles.get(lane)
        if console is None or (console.seed, console.games) != (seed, len(before)):  # else it stands where this episode begins
            console = self.consoles[lane] = Console(self.task, self.engine, seed)
            for game in before:
                console.play(game)
        return console.play(actions)


class Console:
    """A plain emulator that does what a lane of the vector engine did since it was seeded."""

    def __init__(self, task: str, engine: dict[str, Any], seed: int) -> None:
        self.seed, self.games, self.skip, self.byte = seed, 0, engine['frameskip'], ROOM_BYTES[task]
        self.ale = ALEInterface()
        self.ale.setLoggerMode(ale_py.LoggerMode.Error)
        self.ale.setFloat('repeat_action_probability', engine['repeat_action_probability'])
        self.ale.setInt('max_num_frames_per_episode', engine['max_num_frames_per_episode'])
        self.ale.setInt('random_seed', seed)
        self.ale.loadROM(str(roms.get_rom_path(task)))
        self.actions = self.ale.getLegalActionSet() if engine['full_action_space'] else self.ale.getMinimalActionSet()
        self.fires = engine['use_fire_reset'] and Action.FIRE in self.actions
        # How long a game waits is drawn by the engine from a stream of its own, whatever is played: one that plays nothing tells
        self.waits = engine['noop_max'] > 1 or self.fires
        self.idle: Any = AtariVectorEnv(task, 1, num_threads=1, **engine) if self.waits else None

    def play(self, actions: Sequence[Any]) -> set[int]:
        """The lane's next game. → the rooms it visited."""
        ale, skip, byte = self.ale, self.skip, self.byte
        ale.reset_game()
        for action in self.opening():
            ale.act(action)
        self.games += 1
        rooms = {int(ale.getRAM()[byte])}
        for index in np.asarray(actions).tolist():
            action = self.actions[index]
            for _ in range(skip):
                ale.act(action)
                if ale.game_over():  # the engine stops here too: one frame more would draw from the stream
                    break
            rooms.add(int(ale.getRAM()[byte]))
        return rooms

    def opening(self) -> list[Action]:
        """What the engine does by itself when a game begins: fire, where it was asked to, then nothing for some frames."""
        if not self.waits:
            return []
        _, info = self.idle.reset(seed=np.array([-1 if self.games else self.seed], np.int64))
        frames = int(info['episode_frame_number'][0])
        return [Action.FIRE] * (self.fires and frames > 0) + [Action.NOOP] * (frames - (self.fires and frames > 0))
