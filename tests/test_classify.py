"""Whole runs on data sets: every mode, what they write, exact resume, and the commands of UnifiedML's README as they stand there."""
import json
import shlex

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import Checkpoint
from Datasets.Labelled import load
from Run import train
from tests.conftest import assert_one_line, equal, lines, timeless
from tests.Datasets import labelled_files

MNIST = 'task=classify/mnist'
BUDGET = ('train_steps=3', 'learn_per_steps=1', 'evaluate_per_steps=0', 'log_per_steps=1', '+recipes.encoder.eyes.out_channels=4')


@pytest.fixture
def data(graft, monkeypatch):
    """Small files where the run looks for them: MNIST and CIFAR-10."""
    root = graft.home / 'Datasets' / 'Downloads'
    rng = np.random.default_rng(0)
    parts = [labelled_files.Part(rng.integers(0, 256, (n, 1, 28, 28), np.uint8), rng.permutation(np.arange(n) % 10)) for n in (50, 27)]
    labelled_files.mnist(root, train=parts[0], test=parts[1])
    labelled_files.cifar10(root, monkeypatch)
    return parts


def classify(*overrides):
    """A tiny run on MNIST."""
    return lines(MNIST, *BUDGET, *overrides)


@pytest.mark.parametrize('agent', ['DQN', 'SAC'])
@pytest.mark.parametrize('mode, columns, none', [
    (('RL=false',), {'supervised_loss', 'accuracy'}, {'critic_loss'}), ((), {'supervised_loss', 'critic_loss', 'accuracy'}, set()),
    (('supervise=false',), {'critic_loss', 'accuracy'}, {'supervised_loss'}), (('discrete=true',), {'supervised_loss', 'critic_loss', 'accuracy'}, set())],
    ids=['supervised', 'both', 'rewards', 'classes'])
def test_every_mode_learns_and_is_judged_on_the_whole_test_set(graft, data, agent, mode, columns, none):
    left = graft.run(*classify(f'Agent={agent}', *mode, 'save_per_steps=0'))
    row = left.rows('train')[-1]
    assert columns <= set(row) and not none & set(row) and left.steps('eval') == [0, 3] and left.updates() == 3
    session = graft.session(*classify(f'Agent={agent}', *mode, 'load=true', 'train_steps=0'))
    with torch.no_grad():
        session.agent.eval()
        logits = torch.cat([session.agent.predict(torch.from_numpy(image[None]), 10) for image in data[1].images])
    told = float(left.rows('eval')[-1]['accuracy'])
    assert told == pytest.approx(np.mean(logits.argmax(1).numpy() == data[1].labels)) and left.score == pytest.approx(told)
    assert float(left.rows('eval')[-1]['error']) == pytest.approx(torch.nn.functional.cross_entropy(logits, torch.from_numpy(data[1].labels)).item(), rel=1e-4)


def test_a_run_leaves_reports(graft, data):
    left = graft.run(*classify('RL=false', 'plotting.plot=true'))
    assert {file.name for file in (left.path / 'report').iterdir()} == {'confusion.png', 'classes.csv', 'classes.png', 'mistakes.png'}
    assert list((graft.home / 'Benchmarking' / 'Exp' / 'Plots').glob('*.png')), 'the accuracy curve'
    assert not left.path.joinpath('replay').exists(), 'the data are not the run'


def test_passes_are_counted_in_updates(graft, data):
    """50 samples in batches of 8: three passes are 18.75 updates."""
    left = graft.run(*[line for line in classify('RL=false', 'train_epochs=3', 'evaluate_per_epochs=1', 'lr_decay_epochs=3')
                       if not line.startswith(('train_steps', 'evaluate_per_steps'))])
    assert left.updates() == 19 and left.steps('eval') == [0, 7, 14, 19]
    assert left.state()['agent']['schedulers']['encoder']['T_max'] == 19
    assert graft.values(*classify('train_epochs=2', 'train_steps=5'))['train_epochs'] == 2
    assert graft.values(*classify('train_steps=5'))['train_epochs'] is None, 'steps by hand win over a preset'


