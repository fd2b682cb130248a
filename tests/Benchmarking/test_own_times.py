"""Own times of operations: beside torch's own table, and by hand."""
import resource
import time
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from Benchmarking.OwnTimes import own_times


def event(name, start, end, thread=1, ends_in=None, device=DeviceType.CPU, number=0, linked=0, asynchronous=False):
    """What is read of a `_KinetoEvent`."""
    told = {'name': name, 'start_ns': start, 'end_ns': end, 'duration_ns': end - start, 'start_thread_id': thread, 'end_thread_id': ends_in or thread,
            'device_type': device, 'correlation_id': number, 'linked_correlation_id': linked, 'is_async': asynchronous}
    return SimpleNamespace(**{key: lambda value=value: value for key, value in told.items()})


def profiled(turns: int) -> torch.profiler.profile:
    """Forward and backward, in two threads: autograd has one of its own for the device."""
    net, x = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)), torch.randn(8, 16)
    profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True, profile_memory=True)
    with profile:
        for _ in range(turns):
            with torch.profiler.record_function('graft: learn'):
                net(x).square().mean().backward()
    return profile


def test_on_a_cpu_it_is_torchs_own_table():
    profile = profiled(20)
    ours = own_times(profile.profiler.kineto_results.events())
    theirs = {one.key: one for one in profile.key_averages() if one.key != '[memory]'}
    assert set(ours) == set(theirs) and len(ours) > 30
    for name, one in theirs.items():
        assert ours[name].calls == one.count, name
        assert ours[name].own / 1e3 == pytest.approx(one.self_cpu_time_total, abs=1e-2), name  # µs
        assert ours[name].whole / 1e3 == pytest.approx(one.cpu_time_total, abs=1e-2), name


def test_worked_by_hand_with_kernels():
    gpu = DeviceType.CUDA
    events = [
        event('kernel', 40, 340, device=gpu, linked=7), event('kernel', 340, 350, device=gpu, linked=7), event('kernel', 350, 400, device=gpu, linked=8),
        event('a copy that nobody asked for', 0, 9, device=gpu, linked=99), event('graft: act', 0, 100), event('linear', 10, 50, number=5),
        event('addmm', 20, 40, number=7), event('relu', 50, 60, number=8), event('launch', 30, 38, number=8, linked=7),  # the driver counts for itself
        event('linear', 100, 130, number=6), event('linear', 0, 1000, thread=2, number=9), event('[memory]', 25, 25),
        event('profiler::_record_function_enter_new', 1, 3), event('wanders', 0, 100, thread=1, ends_in=2), event('waits', 0, 100, asynchronous=True)]
    ours = {name: (one.own, one.whole, one.device, one.calls) for name, one in own_times(events).items()}
    assert ours == {'graft: act': (50, 100, 0, 1), 'linear': (20 + 30 + 1000, 1070, 0, 3), 'addmm': (12, 20, 310, 1), 'launch': (8, 8, 0, 1),
                    'relu': (10, 10, 50, 1)}


def test_an_operation_within_one_of_its_name_and_of_its_very_span():
    ours = own_times([event('add', 0, 10), event('add', 2, 6), event('outer', 20, 30), event('inner', 20, 30), event('empty', 30, 30)])
    told = {name: (one.own, one.whole, one.calls) for name, one in ours.items()}
    assert told == {'add': (10, 10, 1), 'outer': (0, 10, 1), 'inner': (10, 10, 1), 'empty': (0, 0, 1)}


def test_a_long_profile_needs_little():
    """Beside torch's table of the same events, which took 5 kB of each."""
    profile = profiled(80)
    events = profile.profiler.kineto_results.events()
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    own_times(events)
    ours, took = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, time.process_time() - began
    began = time.process_time()
    profile.key_averages()
    assert ours < 1024 * len(events) / 1000 and took < (time.process_time() - began) / 3
