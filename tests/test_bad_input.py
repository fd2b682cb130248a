"""What a user can get wrong on the command line: one clear line, nothing written, nothing lost."""
import resource
import subprocess
import sys

import pytest

import Session as session_module
from Blocks.Auxiliary import Auxiliary
from Datasets import Storage
from tests.conftest import ROOT, assert_one_line, lines

REFUSED = {
    # keys
    'train_stepss=3': ('train_stepss: no such key', 'train_steps'),
    'learn_per_step=3': ('learn_per_steps', 'Hparams/args.yaml'),
    'replay.capcity=3': ('replay.capcity', 'replay.capacity'),
    'seed_step=5': ('seed_steps',),
    'agent.depht=2': ('agent.depht', 'agent.depth', '+agent.depht='),
    'environment.life_los=true': ('environment.life_loss',),
    '+foo=1': ('foo: no such key',),
    '+replay.foo=1': ('replay.foo: no such key',),
    '+train_steps=5': ('leave the + out',),
    '~seed': ('seed was taken out',),
    'replay=5': ('replay=5', 'replay.KEY='),
    'agent=5': ('agent=5',),
    'recipes.encoder.eyes=CNN': ('recipes.encoder.eyes._target_=CNN',),
    '+recipes.encoder.eye.depth=1': ('recipes.encoder.eye.depth: no such part', 'recipes.encoder.eyes'),
    'foo': ('foo: write key=value',),
    'train_steps': ('train_steps: write key=value',),
    'a=b=c': ('cannot read the command line',),
    'seed=1,2': ('-m',),
    # names
    'task=atari/pnog': ('task=atari/pnog: no such task', 'atari/pong'),
    'task=atari/breakuot': ('atari/breakout',),
    'task=gym/CartPol-v1': ('gym/CartPole-v1',),
    'task=dmm/cheetah_run': ("no suite 'dmm'", 'atari, dmc, gym'),
    'task=dmc/cheeta_run': ('dmc/cheetah_run',),
    'explore=rnd offline=true': ('explore=rnd: a bonus is given for what is played, offline=true plays nothing; explore=none',),
    'Agent=PPO offline=true': ('offline=true: Agents.PPO learns from what it has just played alone; another agent',),
    'task=atari/pong obs=state': ('obs=state: task=atari/… has no other than obs=pixels',),
    'task=dmc/cheetah_run environment.obs=state': ('environment.obs=state: write obs=state',),
    'obs=images': ('obs=images: expected one of pixels, state',),
    'encoder=conv': ('encoder=conv: expected one of auto, pixel',),
    'task=pong': ("no suite 'pong'",),
    'task=atari': ('which one?', 'atari/'),
    'task=': ('task=',),
    'Agent=Agents.DQNN': ('Agent=Agents.DQNN: no such agent', 'Agents.DQN'),
    'Agent=Rondom': ('Agents.Random',),
    'Agent=null': ('Agent=null: expected a name',),
    'Agent=nowhere.MyAgent': ("no module 'nowhere'",),
    'aux=crul': ('aux=crul: no such aux', 'nearest: curl'),
    'aux=nowhere.MyLoss': ("no module 'nowhere'",),
    'aux=[curl,byool]': ('aux=byool: no such aux', 'byol'),
    'aux=curl aux.curl.wight=2': ('aux.curl.wight', 'aux.curl.weight'),
    'aux=[curl,curl]': ('aux=curl,curl: curl twice',),
    'explore=[rnd,rnd]': ('explore=rnd,rnd: rnd twice',),
    'aux=[tests.test_bad_input.Deaf,tests.scripted.Deaf]': ('Deaf twice',),
    'aux=curl ++aux.byol.weight=1': ('aux.byol: no loss of that name was chosen; write aux=byol',),
    'aux=tests.test_bad_input.Deaf': ('aux.Deaf: Deaf does not take name, seed, weight; its constructor must take **settings',),
    'suite=foo': ('suite=foo', 'task='),
    'task_name=foo': ('task=atari/foo: no such task',),
    # types
    'save=1': ('save=1: expected true or false',),
    'offline=yes': ('offline=yes: expected true or false',),
    'seed=true': ('seed=True: expected a whole number',),
    'seed=1.5': ('seed=1.5: expected a whole number',),
    'train_steps=many': ('train_steps=many: expected a whole number',),
    'train_steps=inf': ('train_steps=inf',),
    'lr=fast': ('lr=fast: expected a number',),
    'lr=null': ('lr=None: expected a number',),
    'reward_clip=abc': ('reward_clip=abc: expected a number',),
    'threads=some': ('threads=some: expected a whole number or auto',),
    'Eyes=5': ('Eyes=5: expected the name of a part',),
    'experiment=null': ('experiment=None: expected a name',),
    # ranges and choices
    'train_steps=1e30': ('train_steps=', 'expected less than 2⁵³'),
    'train_steps=-1': ('train_steps=-1: expected 0 or more',),
    'batch_size=0': ('batch_size=0: expected 1 or more',),
    'evaluate_envs=0': ('evaluate_envs=0: expected 1 or more',),
    'discount=1.1': ('discount=1.1: expected a number from 0 to 1',),
    'lr=nan': ('lr=nan',),
    'grad_clip=-1': ('grad_clip=-1: expected a number above 0',),
    'seed=4294967296': ('seed=4294967296',),
    'precision=fp16': ('precision=fp16: expected one of fp32, bf16, auto',),
    'profile=perf': ('profile=perf: expected one of torch, line, scalene',),
    'profile=torch profile_updates=0': ('profile_updates=0: expected 1 or more',),
    'profile=torch profile_updates=ten': ('profile_updates=ten: expected a whole number',),
    'replay.store=disk': ('replay.store=disk: expected one of auto, map, ram, device',),
    'device=gpu': ('device=gpu: expected auto, cpu, cuda or cuda:N',),
    'experiment=..': ('experiment=..',),
    'plotting.plot_agents="a("': ('plotting.plot_agents', 'no regular expression'),
    'plotting.reference=nowhere.csv': ('plotting.reference=nowhere.csv: no such file',),
    # combinations
    'load=true overwrite=true': ('choose one',),
    'profile_updates=5': ('profile_updates=5: of which profiler? profile=torch, line or scalene',),
    'profile=torch learn_per_steps=0': ('profile=torch: updates are profiled', 'learn_per_steps=0'),
    'profile=torch train_steps=0': ('profile=torch: updates are profiled', 'train_steps=0'),
    'offline=true learn_per_steps=0': ('would do nothing',),
    'offline=true replay.load=true': ('choose one',),
    'evaluate_episodes=10 evaluate_envs=3': ('evaluate_episodes=10', 'evaluate_envs=3'),
    # parts: these need torch to be told, and still no environment
    'Eyes=NatureCN': ('NatureCNN',),
    'Eyes=nowhere.MyEyes': ("Eyes=nowhere.MyEyes: no module 'nowhere'".removeprefix('Eyes='),),
    'Eyes=CNN +recipes.encoder.eyes.dephts=3': ('recipes.encoder.eyes.dephts: CNN has no such argument', 'depth'),
    'Eyes=CNN +recipes.encoder.eyes.depth=deep': ('recipes.encoder.eyes.depth=deep: expected a whole number',),
    'Optim=Addam': ('Adam',),
    'Agent=json.JSONDecoder': ('Agent=json.JSONDecoder: expected a subclass of Agents.Agent.Agent',),
    '+agent.critics=2': ('agent.critics: DQN has no such argument', 'num_critics'),
    'agent.depth=two': ('agent.depth=two: expected a whole number',),
    'agent.double=maybe': ('agent.double=maybe: expected true or false',),
    'agent.exploration=foo': ('agent.exploration=foo: expected epsilon, softmax',),
    'agent.target_tau=slow': ('agent.target_tau=slow: expected a number',),
    'agent.epsilon=liner(1.0,0.1,500)': ('agent.epsilon=liner(1.0,0.1,500): expected a number, linear(a,b,n)',),
    'agent.epsilon=linear(1.0,0.1)': ('agent.epsilon=linear(1.0,0.1)',),
    '+environment.frameskip=2': ('environment.frameskip', 'frame_skip'),
    'environment.life_loss=maybe': ('environment.life_loss=maybe: expected true or false',),
    'environment.noop_max=ten': ('environment.noop_max=ten: expected a whole number',),
    'device=cuda:7': ('device=cuda:7',),
    'load=true': ('load=true: no run in Benchmarking/Exp/DQN/atari/pong_1',),
    'load_path=nowhere': ('load_path=nowhere: no checkpoint there',),
    'replay.load=true': ('replay.load=true: no replay at Benchmarking/Exp/DQN/atari/pong_1/replay', 'python Run.py task=atari/pong replay.save=true'),
    'offline=true replay.wait=0': ('offline=true: no replay at Benchmarking/Exp/DQN/atari/pong_1/replay', 'python Run.py task=atari/pong replay.save=true'),
}


