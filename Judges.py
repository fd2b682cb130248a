"""What a run's evaluations are, by what its task is: games are played, test sets classified, images generated. Their pictures go to the run's folder."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from Agents.Agent import Agent
from Benchmarking.ImageScores import ImageScores
from Benchmarking.Report import report
from Benchmarking.Sheet import pixels, write_sheet
from Benchmarking.Video import write_video
from Datasets.Replay import Replay
from Datasets.Samples import Samples
from Datasets.Suites.Names import LABELLED
from Environment import Environment
from Episodes import Episode, Visits
from Evaluation import evaluate, evaluate_labels, generate_images
from Utils import Args

SHEET = 64  # images of a sheet


class Judge:
    """
    Args:
        args: of the run.
        path: its folder.
        trained: the environment it learns from.
        make_environment: makes one for evaluation, when it is first needed.
        stopped: whether the run is asked to end.
        say: tells the user.

    Raises:
        ValueError, ImportError, OSError: what is needed for judging is wrong or not there."""

    plots = True  # whether what it returns has a score to draw a curve of

    def __init__(self, args: Args, path: Path, trained: Environment, make_environment: Callable[[], Environment], stopped: Callable[[], bool],
                 say: Callable[[str], None]) -> None:
        self.args, self.path, self.obs_spec, self.make_environment, self.stopped, self.say = args, path, trained.obs_spec, make_environment, stopped, say
        self.made: Environment | None = None
        self.visits = Visits()  # of all evaluations; a checkpoint holds it

    def __call__(self, agent: Agent, replay: Replay | Samples | None, step: int, seed: int) -> dict[str, float] | None:
        """Judges the agent at a step. replay: what it learns from, if it does. → metrics, the run's score first; None when it was interrupted."""
        raise NotImplementedError

    def report(self, step: int) -> None:
        """Leaves what the last evaluation is best seen by."""

    @property
    def environment(self) -> Environment:
        if self.made is None:
            self.made = self.make_environment()
        return self.made

    def close(self) -> None:
        if self.made is not None:
            self.made.close()


class Games(Judge):
    """Greedy episodes with seeds of their own; the first of them may be filmed."""

    def __call__(self, agent: Agent, replay: Replay | Samples | None, step: int, seed: int) -> dict[str, float] | None:
        episodes = evaluate(agent, self.environment, self.args.evaluate_episodes, seed, self.stopped)
        if episodes is None:
            return None
        if self.args.log_video:
            self.video(episodes[0], step)
            if self.stopped():
                return None
        visited = []
        for episode in episodes:
            visited.append(self.environment.visited(episode))
            if self.stopped():
                return None
        counts = [self.visits.add(places) for places in visited]
        scores, lengths = [episode.score for episode in episodes], [episode.length for episode in episodes]
        metrics = {'reward': float(np.mean(scores)), 'reward_std': float(np.std(scores)), 'episode_length': float(np.mean(lengths))}
        return metrics | {kind: float(np.mean([count[kind] for count in counts])) for kind in counts[0]} | self.visits.totals()

    def video(self, episode: Episode, step: int) -> None:
        frames = self.environment.suite.render_episode(episode.seed, list(episode.actions), episode.before)
        try:
            write_video(self.path / 'videos' / f'{step}.mp4', self.until_stopped(frames), fps=self.args.video.fps)
        except (OSError, ImportError, RuntimeError, ValueError) as error:
            self.say(f'no video of step {step}: {error}')

    def until_stopped(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for frame in frames:
            if self.stopped():
                raise RuntimeError('interrupted')
            yield frame


class Labels(Judge):
    """The whole test set is classified."""

    logits: np.ndarray | None = None

    def __init__(self, args: Args, path: Path, trained: Environment, *rest: Any) -> None:
        super().__init__(args, path, trained, *rest)
        learned, tested = (environment.suite.source for environment in (trained, self.environment))  # type: ignore[attr-defined]
        if learned.shape != tested.shape:
            raise ValueError(f'task=classify/{args.task_name}: samples of the test set are {tested.shape}, those of the training set {learned.shape}')
        if tested.classes == learned.classes[:len(tested.classes)]:  # of numbered classes, the test set may lack the last
            tested.classes = learned.classes
        else:
            raise ValueError(f'task=classify/{args.task_name}: the classes of the test set are not those of the training set: '
                             f'{sorted(set(map(str, tested.classes)) ^ set(map(str, learned.classes)))[:5] or "another order"}')

    def __call__(self, agent: Agent, replay: Replay | Samples | None, step: int, seed: int) -> dict[str, float] | None:
        suite: Any = self.environment.suite
        judged = evaluate_labels(agent, suite, seed, self.stopped)
        if judged is None:
            return None
        metrics, self.logits = judged
        return metrics

    def report(self, step: int) -> None:
        if self.logits is None:
            return
        source = self.environment.suite.source  # type: ignore[attr-defined]
        try:
            report(self.path / 'report', labels=source.labels, logits=self.logits, classes=source.classes, read=source.read, step=step)
        except (OSError, ValueError) as error:
            self.say(f'no report: {error}')


class Images(Judge):
    """A sheet of generated images, and what scores were asked for."""

    plots = False

    def __init__(self, args: Args, path: Path, trained: Environment, *rest: Any) -> None:
        super().__init__(args, path, trained, *rest)
        self.scores = ImageScores(trained.obs_spec.stacked_shape, **args.generation)

    def __call__(self, agent: Agent, replay: Replay | Samples | None, step: int, seed: int) -> dict[str, float] | None:
        drawn = generate_images(agent, self.obs_spec, max(SHEET, self.scores.images), seed)
        write_sheet(self.path / 'images' / f'{step}.png', drawn[:SHEET])
        if not self.scores.images:
            return {}
        stored = None if replay is None else replay.sample(self.scores.images, rng=np.random.default_rng(seed)).obs.cpu()
        return self.scores(torch.from_numpy(pixels(drawn[:self.scores.images])), stored)


def judge_of(args: Args) -> type[Judge]:
    return Images if args.generate else Labels if args.suite in LABELLED else Games
