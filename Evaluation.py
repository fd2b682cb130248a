"""Evaluation: greedy episodes with seeds of their own, of which training notices nothing."""
from __future__ import annotations

from collections.abc import Callable

import torch

from Agents.Agent import Agent
from Environment import Environment, Episode


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
    training, agent.evaluating = agent.training, agent.evaluating.manual_seed(seed)
    agent.eval()
    environment.start(seed)
    played: list[list[Episode]] = [[] for _ in range(environment.num_envs)]
    state = None
    try:
        while min(map(len, played)) < share:
            if stopped():
                return None
            with torch.no_grad():
                action, _, state = agent.act(environment.observe().to(agent.device), state, greedy=True)
            environment.advance(action)
            for episode in environment.pop_episodes():
                played[int((environment.lanes == episode.lane).argmax())].append(episode)
    finally:
        agent.train(training)
    return [episode for lane in played for episode in lane[:share]]