def test_weight_decay_and_averages_reach_every_block(graft, data):
    session = graft.session(*classify('weight_decay=0.01', 'ema=true'))
    agent = session.agent
    assert {group['weight_decay'] for block in (agent.encoder, agent.actor, agent.critic) for group in block.optim.param_groups} == {0.01}
    assert agent.ema_encoder is not None and agent.ema_head is not None
    without = graft.session(*classify('experiment=Without')).agent
    assert without.ema_encoder is None and without.ema_head is None


def test_transforms_change_what_is_learned_from_and_nothing_else(graft, data):
    session = graft.session(*classify('RL=false', 'replay.transform={RandomHorizontalFlip:{p:1.0}}', 'Aug=Null'))
    batch = session.replay.sample(8)
    assert torch.equal(batch.obs, torch.from_numpy(data[0].images[batch.indices]).flip(-1))
    tested = session.make_environment(1, train=False).suite
    assert np.array_equal(tested.source.images, data[1].images)


@pytest.mark.parametrize('options', [('RL=false', 'num_workers=0'), ('discrete=true',), ('environment.stream=true', 'num_workers=2'),
                                     ('Agent=SAC', 'aux=curl', 'replay.transform={RandomCrop:{padding:2}}')], ids=str)
def test_a_run_that_is_interrupted_in_the_middle_of_a_pass_goes_on_to_the_bit(graft, data, options):
    budget = ('train_steps=20', 'evaluate_per_steps=7', 'save_per_steps=4')
    whole = graft.run(*classify(*options, *budget, 'experiment=Whole'))
    session = graft.session(*classify(*options, *budget))
    while session.step < 11:
        if session.clocks['evaluate'].due(session.step):
            session.evaluate()
        session.advance()
        session.records()
    session.close()  # as if killed: nothing after step 8 is saved
    resumed = graft.session(*classify(*options, *budget, 'load=true'))
    assert resumed.step == 8
    train(resumed)
    left = graft.left(*classify(*options, *budget))
    equal(left.weights(), whole.weights())
    assert timeless(left.rows('eval')) == timeless(whole.rows('eval')) and timeless(left.rows('train')) == timeless(whole.rows('train'))


def test_the_same_seed_is_the_same_run(graft, data):
    one, two, other = (graft.run(*classify(f'experiment={name}', f'seed={seed}')) for name, seed in (('A', 1), ('B', 1), ('C', 2)))
    equal(one.weights(), two.weights())
    assert any(not torch.equal(a, b) for a, b in zip(one.weights().values(), other.weights().values()))


@pytest.mark.parametrize('chosen, augments', [((), True), (('Aug=Null',), False), (('recipes.Aug=Blocks.Architectures.Null',), False)], ids=str)
def test_the_default_augmentation_can_be_left_out(graft, data, chosen, augments):
    agent = graft.session(*classify(*chosen)).agent
    shown = torch.from_numpy(data[0].images[:8])
    assert torch.equal(agent.aug(shown, agent.learning), shown) != augments


def test_agents_that_only_play_may_play_on_data(graft, data):
    left = graft.run(*classify('offline=false', 'train_steps=60', 'seed_steps=20', 'num_envs=4', 'explore_steps=20', 'learn_per_steps=4'))
    rewards = [float(row['reward']) for row in left.rows('train') if row['reward']]
    assert rewards and max(rewards) < 0 and left.updates() == 10 and left.rows('eval')[-1]['accuracy']


def test_an_agent_without_learning_is_judged_too(graft, data):
    assert 0 <= graft.run(*classify('Agent=Random', 'train_steps=0')).score <= 1


