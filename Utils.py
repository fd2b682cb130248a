"""Small things everything uses: seeds, schedules, building a part from a recipe, one `optimise`, moving averages."""
from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import inspect
import math
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import Parallel


class Args(dict[str, Any]):
    """Plain nested configuration with attribute access: what is left of Hydra below Run.py."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__({key: Args(value) if isinstance(value, Mapping) else value for key, value in values.items()})

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


# --- randomness: every component draws from a stream of its own

def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed that depends on the run's seed and on who asks; the streams of two names are independent."""
    words = [seed & 0xFFFFFFFF] + [zlib.crc32(str(name).encode()) for name in names]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0]) >> 1


def generator(seed: int, *names: str | int, device: torch.device | str = 'cpu') -> torch.Generator:
    return torch.Generator(device).manual_seed(derive_seed(seed, *names))


# --- schedules

def schedule(text: str | float, key: str = 'schedule') -> Callable[[int], float]:
    """A function of the agent step (or any counter) from its notation.

    A number is constant; `linear(a,b,n)` goes from a to b over n steps and stays; `step_linear(a,b,n,c,m)` then from b to c over m more.

    Args:
        key: where it is set, for the message.

    Raises:
        ValueError: the notation is none of these."""
    with contextlib.suppress(ValueError, TypeError):
        constant = float(text)
        if math.isfinite(constant):
            return lambda step: constant
    found = re.fullmatch(r'\s*(linear|step_linear)\(([^()]*)\)\s*', str(text))
    try:
        numbers = [float(number) for number in found[2].split(',')] if found else []
    except ValueError:
        numbers = []
    if found and found[1] == 'linear' and len(numbers) == 3:
        a, b, n = numbers
        return lambda step: a + (b - a) * min(1.0, step / n) if n > 0 else b
    if found and found[1] == 'step_linear' and len(numbers) == 5:
        a, b, n, c, m = numbers
        return lambda step: a + (b - a) * step / n if step < n else b + (c - b) * min(1.0, (step - n) / m) if m > 0 else c
    raise ValueError(f'{key}={text}: expected a number, linear(a,b,n) or step_linear(a,b,n,c,m)')


# --- building parts from recipes

# where a short name is looked up, by the last part of its config key: `Null` is an augmentation as `Aug`, an architecture elsewhere
SHORT_NAMES = {'aug': 'Blocks.Augmentations', 'views': 'Blocks.Augmentations', 'optim': 'torch.optim', 'scheduler': 'torch.optim.lr_scheduler'}


def locate(name: str, where: str = '') -> Any:
    """The class or function behind a short (`NatureCNN`) or dotted (`my_package.MyEyes`) name.

    Raises:
        ValueError: nothing has that name; the message has the nearest and `where` it is set."""
    if str(Path.cwd()) not in sys.path:  # a user's own file beside the run
        sys.path.insert(0, str(Path.cwd()))
    module, attribute = split_name(name, SHORT_NAMES.get(where.rpartition('.')[2], 'Blocks.Architectures'))
    place = import_place(module, name, where)
    found = getattr(place, attribute, None)
    if found is None and hasattr(place, '__path__') and importlib.util.find_spec(f'{place.__name__}.{attribute}'):
        found = importlib.import_module(f'{place.__name__}.{attribute}')
    if inspect.ismodule(found):  # Agents.DQN is the class of that name in the file of that name
        found = getattr(found, attribute, None)
    if inspect.isclass(found) or ('.' in name and callable(found)):
        return found
    top = place.__name__.partition('.')[0]
    choices = {choice.lower(): choice for choice, value in vars(place).items() if inspect.isclass(value) and value.__module__.partition('.')[0] == top}
    close = [choices[match] for match in difflib.get_close_matches(attribute.lower(), choices, n=3, cutoff=0.4)]
    raise ValueError(f'{where}={name}: no such name; nearest: {", ".join(close or sorted(choices.values())[:8])}')


def split_name(name: str, package: str) -> tuple[str, str]:
    """Module and attribute of a name. package: where short names are; `DCGAN.Generator` is in its module DCGAN, unless there is a module of that name."""
    first, _, rest = name.partition('.')
    if package == 'Blocks.Architectures' and first == 'timm' and rest:
        return f'{package}.Timm', rest  # not timm itself, whose networks do not tell their output_shape; their names may have dots
    module, _, attribute = name.rpartition('.')
    if not module:
        return package, attribute
    if first and first not in sys.modules and importlib.util.find_spec(first) is None \
            and hasattr(importlib.import_module(package), '__path__') and importlib.util.find_spec(f'{package}.{first}'):
        return f'{package}.{module}', attribute
    return module, attribute


def import_place(place: str, name: str, where: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not (place + '.').startswith(error.name + '.'):
            raise  # the module is there, something that it imports is not
        raise ValueError(f'{where}={name}: no module {error.name!r} in this folder or on PYTHONPATH') from None


def accepted(target: Callable[..., Any]) -> tuple[set[str], bool]:
    """Names of the parameters of `target`, and whether it takes any keyword. A class that passes keywords on takes its base's too."""
    names: set[str] = set()
    classes = target.__mro__ if inspect.isclass(target) else ()
    functions = [vars(c)['__init__'] for c in classes if '__init__' in vars(c) and c not in (object, nn.Module)] if classes else [target]
    for function in functions:
        parameters = inspect.signature(function).parameters.values()
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} - {'self'}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return names, False
    return names, bool(functions)


def check_arguments(recipe: Mapping[str, Any], where: str, default: str = '') -> None:
    """Refuses what `build` would refuse, without building. Raises: ValueError."""
    name = recipe.get('_target_') or default
    if name:
        refuse_unknown(recipe, locate(name, where), where)