class Deaf(Auxiliary):
    """A loss that takes none of the settings of all losses."""

    def __init__(self, parts):
        super().__init__(parts=parts)


@pytest.mark.parametrize('argv', REFUSED)
def test_refused_in_one_line_before_anything_is_built_or_written(graft, no_env, argv):
    said = graft.main(*(argv.split() if '"' not in argv else [argv]))
    assert_one_line(said, *REFUSED[argv])
    assert graft.files() == []


LATER = {  # told by the part itself, once there is an environment to build it for; still before anything is written
    'Eyes=torch.nn.Identity': ('recipes.encoder.eyes=Identity: a part must tell its output_shape',),
    'agent.depth=-1': ('agent.depth=-1: expected 0 or more',),
    'hidden_dim=1e14': ('Agents.DQN does not fit into memory',),
    'task=gym/Pendulum-v1 agent.dueling=true': ('agent.dueling=True: expected false where actions are continuous',),
    'task=atari/pong +recipes.encoder.eyes.width_=1': ('recipes.encoder.eyes.width_: NatureCNN has no such argument', 'width'),
    'Scheduler=StepLR': ('recipes.encoder.scheduler.step_size',),
    'task=atari/pong environment.preset=foo': ('environment.preset', 'classic or v5'),
    'task=atari/pong environment.sticky_actions=2': ('environment.sticky_actions=2',),
    'task=atari/pong Eyes=CNN +recipes.encoder.eyes.stride=40': ('too small',),
    'task=gym/CartPole Eyes=NatureCNN': ('NatureCNN sees images',),
    'task=gym/Blackjack-v1': ('task=gym/Blackjack-v1: observations are Tuple, expected Box or Discrete',),
    'task=gym/CartPole save=false replay.store=map': ('replay.store=map needs a folder',),
    'replay.store=ram train_steps=1e12 replay.capacity=1e12': ('the replay needs', 'GB', 'lower replay.capacity'),
    'replay.store=map train_steps=1e12 replay.capacity=1e12': ('the replay needs', 'GB on the disk', 'lower replay.capacity'),
}


