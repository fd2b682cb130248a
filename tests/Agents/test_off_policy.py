"""Learning from labels and generating images, of every off-policy agent: who learns from what, and the numbers of rewards and losses."""
import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from Agents.Agent import can_compile
from Agents.DQN import DQN
from Agents.SAC import SAC
from Blocks.Losses import label_reward
from Datasets.Batch import Batch
from Datasets.Specs import ActionSpec, ObsSpec
from tests.Agents.small import look, observations, parameters, same

SMALL = ObsSpec((1, 16, 16), mean=(120.0,), std=(60.0,))
SCORES, CLASSES = ActionSpec((5,)), ActionSpec(num_actions=5)
AGENTS = [DQN, SAC]


def make(kind=DQN, action=SCORES, obs=SMALL, recipes=None, **options):
    torch.manual_seed(0)
    recipes = {'aug': {}, 'encoder': {}, 'critic': {}, 'actor': {}} | (recipes or {})
    return kind(obs_spec=obs, action_spec=action, recipes=recipes, seed=0, **{'hidden_dim': 16, 'trunk_dim': 6, 'lr': 1e-2, 'encoder': 'pixel',
                                                                             'explore_steps': 0, 'batch_size': 16} | options)


def labelled(n=16, action=SCORES, seed=0):
    label = torch.randint(5, (n,), generator=torch.Generator().manual_seed(seed))
    zero = torch.zeros(n)
    return Batch(obs=observations(n, SMALL, seed), action=torch.zeros((n, *action.shape), dtype=action.dtype), reward=zero, discount=zero, next_obs=None,
                 indices=torch.arange(n), weight=None, label=label)


def striped(n=40):
    """Labelled images that show their class: a bright stripe at its height."""
    batch = labelled(n)
    for image, label in zip(batch.obs, batch.label):
        image //= 4
        image[:, 3 * label:3 * label + 3] = 220
    return batch


class Shown:
    """A replay that shows one batch."""

    def __init__(self, batch):
        self.batch = batch

    def sample(self, n, nstep=1, horizon=0, rng=None):
        return self.batch


# --- rewards

def test_the_reward_of_scores_is_minus_the_cross_entropy_of_the_logits_they_are_tanh_of():
    logits = np.array([[0.3, -1.2, 2.0], [1.5, 1.0, -0.5]])
    label = [2, 1]
    by_hand = [row[k] - math.log(sum(math.exp(x) for x in row)) for row, k in zip(logits, label)]
    reward = label_reward(torch.tanh(torch.tensor(logits)), torch.tensor(label))
    assert reward.tolist() == pytest.approx(by_hand, abs=1e-5)
    sure = label_reward(torch.tensor([[1.0, -1.0, -1.0]]), torch.tensor([0]))
    assert -1e-5 < sure.item() < 0, 'scores behind a tanh have a floor of 0.797 with ten classes; their logits have none'
    assert label_reward(torch.tensor([[-1.0, 1.0, -1.0]]), torch.tensor([0])).isfinite()


def test_the_reward_of_a_class_is_whether_it_is_right():
    assert label_reward(torch.tensor([1, 0, 2]), torch.tensor([1, 1, 2])).tolist() == [1, 0, 1]


@pytest.mark.parametrize('kind', AGENTS)
@pytest.mark.parametrize('action', [SCORES, CLASSES], ids=['scores', 'classes'])
def test_half_of_the_actions_are_random_and_the_others_the_policys(kind, action):
    agent, batch = make(kind, action), labelled(400, action)
    logits = 3 * torch.randn((400, 5), generator=torch.Generator().manual_seed(3))
    told = agent.rewarded(batch, logits)
    assert torch.equal(told.reward, label_reward(told.action, batch.label)) and told.discount.sum() == 0 and told.next_obs is None
    if action.discrete:
        assert torch.equal(told.action[200:], logits[200:].argmax(1))
        assert (torch.bincount(told.action[:200], minlength=5) > 20).all()
    else:
        torch.testing.assert_close(told.action[200:], torch.tanh(logits[200:]), atol=2e-6, rtol=0)
        uniform = told.action[:200].flatten()
        assert abs(uniform.mean()) < 0.06 and uniform.std().item() == pytest.approx(1 / math.sqrt(3), abs=0.03) and uniform.abs().max() <= 1


# --- who learns from what

