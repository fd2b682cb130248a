"""`make bench`: how fast and how big we are, beside plain loops that do the same work; prints a table and writes it as JSON.

A row is declared in ROWS: what we build, which plain loop it is held against, and the target. To add one, write a builder (it returns a callable that
does some units of work, or a number) and a `Row`. The plain loops are no part of this repository: `baselines=` names their folder, whose
`measure.compare` takes turns between both in this process, with the same threads. A ratio above 1 is faster than plain.
"""
from __future__ import annotations

import contextlib
import difflib
import gc
import importlib.util
import io
import json
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from Benchmarking import replacing

if TYPE_CHECKING:
    from Datasets.Batch import Batch
    from Environment import Environment

ROOT = Path(__file__).parents[1]

# The plain DQN's settings, pinned here: no preset's choice for a task changes what is compared
DEFAULTS = ('~paper@_global_', 'device=cpu')
DQN = (*DEFAULTS, 'Agent=Agents.DQN', 'task=atari/pong', 'batch_size=32', 'nstep=1', 'lr=1e-4', 'adam_eps=1e-8', 'hidden_dim=512', 'agent.double=true',
       'agent.dueling=false', 'agent.num_critics=1', 'agent.huber=true', 'agent.depth=1', 'agent.exploration=epsilon', 'agent.epsilon=0.05',
       'agent.target_tau=1', 'agent.target_per_updates=1000')
QUIET = ('logger.progress=false', 'logger.tensorboard=false', 'plotting.plot=false', 'plot_per_steps=0', 'evaluate_per_steps=0')
WARMUP = 1000  # agent steps before the first update, as in the plain loops
STORED = 100_000  # transitions in the replays that are drawn from


@dataclass
class Options:
    """Of the command line, as key=value."""

    baselines: str = str(ROOT.parent / 'shared' / 'baselines')  # folder of the plain loops
    rows: str = '.'           # regular expression: which rows
    seconds: float = 2.0      # wall time of one turn
    repeats: int = 5          # turns
    threads: int = 1          # of torch, for both
    env_threads: int = 0      # of native vector envs alone, for both; 0 = as many as lanes or cores
    out: str = str(ROOT / 'Benchmarking' / 'speed.json')
    strict: bool = False      # exit code 1 when a target is missed or a row fails


@dataclass
class Bench:
    """What a builder may use: the options, a folder, and `after` for what is to be closed when its row is done."""

    options: Options
    folder: Path
    after: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)


Work = Callable[[], object]  # `per_call`: how many units one call is


@dataclass(frozen=True)
class Row:
    """One measurement.

    Args:
        name: what `rows=` selects by.
        ours: builds our side: a callable, or for a size the number itself.
        unit: what is counted, or the number's unit.
        plain, settings: the plain loop's name and arguments (those with `num_envs` are bare simulators and get our number of threads). Without one the
            figure itself is held against the target.
        at_least, at_most: the target, of the ratio (speed, ours / plain) where there is a plain loop.
        bf16: the target is only demanded of a CPU with bf16 units.
        note: what is compared, for the JSON and the reader."""

    name: str
    ours: Callable[[Bench], Work | float]
    unit: str
    plain: str = ''
    settings: dict[str, Any] = field(default_factory=dict)
    at_least: float | None = None
    at_most: float | None = None
    bf16: bool = False
    note: str = ''


# --- our side

def counted(work: Work, per_call: int) -> Work:
    work.per_call = per_call  # type: ignore[attr-defined]
    return work


def environment(num_envs: int) -> Callable[[Bench], Work]:
    """Random actions, drawn in advance, through Environment: own stacking, resets, episode records."""
    def build(bench: Bench) -> Work:
        import numpy as np
        lanes = pong(bench, num_envs)
        lanes.start()
        actions, i = np.random.default_rng(0).integers(0, 6, (4096, num_envs)), 0

        def step() -> None:
            nonlocal i
            i += 1
            lanes.advance(actions[i & 4095])
            lanes.pop_episodes()
        return counted(step, num_envs)
    return build


