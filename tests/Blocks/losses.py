"""What the tests of auxiliary losses share: agents with losses attached, sequences whose numbers tell where they come from, views."""
import copy

import torch

from Datasets.Batch import Batch, Sequence
from Hparams.Compose import compose_args
from tests.Agents.small import BOX, VECTOR
from tests.Agents.test_sac import make as make_sac


def recipe(name, *overrides):
    """What `aux=name` composes to."""
    return compose_args(['task=dmc/cheetah_run', 'Agent=SAC', f'aux={name}', *overrides])['aux'][name]


def attached(agent, obs, action, lr=1e-3, batch_size=16, **losses):
    agent.attach(losses, obs, action, lr=lr, batch_size=batch_size)
    return agent


def sac(obs=VECTOR, action=BOX, **options):
    return make_sac(obs, action, **{'encoder': 'pixel' if obs.is_image else 'ofe'} | options)


def window(n=4, horizon=3, frames=3, whole=None):
    """Observation i of sample b is 100 b + 10 + i, action i is −(100 b + i), reward i is 1000 + 100 b + i."""
    b, i = torch.arange(n).float()[:, None], torch.arange(horizon + 1).float()
    obs = (100 * b + 10 + i)[..., None].repeat(1, 1, frames)
    mask = torch.ones(n, horizon) if whole is None else whole
    return Sequence(obs, -(100 * b + i[:-1])[..., None].repeat(1, 1, 2), 1000 + 100 * b + i[:-1], mask, torch.cat([torch.ones(n, 1), mask], 1))


def latents(loss, obs, encoder):
    """float64: what an encoder makes of observations, by way of its parts."""
    return copy.deepcopy(encoder).double().represent(obs.double()).detach().numpy()


def plain(obs):
    return Batch(obs=obs, action=torch.zeros(len(obs), 2), reward=None, discount=None, next_obs=None, indices=None, weight=None)


def crops(obs):
    """Offsets of the crops that an image of coordinates was seen at."""
    return [(int(view[0, 0, 0]), int(view[1, 0, 0])) for view in obs]


def coordinates(n, size=24, channels=6):
    """Channel 0 has a pixel's row, channel 1 its column, the others 0."""
    rows = torch.arange(size)[:, None].expand(size, size)
    image = torch.zeros(n, channels, size, size, dtype=torch.uint8)
    image[:, 0], image[:, 1] = rows, rows.T
    return image


def seen_by(loss, batch):
    views = []
    see = loss.see
    loss.see = lambda obs: views.append(see(obs)) or views[-1]
    loss.loss(batch)
    return views


def names_that_moved(agent, before):
    return {name for name, value in agent.named_parameters() if not torch.equal(value, before[name])}