@pytest.mark.parametrize('agent', ['DQN', 'SAC'])
def test_a_saved_part_is_another_runs_part(graft, data, agent):
    first = graft.run(*classify('RL=false'))
    file = first.path / Checkpoint.NEWEST
    second = classify('experiment=Second', f'Agent={agent}', 'Eyes=load', f'+recipes.encoder.eyes.path={file}', '+recipes.encoder.eyes.attr=encoder.eyes')
    itself = graft.main(*[line for line in second if 'out_channels' not in line and 'experiment' not in line and 'Agent' not in line], 'overwrite=true')
    assert_one_line(itself, 'that is this run itself') if agent == 'DQN' else None
    session = graft.session(*[line.replace('=encoder.eyes', '=encoder.Eyes') for line in second if 'out_channels' not in line])
    saved = {name.removeprefix('encoder.eyes.'): value for name, value in first.weights().items() if name.startswith('encoder.eyes.')}
    equal(session.agent.encoder.eyes.part.state_dict(), saved)
    assert all(p.requires_grad for p in session.agent.encoder.eyes.parameters())


# --- generation

def test_generation_leaves_sheets(graft, data):
    left = graft.run(*classify('generate=true', 'evaluate_per_steps=2'))
    sheets = sorted(left.path.joinpath('images').iterdir())
    assert [file.name for file in sheets] == ['0.png', '2.png', '3.png'] and '+generate' in str(left.path)
    pixels = np.asarray(Image.open(sheets[-1]))
    assert pixels.dtype == np.uint8 and 60 < pixels.mean() < 200, 'a generator that has learned nothing draws grey, not black'
    assert {'critic_loss', 'actor_loss'} <= set(left.rows('train')[-1])
    assert np.array_equal(pixels, np.asarray(Image.open(graft.run(*classify('generate=true', 'evaluate_per_steps=2', 'experiment=Again')).path
                                                        / 'images' / '3.png')))


def test_generated_images_are_scored_by_a_saved_classifier(graft, data):
    judge = graft.run(*classify('RL=false', 'experiment=Judge'))
    config = yaml.safe_load((judge.path / 'config.yaml').read_text())
    del config['adam_beta'], config['generation']  # as of a version that had none
    (judge.path / 'config.yaml').write_text(yaml.safe_dump(config))
    options = ('generate=true', 'evaluate_per_steps=2', f'generation.classifier={judge.path}', 'generation.images=60')
    left, plain = graft.run(*classify(*options)), graft.run(*classify('generate=true', 'experiment=Plain'))
    for row in left.rows('eval'):
        assert 0 <= float(row['label_entropy']) <= np.log(10) + 1e-6 and 1 <= float(row['classifier_score']) <= 10
    equal(left.weights(), plain.weights())  # to be scored changes nothing
    assert left.score == pytest.approx(float(left.rows('eval')[-1]['classifier_score']))
    assert_one_line(graft.main(*classify('generate=true', 'experiment=Bad', 'generation.classifier=nowhere')), 'nowhere')
    assert_one_line(graft.main(*classify('generate=true', 'experiment=Bad', f'generation.classifier={left.path}')), 'this one generates')
    assert not (graft.home / 'Benchmarking' / 'Bad').exists()


def test_generation_says_nothing_of_plots(graft, data):
    said = graft.main(*classify('generate=true', 'plotting.plot=true'))
    assert said.code == 0 and 'plot' not in said.out + said.err


def test_generation_from_a_stored_replay(graft):
    short = ('task=atari/breakout', 'replay.save=true', 'train_steps=30', 'action_repeat=1')
    graft.run(*short)
    left = graft.run('task=atari/breakout', 'generate=true', 'evaluate_episodes=1', 'action_repeat=1', 'train_steps=2', 'learn_per_steps=1', 'batch_size=4')
    assert (left.path / 'images' / '2.png').exists() and left.updates() == 2


@pytest.mark.parametrize('options', [('Generator=DCGAN.Generator', 'Discriminator=DCGAN.Discriminator', '+recipes.actor.pi_head.out_channels=4',
                                      '+recipes.critic.q_head.out_channels=4')], ids=['dcgan'])
@pytest.mark.parametrize('agent', ['DQN', 'SAC', 'AuxiSAC'])
def test_dcgan(graft, data, options, agent):
    left = graft.run(*classify('generate=true', f'Agent={agent}', *options))
    assert any('pi_head' in name and value.dim() == 4 for name, value in left.weights().items()), 'convolutions draw'


