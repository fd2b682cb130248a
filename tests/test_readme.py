"""Every command of README.md runs, with its flags as they stand and a budget of a second."""
import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

from Benchmarking import Plot
from Benchmarking.Folder import run_folder
from Hparams.Check import PACKAGES, defaults
from Hparams.Compose import compose_args
from tests.conftest import ROOT
from Utils import Args

README = ROOT / 'README.md'
BUDGET = {'train_steps': 24, 'seed_steps': 8, 'explore_steps': 8, 'learn_per_steps': 4, 'learn_steps_after': 1, 'evaluate_per_steps': 0, 'num_envs': 2,
          'evaluate_episodes': 1, 'evaluate_envs': 1, 'log_per_steps': 8, 'plot_per_steps': 0, 'save_per_steps': 16, 'batch_size': 8, 'hidden_dim': 16,
          'replay.capacity': 500, 'replay.wait': 0, 'threads': 1, 'env_threads': 1, 'device': 'cpu', 'root': 'Benchmarking', 'load_per_steps': 1}
KEPT_AT_0 = ('train_steps', 'learn_per_steps')  # what 0 means is what the command shows


def text():
    return README.read_text() if README.exists() else ''


def blocks():
    """The contents of README's fenced blocks."""
    return re.findall(r'^ *```[^\n]*\n(.*?)^ *```', text(), re.MULTILINE | re.DOTALL)


def files():
    """The files that README has its reader write: a `name.py` in the lines before a block of Python."""
    return dict(re.findall(r'`([\w/]+\.py)`[^`]*\n```python\n(.*?)^```', text(), re.MULTILINE | re.DOTALL))


def commands():
    """What README runs, as arguments of Run.py: `python Run.py …` and `make run args="…"`, once each. Patterns with `<…>` or `…` are not commands."""
    found = {}
    cells = re.findall(r'^\|.*`(python Run\.py [^`]*)` \|$', text(), re.MULTILINE)
    for line in [*'\n'.join(blocks()).replace('\\\n', ' ').splitlines(), *cells]:
        if re.search(r'python\S* \S*Run\.py\b|^\W*make run\b', line) and not re.search(r'…|<|\.\.\.', line):
            words = shlex.split(line.strip().removeprefix('$ '), comments=True)
            if 'make' in words[:1]:
                words = [word for given in words[2:] if given.startswith('args=') for word in shlex.split(given.removeprefix('args='))]
            else:
                words = words[next(at for at, word in enumerate(words) if word.endswith('Run.py')) + 1:]
            found[tuple(words)] = None
    return list(found)


def tiny(command):
    """The command with small numbers, everything else as it is."""
    given = dict(word.split('=', 1) for word in command if '=' in word)
    small = {key: value for key, value in BUDGET.items() if not (key in KEPT_AT_0 and given.get(key) == '0')}
    kept = [word for word in command if word.lstrip('+').partition('=')[0] not in small]
    kept = [re.sub(r'^seed=(\d+,\d+),.*', r'seed=\1', word) for word in kept]  # two seeds show what three would
    if given.get('task', 'atari').startswith('atari'):
        short = {'environment.max_frames': 80, 'environment.noop_max': 0, '+recipes.encoder.eyes.width': 0.125}
        if 'Eyes' in given or any(key.startswith('recipes.encoder.eyes') for key in given):
            short.popitem()
    elif given['task'].startswith('mario'):
        short = {'environment.max_frames': 40, '+recipes.encoder.eyes.width': 0.125}
    elif given['task'].startswith('dmc'):
        short = {'environment.max_frames': 40, 'environment.render_quality': 'fast'}
    elif given['task'].startswith('classify'):
        short = {}
    elif 'PPO' in given.get('Agent', ''):
        short = {}
    else:
        short = {'environment.max_steps': 20}
    if 'RND' in given.get('Agent', ''):  # its eyes are of one width
        short.pop('+recipes.encoder.eyes.width', None)
    if 'PPO' in given.get('Agent', '') or 'RND' in given.get('Agent', ''):
        minibatches = int(given.get('agent.minibatches', 2))
        short |= {'agent.rollout_steps': minibatches, 'agent.minibatches': minibatches}  # of two lanes: two transitions a minibatch
        small |= {'learn_per_steps': 2 * minibatches} if 'learn_per_steps' in small else {}
        small['learn_steps_after'] = 0
    if 'RND' in given.get('Agent', '') and given.get('explore') != 'none' or given.get('explore') == 'rnd':
        short |= {'explore.rnd.warmup_steps': 8}
    return kept + [f'{key}={value}' for key, value in (small | short).items() if key.lstrip('+') not in given or key in small]


