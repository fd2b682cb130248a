"""python Run.py task=… Agent=… — composes an environment, an agent and a replay, and trains. `python Run.py --help` lists what there is."""
from __future__ import annotations

import os
import signal
import sys
import traceback
from typing import TYPE_CHECKING, Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from Hparams.Compose import explain, help_text, plain_args, quoted
from Hparams.Registry import register

if TYPE_CHECKING:
    from Session import Session

# what a multirun need not repeat in a run's folder name: it stands there already, or says only how to start
NAMED = ('experiment', 'Agent', 'task', 'aux', 'explore', 'core', 'seed', 'load', 'overwrite', 'debug', 'root')


def train(session: Session) -> float | None:
    """The loop. One turn is one vector step: `num_envs` agent steps, then the updates and records that fall due.

    Returns:
        The mean score of the last evaluation."""
    while not (session.finished or session.stopping):
        if session.clocks['evaluate'].due(session.step):
            session.evaluate()
        if session.stopping:
            break
        session.advance()
        session.records()

    if not session.stopping:  # a resumed run must act before it learns from its last step, as one that was never stopped
        session.learn(after=True)  # what the last steps ask for, and learn_steps_after
    if not session.stopping:
        session.evaluate()
    session.finish()
    return session.score


def run(values: dict[str, Any], overrides: str = '') -> float | None:
    """One run from start to end, from plain values (see Hparams.Compose)."""
    from Session import Session  # torch and the simulators load only once the command line is known to be good
    session = Session(values, overrides)
    before = {number: signal.signal(number, session.stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        score = train(session)
    except KeyboardInterrupt:  # asked twice
        sys.exit(128 + (session.stop_signal or signal.SIGINT))
    finally:
        session.close()
        for number, handler in before.items():
            signal.signal(number, handler)
    if session.stop_signal:
        sys.exit(128 + session.stop_signal)
    return score


@hydra.main(version_base='1.3', config_path='Hparams', config_name='args')
def composed(config: DictConfig) -> float | None:
    hydra_config = HydraConfig.get()
    swept = hydra_config.mode == RunMode.MULTIRUN
    others = [override for override in hydra_config.overrides.task if override.lstrip('+~').partition('=')[0] not in NAMED] if swept else []
    try:
        return run(plain_args(config, hydra_config.runtime.choices), ','.join(others))
    except Exception as error:  # told here: Hydra would add lines of its own
        fail(error)


def main() -> None:
    """The command line: help, one clear line for whatever a user can get wrong, a traceback for what only we can."""
    if {'--help', '-h'} & set(sys.argv[1:]):
        print(help_text())
        return
    os.environ['HYDRA_FULL_ERROR'] = '1'  # lets the errors of composition through to us
    sys.argv[1:] = quoted(sys.argv[1:])
    register()
    try:
        composed()
    except Exception as error:
        fail(error, str(explain(error, sys.argv[1:])))
    except KeyboardInterrupt:
        sys.exit(130)


def fail(error: Exception, line: str = '') -> NoReturn:
    debug = bool({'debug=true', 'debug=True'} & set(sys.argv))
    if debug or not expected(error):
        traceback.print_exception(error)
    if expected(error):
        line = line or ' '.join(str(error).split()) or type(error).__name__
        print(line + ('' if debug else '  (debug=true shows the traceback)'), file=sys.stderr)
    sys.exit(1)


def expected(error: BaseException) -> bool:
    """Whether the error is about what was asked for, or the machine, rather than a defect of ours."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    kinds: tuple[type[BaseException], ...] = (ValueError, OSError, ImportError, HydraException, OmegaConfBaseException, ArithmeticError, MemoryError)
    if 'Environment' in sys.modules:
        kinds += (sys.modules['Environment'].EnvError,)
    return isinstance(error, kinds)


if __name__ == '__main__':
    main()
