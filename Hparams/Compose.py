"""From the command line to plain, checked values: composes with Hydra, says in one line what is wrong, and forgets OmegaConf.

Imports neither torch nor a simulator's engine, so that a misspelt key is refused at once.
"""
from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from Datasets.Suites.Names import FIND, find_task, nearest
from Hparams.Check import FOLDER, GROUPS, PASSES, ConfigError, check, defaults, flatten, unknown_key
from Hparams.Registry import PLUGS, agents, find_agent, find_plug, register

__all__ = ['ConfigError', 'compose_args', 'defaults', 'explain', 'flatten', 'help_text', 'key_of', 'losses_of', 'plain_args', 'quoted', 'swept', 'unbound']


def compose_args(overrides: Sequence[str]) -> dict[str, Any]:
    """Composes and checks a run's values in this process. Raises: ConfigError."""
    register()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(FOLDER), version_base='1.3'):
            config = compose('args', overrides=quoted(overrides), return_hydra_config=True)
            return plain_args(config, config.hydra)
    except Exception as error:
        raise explain(error, overrides) from error


# of Hydra's own grammar; it has no other
FUNCTIONS = ('bool', 'choice', 'extend_list', 'float', 'glob', 'int', 'interval', 'json_str', 'range', 'shuffle', 'sort', 'str', 'tag')
CALL = re.compile(rf'\b(?!(?:{"|".join(FUNCTIONS)})\()[A-Za-z_]\w*\([^()]*\)')


BLOCKS = ('Aug', 'Eyes', 'pool', 'Pi_trunk', 'Q_trunk', 'Pi_head', 'Q_head', 'Generator', 'Discriminator')
MODES = {'true': 'generate', 'yes': 'generate', 'on': 'generate', 'false': 'learn', 'no': 'learn', 'off': 'learn'}  # what generate=… chooses
ALIASES = {'Dataset': 'Dataset._target_', 'TestDataset': 'TestDataset._target_', 'recipes.Aug': 'recipes.aug._target_', 'agent.log': 'agent_log'}


def spelled(override: str) -> str:
    """Another spelling of a key in ours; a part's argument that no default names gets Hydra's ++ (whether the part takes it is checked later)."""
    key, equals, value = override.partition('=')
    if key in ALIASES and not value.startswith('{'):
        key = ALIASES[key]
    if value == 'Null' and (key in BLOCKS or key.endswith('._target_')):  # Hydra would read it as null, the default
        value = 'Blocks.Architectures.Null'
    if key in ('Aug', 'recipes.aug._target_') and value == 'Blocks.Architectures.Null':
        value = 'Blocks.Augmentations.Null'
    if value == 'Utils.load':
        value = 'load'
    return ('++' if key.startswith('recipes.') and key not in defaults() and key.count('.') > 1 else '') + key + equals + value


def quoted(overrides: Sequence[str]) -> list[str]:
    """Puts quotes around schedules, `agent.epsilon=linear(1.0,0.1,500)`, which Hydra would take for calls of its functions, and spells keys our way."""
    parts = [spelled(override).partition('=') for override in overrides]
    given = {key_of(override) for override in overrides}
    # a number of steps by hand wins over a preset's number of passes
    parts += [(passes, '=', 'null') for passes, steps in PASSES.items() if steps in given and passes not in given]
    modes = [value.lower().split(',') for key, _, value in parts if key == 'generate']
    if modes and 'mode' not in given and all(word in MODES for word in modes[-1]):
        parts = [part for part in parts if part[0] != 'generate']
        parts.append(('mode', '=', ','.join(MODES[word] for word in modes[-1])))
    return [key + equals + (value if set(value) & set('\'"{}') else CALL.sub(r"'\g<0>'", value)) for key, equals, value in parts]


def key_of(override: str) -> str:
    return override.lstrip('+~').partition('=')[0]


def swept(overrides: list[str]) -> set[str]:
    """The keys to which the command line gives several values."""
    parser = OverridesParser.create()
    return {key_of(one) for one in overrides if '=' in one and not one.startswith('-') and parser.parse_override(one).is_sweep_override()}


def unbound(overrides: list[str]) -> list[str]:
    """Hydra first composes a sweep without what is swept: a key of the swept task or agent must not be refused there. Each run checks its own."""
    return [f'++{one}' if one.startswith(('agent.', 'environment.', 'aux.', 'explore.')) else one for one in overrides]


def losses_of(overrides: Sequence[str], plug: str = 'aux') -> list[str]:
    """The names of the auxiliary losses that `aux=…` chooses (or of bonuses, by `explore=…`), by all values of a sweep, as often as it names them."""
    chosen = [one.partition('=')[2] for one in overrides if key_of(one) == plug]
    return [name.rpartition('.')[2] for value in chosen for name in re.findall(r'[\w.]+', value)]


def plain_args(config: Any, hydra: Any, swept_losses: Collection[str] = ()) -> dict[str, Any]:
    """Plain containers from a composed config, checked. Adds `agent_name` (canonical) and `plugs` (names other than none).

    Args:
        hydra: its own part of the config, which knows what was chosen.
        swept_losses: those of the other runs of a sweep: their numbers may stand on the command line without having been chosen here."""
    choices, losses = hydra.runtime.choices, losses_of(hydra.overrides.task)
    for plug in PLUGS:
        chosen = losses_of(hydra.overrides.task, plug)
        if twice := {name for name in chosen if chosen.count(name) > 1}:
            raise ConfigError(f'{plug}={",".join(chosen)}: {min(twice)} twice; they are told apart by the names of their classes')
    OmegaConf.set_struct(config, False)
    values: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    values.pop('hydra', None)
    for name in swept_losses:
        if isinstance(values.get('aux'), dict) and isinstance(numbers := values['aux'].get(name), dict) and '_target_' not in numbers:
            del values['aux'][name]
    target = values['agent'].get('_target_') if isinstance(values.get('agent'), dict) else None
    values['agent_name'] = find_agent(str(target)) if target else ''
    if values.get('generate') is True and not losses:
        values['aux'] = {}  # a preset's: generators have no eyes to train
    core = str(choices.get('core', 'none'))
    values['plugs'] = [name for group in PLUGS if isinstance(values.get(group), dict) for name in values[group]] + ([core] if core != 'none' else [])
    check(values)
    return values


