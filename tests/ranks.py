"""What two processes compute together, beside what one computes alone: run by test_parallel.py under torchrun, `-m tests.ranks FILE [PART OF A NAME]`."""
import copy
import json
import sys
import tempfile
import traceback
from types import SimpleNamespace

import torch
from torch import nn

import Parallel
import Run
from Benchmarking.Folder import run_folder
from Blocks.Auxiliary import JoiningLoss
from Blocks.Block import Block
from Blocks.Losses import standardised
from Blocks.Normalisers import LANE_BUFFERS, ReturnNormaliser, RunningMoments
from Datasets.Batch import Batch
from Datasets.Specs import ActionSpec
from Session import Session
from Stopping import AGREE
from tests.Agents.small import BOX, DISCRETE, IMAGE, VECTOR, batch, make_dqn, observations
from tests.Agents.test_ppo import make as make_ppo
from tests.Agents.test_sac import make as make_sac
from tests.Blocks.losses import attached, recipe
from tests.Blocks.test_exploration import RECIPE
from tests.Datasets.test_samples import make as made_samples
from tests.runs import checkpoint, folder, values
from Utils import Args, optimise

RTOL, ATOL = 1e-6, 1e-6


def close(ours, theirs, rtol=RTOL, atol=ATOL):
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)


def half(x):
    """This process's part of a batch."""
    part = len(x) // Parallel.world_size
    return x[Parallel.rank * part:(Parallel.rank + 1) * part]


def half_batch(whole):
    parts = {name: half(value) if isinstance(value, torch.Tensor) else value for name, value in vars(whole).items()}
    return Batch(**parts)


def weights(agent):
    return {name: value for name, value in agent.state_dict().items() if name.rpartition('.')[2] not in LANE_BUFFERS and value.is_floating_point()}


def same_as_alone(make, learn_half, learn_whole, times=3, rtol=RTOL, atol=ATOL):
    """An agent that two processes teach with a half each is one that learned from the whole."""
    agent = make()
    Parallel.sync_batch_norms(agent)
    for i in range(times):
        learn_half(agent, i)
    with Parallel.alone():
        twin = make()
        for i in range(times):
            learn_whole(twin, i)
    for name, value in weights(twin).items():
        close(weights(agent)[name], value, rtol, atol)


# --- numbers

def moments_of_both_are_those_of_all():
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)) * 3 + 5
    shared, alone = RunningMoments((3,), count=1e-4), RunningMoments((3,), count=1e-4)
    for part in x.chunk(4):
        shared.update(half(part))
        with Parallel.alone():
            alone.update(part)
    for name in ('mean', 'var', 'count'):
        close(getattr(shared, name), getattr(alone, name), 1e-10, 1e-10)


def rewards_are_scaled_as_by_one():
    reward, ended = torch.randn(4, 20, generator=torch.Generator().manual_seed(0)), torch.rand(4, 20, generator=torch.Generator().manual_seed(1)) < 0.1
    ours = ReturnNormaliser(2, 0.9)(half(reward), half(ended))
    with Parallel.alone():
        theirs = ReturnNormaliser(4, 0.9)(reward, ended)
    close(ours, half(theirs), 1e-6)


def advantages_are_standardised_over_both():
    x = torch.randn(30, generator=torch.Generator().manual_seed(0)) * 7 + 2
    with Parallel.alone():
        expected = standardised(x)
    close(standardised(half(x)), half(expected))


def plain_values_travel():
    assert Parallel.everywhere(Parallel.rank + 10) == 10
    assert Parallel.any_of(Parallel.rank == 1) and not Parallel.any_of(False)
    told = Parallel.gather({'rank': Parallel.rank})
    assert told == ([{'rank': 0}, {'rank': 1}] if Parallel.is_main() else None)
    close(Parallel.joined(torch.full((2, 1), float(Parallel.rank))), torch.tensor([[0.0], [0.0], [1.0], [1.0]]))
    assert list(Parallel.lanes(6)) == ([0, 1, 2] if Parallel.is_main() else [3, 4, 5])


def what_fails_in_the_first_ends_the_other():
    try:
        with Parallel.main_first():
            if Parallel.is_main():
                raise KeyError('mine')
    except (KeyError, Parallel.Elsewhere) as error:
        assert isinstance(error, KeyError) == Parallel.is_main()
    else:
        raise AssertionError('nothing was raised')


