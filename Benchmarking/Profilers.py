"""The profilers that `profile=` names, each behind the same few verbs. line_profiler and scalene are optional packages."""
from __future__ import annotations

import contextlib
import gzip
import inspect
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from Benchmarking.OwnTimes import Operation, own_times
from Benchmarking.Scalene import STEM_FILE

if TYPE_CHECKING:
    from Session import Session

ROWS = 50  # operations in the text of torch's profile


def profiler(name: str, session: Session) -> Profiler:
    return {'torch': TorchProfiler, 'line': LineProfiler, 'scalene': ScaleneProfiler}[name](session)


@dataclass
class Dear:
    """A function and what it took. calls: 0 where the profiler does not count them."""

    name: str
    seconds: float
    calls: int = 0


class Profiler:
    """What a profile asks of a profiler. `within` is a context for every measured part of a turn.

    Attributes:
        kind: what its functions are, and whose time counts as theirs. advice: how to look at what it wrote."""

    kind, advice = '', ''

    def __init__(self, session: Session) -> None:
        self.device = session.device

    def within(self, part: str) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def start(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

    def pause(self) -> None:
        self.stop()

    def resume(self) -> None:
        self.start()

    def write(self, stem: Path) -> list[Dear]:
        """Writes `<stem>.…`. → functions with their cost, in any order."""
        raise NotImplementedError

    def text(self) -> str:
        """All that it has to say, for the text beside the trace."""
        return ''


class TorchProfiler(Profiler):
    """torch.profiler: operations with shapes and memory, and kernels, on a time line with the parts of a turn."""

    kind = 'operation, by its own time'

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        kinds = torch.profiler.ProfilerActivity
        self.activities = [kinds.CPU, *([kinds.CUDA] if self.device.type == 'cuda' else [])]
        self.profile = torch.profiler.profile(activities=self.activities, record_shapes=True, profile_memory=True)

    def within(self, part: str) -> contextlib.AbstractContextManager[Any]:
        return torch.profiler.record_function(f'graft: {part}')

    def start(self) -> None:
        self.profile.start()

    def stop(self) -> None:
        self.profile.stop()

    def pause(self) -> None:
        self.profile.toggle_collection_dynamic(False, self.activities)

    def resume(self) -> None:
        self.profile.toggle_collection_dynamic(True, self.activities)

    def write(self, stem: Path) -> list[Dear]:
        file = stem.with_name(f'{stem.name}.pt.trace.json.gz')  # the name that TensorBoard's plug-in looks for
        with tempfile.TemporaryDirectory() as folder:  # torch itself compresses line by line, of which there are millions
            plain = Path(folder, 'trace.json')
            self.profile.export_chrome_trace(str(plain))
            with plain.open('rb') as source, gzip.open(file, 'wb', compresslevel=5) as target:
                shutil.copyfileobj(source, target, 1 << 20)
        self.advice = f'{file}: open it in ui.perfetto.dev; or pip install torch-tb-profiler, then tensorboard --logdir {stem.parent}'
        recorded: Any = self.profile.profiler
        self.operations = own_times(recorded.kineto_results.events())
        return [Dear(name, self.cost(one) * 1e-9, one.calls) for name, one in self.operations.items() if not name.startswith('graft: ')]

    def cost(self, one: Operation) -> int:
        """ns. What a CPU waits for is a kernel's time on an accelerator."""
        return one.device if self.device.type == 'cuda' else one.own

    def text(self) -> str:
        rows = sorted(self.operations.items(), key=lambda item: -self.cost(item[1]))[:ROWS]
        on_device = ('device ms',) if self.device.type == 'cuda' else ()
        lines = ['  '.join(f'{title:>12}' for title in ('own ms', 'with calls', *on_device, 'calls')) + '  operation']
        for name, one in rows:
            spent = (one.own, one.whole, *((one.device,) if on_device else ()))
            lines.append('  '.join([*(f'{1e-6 * ns:12.3f}' for ns in spent), f'{one.calls:12}']) + f'  {name}')
        return '\n'.join(lines) + '\n'


class LineProfiler(Profiler):
    """line_profiler on the functions of a turn."""

    kind = 'function, with all that it calls'

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        import line_profiler
        self.profile = line_profiler.LineProfiler()
        for function in hot_functions(session):
            self.profile.add_function(function)

    def start(self) -> None:
        self.profile.enable_by_count()

    def stop(self) -> None:
        self.profile.disable_by_count()

    def write(self, stem: Path) -> list[Dear]:
        file = stem.with_name(f'{stem.name}.lprof')
        self.profile.dump_stats(file)
        self.advice = f'{file}: python -m line_profiler -rmt {file}; its text: {stem.name}.txt'
        stats = self.profile.get_stats()
        return [Dear(f'{name} ({Path(path).name}:{line})', sum(spent for *_, spent in lines) * stats.unit, lines[0][1])
                for (path, line, name), lines in stats.timings.items() if lines]

    def text(self) -> str:
        text = io.StringIO()
        self.profile.print_stats(text, output_unit=1e-3, stripzeros=True, sort=True)
        return text.getvalue()


def hot_functions(session: Session) -> list[Callable[..., Any]]:
    """What a turn of the loop runs through: methods of the agent and its auxiliary losses, their pure losses, the run's, environment's and replay's own."""
    import Utils
    from Agents.Plugged import Plugged
    from Blocks import Losses
    from Blocks.Auxiliary import Auxiliary

    def methods(part: Any, base: type) -> Iterator[Any]:
        for kind in type(part).__mro__:
            if issubclass(kind, base):
                yield from (method for name, method in vars(kind).items() if inspect.isfunction(method) and not name.startswith('__'))

    found = [method for part in (session.agent, *session.agent.losses.values()) for method in methods(part, (Plugged if part is session.agent else Auxiliary))]
    found += [function for _, function in inspect.getmembers(Losses, inspect.isfunction)]
    for owner, names in ((type(session), ('advance', 'learn', 'records')), (type(session.environment), ('observe', 'send', 'receive')),
                         (type(session.environment.suite), ('send', 'recv')),
                         (type(session.replay), ('add', 'sample', 'draw', 'gather', 'latest', 'take', 'write')), (Utils, ('optimise', 'follow'))):
        found += [getattr(owner, name) for name in names if hasattr(owner, name)]
    return [one for one in dict.fromkeys(map(inspect.unwrap, found)) if inspect.isfunction(one)]


class ScaleneProfiler(Profiler):
    """scalene, in which this process runs: it samples lines of Graft, and writes when the process ends. See Benchmarking.Scalene for the rest."""

    def start(self) -> None:
        from scalene import scalene_profiler
        scalene_profiler.start()

    def stop(self) -> None:
        from scalene import scalene_profiler
        scalene_profiler.stop()

    def write(self, stem: Path) -> list[Dear]:
        self.advice = 'scalene writes its own when the process ends'
        if place := os.environ.get(STEM_FILE):
            Path(place).write_text(str(stem))
        return []
