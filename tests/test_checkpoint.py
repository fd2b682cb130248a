"""Checkpoints survive kills, full disks and bad files; loading executes nothing."""
import contextlib
import io
import os
import pickle
import random
import resource
import signal
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

import Checkpoint
from Checkpoint import NEWEST, PREVIOUS, BadCheckpoint, load, read, save


def state(step, size=3000):
    """Tensors and counters that betray a mixture of two saves."""
    return {'step': step, 'weights': {'a': torch.full((size,), float(step)), 'b': [torch.full((7,), step), 'text', None, (1.5, True)]},
            'bytes': torch.full((size,), step % 256, dtype=torch.uint8)}


def complete(found):
    step = found['step']
    return (found['weights']['a'] == step).all() and (found['weights']['b'][0] == step).all() and (found['bytes'] == step % 256).all()


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def fork(function, *args):
    """Runs `function` in a forked child, where torch is imported already. → its process id; it ends with status 0, or 1 if the function raised."""
    if pid := os.fork():
        return pid
    try:
        function(*args)
    except BaseException as error:
        os.write(2, f'{error!r}\n'.encode())
        os._exit(1)
    os._exit(0)


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    optim = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))])
    optim.param_groups[0]['params'][0].sum().backward()
    optim.step()
    saved = state(4) | {'optim': optim.state_dict(), 'generator': torch.Generator().manual_seed(3).get_state(), 'score': float('-inf'), 'big': 2 ** 63,
                        'half': torch.tensor([1.5], dtype=torch.bfloat16), 'nested': {1: {'x': ()}}}
    save(tmp_path, saved)
    found, complaints = load(tmp_path)
    assert complaints == [] and found.pop('graft') == 1 and found.keys() == saved.keys() and complete(found)
    assert found['optim']['param_groups'] == saved['optim']['param_groups'] and found['nested'] == {1: {'x': ()}} and found['big'] == 2 ** 63
    assert torch.equal(found['optim']['state'][0]['exp_avg'], saved['optim']['state'][0]['exp_avg'])
    assert torch.equal(found['generator'], saved['generator']) and torch.equal(found['half'], saved['half'])


def test_the_newest_and_the_one_before_are_kept_and_nothing_else(tmp_path):
    save(tmp_path, state(1))
    assert files(tmp_path) == [NEWEST]
    save(tmp_path, state(2))
    save(tmp_path, state(3))
    assert files(tmp_path) == sorted([NEWEST, PREVIOUS])
    assert read(tmp_path / NEWEST)['step'] == 3 and read(tmp_path / PREVIOUS)['step'] == 2


def test_bytes_are_on_the_disk_before_the_names_change(tmp_path, monkeypatch):
    calls = []

    def target(argument):
        return Path(os.readlink(f'/proc/self/fd/{argument}') if isinstance(argument, int) else argument).name

    def spy(name, call):
        def wrapper(*args):
            calls.append((name, *map(target, args)))
            call(*args)
        monkeypatch.setattr(os, name, wrapper)

    spy('fsync', os.fsync)
    spy('replace', os.replace)
    save(tmp_path, state(1))
    save(tmp_path, state(2))
    writing, folder = Checkpoint.TEMPORARY, tmp_path.name
    first, second = [('fsync', writing), ('replace', writing, NEWEST), ('fsync', folder)], [('replace', Checkpoint.RETIRING, PREVIOUS)]
    assert calls == first + first[:2] + second + first[2:]


# --- killed

def save_forever(folder, step, pipe):
    while True:
        step += 1
        save(folder, state(step))
        os.write(pipe, step.to_bytes(8, 'little'))