def before(command):
    """The run that has to be there for this one to go on from, or None."""
    flags = {'load=true', 'offline=true', 'replay.load=true', 'overwrite=true'}
    if not flags & set(command):
        return None
    kept = [word for word in command if word not in flags and not word.startswith(('learn_per_steps=', 'train_steps='))]
    return [*kept, *([] if 'replay.save=true' in kept else ['replay.save=true'])]


@pytest.mark.skipif(not README.exists(), reason='README.md is not written yet')
def test_readme_has_commands():
    assert sum('Agent=Agents.AuxiSAC' in command or 'Agent=Agents.CURL' in command for command in commands()) >= 11, 'each command of the authors of A2LS'
    assert len(commands()) >= 3, 'README.md shows no commands: put `python Run.py …` or `make run args="…"` lines into fenced blocks'


@pytest.mark.parametrize('command', [pytest.param(command, id=' '.join(command) or 'bare', marks=[pytest.mark.slow] if 'compile=true' in command else [])
                                     for command in commands()])
def test_command_of_the_readme(graft, command):
    if any(word.startswith('task=mario') for word in command) and find_spec('gym_super_mario_bros') is None:
        pytest.skip('gym-super-mario-bros is not installed')
    for name, code in files().items():
        (graft.home / name).parent.mkdir(parents=True, exist_ok=True)
        (graft.home / name).write_text(code)
    if {'--help', '-h'} & set(command):
        assert graft.main(*command).code == 0
        return
    for name, (package, _) in PACKAGES.items():
        if f'profile={name}' in command:
            pytest.importorskip(package)
    for word in command:  # weights of a run that another command of README leaves
        if word.startswith('load_path='):
            left = [run_folder(Args(compose_args(other))) for other in commands() if any(one.startswith('experiment=') for one in other) and '-m' not in other]
            assert Path(word.removeprefix('load_path=')) in left
            said = graft.main(*tiny(['experiment=Source', *[other for other in command if other.startswith(('task=', 'Agent='))]]))
            assert said.code == 0, said.err
            (source,) = graft.home.glob('Benchmarking/Source/*/*/*')
            command = [f'load_path={source}' if other == word else other for other in command]
    if first := before(command):
        said = graft.main(*tiny(first))
        assert said.code == 0, said.err
        command = [*command, 'train_steps=32'] if 'load=true' in command and 'train_steps=0' not in command else command
    said = graft.main(*(tiny(command) if 'load=true' not in command else [*tiny(command), 'train_steps=32']))
    assert said.code == 0, said.err
    assert list(graft.home.glob('Benchmarking/*/*/*/*/**/eval.csv'))


@pytest.mark.parametrize('line', [line for block in blocks() for line in block.splitlines() if '-m Benchmarking.Plot' in line and '…' not in line])
def test_plot_command_of_the_readme(graft, line):
    words = shlex.split(line, comments=True)
    arguments = words[words.index('Benchmarking.Plot') + 1:]
    for experiment in arguments:
        if not experiment.startswith('-'):
            graft.run(f'experiment={experiment}', 'train_steps=0')
    assert Plot.main([*arguments, '--root', 'Benchmarking']) == 0
    assert list(graft.home.glob('Benchmarking/*/Plots/tasks.png'))


def test_a_tiny_command_keeps_its_flags():
    """The cutter of this file itself."""
    cut = tiny(['-m', 'task=atari/pong,atari/boxing', 'seed=1,2,3', 'train_steps=1e6', 'precision=bf16', 'learn_per_steps=0'])
    assert cut[:5] == ['-m', 'task=atari/pong,atari/boxing', 'seed=1,2', 'precision=bf16', 'learn_per_steps=0'] and 'train_steps=24' in cut
    assert set(BUDGET) <= set(defaults())