def pong(bench: Bench, num_envs: int) -> Environment:
    from Datasets.Suites import make
    from Environment import Environment
    lanes = Environment(make('atari', 'pong', num_envs, num_threads=env_threads(bench.options, num_envs)), seed=0)
    bench.after.callback(lanes.close)
    return lanes


def env_threads(options: Options, num_envs: int) -> int:
    from Utils import free_cores
    return options.env_threads or min(free_cores(), num_envs)


def atari_replay(bench: Bench, num_envs: int, capacity: int, store: str) -> Any:
    """An empty replay of Pong's shapes."""
    from Datasets.Replay import Replay
    replay = Replay(*atari_specs(), num_envs=num_envs, capacity=capacity, seed=0, reward_clip=1, window=1, store=store,
                    path=bench.folder / 'replay' if store == 'map' else None)
    bench.after.callback(replay.discard)
    return replay


def atari_specs() -> tuple[Any, Any]:
    import torch

    from Datasets.Specs import ActionSpec, ObsSpec
    return ObsSpec((1, 84, 84), torch.uint8, frame_stack=4), ActionSpec(num_actions=6)


def played(num_envs: int, length: int = 64) -> list[dict[str, Any]]:
    """Columns of vector steps to add: random frames; in every last one of them a lane's game ends."""
    import numpy as np
    rng, steps = np.random.default_rng(0), []
    for i in range(length):
        ended = np.arange(num_envs) == (0 if i == length - 1 else -1)
        obs = rng.integers(0, 256, (num_envs, 1, 84, 84), np.uint8)
        steps.append(dict(action=rng.integers(0, 6, num_envs), reward=np.zeros(num_envs, np.float32), terminated=ended, truncated=np.zeros(num_envs, bool),
                          obs=obs, first=ended, final_lanes=np.flatnonzero(ended), final_obs=obs[ended]))
    return steps


def add(bench: Bench) -> Work:
    steps, i = played(16), 0
    replay = atari_replay(bench, 16, STORED, 'map')
    replay.begin(steps[0]['obs'])

    def step() -> None:
        nonlocal i
        i += 1
        replay.add(**steps[i & 63])
    return counted(step, 16)