def refuse_unknown(recipe: Mapping[str, Any], target: Callable[..., Any], where: str, hide: Iterable[str] = ()) -> None:
    names, anything = accepted(target)
    for key in recipe:
        if key not in names and not anything and key != '_target_':
            close = difflib.get_close_matches(key, names, n=3, cutoff=0.3) or sorted(names - set(hide))
            raise ValueError(f'{where}.{key}: {target.__name__} has no such argument; nearest: {", ".join(close)}')


def build(recipe: Mapping[str, Any] | None, default: str, where: str, **given: Any) -> Any:
    """Builds the part that a recipe names, or `default`.

    Args:
        recipe: `_target_` (or null) and constructor arguments; these must exist.
        where: the recipe's config key, for messages.
        given: arguments that the caller offers; those the constructor does not know are left out.

    Raises:
        ValueError: an unknown name or argument, or one that is missing."""
    chosen = dict(recipe or {})
    target = locate(chosen.pop('_target_', None) or default, where)
    refuse_unknown(chosen, target, where, hide=given)
    names, anything = accepted(target)
    arguments = {key: value for key, value in given.items() if key in names or anything} | chosen
    needed = [p.name for p in inspect.signature(target).parameters.values() if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if missing := [name for name in needed if name not in arguments]:
        raise ValueError(f'{where}: {target.__name__} also needs {", ".join(f"{where}.{name}" for name in missing)}')
    return target(**arguments)


def filled(recipes: Any, obs_shape: list[int]) -> Any:
    """Recipes in which `${obs_shape}` is what the task shows."""
    if isinstance(recipes, Mapping):
        return {key: filled(value, obs_shape) for key, value in recipes.items()}
    return obs_shape if recipes == '<obs_shape>' else recipes


def require(good: bool, key: str, value: object, expected: str) -> None:
    if not good:
        raise ValueError(f'{key}={value}: expected {expected}')


# --- learning

NO_NORM = torch.tensor(math.nan)


class NonFinite(ArithmeticError):
    """A loss is NaN or infinite. Raised before the weights are touched."""

    def __init__(self, loss: str, value: float, where: str = '') -> None:
        super().__init__(f'{loss} is {value}{where}')
        self.loss, self.value = loss, value


def optimise(loss: Tensor, *blocks: Any, name: str = 'loss', grad_clip: float | None = None, schedule: bool = True) -> Tensor:
    """One step of every block's optimiser on a scalar loss, and on the losses that join a block's steps; the one place where gradients become weights.

    Args:
        blocks: Blocks.Block, equipped.
        schedule: learning-rate schedules move on too; not where another step of the same update is to follow.

    Returns:
        The norm of the gradient before it was clipped; NaN where it is not clipped.

    Raises:
        NonFinite: the loss is not finite (checked on CPU, where reading it costs nothing; on an accelerator the run checks what it logs)."""
    if loss.device.type == 'cpu' and not math.isfinite(value := loss.item()):
        raise NonFinite(name, value)
    for block in blocks:
        block.optim.zero_grad(set_to_none=True)
    loss.backward()
    parameters = [p for block in blocks for group in block.optim.param_groups for p in group['params']] if grad_clip or Parallel.world_size > 1 else []
    Parallel.average_gradients(parameters)
    for block in blocks:
        if block.joining:
            block.join()
    norm = nn.utils.clip_grad_norm_(parameters, grad_clip) if grad_clip else NO_NORM
    for block in blocks:
        block.optim.step()
        if schedule and block.scheduler is not None:
            block.scheduler.step()
        for other in block.joining:
            other.follow()
    return norm


@torch.no_grad()
def follow(target: nn.Module, online: nn.Module, tau: float) -> None:
    """target ← (1 − tau) · target + tau · online, parameters by name; buffers are copied."""
    online_parameters = dict(online.named_parameters())
    pairs = [(p, online_parameters[name]) for name, p in target.named_parameters()]
    if pairs:
        targets, onlines = map(list, zip(*pairs, strict=True))
        if tau == 1:
            torch._foreach_copy_(targets, onlines)
        else:
            torch._foreach_lerp_(targets, onlines, tau)
    online_buffers = dict(online.named_buffers())
    for name, buffer in target.named_buffers():
        buffer.copy_(online_buffers[name])


# --- the machine

def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one. Raises: ValueError when the device asked for is not there."""
    if name == 'auto':
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    device = torch.device(name)
    if device.type == 'cuda' and not (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()):
        raise ValueError(f'device={name}: torch sees {torch.cuda.device_count()} CUDA devices here')
    if device.type == 'mps' and not torch.backends.mps.is_available():
        raise ValueError(f'device={name}: torch sees no such device here')
    return device


def has_bf16(device: torch.device) -> bool:
    """Whether the device has units for bf16; without them it is imitated, on a CPU some fifty times slower than fp32."""
    if device.type == 'cuda':
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if device.type == 'cpu' else {}
    return bool(capabilities.get('avx512_bf16') or capabilities.get('amx_bf16') or capabilities.get('bf16'))


def free_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def torch_threads(args: Args, images: bool) -> int:
    """Convolutions take every free core, small vectors one: two threads would wait for each other longer than they work."""
    if args.threads != 'auto':
        return int(args.threads)
    return int(os.environ.get('OMP_NUM_THREADS') or (max(1, free_cores() // Parallel.here()) if images else 1))


def env_threads(args: Args) -> int:
    """Threads of a native vector env: no more than lanes or cores."""
    return max(1, min(free_cores() // Parallel.here(), args.num_envs)) if args.env_threads == 'auto' else args.env_threads
