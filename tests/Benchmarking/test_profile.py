"""profile=…: how wall time is shared out, where the run stops, what it leaves, and that nothing else of the run changes."""
import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

import Checkpoint
from Benchmarking.Profile import PARTS, Stopwatch, trace_stem
from Benchmarking.Profilers import hot_functions
from Hparams import Check
from tests.conftest import ROOT, assert_one_line, equal, lines, timeless
from tests.runs import Shot, complete, folder, left, resume, same, start, values
from Utils import NonFinite

LONG = ('train_steps=400', 'evaluate_per_steps=0', 'log_per_steps=10', 'save_per_steps=50')


def trace(path, number=1):
    """Events of a trace of torch.profiler by name."""
    with gzip.open(path / f'profile/torch-{number}.pt.trace.json.gz') as file:
        events = json.load(file)['traceEvents']
    found = {}
    for event in events:
        if event.get('ph') == 'X':
            found.setdefault(event['name'], []).append(event)
    return found


def ranges(path, number=1):
    """How often each part of a turn was measured, by the trace."""
    found = trace(path, number)
    return {part: len([event for event in found.get(f'graft: {part}', ()) if event['cat'] == 'user_annotation']) for part in PARTS}


def split(said):
    """The time split that was told, in percent."""
    return {part: float(percent) for part, percent in re.findall(r'(act|env|replay|learn|other) ([\d.]+) %', said)}


# --- the stopwatch

class Clock:
    """Seconds that pass only when told."""
    now = 0.0

    def __call__(self):
        return self.now


def watched(*waits, start=True):
    """A turn of 1 s of its own around: acting 2, learning 4 around a draw of 8, which calls a gather of 16 of its own kind."""
    clock = Clock()

    class Run:
        def pass_(self, seconds):
            clock.now += seconds

        def turn(self):
            self.act()
            self.learn()
            self.pass_(1)

        def act(self):
            self.pass_(2)

        def learn(self):
            self.sample()
            self.pass_(4)
            return 'metrics'

        def sample(self):
            self.pass_(8)
            self.gather()

        def gather(self):
            self.pass_(16)

    run, watch = Run(), Stopwatch(*waits, clock=clock)
    for name, part in (('act', 'act'), ('learn', 'learn'), ('sample', 'replay'), ('gather', 'replay')):
        watch.measure(run, name, part)
    watch.measure(run, 'turn', 'other', turn=True)
    if start:
        watch.start()
    return run, watch


def test_a_part_is_charged_for_itself_and_not_for_what_it_calls_on_anothers_account():
    run, watch = watched()
    run.turn()
    run.turn()
    watch.stop()
    assert watch.seconds == {'act': 4, 'env': 0, 'replay': 48, 'learn': 8, 'other': 2}


def test_outside_of_a_turn_and_before_the_start_nothing_counts():
    run, watch = watched(start=False)
    run.turn()
    watch.start()
    run.act()  # as an evaluation does
    run.pass_(100)
    assert run.learn() == 'metrics' and not any(watch.seconds.values())
    run.turn()
    watch.stop()
    run.turn()
    assert watch.seconds == {'act': 2, 'env': 0, 'replay': 24, 'learn': 4, 'other': 1}


def test_a_part_that_fails_ends_there():
    run, watch = watched()

    def fail():
        run.pass_(3)
        raise ValueError
    run.fail = fail
    watch.measure(run, 'fail', 'env')
    run.act = lambda: pytest.raises(ValueError, run.fail)
    run.turn()
    watch.stop()
    assert watch.seconds == {'act': 0, 'env': 3, 'replay': 24, 'learn': 4, 'other': 1} and watch.parts == []


def test_an_accelerator_is_waited_for_at_every_boundary_while_it_counts_and_never_else():
    waits = []
    run, watch = watched(lambda: waits.append(None), start=False)
    run.turn()
    assert not waits
    watch.start()
    run.turn()
    assert len(waits) == 1 + 2 * 4  # gather, inside sample, is none
    watch.stop()
    before = len(waits)
    run.turn()
    assert len(waits) == before


# --- file names

