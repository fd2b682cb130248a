"""From the command line to values: precedence, names in every spelling, types, help, multirun."""
import math
import time
from pathlib import Path

import gymnasium
import pytest
import torch
import yaml
from omegaconf import OmegaConf

from Blocks.Architectures import CNN
from Datasets.Suites.Names import atari_tasks, classify_tasks, dmc_tasks, find_task
from Hparams.Check import FOLDER, defaults, flatten
from Hparams.Compose import compose_args, quoted
from Hparams.Parts import without_use
from Hparams.Registry import GraftSource, agents
from tests.conftest import assert_one_line, lines
from Utils import Args, locate

AGENT = '''
import torch
from Agents.Agent import Agent

class MyAgent(Agent):
    """Always the same action."""
    def __init__(self, *, action_spec, favourite: int, **settings):
        super().__init__(**settings)
        self.favourite = favourite

    def act(self, step, state=None, greedy=False):
        return torch.full((len(step.first),), self.favourite), {}, state

    def learn(self, replay):
        self.update_count += 1
        return {'favourite': torch.tensor(float(self.favourite))}
'''
EYES = '''
import torch
from torch import nn

class MyHead(nn.Module):
    def __init__(self, input_shape, output_dim, scale: float = 1.0):
        super().__init__()
        self.linear, self.scale, self.output_shape = nn.Linear(input_shape[0], output_dim), scale, (output_dim,)

    def forward(self, x):
        return self.scale * self.linear(x)
'''


# --- precedence

def test_command_line_beats_paper_beats_agent_beats_task_beats_args(monkeypatch):
    """Each level is given one key more than the level that beats it; `lr` everywhere."""
    keys = ('num_envs', 'nstep', 'batch_size', 'hidden_dim')
    levels = {'task/test/level': 1, 'Agent/Test.Level': 2, 'paper/learn/Test.Level/test/level': 3}
    derive, is_group = GraftSource.derive, GraftSource.is_group

    def derived(self, path):
        path = path.removesuffix('.yaml')
        if path not in levels:
            return derive(self, path)
        level = levels[path]
        names = {'suite': 'gym', 'task_name': 'CartPole-v1'} if level == 1 else {'agent': {'_target_': 'Agents.Random'}}
        return names | dict.fromkeys(keys[level - 1:], 100 + level)

    monkeypatch.setattr(GraftSource, 'derive', derived)
    monkeypatch.setattr(GraftSource, 'is_group', lambda self, path: path == 'task/test' or is_group(self, path))
    assert not {defaults()[key] for key in keys} & {101, 102, 103, 7}
    values = compose_args(['task=test/level', 'Agent=Test.Level', 'hidden_dim=7'])
    assert {key: values[key] for key in keys} == {'num_envs': 101, 'nstep': 102, 'batch_size': 103, 'hidden_dim': 7}
    assert values['trunk_dim'] == defaults()['trunk_dim']


PRESETS = [file.relative_to(FOLDER) for group in ('task', 'Agent', 'paper') for file in sorted((FOLDER / group).glob('**/*.yaml'))]
TABLES = {name: Path('paper', f'{name}.yaml') for name in ('atari', 'classify', 'dmc', 'generate', 'gym', 'procgen')}
PRESETS = [preset for preset in PRESETS if preset not in TABLES.values()]
EXAMPLES = {'atari': 'pong', 'dmc': 'acrobot_swingup', 'gym': 'Acrobot', 'classify': 'mnist', 'mario': 'super_mario_bros'}


@pytest.mark.parametrize('preset', PRESETS, ids=str)
def test_what_a_shipped_preset_says_holds(preset):
    """Where nothing that beats it speaks: a task's under Random, an agent's on a task without a paper, a paper's anywhere; and a word given by hand wins."""
    said = flatten({key: value for key, value in OmegaConf.to_container(OmegaConf.load(FOLDER / preset)).items() if key != 'defaults'})
    said = {key: value for key, value in said.items() if '${' not in str(value)}
    group, name = preset.parts[0], preset.with_suffix('').parts
    learns = ['learn_per_steps=1'] if name[1] == 'classify' else []  # a data set with Random, which learns nothing, would be refused
    bare = 'dmc/reacher_easy' if name[1] == 'Agents.SAC' else 'gym/Acrobot'  # no table says anything of it
    overrides = {'task': ['Agent=Random', f'task={name[1]}/{EXAMPLES.get(name[1])}', *learns], 'Agent': [f'task={bare}', f'Agent={name[1]}'],
                 'paper': [f'Agent={name[1]}', f'task={"/".join(name[2:])}']}[group]
    values = flatten(compose_args(overrides))
    assert {key: values[key] for key in said} == said and len(said) > (group == 'paper') * 3
    key, value = next(((key, value) for key, value in said.items() if type(value) is int), (None, 0))
    if key:
        assert flatten(compose_args([*overrides, f'{key}={value + 1}']))[key] == value + 1