# --- UnifiedML's commands

COMMANDS = """
task=classify/mnist RL=false
task=classify/mnist
task=classify/mnist supervise=false
task=classify/mnist agent.log=true
task=classify/cifar10 RL=false ema=true weight_decay=0.01 replay.transform="{RandomHorizontalFlip:{}}" Eyes=Blocks.Architectures.ResNet18
task=classify/mnist generate=true
task=classify/cifar10 Eyes=Blocks.Architectures.ResNet18
task=classify/mnist Eyes=Blocks.Architectures.ViT +recipes.encoder.eyes.patch_size=7
Eyes=Blocks.Architectures.ViT task=classify/cifar10 RL=false ema=true weight_decay=0.01 +recipes.encoder.eyes.depth=6 +recipes.encoder.eyes.out_channels=512 \
+recipes.encoder.eyes.hidden_dim=512 replay.transform="{RandomCrop:{size:32,padding:4},RandomHorizontalFlip:{}}" recipes.Aug=Blocks.Architectures.Null
task=classify/mnist generate=True recipes.critic.q_head._target_=Blocks.Architectures.CNN recipes.critic.q_head.input_shape='${obs_shape}'
task=classify/mnist recipes.critic.trunk._target_=Blocks.Architectures.AttentionPool recipes.actor.trunk._target_=Blocks.Architectures.AttentionPool \
pool=Blocks.Architectures.Null
task=classify/mnist parallel=true
""".replace('\\\n', '').strip().splitlines()


@pytest.mark.parametrize('command', COMMANDS)
def test_every_command_of_its_readme_runs(graft, data, command):
    tiny = ['train_steps=1', 'evaluate_per_steps=0', 'batch_size=4', 'device=cpu', 'threads=1', 'logger.progress=false', 'plotting.plot=false']
    said = graft.main(*shlex.split(command), *tiny)
    assert said.code == 0, said.err
    (run,) = graft.home.glob('Benchmarking/Exp/*/classify/*_1')
    assert Checkpoint.read(run / Checkpoint.NEWEST)['agent']['update_count'] == 1


ON_PONG = """
Eyes=Blocks.Architectures.ViT +recipes.encoder.eyes.patch_size=7
generate=True recipes.critic.q_head._target_=Blocks.Architectures.CNN recipes.critic.q_head.input_shape='${obs_shape}'
parallel=true
task=atari/breakout generate=true evaluate_episodes=1 action_repeat=1
""".strip().splitlines()


@pytest.mark.parametrize('command', ON_PONG)
def test_every_command_of_its_readme_runs_that_plays(graft, command):
    """Without a task it is Pong; to generate there has to be a replay."""
    tiny = ['evaluate_per_steps=0', 'evaluate_episodes=1', 'environment.max_frames=200', 'batch_size=4', 'device=cpu', 'threads=1',
            'logger.progress=false', 'plotting.plot=false']
    words = shlex.split(command)
    if 'generate' in command:
        kept = graft.main(*(word for word in words if word.startswith(('task', 'action'))), *tiny, 'train_steps=40', 'learn_per_steps=0', 'replay.save=true')
        assert kept.code == 0, kept.err
    said = graft.main(*words, *tiny, 'train_steps=9', 'seed_steps=8', 'learn_per_steps=1')
    assert said.code == 0, said.err
    (run,) = graft.home.glob(f'Benchmarking/Exp/DQN{"+generate" if "generate" in command else ""}/atari/*_1')
    assert Checkpoint.read(run / Checkpoint.NEWEST)['agent']['update_count'] >= 1


def test_brackets_stand_for_several_keys():
    assert 'recipes.critic.trunk' in COMMANDS[-2] and 'recipes.actor.trunk' in COMMANDS[-2], 'the shell writes {critic,actor} out'


# --- what is refused