@pytest.mark.parametrize('argv', LATER)
def test_refused_by_a_part_in_one_line_before_anything_is_written(graft, argv):
    assert_one_line(graft.main(*lines(*argv.split())), *LATER[argv])
    assert graft.files() == []


def test_room_is_looked_for_before_anything_is_allocated(graft, monkeypatch):
    monkeypatch.setattr(Storage, 'free_bytes', lambda where: 1000)
    monkeypatch.setattr(session_module.Replay, '__init__', lambda *args, **options: pytest.fail('a replay was allocated'))
    assert_one_line(graft.main(*lines('replay.store=map')), 'the replay needs 0.00 GB on the disk of Benchmarking/Exp/DQN/gym/CartPole-v1_1/replay')
    assert graft.files() == []


def test_debug_shows_the_traceback(graft):
    said = graft.main('train_stepss=3', 'debug=true')
    assert said.code == 1 and 'Traceback (most recent call last)' in said.err and 'train_stepss: no such key' in said.err


def test_a_defect_of_ours_is_not_dressed_up(graft, monkeypatch):
    monkeypatch.setattr(session_module, 'make', lambda *args, **options: {}['nothing'])
    said = graft.main(*lines())
    assert said.code == 1 and 'Traceback (most recent call last)' in said.err and graft.files() == []


def test_told_at_once(graft):
    """2 s on a quiet machine, where torch alone takes more than 1 (CPU time, as others may be at work). Keys are told before torch is imported."""
    def seconds(*command):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, *command], cwd=graft.home, capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done

    torch_alone, _ = seconds('-c', 'import torch')
    for wrong, nearest, factor in (('train_stepss=3', 'train_steps', 0.9), ('Eyes=NatureCN', 'NatureCNN', 1.8)):
        took, done = seconds(str(ROOT / 'Run.py'), wrong)
        assert done.returncode == 1 and done.stdout == '' and done.stderr.count('\n') == 1 and nearest in done.stderr
        assert took < factor * torch_alone, (took, torch_alone)
    assert graft.files() == []