ON_POLICY = ('Agents.Random', 'Agents.PPO', 'Agents.RND')  # learn nothing, or nothing from stored data


def test_the_papers_table_for_several_agents_holds():
    table = OmegaConf.to_container(OmegaConf.load(FOLDER / TABLES['dmc']))
    assert set(table['tasks']) < set(dmc_tasks()) and all(agent in agents() for agent in table['agents'])
    for task in (*table['tasks'], 'reacher_easy'):
        for agent in table['agents']:
            said = table['others'] | table['tasks'].get(task, {})
            values = compose_args([f'task=dmc/{task}', f'Agent={agent}'])
            assert {key: values[key] for key in said} == said
            assert values['train_steps'] * values['action_repeat'] in (750_000, 2_000_000) and values['evaluate_per_steps'] * values['action_repeat'] == 10_000
    assert compose_args(['task=dmc/walker_walk', 'Agent=SAC', 'action_repeat=3'])['action_repeat'] == 3
    assert compose_args(['task=dmc/cup_catch', 'Agent=AuxiSAC', 'lr=1e-4'])['lr'] == 1e-4


@pytest.mark.parametrize('suite, tasks', [('atari', ('pong', 'montezuma_revenge')), ('gym', ('HalfCheetah-v5', 'Pendulum-v1'))])
def test_what_a_suite_changes_for_some_agents_holds(suite, tasks):
    table = OmegaConf.to_container(OmegaConf.load(FOLDER / TABLES[suite]))
    assert table['agents'] and set(table['agents']) <= set(agents())
    for agent, own in table['agents'].items():
        for task in tasks:
            values = flatten(compose_args([f'task={suite}/{task}', f'Agent={agent}']))
            assert {key: values[key] for key in flatten(own)} == flatten(own)
        assert flatten(compose_args([f'task={suite}/{tasks[0]}', f'Agent={agent}', 'lr=0.5']))['lr'] == 0.5


def test_the_table_of_data_sets_holds():
    table = OmegaConf.to_container(OmegaConf.load(FOLDER / TABLES['classify']))
    assert set(table['tasks']) < set(classify_tasks()) and set(table['agents']) == {agent for agent in agents() if agent not in ON_POLICY}
    for task in ('digits', 'cifar10'):
        for agent in table['agents']:
            said = flatten(table['others'] | table['tasks'].get(task, {}))
            values = flatten(compose_args([f'task=classify/{task}', f'Agent={agent}']))
            assert {key: values[key] for key in said if '${' not in str(said[key])} == {key: value for key, value in said.items() if '${' not in str(value)}
            assert values['lr_decay_epochs'] == values['train_epochs'] and values['recipes.aug._target_'] == 'RandomShift'


@pytest.mark.parametrize('task', ['classify/digits', 'atari/pong', 'dmc/cheetah_run'])
def test_the_table_of_generation_beats_what_is_for_learning(task):
    table = OmegaConf.to_container(OmegaConf.load(FOLDER / TABLES['generate']))
    assert set(table['agents']) == {agent for agent in agents() if agent not in ON_POLICY}
    for agent, own in table['agents'].items():
        said = flatten(table['others'] | own)
        values = flatten(compose_args([f'task={task}', f'Agent={agent}', 'generate=True']))
        assert values['generate'] is True and values['offline'] and {key: values[key] for key in said} == said
    assert compose_args([f'task={task}', 'generate=true', 'lr=0.5'])['lr'] == 0.5
    usual = compose_args([f'task={task}', 'generate=false'])
    assert not usual['generate'] and usual['adam_beta'] == defaults()['adam_beta']