def draw(batch_size: int, store: str) -> Callable[[Bench], Work]:
    """draw + gather of whole batches, with all their columns."""
    def build(bench: Bench) -> Work:
        steps = played(16)
        replay = atari_replay(bench, 16, STORED + STORED // 64, store)
        replay.begin(steps[0]['obs'])
        for i in range(STORED // 16):
            replay.add(**steps[i & 63])
        return counted(lambda: replay.gather(replay.draw(batch_size)), 1)
    return build


def replay_bytes(bench: Bench) -> float:
    """GB of a million transitions in 16 lanes, with the slack that the default checkpoints need."""
    from Datasets.Replay import Replay
    from Datasets.RunReplay import slack
    from Hparams.Compose import compose_args
    from Utils import Args
    args = Args(compose_args([*DEFAULTS, 'num_envs=16', 'train_steps=1000000']))
    return Replay.bytes_needed(*atari_specs(), num_envs=16, capacity=1_000_000, slack=slack(args)) / 1e9


def dqn_update(*overrides: str) -> Callable[[Bench], Work]:
    """The agent that a run would build, on one fixed batch such as the replay hands out."""
    def build(bench: Bench) -> Work:
        import torch

        from Hparams.Compose import compose_args
        from Utils import Args
        from Utils import build as build_part
        args = Args(compose_args([*DQN, *overrides]))
        values = {key: value for key, value in args.items() if not isinstance(value, dict)}
        obs_spec, action_spec = atari_specs()
        agent = build_part(args.agent, '', 'agent', obs_spec=obs_spec, action_spec=action_spec, recipes=args.recipes,
                           **values | {'device': torch.device('cpu')})
        batch = fixed_batch(args.batch_size)
        return counted(lambda: agent.update(batch), 1)
    return build


def fixed_batch(size: int) -> Batch:
    """Random windows of 5 frames, of which obs and next_obs are views, as gathered."""
    import torch

    from Datasets.Batch import Batch
    random = torch.Generator().manual_seed(0)
    windows = torch.randint(0, 256, (size, 5, 84, 84), generator=random, dtype=torch.uint8)
    return Batch(windows[:, :4], torch.randint(0, 6, (size,), generator=random), torch.randn(size, generator=random), torch.full((size,), 0.99),
                 windows[:, 1:], torch.arange(size), torch.ones(size))


def loop(*overrides: str, steps: int) -> Callable[[Bench], Work]:
    """A whole run without evaluation: Session's turns, from where learning is under way. One call is `steps` agent steps."""
    def build(bench: Bench) -> Work:
        from Hparams.Compose import compose_args
        from Session import Session
        values = compose_args([*QUIET, f'root={bench.folder}', f'threads={bench.options.threads}', 'train_steps=1000000000', f'seed_steps={WARMUP}',
                               f'explore_steps={WARMUP}', 'replay.capacity=20000', 'learn_per_steps=4', 'env_threads=1', *overrides])
        with contextlib.redirect_stdout(io.StringIO()):
            session = Session(values)
        bench.after.callback(session.close)

        def turns() -> None:
            for _ in range(steps // session.environment.num_envs):
                session.advance()
                session.records()
        while session.step < WARMUP + 8 * steps:
            turns()
        return counted(turns, steps)
    return build


ENV_NOTE = 'plain: ale-py vector env alone, engine stack 4 and episodic life; ours: engine unstacked, stacking and life loss in Environment, raw rewards'
REPLAY_NOTE = f'{STORED:,} transitions in 16 lanes; plain: ring without episode ends, with action and reward columns'
UPDATE_NOTE = 'Nature CNN, 6 actions, double, Huber, Adam 1e-4; plain is eager fp32 NCHW in every row'
LOOP_NOTE = 'one update of 32 per 4 steps, double, replay 20k, one thread for the emulators of either side; plain is fp32'
PLAIN_RING = {'columns': True, 'lanes': 16}

ROWS = [
    Row('env atari 1', environment(1), 'steps', 'env_atari_1', {'num_envs': 1}, at_least=0.9, note=ENV_NOTE),
    Row('env atari 16', environment(16), 'steps', 'env_atari_16', {'num_envs': 16}, at_least=0.9, note=ENV_NOTE),
    Row('replay size', replay_bytes, 'GB', at_most=7.5, note='1,000,000 Atari transitions and the slack of the default checkpoints'),
    *(Row(f'replay draw {size}{store}', draw(size, store.strip() or 'map'), 'batches', 'replay_ring_atari', PLAIN_RING | {'batch_size': size},
          at_least=1 / 1.25, note=f'{REPLAY_NOTE}; ours in {"RAM too" if store else "a file-backed map, the default"}')
      for store in ('', ' ram') for size in (32, 256)),
    Row('replay add 16', add, 'steps', at_least=30_000, note='16 lanes, a file-backed map'),
    *(Row(f'dqn update {size} {form}', dqn_update(f'batch_size={size}', *overrides), 'updates', f'dqn_update_b{size}', at_least=at_least,
          bf16='bf16' in form, note=UPDATE_NOTE)
      for size in (32, 256)
      for form, overrides, at_least in (('fp32', (), 1 / 1.05), ('bf16', ('precision=bf16',), 1 / 0.65), ('fp32 compile', ('compile=true',), None),
                                        ('bf16 compile', ('precision=bf16', 'compile=true'), None))),
    *(Row(f'loop pong {envs} {precision}', loop(*DQN, f'num_envs={envs}', f'precision={precision}', steps=max(4, envs)), 'steps', plain,
          at_least=at_least, bf16=precision == 'bf16', note=LOOP_NOTE)
      for envs, plain, targets in ((1, 'dqn_pong_loop', (1.1, 1.5)), (16, 'dqn_pong_loop_16', (1.25, 1.8)))
      for precision, at_least in zip(('fp32', 'bf16'), targets)),
    Row('loop cartpole random', loop(*DEFAULTS, 'Agent=Agents.Random', 'task=gym/CartPole-v1', 'num_envs=1', steps=16), 'steps',
        note='no learning: all that a step costs'),
]


# --- measuring

def measure(row: Row, bench: Bench, baselines: ModuleType | None, compare: Callable[..., dict[str, Any]] | None) -> dict[str, Any]:
    """→ ours (and plain, ratio) as medians with their spread, in units per second; a size is as it is."""
    options = bench.options
    work = row.ours(bench)
    if not callable(work):
        return {'ours': work}
    if row.plain and baselines and compare:
        settings = row.settings | ({'num_threads': env_threads(options, row.settings['num_envs'])} if 'num_envs' in row.settings else {})
        with contextlib.redirect_stdout(io.StringIO()):
            plain = baselines.build(row.plain, **settings)
        return compare(plain, work, seconds=options.seconds, repeats=options.repeats)
    work()
    rates = [rate(work, options.seconds) for _ in range(options.repeats)]
    return {'ours': statistics.median(rates), 'spread': [min(rates), max(rates)]}


def rate(work: Work, seconds: float) -> float:
    """Units per second over at least `seconds` and two calls."""
    calls, start = 0, time.perf_counter()
    while True:
        work()
        calls += 1
        if (wall := time.perf_counter() - start) >= seconds and calls >= 2:
            return calls * getattr(work, 'per_call', 1) / wall


def verdict(row: Row, result: dict[str, Any], units: bool) -> str:
    """'PASS', 'short', or '' where nothing is demanded. units: the CPU has bf16 units."""
    figure = result.get('ratio' if row.plain else 'ours')
    if figure is None or (row.at_least is None and row.at_most is None) or (row.bf16 and not units):
        return ''
    return 'PASS' if figure >= (row.at_least or figure) and figure <= (row.at_most or figure) else 'short'


def load_baselines(folder: Path) -> tuple[ModuleType, Callable[..., dict[str, Any]]] | tuple[None, None]:
    """The folder of plain loops as a package, and its `compare`; None where it is absent."""
    if not (folder / 'measure.py').exists():
        return None, None
    spec = importlib.util.spec_from_file_location('plain_measure', folder / 'measure.py')
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load(folder), module.compare


def machine(options: Options) -> dict[str, Any]:
    """What the figures depend on besides the code."""
    import torch

    from Utils import free_cores
    capabilities = torch.cpu.get_capabilities()
    return {'torch': torch.__version__, 'threads': torch.get_num_threads(), 'cores': free_cores(), 'cpu': str(capabilities.get('cpu_name', '')),
            'isa': torch.backends.cpu.get_cpu_capability(), 'bf16_units': bool(capabilities.get('avx512_bf16') or capabilities.get('amx_bf16')),
            'opencv': importlib.util.find_spec('cv2') is not None}  # plain Pong: Gymnasium's wrappers, or one ale-py vector env per lane without it


def one_row(row: Row, options: Options, baselines: ModuleType | None, compare: Callable[..., dict[str, Any]] | None, units: bool) -> dict[str, Any]:
    """Measures a row. One that fails, for want of a simulator or otherwise, says why, and the rest go on."""
    folder = Path(tempfile.mkdtemp(prefix='graft-bench-'))
    entry: dict[str, Any] = {'name': row.name, 'unit': row.unit, 'plain_loop': row.plain, 'plain_settings': row.settings, 'at_least': row.at_least,
                             'at_most': row.at_most, 'note': row.note}
    bench = Bench(options, folder)
    try:
        with bench.after:
            entry |= measure(row, bench, baselines, compare)
        entry['verdict'] = verdict(row, entry, units)
    except Exception as error:
        entry |= {'error': ' '.join(f'{type(error).__name__}: {error}'.split())[:300], 'verdict': 'error'}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        gc.collect()
    return entry | {'load': round(os.getloadavg()[0], 2)}


# --- the report

HEADER = f'{"row":<24}{"ours":>24}{"each":>11}{"plain":>12}{"ratio (spread)":>22}{"target":>9}  verdict'


def line(entry: dict[str, Any]) -> str:
    """A row of the table: ours and plain in units per second, `each` the time of one of our units."""
    if 'error' in entry:
        return f'{entry["name"]:<24}  {entry["error"]}'
    rated = 'spread' in entry
    ours = f'{number(entry["ours"])} {entry["unit"]}{"/s" if rated else ""}'
    ratio = f'{entry["ratio"]:.2f} ({entry["spread"][0]:.2f}–{entry["spread"][1]:.2f})' if 'ratio' in entry else ''
    target = f'≥ {number(entry["at_least"])}' if entry['at_least'] else f'≤ {number(entry["at_most"])}' if entry['at_most'] else ''
    return (f'{entry["name"]:<24}{ours:>24}{duration(1 / entry["ours"]) if rated else "":>11}{number(entry["plain"]) if "plain" in entry else "":>12}'
            f'{ratio:>22}{target:>9}  {entry["verdict"]}').rstrip()


def number(value: float) -> str:
    return f'{value:,.0f}' if value >= 100 else f'{value:.3g}'


def duration(seconds: float) -> str:
    return f'{seconds * 1e6:.1f} µs' if seconds < 1e-3 else f'{seconds * 1e3:.2f} ms'


def parse(arguments: Sequence[str]) -> Options:
    """Options from key=value.

    Raises:
        ValueError: an unknown key, or a value of another type."""
    known = {option.name: option for option in fields(Options)}
    values: dict[str, Any] = {}
    for argument in arguments:
        key, separator, text = argument.partition('=')
        if not separator or key not in known:
            close = difflib.get_close_matches(key, known, n=3, cutoff=0.4)
            raise ValueError(f'{argument}: expected key=value with one of the keys {", ".join(close or known)} (Benchmarking/Speed.py)')
        kind: Any = type(known[key].default)
        try:
            values[key] = {'true': True, 'false': False}[text.lower()] if kind is bool else kind(text)
        except (KeyError, ValueError):
            raise ValueError(f'{argument}: expected {"true or false" if kind is bool else "a whole number" if kind is int else "a number"}') from None
    options = Options(**values)
    if options.seconds <= 0 or options.repeats < 1 or options.threads < 1 or options.env_threads < 0:
        raise ValueError(f'seconds={options.seconds} repeats={options.repeats} threads={options.threads} env_threads={options.env_threads}: '
                         'expected positive numbers (env_threads may be 0)')
    try:
        chosen = any(re.search(options.rows, row.name) for row in ROWS)
    except re.error as error:
        raise ValueError(f'rows={options.rows}: not a regular expression ({error})') from None
    if not chosen:
        raise ValueError(f'rows={options.rows}: no row matches; there are: {", ".join(row.name for row in ROWS)}')
    return options


def run(options: Options) -> list[dict[str, Any]]:
    """Measures the chosen rows, prints each as it is done, and writes them all."""
    os.environ['OMP_NUM_THREADS'] = str(options.threads)  # before torch is imported
    import torch
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    about = machine(options)
    baselines, compare = load_baselines(Path(options.baselines))
    if baselines is None:
        print(f'no plain loops in {options.baselines}: ratios are left out (baselines=FOLDER)')
    print(', '.join(f'{key} {value}' for key, value in about.items()) + f', load {os.getloadavg()[0]:.1f}')
    print(f'{options.repeats} turns of {options.seconds:g} s; ratio: our speed over plain, median of the turns\n{HEADER}', flush=True)
    entries = []
    try:
        for row in ROWS:
            if re.search(options.rows, row.name):
                torch.manual_seed(0)
                entries.append(one_row(row, options, baselines, compare, about['bf16_units']))
                print(line(entries[-1]), flush=True)
    finally:
        torch.set_num_threads(before)
    settings = {key: value for key, value in asdict(options).items() if key not in ('baselines', 'out')}
    with replacing(Path(options.out)) as temporary:
        temporary.write_text(json.dumps({'machine': about, 'settings': settings, 'rows': entries}, indent=1))
    if any('ratio' in entry and entry['spread'][1] > 1.15 * entry['spread'][0] for entry in entries):
        print('Some spreads exceed 15 %: the machine was not quiet. More seconds= and repeats= help.')
    return entries


def main(arguments: Sequence[str]) -> int:
    """→ exit code."""
    try:
        options = parse(arguments)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    missed = [entry['name'] for entry in run(options) if entry['verdict'] in ('short', 'error')]
    if missed:
        print(f'short of the target or failed: {", ".join(missed)}')
    return 1 if missed and options.strict else 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