def what_one_needs_to_save_both_save_at_the_same_turn():
    """A replay whose lane has written more rows than those of the other process, as its episodes were shorter."""
    saved = []
    for step in range(0, 400, 4):
        replay = SimpleNamespace(slack_used_up=lambda steps, left=120 - step // 2 - 20 * Parallel.rank: left < 2 * steps)
        if Session.room_runs_out.fget(SimpleNamespace(step=step, args=SimpleNamespace(num_envs=4), replay=replay)):
            saved.append((step, 120 - step // 2 - 20 * Parallel.rank))
    told = Parallel.gather([step for step, _ in saved])
    assert told is None or told[0] == told[1] != []
    assert saved[0][1] >= 0 and saved[0][0] % (4 * AGREE) == 0


def gradients_without_any_stay_without():
    net = nn.Linear(2, 1)
    unused = nn.Parameter(torch.ones(3))
    (net(torch.ones(1, 2)) * (Parallel.rank + 1)).sum().backward()
    Parallel.average_gradients([net.weight, unused, net.bias])
    assert unused.grad is None
    close(net.weight.grad, torch.full((1, 2), 1.5))


# --- batch norm

def batch_norm(shape, kind, **options):
    random = torch.Generator().manual_seed(0)
    norm, alone = (kind(shape[1], **options) for _ in range(2))
    ours = nn.Sequential(norm)
    Parallel.sync_batch_norms(ours)
    for _ in range(3):
        x, target = torch.randn(shape, generator=random) * 3 + 100, torch.randn(shape, generator=random)
        mine, all_of_it = half(x).clone().requires_grad_(), x.clone().requires_grad_()
        out = ours(mine)
        (out * half(target)).mean().backward()
        expected = alone(all_of_it)
        (expected * target).mean().backward()
        close(out, half(expected), 1e-3, 1e-4)
        close(mine.grad / Parallel.world_size, half(all_of_it.grad), 1e-3, 1e-6)
    close(dict(ours[0].named_buffers()), dict(alone.named_buffers()), 1e-4, 1e-4)
    if norm.affine:
        Parallel.average_gradients([norm.weight, norm.bias])
        close([norm.weight.grad, norm.bias.grad], [alone.weight.grad, alone.bias.grad], 1e-3, 1e-5)
    close(ours.eval()(x), alone.eval()(x), 1e-3, 1e-4)


def batch_norm_of_vectors():
    batch_norm((12, 5), nn.BatchNorm1d)


def batch_norm_of_images():
    batch_norm((6, 4, 5, 5), nn.BatchNorm2d, momentum=0.3)


def batch_norm_without_weights():
    batch_norm((12, 5), nn.BatchNorm1d, affine=False)


# --- agents

def dqn_learns_as_one():
    same_as_alone(lambda: make_dqn(grad_clip=0.5), lambda agent, i: agent.update(half_batch(batch(16, seed=i))),
                  lambda agent, i: agent.update(batch(16, seed=i)))


def dqn_from_images_learns_as_one():
    same_as_alone(lambda: make_dqn(IMAGE), lambda agent, i: agent.update(half_batch(batch(8, IMAGE, seed=i))),
                  lambda agent, i: agent.update(batch(8, IMAGE, seed=i)))


def sac_learns_as_one():
    def make():
        agent = make_sac(lr=1e-2)
        noise = iter(torch.randn(100, 16, 2, generator=torch.Generator().manual_seed(5)))
        agent.noise = lambda size, random: half(next(noise)) if Parallel.world_size > 1 else next(noise)
        return agent
    same_as_alone(make, lambda agent, i: agent.update(half_batch(batch(16, action=BOX, seed=i))), lambda agent, i: agent.update(batch(16, action=BOX, seed=i)))


def ppo(agent, i, part):
    random = torch.Generator().manual_seed(i)
    columns = {'action': torch.randint(4, (16,), generator=random), 'log_prob': torch.full((16,), -1.4), 'value': torch.randn(16, 1, generator=random),
               'advantage': torch.randn(16, generator=random), 'target': torch.randn(16, 1, generator=random)}
    loss, metrics = agent.minibatch_loss(part(observations(16, seed=i)), torch.tensor(0.1), **{name: part(x) for name, x in columns.items()})
    optimise(loss, *agent.learners, grad_clip=0.5)
    return metrics['approx_kl']


def ppo_learns_as_one():
    same_as_alone(lambda: make_ppo(lr=1e-2, encoder='mlp'), lambda agent, i: ppo(agent, i, half), lambda agent, i: ppo(agent, i, lambda x: x))
    with Parallel.alone():
        alone = ppo(make_ppo(encoder='mlp'), 0, lambda x: x)
    close(ppo(make_ppo(encoder='mlp'), 0, half), alone)


def labels_with_batch_norm_are_learned_as_by_one():
    eyes = {'encoder': {'eyes': {'_target_': 'CNN', 'out_channels': 4, 'batch_norm': True}}}
    random = torch.Generator().manual_seed(3)
    obs, label = observations(12, IMAGE), torch.randint(4, (12,), generator=random)

    def make():
        return make_dqn(IMAGE, ActionSpec((4,)), recipes=eyes, RL=False, lr=1e-3)
    # Adam divides gradients of biases before a batch norm, which are rounding alone, by their own size
    agent = make()
    Parallel.sync_batch_norms(agent)
    loss, _ = agent.supervised_loss(half(obs), half(label))
    loss.backward()
    ours = dict(agent.named_parameters())
    Parallel.average_gradients([p for p in ours.values() if p.grad is not None])
    with Parallel.alone():
        twin = make()
        twin.supervised_loss(obs, label)[0].backward()
    for name, p in twin.named_parameters():
        if p.grad is not None:
            close(ours[name].grad, p.grad, 1e-3, 1e-6)


def loss_alone_and_together(name, obs=VECTOR, times=1, **options):
    """Value and gradient of an auxiliary loss."""
    whole = batch(16, obs, BOX)
    views = iter(observations(16 * 40, obs, seed=9).split(16))
    seen = [next(views) for _ in range(8)]

    def gradient(part):
        agent = attached(make_sac(encoder='mlp', seed=2), obs, BOX, batch_size=16, **{name: recipe(name) | options})
        loss = agent.losses[name]
        Parallel.sync_batch_norms(agent)
        shown = iter(seen)
        loss.see = lambda x: part(next(shown))
        value, _ = loss.loss(part_of(whole, part))
        agent.zero_grad()
        value.backward()
        owned = {key: p for key, p in [*loss.named_parameters(), *agent.encoder.named_parameters()] if p.grad is not None}
        Parallel.average_gradients(list(owned.values()))
        return Parallel.mean(value.detach()), {key: p.grad for key, p in owned.items()}
    ours = gradient(half)
    with Parallel.alone():
        theirs = gradient(lambda x: x)
    close(ours[0], theirs[0], 1e-4, 1e-5)
    assert ours[1].keys() == theirs[1].keys() and any(g.abs().max() > 1e-4 for g in theirs[1].values())
    close(ours[1], theirs[1], 1e-3, 1e-5)


def part_of(whole, part):
    return Batch(**{name: part(value) if isinstance(value, torch.Tensor) else value for name, value in vars(whole).items()})


def barlow_twins_correlates_over_both():
    loss_alone_and_together('barlow_twins', projection_dim=6)


def byol_normalises_over_both():
    loss_alone_and_together('byol', projection_dim=6, hidden_dim=8)


def curl_tells_among_the_keys_of_both():
    loss_alone_and_together('curl')


def a_loss_that_joins_is_projected_against_the_gradient_of_both():
    random = torch.Generator().manual_seed(4)
    rl, ssl = torch.randn(16, 3, generator=random), -torch.randn(16, 3, generator=random).abs()

    def step(part):
        block = Block()
        block.w = nn.Parameter(torch.ones(3))
        block.optim = torch.optim.SGD([block.w], lr=1.0)
        loss = type('Loss', (), {'name': 'mine', 'projects': True, 'weight': 0.5, 'follow': lambda self: None})()
        loss.step = lambda replay, agent: (part(ssl) * block.w).mean(0).sum().backward() or {}
        block.joining = [JoiningLoss(loss, None, None)]
        optimise((part(rl).abs() * block.w).mean(0).sum(), block)
        return block.w.detach(), block.joining[0].metrics
    ours = step(half)
    with Parallel.alone():
        theirs = step(lambda x: x)
    close(ours, theirs)
    assert theirs[1]['mine_projected'] == 1


def the_predictor_learns_as_one():
    def gradient(part):
        agent = make_dqn()
        agent.reward_exploration({'rnd': RECIPE | {'update_proportion': 0.5}}, VECTOR, DISCRETE, 2, lr=1e-2, batch_size=16)
        bonus, x = agent.bonus, observations(32)
        keep = torch.rand(32, generator=torch.Generator().manual_seed(0)) < 0.5
        keep[20:] = False  # the second process keeps little
        rand, torch.rand = torch.rand, lambda *args, **options: part(keep).float() * -1 + 1
        try:
            loss = bonus.loss(type('Seen', (), {'next': part(x)})())
        finally:
            torch.rand = rand
        loss.backward()
        Parallel.average_gradients(list(bonus.predictor.parameters()))
        return [p.grad for p in bonus.predictor.parameters()]
    ours = gradient(half)
    with Parallel.alone():
        theirs = gradient(lambda x: x)
    close(ours, theirs, 1e-4, 1e-6)


# --- data

def a_pass_over_data_is_shared_out():
    for way, workers in (('memory', 0), ('files', 1)):
        samples = made_samples(way, workers)
        mine = [samples.sample(15).indices.clone() for _ in range(12)]
        with Parallel.alone():
            samples = made_samples(way, workers)
            whole = [samples.sample(30).indices.clone() for _ in range(12)]
        for ours, theirs in zip(mine, whole):
            assert torch.equal(ours, half(theirs))


# --- whole runs

SHORT = ('num_envs=4', 'batch_size=16', 'evaluate_episodes=1')
RUNS = {'dqn': ('gym/CartPole-v1', *SHORT, 'train_steps=400', 'save_per_steps=200'),
        'sac': ('gym/Pendulum-v1', *SHORT, 'Agent=SAC', 'train_steps=240', 'aux=[byol,curl]', 'aux.byol.grad=project', 'encoder=mlp', 'normalise_obs=true',
                'save_per_steps=100'),
        'rnd': ('gym/CartPole-v1', *SHORT, 'Agent=RND', 'train_steps=2000', 'seed_steps=0', 'learn_per_steps=80', 'agent.rollout_steps=20', 'aux=barlow_twins',
                'explore.rnd.warmup_steps=50', 'save_per_steps=800'),
        'ppo': ('gym/Pendulum-v1', *SHORT, 'Agent=PPO', 'train_steps=800', 'seed_steps=0', 'learn_per_steps=80', 'agent.rollout_steps=20',
                'agent.minibatches=4', 'agent.target_kl=0.01', 'save_per_steps=400')}


def agents_are_identical(name):
    from Session import Session
    root = Parallel.everywhere(tempfile.mkdtemp())
    run = values(root, *RUNS[name])
    held = []
    finish = Session.finish
    Session.finish = lambda self: held.append(copy.deepcopy(weights(self.agent))) or finish(self)
    try:
        Run.run(run)
    finally:
        Session.finish = finish
    both = Parallel.gather(held[0])
    if Parallel.is_main():
        assert all(torch.equal(value, both[1][key]) for key, value in both[0].items())
        state = checkpoint(run)
        assert state['step'] == run['train_steps'] and len(state['processes']) == 2
        assert state['agent']['update_count'] >= 50
        lanes = [process['environment']['lanes'] for process in state['processes']]
        assert lanes == [[0, 1], [2, 3]]
        seeds = [process['environment']['lane_seed'].tolist() for process in state['processes']]
        assert len({*seeds[0], *seeds[1]}) == 4
        streams = [process['agent']['generators'] for process in state['processes']]
        assert all(not torch.equal(streams[0][key], streams[1][key]) for key in ('acting', 'learning') if key == 'learning' or name != 'ppo')
        assert sorted(path.name for path in folder(run).glob('replay-*')) == ['replay-0of2', 'replay-1of2']


def dqn_ends_with_the_same_weights():
    agents_are_identical('dqn')


def sac_ends_with_the_same_weights():
    agents_are_identical('sac')


def rnd_ends_with_the_same_weights():
    agents_are_identical('rnd')


def ppo_ends_with_the_same_weights():
    agents_are_identical('ppo')


def digits_are_learned_as_by_one():
    root = Parallel.everywhere(tempfile.mkdtemp())
    options = ('classify/digits', 'RL=false', 'offline=true', 'batch_size=64', 'train_steps=12', 'learn_per_steps=1', 'evaluate_per_steps=0', 'Aug=Null',
               'num_envs=2', 'save_per_steps=0')
    Run.run(values(f'{root}/two', *options))
    Parallel.any_of(True)  # both are through
    try:
        if Parallel.is_main():
            with Parallel.alone():
                Run.run(values(f'{root}/one', *options))
                two, one = (checkpoint_weights(f'{root}/{name}', options) for name in ('two', 'one'))
                for name, value in one.items():
                    if value.is_floating_point():
                        close(two[name], value, 1e-3, 2e-5)
    finally:
        Parallel.any_of(True)


def checkpoint_weights(root, options):
    import Checkpoint
    return Checkpoint.read(run_folder(Args(values(root, *options))) / Checkpoint.NEWEST)['agent']['weights']


CHECKS = [value for value in list(globals().values()) if getattr(value, '__module__', '') == __name__ and value.__code__.co_argcount == 0]
NAMES = [check.__name__ for check in CHECKS]


def main():
    torch.set_num_threads(1)
    Parallel.start('cpu')
    told = {}
    for check in CHECKS:
        if len(sys.argv) > 2 and sys.argv[2] not in check.__name__:
            continue
        try:
            check()
            told[check.__name__] = ''
        except Exception:
            told[check.__name__] = f'process {Parallel.rank}: {traceback.format_exc()}'
    both = Parallel.gather(told)
    if both:
        joined = {name: both[0][name] + both[1][name] for name in told}
        with open(sys.argv[1], 'w') as file:
            json.dump(joined, file)
    Parallel.leave(None)



if __name__ == '__main__':
    main()