@pytest.mark.parametrize('obs, batch_size, aug', [('pixels', 512, 'RandomCrop'), ('state', 256, None)])
def test_a_preset_may_rest_on_what_a_task_shows(obs, batch_size, aug):
    values = compose_args(['task=dmc/cheetah_run', 'Agent=SAC', f'obs={obs}'])
    assert values['batch_size'] == batch_size and values['Aug'] == aug and values['environment']['obs'] == obs
    assert compose_args(['task=gym/Pendulum', 'Agent=SAC'])['batch_size'] == 256 and compose_args(['Agent=SAC'])['batch_size'] == 512


@pytest.mark.parametrize('key, overrides, value', [
    ('reward_clip', ['task=gym/Acrobot'], None), ('reward_clip', ['task=atari/boxing'], 1), ('learn_per_steps', ['task=gym/Acrobot', 'Agent=Random'], 0),
    ('environment.frame_skip', ['action_repeat=2'], 2),  # what rests on another key follows it …
    ('environment.frame_skip', ['action_repeat=2', 'environment.frame_skip=3'], 3),  # … unless it is given too
    ('evaluate_envs', ['evaluate_episodes=9'], 3),  # the largest divisor up to 8
    ('evaluate_envs', ['evaluate_episodes=100'], 5)])
def test_values_that_follow_from_others(key, overrides, value):
    assert flatten(compose_args(overrides))[key] == value


@pytest.mark.parametrize('overrides, plugs', [
    (['aux=[curl,byol]'], ['curl', 'byol']), (['aux=[spr]'], ['spr']), (['aux=none'], []), (['Agent=Agents.AuxiSAC'], ['a2_winner']),
    (['Agent=Agents.AuxiSAC', 'aux=[a2_winner,curl]'], ['a2_winner', 'curl']), (['Agent=Agents.AuxiSAC', 'aux=none'], [])])
def test_a_run_is_named_by_its_losses_alone_or_in_a_list(overrides, plugs):
    """Hydra does not tell what was chosen of a group where it is a list."""
    assert compose_args(['task=dmc/cheetah_run', *overrides])['plugs'] == plugs


def test_a_users_loss_takes_the_common_options(tmp_path, monkeypatch):
    (tmp_path / 'mine.py').write_text('')
    monkeypatch.chdir(tmp_path)
    options = {'weight': 2, 'grad': 'project', 'batch_size': 8, 'lr': 0.1, 'tau': 0.5, 'latent_dim': 9, 'views': 'RandomShift', 'horizon': 3}
    values = compose_args(['aux=mine.Loss', *(f'aux.Loss.{key}={value}' for key, value in options.items())])
    assert values['aux']['Loss'] == {'_target_': 'mine.Loss'} | options and values['plugs'] == ['Loss']


# --- names

@pytest.mark.parametrize('task', ['gym/CartPole-v1', 'gym/Pendulum-v1', 'atari/pong'])
def test_every_spelling_of_an_agent_is_the_same_run(task):
    """The task's paper preset included."""
    assert len({str(compose_args([f'task={task}', f'Agent={name}'])) for name in ('Agents.DQN', 'Agents.DQNAgent', 'DQN', 'DQNAgent', 'dqn')}) == 1
    assert compose_args([f'task={task}', 'Agent=DQN'])['agent_name'] == 'Agents.DQN'


def test_every_spelling_of_random_is_the_same_run():
    assert len({str(compose_args([f'Agent={name}'])) for name in ('Agents.Random', 'Agents.RandomAgent', 'Random')}) == 1


def test_bare_is_dqn_on_pong():
    values = compose_args([])
    assert (values['agent']['_target_'], values['suite'], values['task_name'], values['seed']) == ('Agents.DQN', 'atari', 'pong', 1)
    assert compose_args(['Agent=Agents.DQN', 'task=atari/pong']) == values


@pytest.mark.parametrize('typed, canonical', [
    ('atari/battlezone', 'battle_zone'), ('atari/BattleZone', 'battle_zone'), ('atari/battle_zone', 'battle_zone'), ('atari/ALE/BattleZone-v5', 'battle_zone'),
    ('atari/BattleZoneNoFrameskip-v4', 'battle_zone'), ('atari/Pong', 'pong'), ('atari/MsPacman', 'ms_pacman'), ('gym/CartPole', 'CartPole-v1'),
    ('gym/cartpole', 'CartPole-v1'), ('gym/CartPole-v0', 'CartPole-v0'), ('gym/cart_pole-v1', 'CartPole-v1'), ('gym/HalfCheetah', 'HalfCheetah-v5'),
    ('gym/halfcheetah-v4', 'HalfCheetah-v4'), ('gym/Pendulum', 'Pendulum-v1'), ('gym/LunarLanderContinuous', 'LunarLanderContinuous-v3')])