def test_traces_are_numbered_by_profiler_and_rank_and_nothing_is_written_over(tmp_path):
    stem = trace_stem(tmp_path, 'torch')
    assert stem == tmp_path / 'profile/torch-1'
    for name in ('torch-1.pt.trace.json.gz', 'torch-3.txt', 'line-1.lprof', 'mine'):
        (tmp_path / 'profile' / name).write_text(name)
    assert [trace_stem(tmp_path, name).name for name in ('torch', 'line', 'scalene')] == ['torch-2', 'line-2', 'scalene-1']
    assert trace_stem(tmp_path, 'torch', rank=2).name == 'torch-1-rank2'
    (tmp_path / 'profile/torch-1-rank2.txt').touch()
    assert [trace_stem(tmp_path, 'torch', rank=rank).name for rank in (2, 3)] == ['torch-2-rank2', 'torch-1-rank3']


# --- profile=torch

def test_it_stops_after_its_updates_saved_with_a_trace_and_a_table(graft):
    said = graft.main(*lines(*LONG, 'profile=torch', 'profile_updates=20', 'num_envs=2'))
    path = graft.left(*LONG, 'num_envs=2').path
    state = Checkpoint.load(path)[0]
    assert said.code == 0 and state['learn_calls'] == 22 and not state['complete'] and state['step'] < 400
    assert '20 updates and 80 steps' in said.out and 'after 2 updates to warm up' in said.out
    shares = split(said.out)
    assert set(shares) == set(PARTS) and abs(sum(shares.values()) - 100) < 0.3 and shares['learn'] > shares['act'] > 0
    rows = re.findall(r'^ +[\d.]+ s +[\d.]+ % +\d+  \S', said.out, re.MULTILINE)
    assert len(rows) == 10 and said.out.count('aten::') >= 5
    number = ranges(path)
    assert number['learn'] == 20 and 39 <= number['act'] <= 41 and number['env'] >= 117 and number['replay'] >= 59
    assert any('Input Dims' in event.get('args', {}) for event in trace(path)['aten::addmm'])
    text = (path / 'profile/torch-1.txt').read_text()
    assert said.out.count('profile: ') == 1 and text.startswith('profile: 20 updates') and '  own ms    with calls         calls  operation' in text
    assert (path / 'replay/layout.json').exists()


def test_a_profiled_run_goes_on_as_if_nothing_had_been(graft):
    """Profiled, resumed and profiled again, resumed; beside one that never was. Nothing is told of another setting."""
    whole = graft.run(*LONG, 'experiment=Whole')
    first = graft.main(*lines(*LONG, 'profile=torch', 'profile_updates=10'))
    path = graft.left(*LONG).path
    before = {file: file.read_bytes() for file in (path / 'profile').iterdir()}
    again = graft.main(*lines(*LONG, 'profile=torch', 'profile_updates=7', 'load=true'))
    assert first.code == again.code == 0 and Checkpoint.load(path)[0]['learn_calls'] == 11 + 8
    assert ranges(path, 2)['learn'] == 7 and all(file.read_bytes() == content for file, content in before.items())
    said = graft.main(*lines(*LONG, 'load=true'))
    assert said.code == 0 and 'another setting' not in again.out + said.out
    rest = graft.left(*LONG)
    equal(rest.weights(), whole.weights())
    assert timeless(rest.rows('train')) == timeless(whole.rows('train')) and timeless(rest.rows('eval')) == timeless(whole.rows('eval'))
    assert len(list((path / 'profile').iterdir())) == 4


def test_what_it_learned_is_what_an_unprofiled_run_had_learned_by_then(graft):
    graft.run(*LONG, 'profile=torch', 'profile_updates=20', 'num_envs=3', 'evaluate_per_steps=30')
    profiled = graft.left(*LONG, 'num_envs=3')
    plain = graft.session(*LONG, 'num_envs=3', 'experiment=Plain')
    while plain.step < profiled.state()['step']:
        plain.advance()
    assert plain.learn_calls == profiled.state()['learn_calls'] > 20
    equal(plain.agent.state_dict(), profiled.weights())


def test_evaluations_in_between_are_neither_measured_nor_in_the_trace(graft):
    options = (*LONG, 'evaluate_per_steps=15', 'profile=torch', 'profile_updates=20')
    assert len(graft.run(*options).rows('eval')) > 3
    number = ranges(graft.left(*options).path)
    assert 75 < number['act'] <= 81 and 3 * number['act'] - 2 <= number['env'] <= 3 * number['act'] + 2  # four steps an update


