"""What one run holds, from its folder to its replay: built together, saved and restored together, closed together.

Run.py has the loop; here is what each of its turns does.
"""
from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import Checkpoint
import Parallel
from Agents.Agent import Agent
from Agents.Build import make_agent
from Agents.Random import uniform_action
from Benchmarking.Curves import NothingToPlot
from Benchmarking.Folder import Folder, Guest, holds_run, own_folder, run_folder, safe
from Benchmarking.Logger import Logger
from Benchmarking.Plot import plot
from Benchmarking.Profile import Profile
from Benchmarking.Recorder import Recorder
from Benchmarking.Scalene import check_scalene
from Datasets.Replay import Replay
from Datasets.RunReplay import RunReplay
from Datasets.Samples import Samples
from Datasets.Suites import make
from Datasets.Suites.Names import LABELLED
from Environment import Environment
from Episodes import Visits
from Hparams.Check import PASSES
from Hparams.Parts import check_parts, recipes, without_use
from Judges import judge_of
from Saving import Saving
from Stopping import Stopping, asked_every
from Utils import Args, NonFinite, choose_device, derive_seed, env_threads, generator, has_bf16, torch_threads

WARM_UP = 128  # steps of random play that are looked at together


class Clock:
    """Fires when a multiple of `every` is reached or passed; `every` 0 never does.

    Args:
        at_start: fires at step 0 too."""

    def __init__(self, every: int, at_start: bool = False) -> None:
        self.every, self.last = every, -1 if at_start else 0

    def due(self, step: int, final: bool = False) -> bool:
        """Whether to act at `step`. final: the run ends here; due unless it just was."""
        fires = self.last < 0 or (final and step > self.last) or (self.every > 0 and step // self.every > self.last // self.every)
        if fires:
            self.last = step
        return fires


class Session(Stopping, Saving):
    """Builds a run from plain values.

    Args:
        values: composed and checked by Hparams.Compose.
        overrides: in a multirun, what else distinguishes this run's folder: the keys that are swept, with their values.
        sweep: one of a multirun's: `load` resumes it where it was begun, and begins it where it was not.

    Raises:
        ValueError: a name, argument or combination is wrong, or the folder holds a run; nothing has been changed then."""

    def __init__(self, values: dict[str, Any], overrides: str = '', sweep: bool = False) -> None:
        self.args = args = Args(values)
        self.device = choose_device(Parallel.start(args.device))
        self.lanes = Parallel.lanes(args.num_envs)  # of this process
        if args.deterministic != torch.are_deterministic_algorithms_enabled():  # the call alone imports half of torch's compiler
            torch.use_deterministic_algorithms(args.deterministic)
        if args.deterministic:
            os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
        check_parts(args)
        check_scalene(args.profile)

        # counters; a checkpoint holds them
        self.step = self.learn_calls = self.episodes = 0
        self.labelled = args.offline and args.suite in LABELLED  # learns from data that were there before
        self.seed_steps = 0 if args.offline else args.seed_steps  # agent steps before the first update; more where a replay has to fill anew
        self.complete = False  # the run came to its end
        self.replay_anew = self.replay_kept = False  # of a resumed run: its replay was not kept; it had ended, and was
        self.score: float | None = None
        self.agent_state: Any = None
        self.visits = Visits()
        self.profile: Profile | None = None
        self.saved_update = -1  # the update that the last checkpoint holds
        self.weights_read = 0  # when the weights that were last taken over were written, ns

        run = run_folder(args, overrides)
        path = own_folder(args, run)
        if sweep and args.load and not holds_run(path):
            args['load'] = False
        self.run_replay = RunReplay(args, run, safe(args.task_name), str(self.device))
        if args.load_path and not Checkpoint.weights_file(Path(args.load_path)).exists():
            raise ValueError(f'load_path={args.load_path}: no checkpoint there; give a run folder or its {Checkpoint.NEWEST}')
        for where, recipe in recipes(args.recipes, 'recipes'):
            if isinstance(recipe.get('path'), str) and Path(recipe['path']).resolve().is_relative_to(path.resolve()):
                raise ValueError(f'{where}.path={recipe["path"]}: that is this run itself; give one of them another experiment=')
        with Parallel.main_first():
            if Parallel.is_main():
                self.folder = Folder(path, load=args.load, overwrite=args.overwrite, keep_replay=args.replay.load)
        resumed = Parallel.everywhere(Parallel.is_main() and self.folder.resumed)
        if not Parallel.is_main():
            self.folder = Guest(path, resumed)
        self.path = self.folder.path
        self.learner_path = run / 'offline'  # where an offline learner of this run leaves its weights
        self.only_evaluates = self.folder.resumed and args.train_steps == 0  # the run stays as it is
        try:
            with Parallel.main_first():
                state = self.read_checkpoint() if self.folder.resumed else None
            with Checkpoint.blamed_on(self.path, state):
                self.set_up(state and self.of_this_process(state))
        except BaseException:
            self.folder.abandon()
            self.close()
            raise

    def set_up(self, state: dict[str, Any] | None) -> None:
        """All that a user may have got wrong comes before the folder is claimed, and so before anything is written or made room for."""
        args = self.args
        self.environment = self.make_environment(len(self.lanes), train=True)
        self.in_passes()
        if Parallel.is_main():
            self.judge = judge_of(args)(args, self.path, self.environment, lambda: self.make_environment(args.evaluate_envs, train=False),
                                        lambda: self.stopping, lambda line: self.logger.say(line))
        torch.set_num_threads(torch_threads(args, self.environment.obs_spec.is_image))
        self.agent = self.make_agent()
        if state:
            self.check(state)
            self.agent.load_state(state['agent'])
            self.load_own(state)
        elif args.load_path:
            self.load_weights(Checkpoint.weights_file(Path(args.load_path)))
        if args.offline and not self.only_evaluates:
            self.replay = self.open_replay(state)
        elif not self.only_evaluates:
            self.run_replay.check(self.environment.obs_spec, self.environment.action_spec, self.agent, state)

        with Parallel.main_first():
            self.folder.claim()
            self.logger = self.make_logger(state)
        self.clocks = {'evaluate': Clock(args.evaluate_per_steps, at_start=True), 'log': Clock(args.log_per_steps), 'plot': Clock(args.plot_per_steps),
                       'save': Clock(args.save_per_steps), 'load': Clock(args.load_per_steps)}
        if not (args.offline or self.only_evaluates):
            self.replay = self.open_replay(state)
        if state:
            self.restore(state)
        else:
            plugs = [*self.agent.losses.values(), *([self.agent.bonus] if self.agent.bonus else [])]
            for line in (*without_use(args, type(self.agent), self.environment.obs_spec.is_image), *map(str, plugs)):
                self.logger.say(line)
            if self.agent.precision == 'bf16' and not has_bf16(self.device):
                self.logger.say(f'precision=bf16: this {self.device} has no units for it, and is far slower than with fp32; precision=auto chooses')
            self.start()
        # train_steps was reached before this process began, by more than the last step of a run that was interrupted while it ended
        ended = state is not None and self.finished and (self.complete or self.step - args.num_envs >= args.train_steps)
        self.replay_kept = state is not None and (state['replay_kept'] or (ended and not self.complete))
        if state and not (self.only_evaluates or self.finished):
            self.folder.write_config(args)
        if args.profile:
            self.profile = Profile(self)

    # --- building

    def in_passes(self) -> None:
        """What was asked for in passes over the data, in updates."""
        args = self.args
        if args.suite not in LABELLED:
            return
        samples = len(self.environment.suite.source)  # type: ignore[attr-defined]
        for passes, steps in PASSES.items():
            if args[passes] is not None:
                args[steps] = math.ceil(args[passes] * samples / args.batch_size) * (1 if steps == 'lr_decay_steps' else args.learn_per_steps or 1)

    def make_environment(self, num_envs: int, train: bool) -> Environment:
        args = self.args
        # lanes' processes inherit this: Ctrl-C, and a scheduler's SIGTERM to all of a job's processes, are for this one alone
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            suite = make(args.suite, args.task_name, num_envs=num_envs, train=train, num_threads=env_threads(args), **args.environment)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
        lanes = self.lanes if train else None
        return Environment(suite, seed=derive_seed(args.seed, 'environment' if train else 'evaluation'), lanes=lanes)

    def make_logger(self, state: dict[str, Any] | None) -> Recorder:
        """Of the first process one that writes, of the others one that remembers what they tell the first."""
        args = self.args
        if not Parallel.is_main():
            return Recorder()
        resume_step = (1 << 62 if self.only_evaluates else state['step']) if state else None
        return Logger(self.path, tensorboard=args.logger.tensorboard, progress=args.logger.progress, resume_step=resume_step,
                      total_steps=args.train_steps, title=f'{args.agent_name.removeprefix("Agents.")} {args.suite}/{args.task_name}')

    def make_agent(self) -> Agent:
        agent = make_agent(self.args, self.environment.obs_spec, self.environment.action_spec, self.device)
        if self.args.offline and agent.bonus:
            raise ValueError(f'explore={agent.bonus.name}: a bonus is given for what is played, offline=true plays nothing; explore=none')
        self.check_rollouts(agent)
        if self.args.offline and agent.rollout_steps:
            why = f'task={self.args.suite}/{self.args.task_name} is learned offline (offline=true)' if self.labelled else 'offline=true'
            raise ValueError(f'{why}: {self.args.agent_name} learns from what it has just played alone; another agent, or offline=false')
        if self.labelled and agent.horizon:
            name = next(name for name, loss in agent.losses.items() if loss.horizon)
            raise ValueError(f'aux={name}: {Samples.horizon_needed}')
        return agent

    def check_rollouts(self, agent: Agent) -> None:
        """An agent that learns from rollouts learns from each once, and from all of it. Raises: ValueError."""
        args, rollout = self.args, agent.rollout_steps * self.args.num_envs
        if not rollout or args.offline:
            return
        name = args.agent_name.removeprefix('Agents.')
        if args.learn_per_steps not in (0, rollout):
            raise ValueError(f'learn_per_steps={args.learn_per_steps}: {name} learns from each rollout once, agent.rollout_steps × num_envs = {rollout}; '
                             'set those instead')
        for key, value in (('updates_per_learn', 1), ('learn_steps_after', 0)):
            if args[key] != value:
                raise ValueError(f'{key}={args[key]}: {name} learns from each rollout once; agent.epochs are passes over it')

    def open_replay(self, state: dict[str, Any] | None) -> Replay:
        say: Any = self.logger.say if not self.args.offline else print if Parallel.is_main() else lambda line: None  # offline there is no logger yet
        if self.labelled:
            suite: Any = self.environment.suite
            return suite.samples(seed=derive_seed(self.args.seed, 'replay'), transform=self.args.replay.transform, device=self.device)
        return self.run_replay.open(self.environment.obs_spec, self.environment.action_spec, self.agent, state, say)

    def start(self) -> None:
        """A run that begins: first observations, a checkpoint to come back to."""
        with self.listening():
            self.warm_up()
        if not self.args.offline:
            self.replay.begin(self.environment.start())
        if self.args.save:
            self.save()
        self.folder.write_config(self.args)

    def warm_up(self) -> None:
        """Random play before the run, in lanes of its own, from which a bonus for exploration takes its first statistics. It is not counted."""
        bonus = self.agent.bonus
        if bonus is None or not bonus.warmup_steps:
            return
        lanes = self.make_environment(len(self.lanes), train=True)
        self.logger.say(f'explore.{bonus.name}: {bonus.warmup_steps} random steps of each of {self.args.num_envs} lanes come first '
                        f'(explore.{bonus.name}.warmup_steps), for its statistics')
        try:
            lanes.seed = derive_seed(self.args.seed, 'warm-up')
            lanes.start()
            self.agent.mode(training=False)
            random, shown = generator(self.args.seed, 'warm-up', Parallel.rank), []
            for step in range(1, bonus.warmup_steps + 1):
                lanes.advance(uniform_action(lanes.action_spec, lanes.num_envs, random))
                shown.append(lanes.observe().obs.to(self.device))
                if len(shown) == WARM_UP or step == bonus.warmup_steps:
                    bonus.warmed(torch.cat(shown))
                    shown.clear()
                    if Parallel.any_of(self.stopping):
                        self.logger.say('stopped before the first step: there is nothing to go on with')
                        sys.exit(128 + (self.stop_signal or signal.SIGTERM))
        finally:
            lanes.close()

    # --- the loop's turns

    @property
    def finished(self) -> bool:
        return self.step >= self.args.train_steps

    def advance(self) -> None:
        """One vector step: act, let the simulator work while the agent learns, and remember. Offline a step is a turn of the loop."""
        environment, agent = self.environment, self.agent
        if self.args.offline:
            self.step += 1
            return self.learn()
        agent.step = self.step
        agent.mode(training=False)
        step = environment.observe().to(self.device)
        with self.guarded():
            action, extras, self.agent_state = agent.act(step, self.agent_state)
        environment.send(action)
        if agent.overlap:
            self.learn()
        rows = environment.receive()
        if agent.bonus:
            extras |= agent.bonuses(step.obs, action, environment.observe().to(self.device).obs)
        self.replay.add(**rows.columns(), **extras)
        self.step += self.args.num_envs
        for episode in environment.pop_episodes():
            self.episodes += 1
            self.logger.record('train', {'reward': episode.score, 'episode_length': episode.length} | self.visits.add(environment.visited(episode)))
        if not agent.overlap:
            self.learn()

    def learn_calls_due(self, after: bool = False) -> int:
        """Calls of the agent's learn that the steps so far ask for; `learn_steps_after` more `after` the last one."""
        args = self.args
        steps = max(0, min(self.step, args.train_steps) - self.seed_steps) if args.learn_per_steps else 0
        calls = steps // max(1, args.learn_per_steps) * args.updates_per_learn + (args.learn_steps_after if after else 0)
        return calls if args.train_steps else 0

    def learn(self, after: bool = False) -> None:
        """Every update that is due; those `after` the last step can be interrupted."""
        self.agent.step = self.step
        while self.learn_calls < self.learn_calls_due(after) and not (after and self.told_to_stop(now=False)):
            with self.guarded():
                metrics = self.agent.improve(self.replay)
            if self.args.agent_log:
                self.logger.record('train', metrics)
            self.learn_calls += 1

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Around what the agent computes: a number that is none leaves behind what it came from, and ends the run."""
        try:
            yield
        except NonFinite as error:
            file = self.path / ('nonfinite.pt' if Parallel.is_main() else f'nonfinite-{Parallel.rank}.pt')
            Checkpoint.write(file, {'agent': self.agent.state(), 'batch': self.replay.last_batch(), 'step': self.step, 'loss': error.loss})
            raise NonFinite(error.loss, error.value, f' at step {self.step}, update {self.agent.update_count}; agent and batch are in {file}, '
                            f'the last checkpoint is intact') from None

    @property
    def last_row_waits(self) -> bool:
        """For what learn_steps_after will tell."""
        return self.finished and self.args.learn_steps_after > 0

    def counters(self) -> dict[str, Any]:
        counters = {'step': self.step, 'frame': self.step * self.environment.action_repeat, 'update': self.agent.update_count, 'episode': self.episodes}
        return counters | ({'epoch': self.replay.epochs} if self.args.offline and not self.only_evaluates else {})

    def records(self) -> None:
        """What falls due besides learning: rows, fresh weights, checkpoints, plots."""
        step, clocks = self.step, self.clocks
        self.logger.tick(step, step * self.environment.action_repeat, self.agent.update_count)
        if not self.last_row_waits and clocks['log'].due(step):
            self.write_row()
        if clocks['load'].due(step):
            self.reload_weights()
        # an offline run without an update since its last checkpoint has nothing new to save
        if clocks['save'].due(step) or (self.args.save and self.room_runs_out):
            if not (self.args.offline and self.agent.update_count == self.saved_update):
                self.save()
        if clocks['plot'].due(step):
            self.plot()

    @property
    def room_runs_out(self) -> bool:
        """Whether in any process rows that a checkpoint needs would be written over before all ask again."""
        return self.step // self.args.num_envs % asked_every() == 0 and Parallel.any_of(self.replay.slack_used_up(asked_every()))

    def pool_records(self) -> None:
        """What all processes recorded since the last row comes to the first."""
        if Parallel.world_size == 1:
            return
        mine = None if Parallel.is_main() else {'train': self.logger.take('train'), 'episodes': self.episodes, 'visits': self.visits.state_dict()}
        for other in filter(None, Parallel.gather(mine) or ()):
            self.logger.merge('train', other['train'])
            self.episodes += other['episodes']
            self.visits.add({kind: set(places) for kind, places in other['visits'].items()})
        if not Parallel.is_main():
            self.episodes = 0

    def write_row(self) -> None:
        self.pool_records()
        if isinstance(self.logger, Logger):
            self.logger.dump('train', **self.counters(), metrics=self.visits.totals())

    def evaluate(self) -> None:
        """What the run's judge says of the agent now; training notices nothing. The first process judges, the others wait where they need it next."""
        self.clocks['evaluate'].last = self.step
        if Parallel.is_main():
            with Parallel.alone():
                self.judged()

    def judged(self) -> None:
        assert isinstance(self.logger, Logger)
        with self.logger.evaluating():
            metrics = self.judge(self.agent, getattr(self, 'replay', None), self.step, derive_seed(self.args.seed, 'evaluate', self.step))
        if metrics is None:  # interrupted: done again on resume
            self.clocks['evaluate'].last = -1
            return
        self.score = next(iter(metrics.values()), None)
        if self.only_evaluates:
            shown = metrics | {key: value for key in ('sticky_actions',) if (value := getattr(self.judge.environment.suite, key, None)) is not None}
            self.logger.say(f'evaluated at step {self.step}: {", ".join(f"{name} {value:.6g}" for name, value in shown.items())}')
        self.logger.dump('eval', **self.counters(), metrics=metrics)

    def plot(self) -> None:
        options = self.args.plotting
        if not Parallel.is_main():
            return
        if options.plot:
            self.judge.report(self.step)
        experiment = safe(self.args.experiment)
        if options.plot and self.judge.plots:
            try:
                plot(options.plot_experiments or re.escape(experiment), root=self.args.root, out=Path(self.args.root) / experiment / 'Plots',
                     agents=options.plot_agents, suites=options.plot_suites, tasks=options.plot_tasks, steps=options.steps, tabular=options.tabular,
                     x='frame' if options.reference else 'step', reference=options.reference, say=self.logger.say)
            except (NothingToPlot, OSError, ValueError) as error:  # a run is worth more than its picture
                self.logger.say(f'no plot: {error}')

    # --- the end

    def finish(self) -> None:
        """Saves and plots; after the last step the replay goes, unless it is to be kept."""
        if self.only_evaluates:
            return
        if self.profile:
            self.profile.end()
        self.complete = self.finished and not self.stopping
        if (self.complete or not self.last_row_waits) and self.clocks['log'].due(self.step, final=self.complete):
            self.write_row()
        kept = self.args.replay.save or self.replay_kept
        if self.args.save:
            self.save()
        elif kept and not self.args.offline:
            self.replay.sync()
        self.plot()
        if self.profile:
            self.profile.write()
        if self.complete and not (self.args.offline or kept):
            self.replay.discard()

    def close(self) -> None:
        for part in ('profile', 'environment', 'judge', 'replay', 'logger', 'folder'):
            if getattr(self, part, None) is not None:
                getattr(self, part).close()