def test_a_task_in_any_spelling(typed, canonical):
    suite = typed.partition('/')[0]
    assert find_task(typed) == (suite, canonical)
    assert compose_args([f'task={typed}']) == compose_args([f'task={suite}/{canonical}'])


def test_every_atari_game_that_ale_ships_composes():
    games = atari_tasks()
    assert len(games) > 100 and {'pong', 'breakout', 'montezuma_revenge', 'private_eye'} <= set(games)
    for number, game in enumerate(games):
        assert find_task(f'atari/{game}') == find_task(f'atari/{game.replace("_", "")}') == ('atari', game)
        config = GraftSource('graft', 'graft://').derive(f'task/atari/{game}')
        assert config == {'defaults': ['/task/atari@_global_', '_self_'], 'suite': 'atari', 'task_name': game}
        if number % 10 == 0:
            assert compose_args([f'task=atari/{game}'])['task_name'] == game


GYM = ['Acrobot-v1', 'CartPole-v1', 'MountainCar-v0', 'MountainCarContinuous-v0', 'Pendulum-v1', 'CliffWalking-v1', 'FrozenLake-v1', 'Taxi-v4',
       'Ant-v5', 'HalfCheetah-v5', 'Hopper-v5', 'Humanoid-v5', 'InvertedPendulum-v5', 'Pusher-v5', 'Reacher-v5', 'Swimmer-v5', 'Walker2d-v5']


@pytest.mark.parametrize('task', GYM)
def test_a_gym_id_composes(task):
    assert task in gymnasium.registry
    values = compose_args([f'task=gym/{task}'])
    assert (values['suite'], values['task_name'], values['action_repeat']) == ('gym', task, 1)


@pytest.mark.parametrize('task', ['FrozenLake-v1', 'MountainCarContinuous-v0', 'Hopper-v5'])
def test_discrete_and_box_spaces_run(graft, task):
    left = graft.run(f'task=gym/{task}', 'train_steps=30', 'environment.max_steps=10')
    assert left.updates() == 2 and left.steps('eval') == [0, 20, 30]


def test_a_users_own_agent_needs_no_yaml(graft):
    (graft.home / 'my_package').mkdir()
    (graft.home / 'my_package' / '__init__.py').write_text(AGENT)
    left = graft.run('Agent=my_package.MyAgent', '+agent.favourite=1', 'learn_steps_after=3')
    assert left.path == graft.left().path.parents[2] / 'my_package.MyAgent/gym/CartPole-v1_1'
    assert left.updates() == 13 and {row['favourite'] for row in left.rows('train')} == {'', '1'}
    assert all(float(row['episode_length']) < 12 for row in left.rows('eval'))  # it pushes to one side until the pole falls


@pytest.mark.parametrize('argv, message', [
    (['Agent=my_package.MyAgent'], 'agent: MyAgent also needs agent.favourite'),
    (['Agent=my_package.MyAgent', '+agent.favorite=1'], 'agent.favorite: MyAgent has no such argument; nearest: favourite'),
    (['Agent=my_package.MyAgent', '+agent.favourite=left'], 'agent.favourite=left: expected a whole number'),
    (['Agent=my_package.YourAgent'], 'Agent=my_package.YourAgent: no such name; nearest: MyAgent'),
    (['Agent=my_packages.MyAgent'], "Agent=my_packages.MyAgent: no module 'my_packages' in this folder or on PYTHONPATH")])
def test_a_users_own_agent_is_checked_too(graft, argv, message):
    (graft.home / 'my_package.py').write_text(AGENT)
    said = graft.main(*lines(*argv))
    assert said.code == 1 and said.err.startswith(message) and said.err.count('\n') == 1