def confirmed(pipe):
    """Steps that the child said were saved."""
    data = b''
    while chunk := os.read(pipe, 1 << 16):
        data += chunk
    return [int.from_bytes(data[i:i + 8], 'little') for i in range(0, len(data) - len(data) % 8, 8)]


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_sigkill_at_random_points_of_a_save_loop(tmp_path):
    rng, in_the_middle, step = random.Random(0), 0, 0
    start = time.perf_counter()
    for _ in range(5):
        save(tmp_path, state(0))
    duration = (time.perf_counter() - start) / 5
    for _ in range(60):
        reader, writer = os.pipe()
        pid = fork(save_forever, tmp_path, step, writer)
        os.close(writer)
        time.sleep(rng.uniform(0, 6 * duration))
        os.kill(pid, signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL, 'the child ended by itself'
        saved = [step, *confirmed(reader)]
        os.close(reader)
        in_the_middle += not {*files(tmp_path)} <= {NEWEST, PREVIOUS}
        found, complaints = load(tmp_path)
        assert complaints == [] and complete(found), 'every restart loads a complete checkpoint'
        assert found['step'] in (saved[-1], saved[-1] + 1), 'and none that was finished is lost'
        step = found['step'] + 1
        save(tmp_path, state(step))
        assert files(tmp_path) == sorted([NEWEST, PREVIOUS]), 'nothing is left over after the next save'
        assert complete(read(tmp_path / PREVIOUS)) and read(tmp_path / PREVIOUS)['step'] == found['step']
    print(f'{step} saves, {in_the_middle} kills inside one')
    assert step >= 60 and in_the_middle >= 5


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
@pytest.mark.parametrize('links', [True, False], ids=['', 'no hard links'])
@pytest.mark.parametrize('after', [False, True], ids=['before', 'after'])
def test_sigkill_around_every_system_call_of_a_save(tmp_path, after, links):
    """Deterministic complement: the child kills itself at the n-th call that touches the disk, for every n."""
    def refuse(*_):
        raise PermissionError('no hard links here')

    def save_and_die(folder, n):
        count = -1

        def counted(call):
            def wrapper(*args, **kwargs):
                nonlocal count
                count += 1
                here = count == n
                if here and not after:
                    os.kill(os.getpid(), signal.SIGKILL)
                try:
                    return call(*args, **kwargs)
                finally:
                    if here and after:
                        os.kill(os.getpid(), signal.SIGKILL)
            return wrapper

        for owner, name in ((os, 'fsync'), (os, 'replace'), (os, 'link'), (os, 'open'), (Path, 'unlink'), (torch, 'save')):
            setattr(owner, name, counted(refuse if name == 'link' and not links else getattr(owner, name)))
        save(folder, state(3))

    for n in range(20):
        folder = tmp_path / str(n)
        folder.mkdir()
        save(folder, state(1))
        save(folder, state(2))
        status = os.waitpid(fork(save_and_die, folder, n), 0)[1]
        found, complaints = load(folder)
        assert complete(found) and not complaints
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0 and found['step'] == 3 and n >= 5
            break
        assert found['step'] in (2, 3)
        assert not links or (folder / NEWEST).exists(), 'the newest name is never gone: others read along'
        save(folder, state(4))
        assert files(folder) == sorted([NEWEST, PREVIOUS]) and read(folder / NEWEST)['step'] == 4 and read(folder / PREVIOUS)['step'] in (2, 3)
    else:
        pytest.fail('the save never ended')


def test_the_newest_is_always_there_also_after_a_save_that_was_killed(tmp_path, monkeypatch):
    save(tmp_path, state(1))
    save(tmp_path, state(2))
    (tmp_path / Checkpoint.RETIRING).write_bytes((tmp_path / PREVIOUS).read_bytes())
    seen, replace = [], os.replace

    def spy(*args):
        replace(*args)
        seen.append(read(tmp_path / NEWEST)['step'])

    monkeypatch.setattr(os, 'replace', spy)
    save(tmp_path, state(3))
    assert seen == [3, 3] and files(tmp_path) == sorted([NEWEST, PREVIOUS]) and read(tmp_path / PREVIOUS)['step'] == 2


# --- bad files

def bomb_reduce(marker):
    class Bomb:
        def __reduce__(self):
            return os.system, (f'touch {marker}',)
    return Bomb()


def pack(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def foreign_zip():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive:
        archive.writestr('hello.txt', 'hello')
    return buffer.getvalue()


BAD = {
    'empty': (b'', 'truncated or corrupt'),
    'text': (b'train_steps: 100000\n' * 50, 'truncated or corrupt'),
    'a picture': (b'\x89PNG\r\n\x1a\n' + bytes(range(256)) * 8, 'truncated or corrupt'),
    'another zip': (foreign_zip(), 'truncated or corrupt'),
    'a list': (pack([1, 2, 3]), 'not a checkpoint of Graft'),
    'weights only': (pack({'layer.weight': torch.zeros(3)}), 'not a checkpoint of Graft'),
    'from the future': (pack({'graft': 99, 'step': 1}), 'format 99, this version reads 1'),
    'half': (pack({'graft': 1, **state(5)})[:9000], 'truncated or corrupt'),
}


@pytest.mark.parametrize('content, message', BAD.values(), ids=BAD)
def test_a_bad_file_is_named_and_the_previous_one_serves(tmp_path, content, message):
    (tmp_path / NEWEST).write_bytes(content)
    with pytest.raises(BadCheckpoint) as error:
        read(tmp_path / NEWEST)
    assert str(error.value).startswith(f'{tmp_path / NEWEST}: ') and message in str(error.value) and '\n' not in str(error.value)
    with pytest.raises(BadCheckpoint, match='checkpoint.pt: .*'):
        load(tmp_path)
    Checkpoint.write(tmp_path / PREVIOUS, state(7))
    found, complaints = load(tmp_path)
    assert found['step'] == 7 and complete(found) and complaints == [str(error.value)]


def test_a_bad_one_set_aside_does_not_displace_the_good_one_before_it(tmp_path):
    save(tmp_path, state(1))
    save(tmp_path, state(2))
    (tmp_path / NEWEST).write_bytes(b'damaged')
    assert load(tmp_path)[0]['step'] == 1
    Checkpoint.set_aside(tmp_path)
    assert (tmp_path / Checkpoint.CORRUPT).read_bytes() == b'damaged' and load(tmp_path)[0]['step'] == 1
    Checkpoint.set_aside(tmp_path)  # nothing there: nothing to do
    save(tmp_path, state(3))
    assert [read(tmp_path / name)['step'] for name in (NEWEST, PREVIOUS)] == [3, 1]


def test_both_bad_names_both(tmp_path):
    (tmp_path / NEWEST).write_bytes(b'x')
    (tmp_path / PREVIOUS).write_bytes(b'y')
    with pytest.raises(BadCheckpoint) as error:
        load(tmp_path)
    assert str(tmp_path / NEWEST) in str(error.value) and str(tmp_path / PREVIOUS) in str(error.value)


def test_nothing_there_says_how_one_comes_about(tmp_path):
    with pytest.raises(BadCheckpoint, match=r'no checkpoint here; a run writes one every save_per_steps and at its end'):
        load(tmp_path)
    with pytest.raises(BadCheckpoint, match='absent.pt: no such checkpoint'):
        read(tmp_path / 'absent.pt')
    with pytest.raises(BadCheckpoint, match='truncated or corrupt'):
        read(tmp_path)  # a folder


def test_truncated_anywhere(tmp_path):
    raw = pack({'graft': 1, **state(5)})
    for size in [*range(0, len(raw), 401), *range(len(raw) - 300, len(raw), 23)]:
        (tmp_path / NEWEST).write_bytes(raw[:size])
        with pytest.raises(BadCheckpoint, match='checkpoint.pt: truncated or corrupt'):
            read(tmp_path / NEWEST)


def test_a_flipped_bit_is_found_or_harmless(tmp_path):
    raw, rng, found_out = pack({'graft': 1, **state(5)}), random.Random(0), 0
    places = [rng.randrange(len(raw)) for _ in range(200)] + [rng.randrange(len(raw) - 1500, len(raw)) for _ in range(100)] + list(range(0, 600, 7))
    for place in places:
        flipped = bytearray(raw)
        flipped[place] ^= 1 << rng.randrange(8)
        (tmp_path / NEWEST).write_bytes(flipped)
        try:
            found = read(tmp_path / NEWEST)
        except BadCheckpoint as error:
            found_out += 1
            assert str(tmp_path / NEWEST) in str(error)
        else:  # in the padding between two tensors or in a date
            assert found['step'] == 5 and complete(found) and found['weights']['b'][1:] == ['text', None, (1.5, True)]
    assert found_out > 200


@pytest.mark.parametrize('pack_bomb', [lambda bomb: pack({'graft': 1, 'step': bomb}), lambda bomb: pickle.dumps({'graft': 1, 'step': bomb}),
                                       lambda bomb: pickle.dumps(bomb, 0)], ids=['torch', 'pickle', 'old pickle'])
def test_a_pickle_bomb_raises_and_does_not_go_off(tmp_path, pack_bomb):
    marker = tmp_path / 'exploded'
    content = pack_bomb(bomb_reduce(marker))
    if content[:2] != b'PK':
        with contextlib.suppress(Exception):
            pickle.loads(content)
        assert marker.exists(), 'the bomb is a real one'
        marker.unlink()
    (tmp_path / NEWEST).write_bytes(content)
    with pytest.raises(BadCheckpoint, match=r'checkpoint.pt: (refused, it holds more than data|truncated or corrupt)') as error:
        read(tmp_path / NEWEST)
    assert not marker.exists() and '\n' not in str(error.value)
    Checkpoint.write(tmp_path / PREVIOUS, state(7))
    assert load(tmp_path)[0]['step'] == 7 and not marker.exists()


def test_a_bomb_in_torchs_format_is_told_from_damage(tmp_path):
    (tmp_path / NEWEST).write_bytes(pack({'graft': 1, 'step': bomb_reduce(tmp_path / 'exploded')}))
    with pytest.raises(BadCheckpoint, match='refused, it holds more than data'):
        read(tmp_path / NEWEST)


# --- full disks

@pytest.mark.parametrize('error', [OSError(28, 'No space left on device'), RuntimeError('PytorchStreamWriter failed writing file'), KeyboardInterrupt()])
@pytest.mark.parametrize('where', ['save', 'fsync'])
def test_a_write_that_fails_leaves_the_last_good_one_and_no_rubbish(tmp_path, monkeypatch, error, where):
    save(tmp_path, state(1))
    save(tmp_path, state(2))

    def fail(*_):
        raise error

    monkeypatch.setattr(torch if where == 'save' else os, where, fail)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else OSError):
        save(tmp_path, state(3))
    monkeypatch.undo()
    assert files(tmp_path) == sorted([NEWEST, PREVIOUS])
    assert [read(tmp_path / name)['step'] for name in (NEWEST, PREVIOUS)] == [2, 1]
    save(tmp_path, state(4))
    assert [read(tmp_path / name)['step'] for name in (NEWEST, PREVIOUS)] == [4, 2]


@pytest.mark.skipif(not hasattr(os, 'fork') or sys.platform != 'linux', reason='needs fork and file size limits')
@pytest.mark.parametrize('limit', [0, 100, 5_000, 400_000])
def test_a_real_limit_of_the_file_system(tmp_path, limit):
    def save_too_much():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with pytest.raises(OSError):
            save(tmp_path, large)

    large = state(2, size=200_000)
    save(tmp_path, state(1))
    assert os.waitpid(fork(save_too_much), 0)[1] == 0
    assert files(tmp_path) == [NEWEST]
    found, complaints = load(tmp_path)
    assert found['step'] == 1 and complete(found) and not complaints
