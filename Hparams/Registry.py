"""A Hydra config source for what no file holds: tasks from the simulators' registries, agents by dotted path, names in any spelling.

`task=atari/battlezone` becomes `task/atari.yaml` plus the name; `Agent=Agents.DQNAgent` is the preset of `Agents.DQN`;
`Agent=my_package.MyAgent` needs no YAML; `paper/<mode>/<Agent>/<task>` is looked up under canonical names, in files and tables.
Searched after the folder `Hparams`, through `hydra.searchpath: ['graft://registry']` in args.yaml.
"""
from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from omegaconf import OmegaConf

from Datasets.Suites.Names import FIND, find_task, nearest

FOLDER = Path(__file__).parent


PLUGS = ('aux', 'explore')  # groups whose parts may be a user's own, by dotted path
SHARED = ('__init__', 'Agent', 'Build', 'OffPolicy', 'Plugged')  # files of Agents/ that are no agent


def agents() -> list[str]:
    """The agents that ship, by their files: Agents.DQN, …"""
    return sorted(f'Agents.{file.stem}' for file in (FOLDER.parent / 'Agents').glob('*.py') if file.stem not in SHARED)


def find_agent(name: str) -> str:
    """Canonical dotted name. `DQN`, `DQNAgent`, `Agents.DQNAgent` are `Agents.DQN`; a user's `package.Class` stays.

    Raises: ValueError that names the nearest agents, or the module that cannot be found."""
    stem = name.removeprefix('Agents.')
    for agent in agents():
        if stem.lower() in (agent[7:].lower(), agent[7:].lower() + 'agent'):
            return agent
    module, _, _ = name.rpartition('.')
    if module and module != 'Agents':
        if importable(module):
            return name
        close = ', '.join(nearest(name, agents()) or agents())
        raise ValueError(f'Agent={name}: no module {module!r} in this folder or on PYTHONPATH; nearest agents: {close}')
    raise ValueError(f'Agent={name}: no such agent; nearest: {", ".join(nearest(name, agents()) or agents())}')


def find_plug(group: str, name: str) -> str:
    """What `aux=package.Class` (or explore=) is called on the command line and in metrics: its class. Raises: ValueError: there is no such module."""
    module, _, stem = name.rpartition('.')
    if not importable(module):
        raise ValueError(f'{group}={name}: no module {module!r} in this folder or on PYTHONPATH')
    return stem


def importable(module: str) -> bool:
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


class GraftSource(ConfigSource):
    @staticmethod
    def scheme() -> str:
        return 'graft'

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        return config_path in ('', 'task', 'Agent', *PLUGS) or (config_path.startswith('task/') and config_path[5:] in FIND)

    def is_config(self, config_path: str) -> bool:
        try:
            return self.derive(config_path) is not None
        except ValueError:
            return False

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        return []

    def load_config(self, config_path: str) -> ConfigResult:
        config = self.derive(config_path)
        if config is None:
            raise ConfigLoadError(f'graft://{config_path} not found')
        return ConfigResult(provider=self.provider, path=f'graft://{config_path}', config=OmegaConf.create(config), header={'package': '_global_'})

    def derive(self, config_path: str) -> dict[str, Any] | None:
        """The config at `config_path` as plain containers, or None where this source has nothing. Raises: ValueError for an unknown name."""
        group, _, name = config_path.removesuffix('.yaml').strip('/').partition('/')
        if group == 'task' and '/' in name:
            suite, task = find_task(name)
            return {'defaults': [f'/task/{suite}@_global_', '_self_'], 'suite': suite, 'task_name': task}
        if group == 'Agent' and name:
            agent = find_agent(name)
            if (FOLDER / 'Agent' / f'{agent}.yaml').exists():
                return {'defaults': [f'/Agent/{agent}@_global_', '_self_']} if agent != name else None
            return {'agent': {'_target_': agent}}
        if group in PLUGS and '.' in name:
            common: Any = OmegaConf.to_container(OmegaConf.load(FOLDER / 'plug' / f'{group}.yaml'))
            return {group: {find_plug(group, name): {'_target_': name} | ({'horizon': None} if group == 'aux' else {}) | common}}
        if group == 'paper' and name.count('/') >= 3:
            mode, agent, task = name.split('/', 2)
            agent, (suite, task) = find_agent(agent), find_task(task)
            file = f'{agent}/{suite}/{task}'
            exists = (FOLDER / 'paper' / f'{file}.yaml').exists()
            numbers = merged({} if exists else row(suite, agent, task), row(mode, agent, task))
            return ({'defaults': [f'/paper/{file}@_global_', '_self_']} if exists else {}) | numbers or None
        return None


def row(table: str, agent: str, task: str) -> dict[str, Any]:
    """What `paper/<table>.yaml`, one for several agents, says of an agent on a task; {} where it says nothing."""
    file = FOLDER / 'paper' / f'{table}.yaml'
    found: Any = OmegaConf.to_container(OmegaConf.load(file)) if file.exists() else {'agents': {}}
    if agent not in found['agents']:
        return {}
    own = found['agents'][agent] or {} if isinstance(found['agents'], dict) else {}
    return merged(found['others'], own, found.get('tasks', {}).get(task) or {})


def merged(*trees: dict[str, Any]) -> dict[str, Any]:
    """Later trees win, key by key."""
    whole: Any = OmegaConf.to_container(OmegaConf.merge(*map(OmegaConf.create, trees)))
    return whole


def by_obs(pixels: Any, state: Any, *, _root_: Any) -> Any:
    """`${by_obs:A,B}` in a preset: A where the task shows pixels, B where it shows its state."""
    return pixels if _root_.obs == 'pixels' else state


def either(first: Any, second: Any) -> Any:
    """`${either:A,B}`: A, or B where A is null."""
    return second if first is None else first


def times(first: Any, second: Any) -> int:
    """`${times:A,B}`: their product."""
    return int(first) * int(second)


def register() -> None:
    """Makes `graft://`, `${by_obs:…}`, `${either:…}` and `${times:…}` known to Hydra; harmless when repeated."""
    OmegaConf.register_new_resolver('times', times, replace=True)
    OmegaConf.register_new_resolver('either', either, replace=True)
    OmegaConf.register_new_resolver('by_obs', by_obs, replace=True)
    plugins = Plugins.instance()
    if GraftSource not in plugins.discover(ConfigSource):
        plugins.register(GraftSource)