@pytest.mark.parametrize('command, message', [
    ('task=classify/mnst', ('task=classify/mnst: no such task; nearest: classify/mnist',)),
    (f'{MNIST} RL=false supervise=false', ('RL=false supervise=false: one of the two has to be true',)),
    (f'{MNIST} generate=true discrete=true', ('generate=true discrete=true',)),
    ('task=gym/CartPole-v1 RL=false', ('RL=False: task=gym/… shows no labelled data',)),
    ('task=gym/CartPole-v1 train_epochs=3', ('train_epochs=3: task=gym/… shows no labelled data',)),
    ('task=gym/CartPole-v1 Dataset=my.Data', ('Dataset._target_=my.Data: task=gym/… shows no labelled data',)),
    (f'{MNIST} num_workers=-1', ('num_workers=-1: expected auto, or 0 or more',))])
def test_refused_before_anything_is_built(graft, no_env, command, message):
    assert_one_line(graft.main(*shlex.split(command)), *message)
    assert graft.files() == []


@pytest.mark.parametrize('options, message', [
    (['aux=spr'], ('aux=spr: a data set has no sequences of observations',)),
    (['replay.transform={RandomCrop:{size:20}}'], ('replay.transform.RandomCrop: makes (1, 20, 20)',)),
    (['replay.transform={RandomHorizontalFlop:{}}'], ('replay.transform=RandomHorizontalFlop', 'nearest: RandomHorizontalFlip')),
    (['replay.transform={RandomHorizontalFlip:0.5}'], ('replay.transform.RandomHorizontalFlip=0.5: expected its arguments by name',)),
    (['+recipes.aug.pad=-3'], ('recipes.aug.pad=-3: expected 0 or more',)),
    (['generate=true', 'generation.classifier=3'], ('generation.classifier=3: expected the folder of a run',)),
    (['generate=true', 'generation.metrics=3'], ('generation.metrics=3: expected fid, is, or [fid,is]',)),
    (['Eyes=ResNet19'], ('ResNet18',)),
    (['Eyes=ViT', '+recipes.encoder.eyes.patch_size=5'], ('patch_size=5',)),
    (['Dataset=my_package.MyData'], ('my_package',)),
    (['Dataset.root=elsewhere', 'task=classify/folder'], ('elsewhere',))], ids=str)
def test_refused_in_one_line_and_nothing_is_left(graft, data, options, message):
    before = graft.files()
    assert_one_line(graft.main(*[line for line in classify(*options) if not ('out_channels' in line and options[0].startswith('Eyes'))]), *message)
    made = set(graft.files()) - set(before)
    assert made <= {'Datasets/Downloads/statistics.json'}


DATA = """
import torch

class Squares(torch.utils.data.Dataset):
    '''Whether a square is above the middle.'''
    classes = ['above', 'below']

    def __init__(self, train=True, side=12):
        self.side, self.length = side, 40 if train else 11

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        image = torch.zeros(1, self.side, self.side)
        row = index % (self.side - 2)
        image[0, row:row + 2, 3:5] = 1
        return image, int(row >= self.side // 2)


class Renamed(Squares):
    classes = ['below', 'above']


class Numbered(Squares):
    classes = None

    def __init__(self, side=16, length=40):
        self.side, self.length = side, length

    def __getitem__(self, index):
        return super().__getitem__(index)[0], int(self.length == 40 and index == 7)
"""


def test_a_users_own_data(graft):
    (graft.home / 'my_data.py').write_text(DATA)
    left = graft.run(*lines('task=classify/custom', 'Dataset=my_data.Squares', '+Dataset.side=16', *BUDGET, 'RL=false'))
    assert left.updates() == 3 and yaml.safe_load((left.path / 'config.yaml').read_text())['Dataset']['_target_'] == 'my_data.Squares'
    statistics = json.loads((graft.home / 'Datasets' / 'Downloads' / 'statistics.json').read_text())
    assert statistics


def test_digits_need_no_files(graft):
    left = graft.run(*lines('task=classify/digits', *BUDGET, 'RL=false'))
    tested = load('digits', train=False, root=graft.home)
    right = float(left.rows('eval')[-1]['accuracy']) * len(tested)
    assert right == pytest.approx(round(right), abs=1e-4), 'every sample counts once'


