"""Evaluation, of which training notices nothing: greedy episodes with seeds of their own, all of a test set, or images to look at."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F

from Agents.Agent import Agent
from Datasets.Specs import ObsSpec
from Datasets.Suites.Classify import Classify
from Environment import Environment, Step
from Episodes import Episode


def evaluate(agent: Agent, environment: Environment, episodes: int, seed: int, stopped: Callable[[], bool] = lambda: False) -> list[Episode] | None:
    """Plays `episodes` full games, the same number in every lane, so that short games are not favoured.

    Args:
        seed: of these episodes and of the agent's evaluation stream; the result depends on nothing that ran before.
        stopped: asked at every step.

    Returns:
        The episodes, lane by lane; None when stopped before the last one ended.

    Raises:
        ValueError: `episodes` cannot be shared out evenly over the lanes."""
    share, rest = divmod(episodes, environment.num_envs)
    if rest:
        raise ValueError(f'evaluate_episodes={episodes} cannot be shared out evenly over evaluate_envs={environment.num_envs}')
    environment.start(seed)
    played: list[list[Episode]] = [[] for _ in range(environment.num_envs)]
    state = None
    with judging(agent, seed):
        while min(map(len, played)) < share:
            if stopped():
                return None
            with torch.no_grad():
                action, _, state = agent.act(environment.observe().to(agent.device), state, greedy=True)
            environment.advance(action)
            for episode in environment.pop_episodes():
                played[int((environment.lanes == episode.lane).argmax())].append(episode)
    return [episode for lane in played for episode in lane[:share]]


def evaluate_labels(agent: Agent, suite: Classify, seed: int, stopped: Callable[[], bool] = lambda: False) -> tuple[dict[str, float], np.ndarray] | None:
    """Every sample of a data set, once.

    Returns:
        Accuracy and mean cross-entropy, and the logits (N, classes) they are of; None when stopped before the last."""
    classes = len(suite.source.classes)
    with judging(agent, seed):
        told = suite.evaluate(lambda obs: agent.predict(obs.to(agent.device), classes), stopped)
    if told is None:
        return None
    logits, labels = torch.from_numpy(told), suite.labels
    return {'accuracy': (logits.argmax(-1) == labels).double().mean().item(), 'error': F.cross_entropy(logits, labels).item()}, told


def generate_images(agent: Agent, obs_spec: ObsSpec, count: int, seed: int) -> np.ndarray:
    """(count, *stacked shape) float32 in [−1, 1]: images that depend on weights and seed alone."""
    with judging(agent, seed):
        nothing = torch.zeros(count, *obs_spec.stacked_shape, dtype=obs_spec.dtype, device=agent.device)
        zero = torch.zeros(count, device=agent.device)
        action, _, _ = agent.act(Step(nothing, zero == 0, zero, zero), greedy=True)
    return action.float().cpu().numpy().reshape(nothing.shape)


@contextmanager
def judging(agent: Agent, seed: int) -> Iterator[None]:
    """An agent that acts as in evaluation, its random streams begun anew, and then goes on as before."""
    training, agent.evaluating = agent.training, agent.evaluating.manual_seed(seed)
    agent.eval()
    try:
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            yield
    finally:
        agent.train(training)
