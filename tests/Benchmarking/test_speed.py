import json
import subprocess
import sys
from pathlib import Path

import pytest

import Session
from Benchmarking import Speed, SpeedProcesses, SpeedWorks
from Benchmarking.Speed import Bench, Options, Row, counted

ROOT = Path(__file__).parents[2]
PLAIN = """
import time
class Baselines:
    def build(self, name, **settings):
        print('noise')
        def work(): time.sleep(0.002)
        work.per_call, work.unit, work.settings = 2, 'steps', settings
        return work
def load(folder):
    return Baselines()
def compare(plain, ours, seconds, repeats):
    return dict(plain=100.0, ours=100.0 * ours.per_call, ratio=float(ours.per_call), spread=[ours.per_call - 0.5, ours.per_call + 0.5], repeats=repeats)
"""


@pytest.fixture(autouse=True)
def threads_of_other_tests(monkeypatch):
    monkeypatch.setenv('OMP_NUM_THREADS', '1')  # set by a benchmark for its process; taken back behind each test


@pytest.fixture
def baselines(tmp_path):
    (tmp_path / 'plain').mkdir()
    (tmp_path / 'plain' / 'measure.py').write_text(PLAIN)
    return tmp_path / 'plain'


def bench(tmp_path, capsys, *arguments, rows=None, monkeypatch=None):
    """→ exit code, the table's lines, the JSON."""
    if rows:
        monkeypatch.setattr(Speed, 'ROWS', rows)
    out = tmp_path / 'speed.json'
    code = Speed.main([f'out={out}', 'seconds=0.02', 'repeats=2', *arguments])
    return code, capsys.readouterr().out.splitlines(), json.loads(out.read_text())


def does(per_call):
    return lambda bench: counted(lambda: None, per_call)


def fails(bench):
    raise ImportError('no such simulator')


def test_cheap_rows_make_a_table_and_json_without_the_plain_loops(tmp_path, capsys):
    code, lines, written = bench(tmp_path, capsys, f'baselines={tmp_path / "none"}', 'rows=replay (size|draw 32$)')
    assert code == 0 and sum('ratios are left out' in line for line in lines) == 1
    size, draw = (next(line for line in lines if line.startswith(name)) for name in ('replay size', 'replay draw 32'))
    assert 'GB' in size and size.endswith('PASS') and 'batches/s' in draw and not draw.endswith(('PASS', 'short'))
    assert [row['name'] for row in written['rows']] == ['replay size', 'replay draw 32']
    assert 7.056 < written['rows'][0]['ours'] <= 7.5, '84 · 84 bytes a frame and a little more'
    assert written['rows'][1]['spread'][0] <= written['rows'][1]['ours'] <= written['rows'][1]['spread'][1] and 'ratio' not in written['rows'][1]
    assert written['machine']['torch'] and written['machine']['threads'] == 1 and written['settings']['repeats'] == 2
    assert str(tmp_path) not in json.dumps(written), 'nobody else has that folder'


def test_ratios_targets_and_a_row_that_fails(tmp_path, capsys, monkeypatch, baselines):
    rows = [Row('faster', does(3), 'steps', 'plain', {'a': 1}, at_least=2.5), Row('slower', does(2), 'steps', 'plain', at_least=2.5),
            Row('broken', fails, 'steps', 'plain', at_least=1), Row('untold', does(2), 'steps', 'plain'),
            Row('too big', lambda bench: 8.0, 'GB', at_most=7.5), Row('rate', does(1), 'steps', at_least=1)]
    code, lines, written = bench(tmp_path, capsys, f'baselines={baselines}', rows=rows, monkeypatch=monkeypatch)
    assert code == 0, 'a report, not a test'
    assert [row['verdict'] for row in written['rows']] == ['PASS', 'short', 'error', '', 'short', 'PASS']
    assert written['rows'][0]['ratio'] == 3 and written['rows'][0]['plain'] == 100
    assert any(line.startswith('faster') and '3.00 (2.50–3.50)' in line and line.endswith('PASS') for line in lines)
    assert any(line.startswith('broken') and 'no such simulator' in line for line in lines)
    assert any('slower' in line and 'broken' in line and 'too big' in line for line in lines[-3:]) and 'noise' not in lines
    assert bench(tmp_path, capsys, f'baselines={baselines}', 'strict=true')[0] == 1
    assert bench(tmp_path, capsys, f'baselines={baselines}', 'strict=true', 'rows=faster|rate|untold')[0] == 0


