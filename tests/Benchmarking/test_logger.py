import csv
import sys

import pytest
import torch

from Benchmarking.Logger import TIME_COLUMNS, Logger
from Benchmarking.Table import Table, read_table


class Clock:
    """Seconds that the test moves."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def quiet(path, **options):
    return Logger(path, **{'tensorboard': False, 'progress': False} | options)


def rows(path):
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


def untimed(path):
    return [{name: cell for name, cell in row.items() if name not in TIME_COLUMNS} for row in rows(path)]


def test_a_row_is_the_mean_of_metrics_and_the_last_of_counters(tmp_path):
    logger = quiet(tmp_path)
    logger.record('train', {'loss': torch.tensor(1.0), 'score': 5.0, 'epoch': 2})
    logger.record('train', {'loss': torch.tensor(4.0), 'epoch': 1})
    logger.record('train', {'loss': torch.tensor(4.0, dtype=torch.bfloat16), 'q': torch.tensor(3)})
    logger.dump('train', step=100, frame=400, update=3, episode=1)
    (row,) = rows(tmp_path / 'train.csv')
    assert (row['step'], row['frame'], row['update'], row['episode'], row['epoch']) == ('100', '400', '3', '1', '2')
    assert (float(row['loss']), float(row['score']), float(row['q'])) == (3.0, 5.0, 3.0)


def test_counters_stand_first_and_time_is_seconds(tmp_path, clock):
    logger = quiet(tmp_path, clock=clock)
    clock.now += 1.5
    logger.dump('eval', step=0, frame=0, metrics={'score': 1.0})
    assert list(rows(tmp_path / 'eval.csv')[0])[:5] == ['time', 'step', 'frame', 'update', 'episode']
    assert rows(tmp_path / 'eval.csv')[0]['time'] == '1.500'


def test_means_start_anew_after_a_dump_and_what_is_missing_is_blank(tmp_path):
    logger = quiet(tmp_path)
    logger.dump('train', step=1, metrics={'loss': 2.0, 'score': 0.0})
    logger.dump('train', step=2, metrics={'loss': 8.0})
    first, second = rows(tmp_path / 'train.csv')
    assert (first['loss'], second['loss']) == ('2', '8')
    assert (first['score'], second['score']) == ('0', '')
    assert second['frame'] == ''


def test_tensors_are_taken_as_they_are_when_recorded(tmp_path):
    logger, loss = quiet(tmp_path), torch.tensor(1.0, requires_grad=True)
    logger.record('train', {'loss': loss})
    with torch.no_grad():
        loss.fill_(100.0)  # as a compiled graph does with its output
    assert logger.dump('train', step=1)['loss'] == 1.0


def test_long_means_are_exact(tmp_path):
    logger = quiet(tmp_path)
    for _ in range(2000):
        logger.record('train', {'q': torch.tensor(16777216.0), 'small': torch.tensor(1.0)})
    logger.record('train', {'q': torch.tensor(1.0), 'small': torch.tensor(1.0)})  # lost in a float32 sum
    assert logger.dump('train', step=1)['q'] == (2000 * 16777216 + 1) / 2001


def test_nan_and_infinity_are_written_as_such(tmp_path):
    quiet(tmp_path).dump('train', step=1, metrics={'loss': float('nan'), 'q': torch.tensor(float('inf'))})
    assert (rows(tmp_path / 'train.csv')[0]['loss'], rows(tmp_path / 'train.csv')[0]['q']) == ('nan', 'inf')


@pytest.mark.parametrize('metrics', [{'loss': torch.zeros(2)}, {'fps': 3.0}, {'': 1.0}, {'a\nb': 1.0}, {'a': torch.tensor(1.0), 'b': torch.zeros(1)}])
def test_bad_metrics_are_refused(tmp_path, metrics):
    with pytest.raises(ValueError, match='metric'):
        quiet(tmp_path).record('train', metrics)


def test_rows_are_only_appended(tmp_path):
    logger, path = quiet(tmp_path), tmp_path / 'train.csv'
    logger.dump('train', step=1, metrics={'loss': 1.0})
    before, inode = path.read_bytes(), path.stat().st_ino
    logger.dump('train', step=2, metrics={'loss': 2.0})
    assert path.read_bytes().startswith(before) and path.stat().st_ino == inode
    assert before.endswith(b'\n') and len(rows(path)) == 2  # on disk without a close


def test_a_new_column_keeps_earlier_rows(tmp_path):
    logger, path = quiet(tmp_path), tmp_path / 'train.csv'
    logger.dump('train', step=1, metrics={'loss': 1.0})
    logger.dump('train', step=2, metrics={'loss': 2.0, 'a,b': 7.0})
    logger.dump('train', step=3, metrics={'loss': 3.0})
    assert [(row['step'], row['loss'], row['a,b']) for row in rows(path)] == [('1', '1', ''), ('2', '2', '7'), ('3', '3', '')]
    assert [file.name for file in tmp_path.iterdir()] == ['train.csv']  # nothing temporary is left


def test_declared_columns_stand_in_the_first_header(tmp_path):
    logger = quiet(tmp_path, columns={'train': ['score', 'loss']})
    logger.dump('train', step=1, metrics={'loss': 1.0})
    assert list(rows(tmp_path / 'train.csv')[0])[-2:] == ['score', 'loss']
    assert rows(tmp_path / 'train.csv')[0]['score'] == ''


def test_a_step_has_one_row(tmp_path, capsys):
    logger = quiet(tmp_path)
    assert logger.dump('eval', step=10, metrics={'score': 1.0})
    assert logger.dump('eval', step=10, metrics={'score': 2.0}) is None
    assert [row['score'] for row in rows(tmp_path / 'eval.csv')] == ['1']
    assert 'step 10' in capsys.readouterr().out


def test_a_new_run_does_not_write_over_an_old_one(tmp_path):
    quiet(tmp_path).dump('train', step=1)
    before = (tmp_path / 'train.csv').read_bytes()
    with pytest.raises(FileExistsError, match='load=true'):
        quiet(tmp_path)
    assert (tmp_path / 'train.csv').read_bytes() == before


def test_a_file_of_someone_else_is_left_alone(tmp_path):
    (tmp_path / 'train.csv').write_text('name,colour\n')
    with pytest.raises(ValueError, match='not the log of a run'):
        quiet(tmp_path)
    assert (tmp_path / 'train.csv').read_text() == 'name,colour\n'


@pytest.mark.parametrize('cut', [1, 5, 12])
def test_a_row_killed_half_way_is_dropped_on_resume(tmp_path, cut):
    logger, path = quiet(tmp_path), tmp_path / 'train.csv'
    logger.dump('train', step=1, metrics={'loss': 1.5})
    logger.dump('train', step=2, metrics={'loss': 2.5})
    path.write_bytes(path.read_bytes()[:-cut])
    quiet(tmp_path, resume_step=5).dump('train', step=3, metrics={'loss': 3.5})
    assert [(row['step'], row['loss']) for row in rows(path)] == [('1', '1.5'), ('3', '3.5')]


@pytest.mark.parametrize('kept', [0, 9])
def test_a_header_killed_half_way_is_written_again(tmp_path, kept):
    (tmp_path / 'train.csv').write_bytes(b'time,step,frame'[:kept])
    quiet(tmp_path, resume_step=0).dump('train', step=1, metrics={'loss': 1.5})
    assert [(row['step'], row['loss']) for row in rows(tmp_path / 'train.csv')] == [('1', '1.5')]


def test_resume_drops_rows_beyond_the_checkpoint_and_no_other(tmp_path):
    logger = quiet(tmp_path)
    for step in (10, 20, 30, 40):
        logger.dump('train', step=step, metrics={'loss': float(step)})
    kept = (tmp_path / 'train.csv').read_bytes().splitlines(keepends=True)[:3]
    quiet(tmp_path, resume_step=20)
    assert (tmp_path / 'train.csv').read_bytes() == b''.join(kept)
    assert [file.name for file in tmp_path.iterdir()] == ['train.csv']


def run(path, clock, start, stop, state=None, save_at=None, tempo=1.0):
    """Rounds of 10 steps: an update, a row at every 30, the save, an evaluation at every 40. Returns what was saved."""
    logger = quiet(path, clock=clock, resume_step=None if state is None else start)
    if state is not None:
        logger.load_state_dict(state)
    saved = None
    for step in range(start + 10 * (state is None), stop + 1, 10):
        clock.now += tempo
        if state is None or step > start:  # a resumed run goes on behind the save
            logger.record('train', {'loss': torch.tensor(1.0 / step), 'q': torch.tensor(step / 3)})
            if step % 20 == 0:
                logger.record('train', {'score': step / 7})
            if step > 75:
                logger.record('train', {'late': 1.0})
            if step % 30 == 0:
                logger.dump('train', step=step, frame=4 * step, update=step // 10, episode=step // 20)
            if step == save_at:
                saved = logger.state_dict()
        if step % 40 == 0:
            with logger.evaluating():
                clock.now += tempo
                logger.dump('eval', step=step, frame=4 * step, metrics={'score': float(step)})
    logger.close()
    return saved


@pytest.mark.parametrize('save_at', [10, 40, 80, 120])
def test_a_killed_and_resumed_run_leaves_the_rows_of_one_never_killed(tmp_path, clock, save_at):
    run(tmp_path / 'whole', clock, 0, 240)
    state = run(tmp_path / 'killed', clock, 0, 170, save_at=save_at)
    torch.save(state, tmp_path / 'state.pt')
    state = torch.load(tmp_path / 'state.pt', weights_only=True)
    run(tmp_path / 'killed', clock, save_at, 240, state=state, tempo=7.0)
    for phase in ('train', 'eval'):
        assert untimed(tmp_path / 'killed' / f'{phase}.csv') == untimed(tmp_path / 'whole' / f'{phase}.csv')
        steps = [row['step'] for row in rows(tmp_path / 'killed' / f'{phase}.csv')]
        assert len(set(steps)) == len(steps) > 5


def test_time_goes_on_after_a_resume_without_the_pause(tmp_path, clock):
    logger = quiet(tmp_path, clock=clock)
    clock.now += 100
    logger.dump('train', step=10)
    state = logger.state_dict()
    clock.now += 5000
    logger = quiet(tmp_path, clock=clock, resume_step=10)
    logger.load_state_dict(state)
    clock.now += 1
    logger.dump('train', step=20)
    assert [float(row['time']) for row in rows(tmp_path / 'train.csv')] == [100, 101]
    assert float(rows(tmp_path / 'train.csv')[1]['fps']) == 10  # since the row before the pause


def test_speeds_with_and_without_evaluation(tmp_path, clock):
    logger = quiet(tmp_path, clock=clock)
    clock.now += 6
    with logger.evaluating():
        clock.now += 2
    logger.dump('train', step=30, frame=120, update=60)
    row = rows(tmp_path / 'train.csv')[0]
    assert [float(row[name]) for name in TIME_COLUMNS] == [8, 15, 20, 10]


def test_tensorboard_scalars_can_be_read_and_are_purged_on_resume(tmp_path):
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    logger = quiet(tmp_path, tensorboard=True)
    for step in (10, 20, 30):
        logger.dump('train', step=step, metrics={'loss': step / 2})
    logger.close()
    logger = quiet(tmp_path, tensorboard=True, resume_step=20)
    logger.dump('train', step=25, metrics={'loss': 0.5})
    logger.close()
    events = accumulator.EventAccumulator(str(tmp_path / 'tensorboard'))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars('train/loss')] == [(10, 5.0), (20, 10.0), (25, 0.5)]


def test_plain_lines_are_limited_by_the_clock_and_evaluations_always_show(tmp_path, clock, capsys):
    logger = quiet(tmp_path, progress=True, clock=clock, total_steps=1000)
    for step in range(1, 31):
        clock.now += 1
        logger.tick(step)
        logger.dump('train', step=step, metrics={'score': -21.0})
    logger.dump('eval', step=30, metrics={'score': 17.25})
    output = capsys.readouterr()
    lines = output.out.splitlines()
    assert [line.split()[0] for line in lines] == ['train', 'train', 'train', 'eval']
    assert '17.25' in lines[-1] and 'step 30 of 1,000' in lines[-1] and '0:00:30' in lines[-1]
    assert '0:16:29 left' in lines[1]  # 989 steps to go at one per second
    assert not output.err


def test_a_bar_on_a_terminal(tmp_path, clock, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
    logger = quiet(tmp_path, progress=True, clock=clock, total_steps=1000, title='DQN pong')
    logger.tick(0, 0, 0)
    logger.dump('eval', step=0, metrics={'score': -20.5})
    clock.now += 10
    logger.tick(100, 400, 50)
    logger.say('a line')
    logger.close()
    output = capsys.readouterr()
    assert 'a line' in output.out
    for part in ('DQN pong', '40 fps', '5 updates/s', 'ETA 0:01:30', 'eval -20.5'):
        assert part in output.err


def test_load_cuts_files_back_to_the_rows_of_the_state(tmp_path, capsys):
    logger = quiet(tmp_path)
    logger.dump('train', step=10)
    state = logger.state_dict()
    logger.dump('eval', step=10, metrics={'score': 1.0})  # after the save of the same step: done again by the resumed run
    logger.dump('test', step=10, metrics={'score': 1.0})
    logger = quiet(tmp_path, resume_step=10)
    logger.load_state_dict(state)
    assert len(rows(tmp_path / 'train.csv')) == 1 and not rows(tmp_path / 'eval.csv')
    for phase in ('eval', 'test'):
        assert logger.dump(phase, step=10, metrics={'score': 2.0})
        assert [row['score'] for row in rows(tmp_path / f'{phase}.csv')] == ['2']
    assert not capsys.readouterr().out


def test_a_resume_with_nothing_to_drop_leaves_the_file_alone(tmp_path):
    quiet(tmp_path).dump('train', step=10)
    before = (tmp_path / 'train.csv').stat().st_ino
    quiet(tmp_path, resume_step=10)
    assert (tmp_path / 'train.csv').stat().st_ino == before


def test_rows_of_another_width_are_not_read(tmp_path):
    quiet(tmp_path).dump('train', step=10, metrics={'loss': 1.0})
    with open(tmp_path / 'train.csv', 'a') as file:
        file.write('1.0,20,3\n')
    header, complete = read_table(tmp_path / 'train.csv')
    assert [row[header.index('step')] for row in complete] == ['10']


def test_a_full_disk_leaves_no_part_of_a_row(tmp_path):
    table = Table(tmp_path / 'train.csv', ['step', 'loss'])
    table.append({'step': '1', 'loss': '2.5'})
    whole, file = (tmp_path / 'train.csv').read_bytes(), table._file

    class Full:
        truncate = file.truncate

        def write(self, line):
            return file.write(line[:3])

    table._file = Full()
    with pytest.raises(OSError, match='full'):
        table.append({'step': '2', 'loss': '2.5'})
    assert (tmp_path / 'train.csv').read_bytes() == whole