def moved(agent, learn):
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    learn()
    after = agent.state_dict()
    return {name.partition('.')[0] for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize('kind', AGENTS)
def test_supervised_learning_alone_leaves_the_critic_as_it_is(kind):
    agent, batch = make(kind, RL=False), labelled()
    metrics = {}
    assert moved(agent, lambda: metrics.update(agent.learn(Shown(batch)))) == {'encoder', 'actor', 'target_encoder'}
    assert set(metrics) == {'supervised_loss', 'accuracy'} and agent.update_count == 1


@pytest.mark.parametrize('kind', AGENTS)
@pytest.mark.parametrize('action', [SCORES, CLASSES], ids=['scores', 'classes'])
def test_reinforcement_learning_alone_takes_no_supervised_step(kind, action, monkeypatch):
    agent, batch = make(kind, action, supervise=False), labelled(action=action)
    monkeypatch.setattr(F, 'cross_entropy', refused) if action.discrete else None
    metrics = {}
    names = moved(agent, lambda: metrics.update(agent.learn(Shown(batch))))
    assert {'encoder', 'critic'} <= names and ('actor' in names or kind is DQN and action.discrete)
    assert 'supervised_loss' not in metrics and 'critic_loss' in metrics and agent.update_count == 1


def refused(*args, **options):
    raise AssertionError('a cross-entropy was taken')


@pytest.mark.parametrize('kind', AGENTS)
def test_both_learn_one_after_the_other_and_count_as_one_update(kind):
    agent, batch = make(kind), labelled()
    metrics = agent.learn(Shown(batch))
    assert {'supervised_loss', 'critic_loss', 'actor_loss', 'accuracy'} <= set(metrics) and agent.update_count == 1


@pytest.mark.parametrize('kind', AGENTS)
@pytest.mark.parametrize('action', [SCORES, CLASSES], ids=['scores', 'classes'])
def test_the_supervised_loss_is_the_cross_entropy_in_float64(kind, action):
    agent, batch = make(kind, action, RL=False), labelled(action=action)
    exact = copy.deepcopy(agent).double()
    pixels = (batch.obs.double() - 120) / 60
    encoder = exact.encoder
    if kind is SAC:
        out = exact.actor.pi_head(exact.actor.trunk(encoder.eyes(pixels)))
        logits = out if action.discrete else out.chunk(2, -1)[0]
    else:
        representation = encoder.projection(encoder.pool(encoder.eyes(pixels)))
        head = exact.critic if action.discrete else exact.actor
        h = head.trunk(representation)
        logits = torch.stack([one(h) for one in head.heads]).mean(0) if action.discrete else head.pi_head(h)
    rows = logits.detach().numpy()
    expected = np.mean([np.log(np.exp(row - row.max()).sum()) + row.max() - row[k] for row, k in zip(rows, batch.label.tolist())])
    metrics = agent.learn(Shown(batch))
    assert metrics['supervised_loss'].item() == pytest.approx(expected, rel=1e-5)
    assert metrics['accuracy'].item() == pytest.approx(np.mean(rows.argmax(1) == batch.label.numpy()))


def test_the_critic_learns_the_reward_itself():
    """No step follows a prediction: the target is −error, whatever the target network says."""
    agent, batch = make(num_critics=2), labelled()
    told = agent.rewarded(batch, torch.randn(16, 5, generator=torch.Generator().manual_seed(1)))
    q = agent.critic(agent.encoder(told.obs), told.action)
    expected = ((q - told.reward) ** 2).mean(1).sum().item()
    with torch.no_grad():
        for p in agent.target_critic.parameters():
            p.fill_(math.nan)
    loss, metrics, _ = agent.continuous_critic_loss(told.obs, told.action, told.reward, told.discount, None, None, torch.tensor(0.1), torch.zeros(16, 5))
    assert loss.item() == pytest.approx(expected, rel=1e-5) and metrics['target_q'].item() == pytest.approx(told.reward.mean().item(), rel=1e-5)


@pytest.mark.parametrize('kind', AGENTS)
@pytest.mark.parametrize('options, falls, updates', [({'RL': False}, 'supervised_loss', 150), ({'supervise': False}, 'critic_loss', 600),
                                                     ({}, 'supervised_loss', 150)], ids=['supervised', 'rewards', 'both'])
def test_labels_are_learned(kind, options, falls, updates):
    agent, batch = make(kind, hidden_dim=256, trunk_dim=32, lr=5e-4, depth=2, **options), striped()
    first, *_, last = [agent.learn(Shown(batch))[falls].item() for _ in range(updates)]
    assert last < 0.5 * first
    assert (agent.predict(batch.obs, 5).argmax(1) == batch.label).float().mean() > 0.9


@pytest.mark.parametrize('kind', AGENTS)
def test_predictions_are_those_of_the_averages(kind):
    agent, batch = make(kind, RL=False, ema=True, ema_decay=0.9), labelled()
    agent.learn(Shown(batch))
    averages = copy.deepcopy(agent)
    for head in ('ema_actor', 'ema_head'):
        if hasattr(agent, head):
            averages.actor.load_state_dict(getattr(agent, head).state_dict())
    averages.encoder.load_state_dict(agent.ema_encoder.state_dict())
    assert torch.equal(agent.predict(batch.obs, 5), averages.scores(batch.obs))
    assert not torch.equal(agent.predict(batch.obs, 5), agent.scores(batch.obs))


def test_an_agent_that_knows_no_labels_predicts_what_it_does():
    from Agents.Random import Random
    assert Random(action_spec=SCORES).predict(observations(7, SMALL), 5).shape == (7, 5)
    classes = Random(action_spec=CLASSES).predict(observations(50, SMALL), 5)
    assert classes.shape == (50, 5) and (classes.sum(1) == 1).all() and (classes.sum(0) > 0).all()


def test_neither_of_the_two_is_refused():
    with pytest.raises(ValueError, match='RL=false supervise=false'):
        make(RL=False, supervise=False)


# --- images

IMAGES = ActionSpec((256,))


@pytest.mark.parametrize('kind', AGENTS)
def test_stored_images_are_worth_1_and_generated_ones_0(kind):
    agent, batch = make(kind, IMAGES, generate=True), labelled()
    told = agent.judged(batch)
    assert told.reward.tolist() == [0] * 8 + [1] * 8 and told.discount.sum() == 0 and told.next_obs is None
    assert torch.equal(told.action[8:], batch.obs[8:].flatten(1).float() / 127.5 - 1) and told.action.abs().max() <= 1
    assert not torch.equal(told.action[:8], batch.obs[:8].flatten(1).float() / 127.5 - 1) and not torch.equal(told.action[0], told.action[1])


@pytest.mark.parametrize('kind', AGENTS)
def test_the_discriminator_sees_the_image_alone(kind):
    agent = make(kind, IMAGES, generate=True)
    image = torch.rand((4, 256)) * 2 - 1
    representation = agent.encoder(observations(4, SMALL))
    assert torch.equal(agent.critic(representation, image), agent.critic(torch.zeros_like(representation), image))
    assert not torch.equal(agent.critic(representation, image), agent.critic(representation, -image))
    assert not torch.equal(agent.encoder(observations(4, SMALL)), representation), 'noise, drawn anew'


@pytest.mark.parametrize('kind, options', [(DQN, {}), (SAC, {'init_temperature': 1e-4, 'temperature_lr': 0.0})], ids=['DQN', 'SAC'])
def test_generated_images_become_like_the_stored_ones(kind, options):
    """Data that are bright above and dark below."""
    agent, batch = make(kind, IMAGES, generate=True, lr=5e-4, hidden_dim=128, depth=2, **options), labelled(32)
    batch.obs //= 4
    batch.obs[:, :, :8] += 180
    stored = (batch.obs.float() / 127.5 - 1).mean(0).flatten()

    def likeness():
        torch.manual_seed(1)
        with torch.no_grad():
            return torch.corrcoef(torch.stack([agent.generated(batch.obs).mean(0), stored]))[0, 1].item()
    assert abs(likeness()) < 0.3
    for _ in range(250):
        metrics = agent.learn(Shown(batch))
    assert likeness() > 0.6 and metrics['critic_loss'].isfinite()


@pytest.mark.parametrize('kind', AGENTS)
def test_a_generator_acts_with_images(kind):
    agent = make(kind, IMAGES, generate=True)
    action, _, _ = agent.act(look(3, SMALL), greedy=True)
    assert action.shape == (3, 256) and action.abs().max() < 1


def test_a_convolutional_discriminator_sees_the_image():
    agent = make(DQN, IMAGES, generate=True, recipes={'critic': {'q_head': {'_target_': 'tests.Agents.test_off_policy.Probe'}}})
    image = torch.rand((5, 256)) * 2 - 1
    head = agent.critic.heads[0]
    for training, parts in ((True, [2, 3]), (False, [5])):
        head.seen = []
        agent.critic.train(training)
        q = agent.critic(torch.zeros(5, 6), image)
        assert [len(part) for part in head.seen] == parts and torch.equal(torch.cat(head.seen), image.view(5, 1, 16, 16))
        torch.testing.assert_close(q, image.mean(1)[None])
    assert head.input_shape == (1, 16, 16)


@pytest.mark.parametrize('kind', AGENTS)
def test_stored_and_generated_images_have_moments_of_their_own(kind):
    """A batch norm that saw both at once would tell them by their mixture, in which the generator's own batch has no part."""
    agent = make(kind, IMAGES, generate=True, recipes={'critic': {'q_head': {'_target_': 'tests.Agents.test_off_policy.NormHead'}}})
    agent.train()
    dark, bright = torch.full((4, 256), -0.9), torch.full((4, 256), 0.9)
    texture = torch.randn(4, 256, generator=torch.Generator().manual_seed(0)) * 0.05
    mixed = agent.critic(torch.zeros(8, 6), torch.cat([dark + texture, bright + texture]))
    torch.testing.assert_close(mixed[:, :4], mixed[:, 4:])
    torch.testing.assert_close(mixed[:, :4], agent.critic(torch.zeros(8, 6), torch.cat([dark + texture, dark + texture]))[:, :4])


class NormHead(torch.nn.Module):
    """Batch norm over the images, then the mean cube."""

    def __init__(self, input_shape, output_dim):
        super().__init__()
        self.norm, self.output_shape = torch.nn.BatchNorm2d(input_shape[0]), (output_dim,)

    def forward(self, x):
        return self.norm(x).pow(3).flatten(1).mean(1, keepdim=True)


class Probe(torch.nn.Module):
    """A head that keeps what it is shown."""

    def __init__(self, input_shape, output_dim):
        super().__init__()
        self.input_shape, self.output_shape, self.scale = input_shape, (output_dim,), torch.nn.Parameter(torch.ones(()))
        self.seen = []

    def forward(self, x):
        self.seen.append(x)
        return self.scale * x.flatten(1).mean(1, keepdim=True)


@pytest.mark.parametrize('kind', AGENTS)
@pytest.mark.parametrize('options', [{}, {'RL': False}, {'supervise': False}], ids=str)
def test_the_learning_rate_falls_by_updates_and_stays_at_zero(kind, options):
    """Also where an update takes two steps of the encoder."""
    agent, batch = make(kind, lr_decay_steps=10, **options), labelled()
    for update in range(14):
        for block in agent.classifier:
            expected = 0.5e-2 * (1 + math.cos(math.pi * min(update, 10) / 10))
            assert block.optim.param_groups[0]['lr'] == pytest.approx(expected, abs=1e-9), update
        agent.learn(Shown(batch))


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(), reason='no C++ compiler, or no headers of Python')
def test_compiled_supervised_updates_are_the_eager_ones():
    eager, compiled = make(RL=False), make(RL=False, compile=True)
    assert compiled.label_loss is not compiled.supervised_loss
    for seed in range(3):
        one, two = (agent.learn(Shown(labelled(seed=seed))) for agent in (eager, compiled))
        for key in one:
            torch.testing.assert_close(one[key], two[key], rtol=1e-4, atol=1e-5, msg=key)
    for a, b in zip(parameters(eager), parameters(compiled), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


# --- batch norm

@pytest.mark.parametrize('kind', AGENTS)
def test_acting_and_evaluation_see_with_the_moments_of_learning(kind):
    """With one observation there are no moments of the batch, and what an image is taken for must not depend on its neighbours."""
    recipes = {'encoder': {'eyes': {'_target_': 'tests.Agents.test_off_policy.NormEyes'}}}
    agent, batch = make(kind, RL=False, recipes=recipes), labelled()
    for _ in range(3):
        agent.learn(Shown(batch))
    agent.mode(training=False)
    alone = torch.cat([agent.predict(one[None], 5) for one in batch.obs])
    torch.testing.assert_close(alone, agent.predict(batch.obs, 5), atol=1e-5, rtol=1e-4)
    before = parameters(agent), [b.clone() for b in agent.buffers()]
    agent.act(look(1, SMALL))
    assert same(parameters(agent), before[0]) and same(list(agent.buffers()), before[1])


class NormEyes(torch.nn.Module):
    """Convolution and batch norm."""

    def __init__(self, input_shape):
        super().__init__()
        self.layers, self.output_shape = torch.nn.Sequential(torch.nn.Conv2d(input_shape[0], 4, 3, 3), torch.nn.BatchNorm2d(4)), (4, 5, 5)

    def forward(self, x):
        return self.layers(x)