@pytest.mark.parametrize('units', [True, False])
def test_bf16_is_measured_on_cpus_with_bf16_units(units, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('torch.cpu.get_capabilities', lambda: {'avx512_bf16': units, 'cpu_name': ''})
    code, lines, written = bench(tmp_path, capsys, 'strict=true', rows=[Row('update bf16', does(1), 'updates', at_least=1e12)], monkeypatch=monkeypatch)
    (row,) = written['rows']
    assert (code, row['verdict']) == ((1, 'short') if units else (0, ''))
    assert any(line.startswith('update bf16') and 'no units for bf16' in line for line in lines) == (not units)


@pytest.mark.parametrize('argument, said', [
    ('second=3', 'seconds'), ('rows=nothing like it', 'replay size'), ('rows=(', 'regular expression'), ('seconds=fast', 'a number'), ('repeats=0', 'positive'),
    ('strict=maybe', 'true or false'), ('env', 'key=value')])
def test_a_wrong_option_is_one_line(argument, said, capsys, tmp_path):
    assert Speed.main([f'out={tmp_path / "speed.json"}', argument]) == 2
    printed = capsys.readouterr()
    assert printed.out == '' and printed.err.count('\n') == 1 and said in printed.err and argument.partition('=')[0] in printed.err
    assert not list(tmp_path.iterdir())


def test_a_wrong_option_from_the_command_line():
    done = subprocess.run([sys.executable, '-m', 'Benchmarking.Speed', 'reapeats=1'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == '' and done.stderr.count('\n') == 1 and 'repeats' in done.stderr


def test_the_loop_is_a_run_that_learns(tmp_path, monkeypatch):
    runs = []

    class Spy(Session.Session):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            runs.append(self)

    monkeypatch.setattr(Session, 'Session', Spy)
    row = Bench(Options(threads=1), tmp_path)
    with row.after:
        work = SpeedWorks.loop(*SpeedWorks.DEFAULTS, 'Agent=Agents.DQN', 'task=gym/CartPole-v1', 'num_envs=4', 'hidden_dim=8', steps=16)(row)
        run, = runs
        step, updates, episodes = run.step, run.agent.update_count, run.episodes
        work()
        assert step > SpeedWorks.WARMUP and updates and episodes and work.per_call == run.step - step == 16 and run.agent.update_count - updates == 4
        assert run.path.is_relative_to(tmp_path) and run.replay.capacity == 20_000


def test_the_updates_are_the_plain_agents():
    """What README of the plain loops says of `dqn_update`, and no preset's numbers for Pong."""
    from Hparams.Compose import compose_args
    values = compose_args(SpeedWorks.DQN)
    told = {'batch_size': 32, 'nstep': 1, 'lr': 1e-4, 'adam_eps': 1e-8, 'weight_decay': 0, 'lr_decay_steps': 0, 'hidden_dim': 512, 'layer_norm': False,
            'precision': 'fp32'}
    assert {key: values[key] for key in told} == told
    assert values['grad_clip'] is None and not values['ema'] and not values['agent']['dueling'] and values['agent']['double']


def test_rows_have_names_of_their_own_and_known_plain_loops():
    assert len({row.name for row in Speed.ROWS}) == len(Speed.ROWS)
    baselines, _ = Speed.load_baselines(Path(Options().baselines))
    assert baselines is None or {row.plain for row in Speed.ROWS} - {''} <= set(baselines.NAMES)


@pytest.mark.parametrize('together', [True, False])
def test_several_processes_do_a_rollout_each(tmp_path, together):
    """Together they share the lanes of one run; apart each has a run of its own."""
    tiny = ('device=cpu', 'Agent=PPO', 'task=gym/CartPole-v1', 'num_envs=4', 'agent.rollout_steps=8', 'agent.epochs=1', 'hidden_dim=8')
    held = Bench(Options(), tmp_path)
    with held.after:
        work = SpeedProcesses.processes(2, *tiny, together=together)(held)
        assert work.per_call == (8 * 4 if together else 2 * 8 * 4)
        work()
        work()
        made = sorted(path.relative_to(tmp_path).parts[1] for path in tmp_path.rglob('checkpoint.pt'))
        assert made == (['run'] if together else ['0', '1'])