@pytest.mark.parametrize('options, message', [
    (['+TestDataset.side=14'], 'samples of the test set are (1, 14, 14), those of the training set (1, 12, 12)'),
    (['TestDataset=my_data.Renamed'], 'the classes of the test set are not those of the training set: another order')], ids=str)
def test_a_test_set_that_does_not_fit_is_refused_before_anything_is_written(graft, options, message):
    (graft.home / 'my_data.py').write_text(DATA)
    both = [] if 'TestDataset=my_data.Renamed' in options else ['TestDataset=my_data.Squares']
    assert_one_line(graft.main(*lines('task=classify/custom', 'Dataset=my_data.Squares', *both, *options, *BUDGET, 'RL=false')), message)
    assert not (graft.home / 'Benchmarking').exists()


def test_a_test_set_may_lack_the_last_class(graft):
    (graft.home / 'my_data.py').write_text(DATA)
    tested = ('TestDataset=my_data.Numbered', '+TestDataset.length=11')
    left = graft.run(*lines('task=classify/custom', 'Dataset=my_data.Numbered', *tested, *BUDGET, 'RL=false', 'plotting.plot=true'))
    assert left.score is not None and (left.path / 'report' / 'confusion.png').exists()


def test_an_agent_that_learns_from_its_own_rollouts_needs_to_play(graft, data):
    assert_one_line(graft.main(*classify('Agent=PPO', 'Eyes=CNN')), 'offline=true: Agents.PPO learns from what it has just played alone')
    small = ('Agent=PPO', 'Eyes=CNN', 'offline=false', 'num_envs=4', 'agent.rollout_steps=8', 'train_steps=64', 'learn_per_steps=32', 'hidden_dim=8')
    left = graft.run(*classify(*small))
    assert left.rows('eval')[-1]['accuracy'] and 'approx_kl' in left.rows('train')[-1]


@pytest.mark.parametrize('value', ['Null', 'Blocks.Architectures.Null'])
def test_null_with_a_capital_is_the_part_of_that_name(graft, value):
    """Hydra reads Null as null, which is the agent's own."""
    values = graft.values(MNIST, f'pool={value}', f'Pi_trunk={value}', 'Aug=Null')
    assert values['recipes']['encoder']['pool']['_target_'] == values['recipes']['actor']['trunk']['_target_'] == 'Blocks.Architectures.Null'
    assert values['recipes']['aug']['_target_'] == 'Blocks.Augmentations.Null'
    assert graft.values(MNIST, 'pool=null')['recipes']['encoder']['pool']['_target_'] is None


def test_settings_without_effect_are_said(graft, data):
    said = graft.main(*classify('RL=false', 'frame_stack=3', 'log_video=true', 'generation.metrics=fid'))
    assert said.code == 0
    for key in ('frame_stack=3', 'log_video=True', 'generation.metrics=fid'):
        assert f'{key} makes no difference' in said.out
    said = graft.main(*[line for line in classify('generate=true', 'Eyes=ResNet18', 'RL=false') if 'out_channels' not in line])
    assert 'Eyes=ResNet18 makes no difference' in said.out and 'RL=False makes no difference' in said.out


def test_generation_is_swept_beside_learning(graft, data):
    said = graft.main('-m', *classify('generate=true,false', 'evaluate_per_steps=0'))
    assert said.code == 0, said.err
    assert {run.parent.parent.name for run in graft.home.glob('Benchmarking/Exp/*/classify/mnist_1')} == {'DQN', 'DQN+generate'}


def test_a_resumed_run_does_not_tell_what_follows_from_passes(graft, data):
    graft.run(*[line for line in classify('RL=false', 'train_epochs=1') if not line.startswith('train_steps')])
    said = graft.main(*[line for line in classify('RL=false', 'train_epochs=2', 'load=true') if not line.startswith('train_steps')])
    assert said.code == 0 and 'train_epochs: 1 → 2' in said.out and '_steps:' not in said.out
