"""`make bench`: how fast and how big we are, beside plain loops that do the same work; prints a table and writes it as JSON.

The rows are in SpeedRows.py. The plain loops are no part of this repository: `baselines=` names their folder, whose `measure.compare` takes turns
between both in this process, with the same threads. A ratio above 1 is faster than plain.
"""
from __future__ import annotations

import contextlib
import difflib
import gc
import importlib.util
import io
import json
import multiprocessing
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

from Benchmarking import replacing
from Benchmarking.SpeedRows import ROWS, Row
from Benchmarking.SpeedWorks import Bench, Work, counted, env_threads

ROOT = Path(__file__).parents[1]

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


# --- measuring

def measure(row: Row, bench: Bench, options: Options, baselines: ModuleType | None, compare: Callable[..., dict[str, Any]] | None) -> dict[str, Any]:
    """→ ours (and plain, ratio) as medians with their spread, in units per second; a size is as it is."""
    work = row.ours(bench)
    if not callable(work):
        return {'ours': work}
    if compare and (row.beside or (row.plain and baselines)):
        plain = row.beside(bench) if row.beside else built_apart(row, bench, options) if row.apart else built(row.plain, settings_of(row, options), baselines)
        return compare(plain, work, seconds=options.seconds, repeats=options.repeats)
    work()
    rates = [rate(work, options.seconds) for _ in range(options.repeats)]
    return {'ours': statistics.median(rates), 'spread': [min(rates), max(rates)]}


def settings_of(row: Row, options: Options) -> dict[str, Any]:
    return row.settings | ({'num_threads': env_threads(options, row.settings['num_envs'])} if 'num_envs' in row.settings else {})


def built(name: str, settings: dict[str, Any], baselines: Any) -> Work:
    with contextlib.redirect_stdout(io.StringIO()):
        return baselines.build(name, **settings)


def built_apart(row: Row, bench: Bench, options: Options) -> Work:
    """The plain loop in a fresh process, which does 20 of its calls for each of ours."""
    context = multiprocessing.get_context('spawn')
    pipe, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, options.baselines, row.plain, settings_of(row, options), options.threads), daemon=True)
    process.start()
    theirs.close()
    bench.after.callback(process.terminate)

    def turn() -> None:
        pipe.send(20)
        pipe.recv()
    return counted(turn, 20 * pipe.recv())


def serve(pipe: Any, folder: str, name: str, settings: dict[str, Any], threads: int) -> None:
    """That process: tells the units of a call, then makes as many calls as it is told, again and again."""
    import torch
    torch.set_num_threads(threads)
    os.environ.setdefault('LP_NUM_THREADS', str(threads if threads > 1 else 0))  # as ours has it: a renderer in software
    baselines, _ = load_baselines(Path(folder))
    work = built(name, settings, baselines)
    pipe.send(getattr(work, 'per_call', 1))
    with contextlib.suppress(EOFError):
        while True:
            for _ in range(pipe.recv()):
                work()
            pipe.send(None)


def rate(work: Work, seconds: float) -> float:
    """Units per second over at least `seconds` and two calls."""
    calls, start = 0, time.perf_counter()
    while True:
        work()
        calls += 1
        if (wall := time.perf_counter() - start) >= seconds and calls >= 2:
            return calls * getattr(work, 'per_call', 1) / wall


def verdict(row: Row, result: dict[str, Any]) -> str:
    """'PASS', 'short', or '' where nothing is demanded."""
    figure = result.get('ratio' if row.plain or row.beside else 'ours')
    if figure is None or (row.at_least is None and row.at_most is None):
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

    from Utils import free_cores, has_bf16
    capabilities = torch.cpu.get_capabilities()
    return {'torch': torch.__version__, 'threads': torch.get_num_threads(), 'cores': free_cores(), 'cpu': str(capabilities.get('cpu_name', '')),
            'isa': torch.backends.cpu.get_cpu_capability(), 'bf16_units': has_bf16(torch.device('cpu')),
            'opencv': importlib.util.find_spec('cv2') is not None}  # plain Pong: Gymnasium's wrappers, or one ale-py vector env per lane without it


def one_row(row: Row, options: Options, baselines: ModuleType | None, compare: Callable[..., dict[str, Any]] | None, units: bool) -> dict[str, Any]:
    """Measures a row. One that fails, for want of a simulator or otherwise, says why, and the rest go on. units: the CPU has bf16 units."""
    folder = Path(tempfile.mkdtemp(prefix='graft-bench-'))
    entry: dict[str, Any] = {'name': row.name, 'unit': row.unit, 'plain_loop': row.plain, 'plain_settings': row.settings, 'at_least': row.at_least,
                             'at_most': row.at_most, 'note': row.note}
    bench = Bench(options, folder)
    try:
        if row.bf16 and not units:
            return entry | {'error': 'left out: this CPU has no units for bf16 and imitates it, some fifty times slower than fp32', 'verdict': ''}
        with bench.after:
            entry |= measure(row, bench, options, baselines, compare)
        entry['verdict'] = verdict(row, entry)
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
