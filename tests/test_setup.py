"""Set-up: the lock, the files around it, and how the Makefile mends what is half done (with a stand-in for Python, in milliseconds)."""

import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = ['Makefile', 'requirements.lock', 'pyproject.toml', 'Conda.yml', '.ci/run', '.gitignore']


def canonical(name):
    return re.sub('[-_.]+', '-', name).lower()


def locked():
    """The lock as {canonical name: version}; every line must pin one package exactly."""
    pins = {}
    for line in (ROOT / 'requirements.lock').read_text().splitlines():
        if line and not line.startswith('#'):
            match = re.fullmatch(r'([A-Za-z0-9][A-Za-z0-9._-]*)==([0-9][0-9A-Za-z.]*)', line)
            assert match, f'{line!r} is not a package pinned with =='
            name, pin = canonical(match[1]), match[2]
            assert name not in pins, f'{name} is locked twice'
            pins[name] = pin
    return pins


@pytest.mark.parametrize('name, pin', {
    'torch': '2.13.0', 'torchvision': '0.28.0', 'numpy': '1.26.4', 'hydra-core': '1.3.8', 'gymnasium': '1.4.0', 'ale-py': '0.12.1',
    'mujoco': '3.17.0', 'dm-control': '1.0.50', 'procgen-mirror': '0.10.7', 'pandas': '2.3.3', 'rliable': '1.2.0', 'av': '18.1.0',
    'scikit-learn': '1.9.1', 'tensorboard': '2.21.0',
}.items())
def test_lock_holds_every_suite(name, pin):
    assert locked()[name] == pin


def test_lock_leaves_cuda_and_extras_out():
    """Torch asks for its CUDA packages itself where its build wants them; the rest is for those who want it."""
    unwanted = re.compile('nvidia|cuda|triton|opencv|autorom|envpool|moviepy|wandb')
    assert not [name for name in locked() if unwanted.search(name)]


def test_this_environment_is_the_locked_one():
    """Says which package differs where a developer's own environment went astray."""
    def installed(name):
        try:
            return version(name).split('+')[0]  # 2.13.0+cpu is 2.13.0
        except PackageNotFoundError:
            return None

    assert {name: installed(name) for name in locked()} == locked()


def test_pip_check_is_clean():
    done = subprocess.run([sys.executable, '-m', 'pip', 'check'], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize('file', FILES)
def test_no_host_is_named(file):
    """Whoever uses a mirror or an index of their own tells pip, and no file here overrules them."""
    text = (ROOT / file).read_text()
    assert not re.search(r'://|\b(?:\d{1,3}\.){3}\d{1,3}\b|find-links|trusted-host|^\s*-{1,2}(?:extra-)?index', text, re.MULTILINE)


def test_conda_installs_the_lock():
    text = (ROOT / 'Conda.yml').read_text()
    assert re.search(r'^  - python=3\.11$', text, re.MULTILINE)
    assert re.search(r'^  - pip:\n      - -r requirements\.lock$', text, re.MULTILINE)


def test_project_metadata():
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())
    assert project['project']['name'] == 'graft' and project['tool']['setuptools']['dynamic']['dependencies']['file'] == ['requirements.lock']
    assert {'atari-roms', 'mario', 'timm', 'torchmetrics', 'wandb', 'profile', 'optuna', 'launchers'} <= project['project']['optional-dependencies'].keys()
    assert (ROOT / 'LICENSE').read_text().startswith('MIT License')


def test_ci_is_make_test():
    script = ROOT / '.ci/run'
    assert script.read_text().rstrip().endswith('\nmake test') and script.stat().st_mode & stat.S_IXUSR


# Stands for python3.11 and, copied into the environment, for its Python. Every pip install is logged; files named die* break one off.
PYTHON = """#!/bin/sh
case "$1 $2" in
  '-m venv') mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; echo venv >> log; test ! -e die-venv || { rm -f die-venv; rm "$3/bin/python"; exit 1; };;
  '-m pip') test "$3" != install || { shift 3; echo "pip $*" >> log; test ! -e die || { rm -f die; exit 1; }; };;
  '-c '*) case "$2" in *version_info*) test ! -e "$0".old;; *ensurepip*) test ! -e no-ensurepip;; esac;;
  *) echo "ran $*" >> log;;
esac
"""


@pytest.fixture
def tree(tmp_path):
    """A folder with the Makefile, a short lock and a Python that only pretends."""
    shutil.copy(ROOT / 'Makefile', tmp_path)
    (tmp_path / 'requirements.lock').write_text('setuptools==84.2.1\ntorch==2.13.0\ntorchvision==0.28.0\nnumpy==1.26.4\n')
    python = tmp_path / 'python'
    python.write_text(PYTHON)
    python.chmod(0o755)
    return tmp_path


def environment():
    """This process's environment without what a `make test args=...` around it has put there."""
    settings = ('MAKE', 'MFLAGS', 'GNUMAKEFLAGS', 'PYTHON', 'TORCH', 'jobs', 'args', 'torch_args', 'pip_args')
    return {name: value for name, value in os.environ.items() if not name.startswith(settings)}