def explain(error: BaseException, overrides: Sequence[str]) -> ConfigError:
    """The one line behind an error of composition, with the nearest valid names and where they are set."""
    if isinstance(error, ConfigError):
        return error
    text = str(error)
    missing = getattr(error, 'missing_cfg_file', None)
    if missing:
        group, _, name = str(missing).partition('/')
        return ConfigError(unknown_choice(group, name, getattr(error, 'options', None) or []))
    key = re.search(r"full_key: (\S+)", causes(error)) or re.search(r"Could not override '([^']+)'", text)
    if key:
        chosen = dict(override.split('=', 1) for override in ('task=atari', 'Agent=DQN', *overrides) if '=' in override)
        with contextlib.suppress(ValueError):
            return ConfigError(unknown_key(key[1], chosen['task'].partition('/')[0], find_agent(chosen['Agent'])))
        return ConfigError(unknown_key(key[1]))
    if 'Could not append to config' in text:
        found = re.search(r"'([^']+)'", text)
        return ConfigError(f'+{found[1] if found else ""}: that key exists already; leave the + out')
    for override in overrides:
        if '=' not in override and not override.startswith(('-', '~')):
            return ConfigError(f'{override}: write key=value')
        if override.partition('=')[0] in ('', *GROUPS) and override.partition('=')[2] in ('', 'null', 'Null', 'NULL', '~'):
            return ConfigError(f'{override}: expected a name')
    if 'resolving interpolation' in text:
        return ConfigError('task and Agent: expected one name each, as task=atari/pong; several need -m (or --multirun)')
    if 'Ambiguous value' in text:
        return ConfigError(' '.join(text.partition('\n')[0].split()) + ': several values need -m (or --multirun), a list is written [a,b]')
    if any(sign in text for sign in ('mismatched input', 'no viable alternative', 'token recognition', 'extraneous input', 'LexerNoViableAlt')):
        return ConfigError(f'cannot read the command line: {text.splitlines()[0]} (write key=value; quote values that hold spaces, commas or brackets)')
    return ConfigError(' '.join((text.partition('See https://')[0] or type(error).__name__).split())[:400])


def causes(error: BaseException | None) -> str:
    """The texts of an error and of all that led to it."""
    return f'{error}\n{causes(error.__cause__)}' if error else ''


def unknown_choice(group: str, name: str, options: Sequence[str]) -> str:
    try:
        if group == 'task':
            find_task(name)
        if group == 'Agent':
            find_agent(name)
        if group in PLUGS and '.' in name:
            find_plug(group, name)
    except ValueError as error:
        return str(error)
    options = options or sorted(file.stem for file in (FOLDER / group).glob('*.yaml'))
    close = nearest(name, options) or list(options)
    return f'{group}={name}: no such {group}; nearest: {", ".join(close[:5])} (Hparams/{group}/)'


def help_text() -> str:
    shipped = ', '.join(agents())

    def names(group: str) -> str:
        return ', '.join(sorted(file.stem for file in (FOLDER / group).glob('*.yaml') if file.stem != 'none'))
    return f"""Graft: any agent, any auxiliary loss, any exploration bonus, any memory, from the command line.

  python Run.py [key=value …]        bare: Agent=Agents.DQN task=atari/pong

suites    {', '.join(f'task={suite}/…' for suite in FIND)}
          atari: any game ale-py ships; dmc: any task of dm_control.suite, obs=pixels|state; gym: any Gymnasium id with Box or Discrete spaces
          mario: any id of gym-super-mario-bros, which is installed by hand
agents    {shipped}; your own: Agent=my_package.MyAgent

flags     train_steps=N seed=N num_envs=N          how long, which seed, how many lanes
          experiment=NAME                          runs go to Benchmarking/NAME/
          load=true | overwrite=true               resume this run | replace it
          learn_per_steps=N batch_size=N nstep=N lr=X discount=X
          evaluate_per_steps=N evaluate_episodes=N log_video=true
          save_per_steps=N replay.save=true offline=true
          precision=auto compile=true device=cuda
          profile=torch|line|scalene               where the time goes
          aux=NAME aux=[NAME,NAME] aux.NAME.KEY=…  auxiliary losses, on any agent: {names('aux')}; your own: aux=my_package.MyLoss
          explore=NAME explore.NAME.KEY=…          a bonus for what is new, on any agent: {names('explore')}; your own: explore=my_package.MyBonus
          encoder=auto|pixel|nature|mlp|ofe|identity
          Eyes=NAME Aug=NAME agent.KEY=… +agent.KEY=… environment.KEY=…
          all of them with their meaning: Hparams/args.yaml

examples  python Run.py task=gym/CartPole-v1
          python Run.py task=atari/breakout num_envs=16 precision=auto log_video=true
          python Run.py -m task=atari/pong,atari/boxing seed=1,2,3
"""
