"""A run's memory of itself: what it saves, and how it goes on from there, with as many processes or with others.

A checkpoint holds what all processes of a run share, and a list of what each has for itself: its lanes, its replay, its random streams.
"""
from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch

import Checkpoint
import Parallel
from Agents.Agent import Agent
from Agents.Build import described
from Benchmarking.Folder import Folder
from Benchmarking.Logger import Logger
from Benchmarking.Recorder import Recorder
from Blocks.Normalisers import LANE_BUFFERS
from Datasets.Replay import Replay
from Datasets.RunReplay import RunReplay, anew
from Environment import Environment, dealt
from Episodes import Visits
from Judges import Judge
from Stopping import asked_every
from Utils import Args, NonFinite

VERSION = '0.1.0'


class Saving:
    """The part of a session that is written down and read again. What is declared here, the session sets."""

    args: Args
    path: Path
    learner_path: Path
    folder: Folder
    device: torch.device
    lanes: range
    agent: Agent
    environment: Environment
    replay: Replay
    run_replay: RunReplay
    judge: Judge
    logger: Recorder
    clocks: dict[str, Any]
    visits: Visits
    step: int
    learn_calls: int
    episodes: int
    seed_steps: int
    saved_update: int
    weights_read: int
    score: float | None
    agent_state: Any
    complete: bool
    replay_anew: bool
    replay_kept: bool
    only_evaluates: bool

    @property
    def finished(self) -> bool:
        raise NotImplementedError

    @property
    def stopping(self) -> bool:
        raise NotImplementedError

    def learn_calls_due(self, after: bool = False) -> int:
        raise NotImplementedError

    def pool_records(self) -> None:
        raise NotImplementedError

    # --- saving

    def save(self) -> None:
        """The run as a checkpoint. A full disk costs this checkpoint, never the last one."""
        weights = [p for p in self.agent.parameters() if p.is_floating_point()]
        if not all(torch.isfinite(p).all() for p in weights):
            raise NonFinite('weights', float('nan'), f' at step {self.step}; the last checkpoint is intact')
        kept = self.replay.checkpoints
        self.pool_records()
        processes = Parallel.gather(self.own_state())
        error: OSError | None = None
        if processes is not None:
            assert isinstance(self.logger, Logger)
            error = next((one for one in processes if isinstance(one, OSError)), None)
            try:
                if error is None:
                    Checkpoint.save(self.path, {
                        'step': self.step, 'learn_calls': self.learn_calls, 'learn_calls_owed': max(0, self.learn_calls_due() - self.learn_calls),
                        'learn_calls_left': max(0, self.learn_calls_due(after=True) - self.learn_calls), 'episodes': self.episodes, 'score': self.score,
                        'visits': {'train': self.visits.state_dict(), 'eval': self.judge.visits.state_dict()},
                        'seed_steps': self.seed_steps, 'rollout_steps': self.agent.rollout_steps, 'complete': self.complete,
                        'replay_kept': self.replay_kept or self.args.replay.save,
                        'agent': self.agent.state(), 'processes': processes, 'logger': self.logger.state_dict(),
                        'clocks': {name: clock.last for name, clock in self.clocks.items()}, 'graft_version': VERSION,
                        'specs': {'obs': described(self.environment.obs_spec), 'action': described(self.environment.action_spec)}})
            except OSError as failed:
                error = failed
        error = Parallel.everywhere(error)
        if error is None:
            self.saved_update = self.agent.update_count
        else:
            self.replay.checkpoints = kept
            self.logger.say(f'checkpoint of step {self.step} not written: {error}; the last good one is intact')
            # to go on would write over rows that the last good one needs
            if self.finished or Parallel.any_of(self.stopping or self.replay.slack_used_up(asked_every())):
                raise error

    def own_state(self) -> dict[str, Any] | OSError:
        """What this process has for itself; the error, if its replay could not be written."""
        try:
            return {'agent': self.agent.own_state(), 'agent_state': self.agent_state, 'torch': torch.get_rng_state(),
                    'environment': None if self.args.offline else self.environment.state_dict(), 'replay': self.replay.state_dict()}
        except OSError as error:
            return error

    # --- going on

    def of_this_process(self, state: dict[str, Any]) -> dict[str, Any]:
        """The checkpoint with what this process had at its top. Where there were others, lanes are dealt anew, and replays and streams begin anew."""
        processes = state.pop('processes', None)
        if processes is None:  # of a version that knew one process alone
            return state | {'own': None}
        if len(processes) == Parallel.world_size:
            own = processes[Parallel.rank]
            return state | {key: own[key] for key in ('agent_state', 'torch', 'environment', 'replay')} | {'own': own['agent']}
        if processes[0]['environment'] is not None and not self.only_evaluates:
            lanes = sum(len(process['environment']['lanes']) for process in processes)
            if lanes != self.args.num_envs:
                raise ValueError(f'num_envs={self.args.num_envs}: the run has {lanes} lanes, which are dealt to other processes; resume with num_envs={lanes}')
        made: dict[str, Any] = {'agent_state': None, 'torch': torch.get_rng_state(), 'environment': None, 'own': None, 'discarded': processes}
        if processes[0]['environment'] is not None and not self.only_evaluates:
            made['environment'] = dealt([process['environment'] for process in processes], self.lanes)
        made['statistics'] = {name: torch.cat([process['agent']['lanes'][name] for process in processes])[self.lanes.start:self.lanes.stop]
                              for name in processes[0]['agent']['lanes']}
        return state | made

    def check(self, state: dict[str, Any]) -> None:
        """What is asked for of a run that goes on must be what it was. Changes nothing. Raises: ValueError."""
        if self.only_evaluates or self.args.offline:
            return
        self.environment.check_state(state['environment'])
        steps, kept = self.agent.rollout_steps, 'replay' in state and not (state['complete'] and not state['replay_kept'])
        if kept and (before := state.get('rollout_steps', steps)) != steps:
            raise ValueError(f'agent.rollout_steps={steps}: the run is inside a rollout of {before} steps a lane; resume with agent.rollout_steps={before}')

    def load_own(self, state: dict[str, Any]) -> None:
        if state['own'] is not None:
            self.agent.load_own_state(state['own'])
        elif 'statistics' in state:
            self.agent.load_lanes(state['statistics'])
            self.agent.reseed()

    def read_checkpoint(self) -> dict[str, Any]:
        state, complaints = Checkpoint.load(self.path, 'cpu')
        for complaint in complaints if Parallel.is_main() else ():
            print(f'{complaint}; going on from the one before, step {state["step"]}', flush=True)
            Checkpoint.set_aside(self.path)
        for change in self.folder.changed(self.args) if Parallel.is_main() else ():
            print(f'resuming with another setting, {change}', flush=True)
        return state

    def restore(self, state: dict[str, Any]) -> None:
        self.step, self.learn_calls, self.episodes, self.score = state['step'], state['learn_calls'], state['episodes'], state['score']
        for phase, visits in (('train', self.visits), *([('eval', self.judge.visits)] if Parallel.is_main() else [])):
            visits.load_state_dict(state.get('visits', {}).get(phase, {}))  # runs from before there were any go on
        if self.only_evaluates:
            return
        self.seed_steps, self.complete = state['seed_steps'], state['complete'] and self.finished
        # what was owed is still owed, also where learn_per_steps has changed; learn_steps_after come at a new end again
        if not self.finished:
            self.learn_calls = self.learn_calls_due() - state['learn_calls_owed']
        elif 'learn_calls_left' in state:
            self.learn_calls = max(self.learn_calls, self.learn_calls_due(after=True) - state['learn_calls_left'])
        self.replay_anew = not self.args.offline and Parallel.any_of(anew(self.replay, state))
        self.agent_state = state['agent_state']
        if not self.args.offline:
            self.environment.load_state_dict(state['environment'])
        if self.args.offline:
            if 'replay' in state and self.replay.continues(state['replay']):
                self.replay.load_state_dict(state['replay'])
            else:
                self.logger.say(f'{self.run_replay.path} is another replay than before: its passes begin anew')
        elif self.replay_anew:
            if 'replay' in state:
                self.replay.made_before(state['replay'])
            self.replay.begin(self.environment.frames)
            if not self.finished:  # a trained agent must not learn from the first few rows alone
                self.seed_steps, self.learn_calls = self.step + self.args.seed_steps, 0
        else:
            self.replay.load_state_dict(state['replay'], verify=False)
        if isinstance(self.logger, Logger):
            self.logger.load_state_dict(state['logger'])
        else:
            self.episodes = 0
        for name, last in state['clocks'].items():
            self.clocks[name].last = last
        torch.set_rng_state(state['torch'])
        if self.replay_anew and not self.finished and self.args.save:
            self.save()  # one that the new rows belong to
            if Parallel.is_main():
                self.run_replay.forget(state.get('discarded', ()))

    def load_weights(self, file: Path) -> None:
        state = Checkpoint.read(file, self.device)
        with Checkpoint.blamed_on(file, state):
            self.agent.load_weights(state['agent']['weights'])

    def reload_weights(self) -> None:
        """Takes the newest weights of an offline learner (or of load_path), if there are newer ones."""
        file = Checkpoint.weights_file(Path(self.args.load_path)) if self.args.load_path else self.learner_path / Checkpoint.NEWEST
        written: int | None = None
        with contextlib.suppress(FileNotFoundError):  # the learner has not begun
            written = file.stat().st_mtime_ns
        written = Parallel.everywhere(written)
        if written is not None and written != self.weights_read:
            self.weights_read = written
            try:
                self.load_weights(file)
                self.logger.record('train', {'weights_loaded': 1})
            except Checkpoint.BadCheckpoint as error:
                self.logger.say(f'{error}; going on with the weights there are')
            Parallel.broadcast(self.agent, without=LANE_BUFFERS)  # the learner may have written again in between
