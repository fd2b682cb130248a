"""Own times of operations: beside torch's own table, and by hand."""
import resource
import time
from dataclasses import dataclass

import pytest
import torch
from torch.autograd import DeviceType

from Benchmarking.OwnTimes import own_times


@dataclass
class Event:
    """What is read of a `_KinetoEvent`."""

    label: str
    start: int
    end: int
    thread: int = 1
    ends_in: int | None = None
    device: DeviceType = DeviceType.CPU
    number: int = 0
    linked: int = 0
    asynchronous: bool = False

    def name(self):
        return self.label

    def start_ns(self):
        return self.start

    def end_ns(self):
        return self.end

    def duration_ns(self):
        return self.end - self.start

    def start_thread_id(self):
        return self.thread

    def end_thread_id(self):
        return self.thread if self.ends_in is None else self.ends_in

    def device_type(self):
        return self.device

    def correlation_id(self):
        return self.number

    def linked_correlation_id(self):
        return self.linked

    def is_async(self):
        return self.asynchronous


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
    events = [Event('kernel', 40, 340, device=gpu, linked=7), Event('kernel', 340, 350, device=gpu, linked=7), Event('kernel', 350, 400, device=gpu, linked=8),
              Event('a copy that nobody asked for', 0, 9, device=gpu, linked=99), Event('graft: act', 0, 100), Event('linear', 10, 50, number=5),
              Event('addmm', 20, 40, number=7), Event('launch', 30, 38, number=70, linked=7), Event('relu', 50, 60, number=8),
              Event('linear', 100, 130, number=6), Event('linear', 0, 1000, thread=2, number=9),
              Event('[memory]', 25, 25), Event('wanders', 0, 100, thread=1, ends_in=2),
              Event('waits', 0, 100, asynchronous=True)]
    ours = {name: (one.own, one.whole, one.device, one.calls) for name, one in own_times(events).items()}
    assert ours == {'graft: act': (50, 100, 0, 1), 'linear': (20 + 30 + 1000, 1070, 0, 3), 'addmm': (12, 20, 310, 1), 'launch': (8, 8, 0, 1),
                    'relu': (10, 10, 50, 1)}


def test_an_operation_within_one_of_its_name_and_of_its_very_span():
    ours = own_times([Event('add', 0, 10), Event('add', 2, 6), Event('outer', 20, 30), Event('inner', 20, 30), Event('empty', 30, 30)])
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