@pytest.mark.parametrize('task', ['CartPole-v1', 'Pendulum-v1'])
def test_parts_by_short_and_by_dotted_name(graft, task):
    """Also parts of a user's own, on discrete and on continuous tasks."""
    (graft.home / 'my_parts.py').write_text(EYES)
    session = graft.session(f'task=gym/{task}', 'Eyes=MLP', '+recipes.encoder.eyes.output_dim=8', 'Q_head=my_parts.MyHead', '+recipes.critic.q_head.scale=2',
                            'Pi_head=my_parts.MyHead', 'Q_trunk=MLP', 'Optim=SGD', '+recipes.encoder.optim.momentum=0.5', 'weight_decay=0.25')
    heads = [module for module in session.agent.modules() if type(module).__name__ == 'MyHead']
    assert {head.scale for head in heads} == ({2} if task == 'CartPole-v1' else {2, 1.0})
    assert session.agent.encoder.repr_shape == (8,)
    optims = [block.optim for block in session.agent.blocks().values() if hasattr(block, 'optim')]
    assert {type(optim) for optim in optims} == {torch.optim.SGD} and {optim.param_groups[0]['weight_decay'] for optim in optims} == {0.25}
    assert session.agent.encoder.optim.param_groups[0]['momentum'] == 0.5


def test_shorthand_and_recipe_are_one(graft):
    first = graft.session('task=atari/pong', 'Eyes=CNN', '+recipes.encoder.eyes.depth=2')
    second = graft.session('task=atari/pong', 'recipes.encoder.eyes._target_=Blocks.Architectures.CNN', '+recipes.encoder.eyes={depth:2}', 'seed=2')
    assert type(first.agent.encoder.eyes) is type(second.agent.encoder.eyes) is CNN


# --- values

@pytest.mark.parametrize('override, key, value', [
    ('train_steps=1e5', 'train_steps', 100_000), ('replay.capacity=2.5e6', 'replay.capacity', 2_500_000), ('seed=1e1', 'seed', 10), ('lr=1', 'lr', 1),
    ('lr=3e-4', 'lr', 3e-4), ('reward_clip=0.5', 'reward_clip', 0.5), ('reward_clip=null', 'reward_clip', None), ('experiment=2024', 'experiment', '2024'),
    ('experiment=my exp', 'experiment', 'my exp'), ('threads=2', 'threads', 2), ('threads=auto', 'threads', 'auto'), ('evaluate_envs=1e0', 'evaluate_envs', 1),
    ('plotting.plot_agents=DQN', 'plotting.plot_agents', ['DQN']), ('plotting.plot_experiments=[A,2]', 'plotting.plot_experiments', ['A', '2']),
    ('agent.epsilon=linear(1.0,0.1,500)', 'agent.epsilon', 'linear(1.0,0.1,500)'), ('agent.epsilon="linear(1,0,5)"', 'agent.epsilon', 'linear(1,0,5)'),
    ('agent.epsilon=0.1', 'agent.epsilon', 0.1)])
def test_a_value_arrives_in_its_type(override, key, value):
    arrived = flatten(compose_args([override]))[key]
    assert arrived == value and type(arrived) is type(value)


def test_schedules_need_no_quotes_and_hydras_functions_keep_working():
    assert quoted(['a=linear(1,0,5),step_linear(1,0,5,0,9)', 'b=range(1,3)', 'c="linear(1,0,5)"', 'd=x', '-m']) == [
        "a='linear(1,0,5)','step_linear(1,0,5,0,9)'", 'b=range(1,3)', 'c="linear(1,0,5)"', 'd=x', '-m']


def test_numbers_of_parts_in_any_notation(graft):
    """1e5 is a whole number for a constructor too."""
    session = graft.session('agent.depth=2e0', 'environment.max_steps=1e1', 'agent.target_tau=1')
    assert session.args.agent.depth == 2 and type(session.args.agent.depth) is int and session.args.environment.max_steps == 10
    assert math.isclose(session.agent.target_tau, 1)


def test_the_resolved_config_lies_in_the_run(graft):
    """And composes to the same run again."""
    left = graft.run('agent.epsilon=linear(1.0,0.1,500)', 'lr=1e-3')
    kept = yaml.safe_load((left.path / 'config.yaml').read_text())
    assert kept == graft.values('agent.epsilon=linear(1.0,0.1,500)', 'lr=1e-3')
    assert '???' not in str(kept) and '${' not in str(kept)