def make(tree, *arguments, status=0):
    """Runs make; returns what was done (the log, emptied first) and what was said."""
    if shutil.which('make') is None:
        pytest.skip('make is not installed')
    (tree / 'log').write_text('')
    command = ['make', *arguments] if any(word.startswith('PYTHON=') for word in arguments) else ['make', 'PYTHON=./python', *arguments]
    done = subprocess.run(command, cwd=tree, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == status, done.stdout + done.stderr
    return (tree / 'log').read_text().splitlines(), done.stdout + done.stderr


def stamps(tree):
    return sorted(path.name for path in (tree / '.venv').glob('.graft-*'))


def stamp(tree):
    return '.graft-' + hashlib.sha256((tree / 'requirements.lock').read_bytes()).hexdigest()[:16]


INSTALLED = [
    'venv',
    'pip --disable-pip-version-check --no-deps setuptools==84.2.1',
    'pip --disable-pip-version-check --no-deps torch==2.13.0 torchvision==0.28.0',
    'pip --disable-pip-version-check --no-build-isolation --use-pep517 -r requirements.lock',
]


def test_first_run_sets_up_and_second_only_runs(tree):
    assert make(tree, 'run', 'args=task=gym/CartPole-v1 seed=2')[0] == [*INSTALLED, 'ran Run.py task=gym/CartPole-v1 seed=2']
    assert stamps(tree) == [stamp(tree), '.graft-made-this']
    assert make(tree, 'run')[0] == ['ran Run.py']


def test_bare_make_only_explains(tree):
    done, said = make(tree)
    assert done == [] and 'make run' in said and not (tree / '.venv').exists()


def test_changed_lock_is_installed_over_the_old(tree):
    make(tree, 'setup')
    with (tree / 'requirements.lock').open('a') as lock:
        lock.write('tqdm==4.70.1\n')
    assert make(tree, 'setup')[0] == INSTALLED[1:]
    assert stamps(tree) == [stamp(tree), '.graft-made-this']


def test_interrupted_install_is_begun_anew(tree):
    """Pip takes a package that was half copied for an installed one, so what it left cannot be built on."""
    (tree / 'die').touch()
    make(tree, 'setup', status=2)
    (tree / '.venv/half-copied').touch()
    assert make(tree, 'setup')[0] == INSTALLED
    assert not (tree / '.venv/half-copied').exists() and stamps(tree) == [stamp(tree), '.graft-made-this']


def test_interrupted_upgrade_is_begun_anew(tree):
    make(tree, 'setup')
    with (tree / 'requirements.lock').open('a') as lock:
        lock.write('tqdm==4.70.1\n')
    (tree / 'die').touch()
    make(tree, 'setup', status=2)
    assert stamp(tree) not in stamps(tree)
    assert make(tree, 'setup')[0] == INSTALLED


def test_interrupted_venv_is_begun_anew(tree):
    (tree / 'die-venv').touch()
    make(tree, 'setup', status=2)
    assert make(tree, 'setup')[0] == INSTALLED
    (tree / '.venv/bin/python').unlink()  # as when the Python that it was made from is gone
    assert make(tree, 'setup')[0] == INSTALLED
    (tree / '.venv/bin/python.old').touch()  # as when python3 has become another version
    assert make(tree, 'setup')[0] == INSTALLED


def test_empty_folder_is_used(tree):
    (tree / '.venv').mkdir()
    assert make(tree, 'setup')[0] == INSTALLED


def test_environment_of_the_user_is_kept(tree):
    (tree / '.venv/bin').mkdir(parents=True)
    (tree / '.venv/theirs').touch()
    shutil.copy(tree / 'python', tree / '.venv/bin/python')
    (tree / 'die').touch()
    make(tree, 'setup', status=2)
    done, said = make(tree, 'setup')
    assert done == [line.replace('--no', '--force-reinstall --no', 1) for line in INSTALLED[1:]] and 'Using the .venv that is there' in said
    make(tree, 'clean')
    assert (tree / '.venv/theirs').exists()


def test_broken_environment_of_the_user_is_not_deleted(tree):
    (tree / '.venv').mkdir()
    (tree / '.venv/theirs').touch()
    done, said = make(tree, 'setup', status=2)
    assert done == [] and 'make did not create it' in said and (tree / '.venv/theirs').exists()


def test_missing_python_is_one_clear_line(tree):
    assert 'apt install python3.11 python3.11-venv' in make(tree, 'setup', 'PYTHON=', status=2)[1]
    (tree / 'no-ensurepip').touch()
    assert './python cannot make virtual environments: apt install python3.11-venv' in make(tree, 'setup', status=2)[1]
    (tree / 'python.old').touch()
    assert 'PYTHON=./python is not Python 3.11' in make(tree, 'setup', status=2)[1]
    assert not (tree / '.venv').exists()


def test_torch_alone_can_come_from_elsewhere(tree):
    done = make(tree, 'setup', 'torch_args=--index-url here', 'pip_args=--no-cache-dir')[0]
    assert [line for line in done if '--index-url here' in line] == [
        'pip --disable-pip-version-check --no-cache-dir --no-deps --index-url here torch==2.13.0 torchvision==0.28.0']
    assert sum('--no-cache-dir' in line for line in done) == 3


def test_two_at_once_install_once(tree):
    if shutil.which('flock') is None:
        pytest.skip('flock is not installed')
    make(tree)
    command = ['make', 'PYTHON=./python', 'run']
    runs = [subprocess.Popen(command, cwd=tree, env=environment(), stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [run.wait(timeout=60) for run in runs] == [0, 0]
    assert sorted((tree / 'log').read_text().splitlines()) == sorted([*INSTALLED, 'ran Run.py', 'ran Run.py'])


def test_clean_removes_what_make_made(tree):
    make(tree, 'setup')
    (tree / 'Benchmarking/Exp').mkdir(parents=True)
    (tree / 'Agents/__pycache__').mkdir(parents=True)
    make(tree, 'clean')
    assert not (tree / '.venv').exists() and not (tree / 'Agents/__pycache__').exists() and (tree / 'Benchmarking/Exp').exists()


def test_failure_of_the_run_is_the_failure_of_make(tree):
    make(tree, 'setup')
    (tree / '.venv/bin/python').write_text(PYTHON.replace('echo "ran $*" >> log', 'exit 3'))
    make(tree, 'run', status=2)