def test_an_on_policy_agent_is_profiled_over_fewer_updates(graft):
    options = ('Agent=Agents.PPO', 'agent.rollout_steps=4', 'num_envs=2', 'agent.epochs=4', 'agent.minibatches=2', 'train_steps=400', 'learn_per_steps=8',
               'evaluate_per_steps=0', 'learn_steps_after=0', 'profile=torch')
    session = graft.session(*options)
    assert (session.profile.updates, session.profile.warm_up) == (100 // 8, 1)
    session.close()
    assert graft.session(*options, 'agent.epochs=40', 'agent.rollout_steps=8', 'learn_per_steps=16', 'experiment=B').profile.updates == 1
    assert graft.session('profile=torch', 'experiment=C').profile.updates == 100
    said = graft.main(*lines(*options, 'load=true', 'profile_updates=3'))
    assert said.code == 0 and '3 updates and 24 steps' in said.out and split(said.out)['replay'] > 0


def test_a_run_that_ends_first_leaves_what_there_is(graft):
    said = graft.main(*lines('profile=torch', 'profile_updates=50'))  # 10 updates in all, 5 to warm up
    path = graft.left().path
    assert said.code == 0 and 'profile: 5 updates and' in said.out and ranges(path)['learn'] == 5 and Checkpoint.load(path)[0]['complete']
    said = graft.main(*lines('profile=torch', 'experiment=Short'))
    assert said.code == 0 and 'no profile: the run ended after 10 updates, and 10 are for warming up' in said.out
    assert not (graft.left('experiment=Short').path / 'profile').exists()


def test_updates_after_the_last_step_count_too(graft):
    said = graft.main(*lines('learn_per_steps=0', 'learn_steps_after=40', 'profile=torch', 'profile_updates=10', 'evaluate_per_steps=0'))
    assert said.code == 0 and '10 updates and 0 steps' in said.out and not {'act', 'env'} & set(split(said.out))
    assert Checkpoint.load(graft.left().path)[0]['learn_calls'] == 11
    assert graft.main(*lines('learn_per_steps=0', 'learn_steps_after=40', 'evaluate_per_steps=0', 'load=true')).code == 0 and graft.left().updates() == 40


def test_without_rollouts_there_is_no_environment_in_the_split(graft):
    graft.run('replay.save=true')
    for options in (('offline=true', 'learn_per_steps=1', 'replay.wait=0'), ('task=classify/digits', 'RL=false', 'learn_per_steps=1')):
        said = graft.main(*lines('profile=torch', 'profile_updates=10', *options))
        path = graft.left(*options).path
        assert said.code == 0 and set(split(said.out)) == {'replay', 'learn', 'other'}, said
        number = ranges(path)
        assert number['learn'] == number['replay'] == 10 and Checkpoint.load(path)[0]['learn_calls'] == 11


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_profiling_saves_and_leaves_the_trace(number, tmp_path):
    whole, stopped = (values(tmp_path / name, 'gym/CartPole-v1', 'replay.capacity=60') for name in ('whole', 'stopped'))
    complete(whole)
    outcome = start(stopped | {'profile': 'torch', 'profile_updates': 60}, Shot(5, 'Session.advance', 155, number))
    assert outcome.code == 128 + number and 'saving and plotting' in outcome.said and 'Traceback' not in outcome.said, outcome
    updates = ranges(folder(stopped))['learn']
    assert 10 < updates < 60 and f'profile: {updates} updates' in outcome.said
    assert resume(stopped).code == 0
    same(left(whole), left(stopped))


def test_a_signal_while_a_profiled_run_saves_its_end_is_not_the_second(tmp_path):
    run = values(tmp_path, 'gym/CartPole-v1') | {'profile': 'torch', 'profile_updates': 10}
    outcome = start(run, Shot(1, 'Session.finish', 1, signal.SIGINT))
    assert outcome.code == 130 and ranges(folder(run))['learn'] == 10 and Checkpoint.load(folder(run))[0]['learn_calls'] == 11


def test_a_run_that_fails_lets_the_profiler_go(graft, monkeypatch):
    def fail(agent):
        agent.update_count += 1
        if agent.update_count == 20:
            raise NonFinite('critic_loss', float('nan'))
    with monkeypatch.context() as patch:
        patch.setattr('Agents.DQN.DQN.settle', fail)
        said = graft.main(*lines(*LONG, 'profile=torch', 'profile_updates=40', 'experiment=Bad'))
    assert said.code == 1 and 'intact' in said.err and not (graft.left('experiment=Bad').path / 'profile').exists()
    assert not torch.autograd.profiler._is_profiler_enabled
    assert graft.main(*lines(*LONG, 'profile=torch', 'profile_updates=10')).code == 0


def test_a_full_disk_costs_the_trace_alone(graft, monkeypatch):
    def full(*args):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(torch.profiler.profile, 'export_chrome_trace', full)
    said = graft.main(*lines(*LONG, 'profile=torch', 'profile_updates=10'))
    assert said.code == 0 and 'profile not written' in said.out and graft.left(*LONG).updates() == 11


def test_overwriting_a_run_spares_its_profiles(graft):
    for _ in range(2):
        assert graft.main(*lines(*LONG, 'profile=torch', 'profile_updates=3', 'overwrite=true')).code == 0
    assert {file.name for file in (graft.left().path / 'profile').glob('*.txt')} == {'torch-1.txt', 'torch-2.txt'}


def test_an_unprofiled_run_is_untouched(graft):
    session = graft.session()
    assert session.profile is None
    for owner, names in ((session, ('advance', 'learn', 'records', 'evaluate')), (session.agent, ('act', 'improve')), (session.replay, ('add', 'sample'))):
        assert not set(names) & set(vars(owner))


# --- profile=line

def test_the_hot_functions_are_those_of_a_turn(graft):
    names = {one.__qualname__ for one in hot_functions(graft.session('aux=curl', 'encoder=mlp'))}
    assert {'DQN.act', 'OffPolicy.learn', 'DQN.update', 'DQN.discrete_critic_loss', 'CURL.loss', 'Auxiliary.learn', 'td_loss', 'optimise', 'Session.advance',
            'Environment.send', 'Environment.receive', 'Replay.add', 'Draw.sample', 'Gather.gather', 'Gym.recv'} <= names
    session = graft.session('Agent=Agents.PPO', 'agent.rollout_steps=4', 'num_envs=2', 'learn_per_steps=8', 'learn_steps_after=0', 'experiment=B')
    names = {one.__qualname__ for one in hot_functions(session)}
    assert {'PPO.act', 'PPO.learn', 'PPO.minibatch_loss', 'Gather.latest'} <= names


def test_line_profiler_times_lines_of_the_hot_functions(graft):
    line_profiler = pytest.importorskip('line_profiler')
    said = graft.main(*lines(*LONG, 'profile=line', 'profile_updates=10'))
    path = graft.left(*LONG).path / 'profile'
    assert said.code == 0 and 'Session.advance (Session.py:' in said.out and split(said.out)['learn'] > 0
    stats = line_profiler.load_stats(str(path / 'line-1.lprof'))
    counts = {name: of[0][1] for (_, _, name), of in stats.timings.items() if of}
    assert counts['DQN.update'] == counts['OffPolicy.learn'] == 10 and 'loss.backward()' in (path / 'line-1.txt').read_text()
    assert sys.gettrace() is None
    equal(graft.run(*LONG, 'load=true').path and graft.left(*LONG).weights(), graft.run(*LONG, 'experiment=Whole').path and graft.left(
        *LONG, 'experiment=Whole').weights())


# --- profile=scalene

# Stands for scalene: what of it Graft relies on, `python -m scalene run --cpu-only --off --outfile FILE PROGRAM --- …`, start(), stop() and its file
SCALENE = """
import json, os, runpy, sys
from scalene import scalene_profiler

at = sys.argv.index('---')
assert sys.argv[1:5] == ['run', '--cpu-only', '--off', '--outfile'], sys.argv
outfile, program, sys.argv = sys.argv[5], sys.argv[at - 1], [sys.argv[at - 1], *sys.argv[at + 1:]]
sys.path.insert(0, os.path.dirname(program))
try:
    runpy.run_path(program, run_name='__main__')
finally:
    function = {'line': 'DQN.update', 'lineno': 7, 'n_cpu_percent_python': 10.0, 'n_cpu_percent_c': 25.0, 'n_sys_percent': 5.0}
    found = {'elapsed_time_sec': 2.0, 'files': {'/somewhere/DQN.py': {'functions': [function]}}, 'calls': scalene_profiler.calls}
    open(outfile, 'w').write(json.dumps(found if scalene_profiler.calls else {}))
"""


@pytest.fixture
def scalene(graft, monkeypatch):
    package = graft.home / 'packages/scalene'
    package.mkdir(parents=True)
    (package / '__init__.py').touch()
    (package / '__main__.py').write_text(SCALENE)
    (package / 'scalene_profiler.py').write_text("calls = []\nstart = lambda: calls.append('start')\nstop = lambda: calls.append('stop')\n")
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(package.parent), os.environ.get('PYTHONPATH', '')]))


