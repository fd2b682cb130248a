"""python Run.py task=… Agent=… — composes an environment, an agent and a replay, and trains. `python Run.py --help` lists what there is."""
from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from Benchmarking.Scalene import launch, runs_under_scalene
from Hparams.Compose import explain, help_text, key_of, losses_of, plain_args, quoted, swept, unbound
from Hparams.Registry import register

if TYPE_CHECKING:
    from Session import Session

# what stands in a run's folder name already
NAMED = ('experiment', 'Agent', 'task', 'aux', 'explore', 'core', 'mode', 'seed', 'root')
GRACE = 20  # seconds that the first of several processes has to tell what all of them found, before another does


def train(session: Session) -> float | None:
    """The loop. One turn is one vector step: `num_envs` agent steps, then the updates and records that fall due.

    Returns:
        The mean score of the last evaluation."""
    while not (session.finished or session.told_to_stop(now=False)):
        if session.clocks['evaluate'].due(session.step):
            session.evaluate()
            if session.told_to_stop():
                break
        session.advance()
        session.records()

    if not session.told_to_stop():  # a resumed run must act before it learns from its last step, as one that was never stopped
        session.learn(after=True)  # what the last steps ask for, and learn_steps_after
    if not session.told_to_stop():
        session.evaluate()
        session.told_to_stop()
    session.finish()
    return session.score


def run(values: dict[str, Any], overrides: str = '', sweep: bool = False) -> float | None:
    """One run from start to end, from plain values (see Hparams.Compose). overrides, sweep: see Session."""
    import Parallel
    from Session import Session  # torch and the simulators load only once the command line is known to be good
    if values['parallel']:
        Parallel.spread(sys.argv[1:])
    session = Session(values, overrides, sweep)
    with session.listening():
        try:
            score = train(session)
        except KeyboardInterrupt:  # asked twice
            sys.exit(128 + (session.stop_signal or signal.SIGINT))
        finally:
            session.close()
    if session.stop_signal:
        sys.exit(128 + session.stop_signal)
    return score


@hydra.main(version_base='1.3', config_path='Hparams', config_name='args')
def composed(config: DictConfig) -> float | None:
    hydra_config = HydraConfig.get()
    job = hydra_config.overrides.task if hydra_config.mode == RunMode.MULTIRUN else []
    own = swept(sys.argv[1:]) | set(hydra_config.sweeper.get('params') or ()) if job else set()  # empty where a launcher began another process: then all are
    own_job = [one.lstrip('+') for one in job if not own or key_of(one) in own]
    try:
        values = plain_args(config, hydra_config, losses_of(sys.argv[1:]) if 'aux' in own else ())
        if values['profile'] == 'scalene' and not runs_under_scalene():
            if job:
                raise ValueError('profile=scalene with -m: scalene profiles one process; one run at a time')
            sys.exit(launch(sys.argv[1:]))
        return run(values, ','.join(one for one in own_job if key_of(one) not in NAMED), sweep=bool(job))
    except Exception as error:  # told here: Hydra would add lines of its own
        tell(error, f'{" ".join(own_job)}: ' if job else '')
        if not job:
            sys.exit(1)
        failed.append(error)  # the other runs of a sweep go on
        return None


failed: list[Exception] = []
untold: list[tuple[Exception, str, str]] = []  # what this process leaves to the first to tell


def main() -> None:
    """The command line: help, one clear line for whatever a user can get wrong, a traceback for what only we can."""
    if {'--help', '-h'} & set(sys.argv[1:]):
        print(help_text())
        return
    failed.clear()
    untold.clear()
    os.environ['HYDRA_FULL_ERROR'] = '1'  # lets the errors of composition through to us
    sys.argv[1:] = quoted(sys.argv[1:])
    if {'-m', '--multirun'} & set(sys.argv[1:]):  # Hydra wants it first
        sys.argv[1:] = ['-m', *unbound([word for word in sys.argv[1:] if word not in ('-m', '--multirun')])]
    register()
    try:
        composed()
    except Exception as error:
        tell(error, line=str(explain(error, sys.argv[1:])))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    else:
        if failed:
            sys.exit(1)
    finally:
        if untold and sys.exc_info()[1]:  # torchrun ends all processes when one ends: the first is to have spoken by then
            time.sleep(GRACE)
            for one in untold:
                tell(*one, left=False)
        if 'Parallel' in sys.modules:
            sys.modules['Parallel'].leave(sys.exc_info()[1])


def tell(error: Exception, job: str = '', line: str = '', left: bool = True) -> None:
    """Says what is wrong. Of several processes that torchrun started, the first tells what all of them find in the command line.

    Args:
        left: to the first, if this is another; it may be that it alone finds it, on another machine."""
    if left and int(os.environ.get('RANK', 0)) and (line or isinstance(error, (ValueError, ImportError))):
        untold.append((error, job, line))
        return
    if type(error).__name__ in ('Gone', 'Elsewhere'):  # said when it was noticed, and by the one whom it happened to
        return
    debug = bool({'debug=true', 'debug=True'} & set(sys.argv))
    if debug or not expected(error):
        traceback.print_exception(error)
    if expected(error):
        line = line or ' '.join(str(error).split()) or type(error).__name__
        print(job + line + ('' if debug else '  (debug=true shows the traceback)'), file=sys.stderr)


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