# --- the command line itself

def test_help_lists_what_there_is_at_once(graft):
    start = time.perf_counter()
    said = graft.process('--help')
    assert said.code == 0 and time.perf_counter() - start < 2
    for text in ('atari', 'gym', 'Agents.DQN', 'Agents.Random', 'my_package.MyAgent', 'train_steps', 'num_envs', 'load=true', 'overwrite=true', 'offline=true',
                 'precision=auto', 'Hparams/args.yaml'):
        assert text in said.out
    assert sum(line.strip().startswith(('examples', 'python Run.py')) for line in said.out.splitlines()) >= 3
    assert graft.files() == []


def test_examples_and_flags_of_the_help_exist(graft):
    out = graft.main('-h').out
    for line in out.splitlines():
        if 'python Run.py' in line and '[' not in line:
            overrides = [word.partition(',')[0] for word in line.split('python Run.py')[1].split() if word != '-m']
            compose_args(overrides)
    flags = out.partition('flags')[2].partition('examples')[0]
    named = {word.partition('=')[0].lstrip('+') for word in flags.split() if '=' in word}
    patterns = {'agent.KEY', 'aux.NAME.KEY', 'explore.NAME.KEY', 'environment.KEY'}
    assert len(named) > 20 and named - patterns <= set(defaults()) | {'task', 'Agent'}


def test_a_sweep_over_losses_takes_the_numbers_of_each(graft):
    sweep = lines('task=gym/CartPole-v1', 'aux=none,curl,[curl,byol]', 'aux.curl.weight=0.25', 'aux.byol.tau=0.5', 'train_steps=1', 'evaluate_episodes=1')
    said = graft.main('-m', *sweep)
    assert said.code == 0, said.err
    plugs = {file.parent.parent.parent.name: yaml.safe_load(file.read_text())['aux'] for file in Path('Benchmarking/Exp').rglob('config.yaml')}
    assert {name: list(aux) for name, aux in plugs.items()} == {'DQN': [], 'DQN+curl': ['curl'], 'DQN+curl+byol': ['curl', 'byol']}
    assert plugs['DQN+curl']['curl']['weight'] == 0.25 and plugs['DQN+curl+byol']['byol']['tau'] == 0.5
    assert_one_line(graft.main(*lines('aux=none', '++aux.curl.weight=0.25')), 'aux.curl: no loss of that name was chosen')


def test_what_makes_no_difference_is_said(graft):
    said = graft.main(*lines('Agent=Random', 'ema=true', 'image_size=64', 'train_steps=1', 'evaluate_episodes=1'))
    assert said.code == 0, said.err
    assert [line for line in said.out.splitlines() if 'makes no difference' in line] == [
        'batch_size=8 makes no difference: Random does not take it', 'ema=True makes no difference: Random does not take it',
        'hidden_dim=16 makes no difference: Random does not take it', 'image_size=64 makes no difference: the task shows vectors']
    said = graft.main(*lines('Agent=RND', 'num_envs=2', 'agent.rollout_steps=4', 'agent.minibatches=2', 'learn_per_steps=8', 'explore.rnd.batch_size=7',
                             'explore.rnd.warmup_steps=1', 'train_steps=8', 'evaluate_episodes=1', 'seed_steps=0', 'learn_steps_after=0'))
    assert said.code == 0 and 'explore.rnd.batch_size=7 makes no difference: RND teaches a bonus with its own minibatches' in said.out, said.err
    shipped = {name for name in agents() if name != 'Agents.Random'}
    for agent in sorted(shipped):
        for task in ('gym/CartPole-v1', 'dmc/cheetah_run obs=state', 'atari/pong'):
            values = Args(compose_args([f'Agent={agent}', *f'task={task}'.split()]))
            assert list(without_use(values, locate(agent, 'Agent'), images=values.obs == 'pixels')) == [], 'presets say nothing that has no use'