def test_scalene_runs_the_same_command_and_its_file_comes_to_the_others(graft, scalene):
    options = lines(*LONG, 'profile=scalene', 'profile_updates=10', 'agent.epsilon="linear(1.0,0.1,50)"')
    path = graft.left(*LONG).path
    for number in (1, 2):
        said = graft.process(*options, *(['load=true'] if number == 2 else []))
        assert said.code == 0 and split(said.out)['learn'] > 0 and f'moved to {path.relative_to(graft.home) if path.is_absolute() else path}' in said.out, said
        found = json.loads((path / f'profile/scalene-{number}.json').read_text())
        assert found['calls'] == ['start', 'stop'] and Checkpoint.load(path)[0]['learn_calls'] == 11 * number
        for text in (said.out, (path / f'profile/scalene-{number}.txt').read_text()):
            assert re.search(r'0\.800 s +40\.0 % +DQN\.update \(DQN\.py:7\)', text)
    refused = graft.process(*options)
    assert refused.code == 1 and 'holds a run' in refused.err and len(list((path / 'profile').iterdir())) == 4


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_a_run_under_scalene(graft, scalene, number):
    options = lines('train_steps=1000000', 'evaluate_per_steps=0', 'profile=scalene', 'profile_updates=100000', 'learn_per_steps=1', 'log_per_steps=100')
    process = subprocess.Popen([sys.executable, str(ROOT / 'Run.py'), *options], cwd=graft.home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    path = graft.home / graft.left().path
    try:
        deadline = time.monotonic() + 120
        while not (path / 'train.csv').exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number and 'SIGINT: saving' in said and 'Traceback' not in said, said
    assert (path / 'profile/scalene-1.json').exists() and Checkpoint.load(path)[0]['step'] > 0


@pytest.mark.slow
def test_real_scalene_finds_functions_of_ours(graft):
    """And lanes in processes of their own end as ever."""
    pytest.importorskip('scalene')
    said = graft.process(*lines('train_steps=40000', 'learn_per_steps=1', 'hidden_dim=128', 'evaluate_per_steps=0', 'profile=scalene', 'profile_updates=1000',
                               'num_envs=2', 'environment.vectorization=async'),
                         timeout=200)
    path = graft.left().path / 'profile/scalene-1.json'
    assert said.code == 0 and re.search(r'optimise \(Utils\.py:\d+\)', said.out) and 'Broken pipe' not in said.err, said
    assert any(name.endswith('Agents/DQN.py') for name in json.loads(path.read_text())['files'])


def test_scalene_is_for_one_run_of_the_command_line(graft, scalene, monkeypatch):
    monkeypatch.setattr(Check, 'find_spec', lambda name: SimpleNamespace())
    said = graft.main('-m', *lines('profile=scalene', 'seed=1,2'))
    assert said.code == 1 and said.err.count('profile=scalene with -m') == 2 and not list(graft.home.glob('Benchmarking/*/DQN'))
    with pytest.raises(ValueError, match='scalene has to be there when the process begins'):
        graft.session('profile=scalene')


# --- refusals

@pytest.mark.parametrize('name', ['line', 'scalene'])
def test_a_missing_profiler_says_what_installs_it(graft, monkeypatch, name):
    monkeypatch.setattr(Check, 'find_spec', lambda module: None)
    package, install = Check.PACKAGES[name]
    assert_one_line(graft.main(f'profile={name}'), f'profile={name} needs {package}: pip install {install}')
    assert graft.files() == []
    assert install in (ROOT / 'pyproject.toml').read_text(), 'the extra and the line name one version'