def test_multirun_never_shares_a_folder(graft):
    """Tasks and seeds, and two values of any other key, also where they differ only in what a file name cannot hold."""
    short = ('train_steps=0', 'evaluate_episodes=1', 'environment.max_steps=5', 'save=false')
    said = graft.main('-m', *lines('task=gym/CartPole-v1,gym/Acrobot-v1', 'seed=1,2', *short))
    assert said.code == 0, said.err
    runs = sorted(path.parent.name for path in graft.home.glob('Benchmarking/Exp/DQN/gym/*/config.yaml'))
    assert runs == ['Acrobot-v1_1', 'Acrobot-v1_2', 'CartPole-v1_1', 'CartPole-v1_2']  # what is not swept is not in the names
    said = graft.main('-m', *lines('experiment=Sweep', 'plotting.plot_agents=a/b,a:b', 'lr=1e-3,1e-4', *short))
    assert said.code == 0, said.err
    kept = [yaml.safe_load(file.read_text()) for file in graft.home.glob('Benchmarking/Sweep/DQN/gym/*/config.yaml')]
    assert {(values['lr'], *values['plotting']['plot_agents']) for values in kept} == {(lr, name) for lr in (1e-3, 1e-4) for name in ('a/b', 'a:b')}
    assert {path.name for path in graft.home.iterdir()} == {'Benchmarking'}  # nothing of Hydra's lies about


def test_a_sweep_is_resumed_and_made_longer(graft):
    sweep = ('-m', *lines('task=gym/CartPole-v1', 'seed=1,2', 'lr=1e-3,1e-4', 'learn_per_steps=0', 'evaluate_episodes=1'))
    assert graft.main(*sweep, 'train_steps=8').code == 0
    said = graft.main(*sweep, 'train_steps=16', 'load=true')
    assert said.code == 0, said.err
    rows = {file.parent.name: file.read_text().splitlines()[-1].split(',')[1] for file in graft.home.glob('Benchmarking/Exp/DQN/gym/*/train.csv')}
    assert rows == {f'CartPole-v1_{seed}__lr={lr}': '16' for seed in (1, 2) for lr in ('0.001', '0.0001')}


@pytest.mark.parametrize('at', [0, 1, -1])
def test_a_sweep_that_was_stopped_goes_on(graft, at):
    words = list(lines('task=gym/CartPole-v1', 'seed=1,2', 'train_steps=20', 'learn_per_steps=0', 'evaluate_episodes=1', 'load=true'))
    graft.run('task=gym/CartPole-v1', 'seed=1', 'train_steps=8', 'learn_per_steps=0', 'evaluate_episodes=1')
    words.insert(at, '-m')
    said = graft.main(*words)
    assert said.code == 0, said.err
    assert [graft.left(f'seed={seed}').steps('eval')[-1] for seed in (1, 2)] == [20, 20]


def test_keys_of_a_swept_task_or_agent(graft):
    short = ('train_steps=0', 'evaluate_episodes=1', 'task=gym/CartPole-v1,gym/Acrobot-v1')
    said = graft.main('-m', *lines(*short, 'environment.max_steps=5', 'Agent=DQN,Random', 'agent.epsilon=0'))
    assert said.code == 1 and said.err.count('agent.epsilon: Random has no such argument') == 2 == said.err.count('\n'), said.err
    said = graft.main('-m', *lines(*short, 'environment.max_steps=5', 'agent.depth=0,2', 'experiment=Depths'))
    assert said.code == 0, said.err
    kept = [yaml.safe_load(file.read_text()) for file in graft.home.glob('Benchmarking/Depths/DQN/gym/*__agent.depth=*/config.yaml')]
    assert sorted(values['agent']['depth'] for values in kept) == [0, 0, 2, 2] and {values['environment']['max_steps'] for values in kept} == {5}


def test_a_failed_run_does_not_end_the_sweep(graft):
    short = ('train_steps=0', 'evaluate_episodes=1', 'environment.max_steps=5')
    said = graft.main('-m', *lines('task=gym/CartPole-v1', 'lr=1e-3,1e-4', 'seed=1,-1,2', *short))
    assert said.code == 1 and said.err.count('seed=-1: expected 0 or more') == 2 == said.err.count('\n'), said.err
    assert [line.partition(':')[0] for line in said.err.splitlines()] == ['lr=0.001 seed=-1', 'lr=0.0001 seed=-1']
    assert len(list(graft.home.glob('Benchmarking/Exp/DQN/gym/*/config.yaml'))) == 4


def test_one_word_of_a_plain_run_is_in_no_folder_name(graft):
    assert graft.run('lr=1e-3').path == graft.left().path == graft.left('seed=1', 'batch_size=9').path
