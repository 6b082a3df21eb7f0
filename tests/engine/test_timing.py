"""Calls that are timed in turns."""

import time

import pytest
import torch

from bitkd.engine.timing import Latency, measure_latency


def test_a_call_of_twice_the_time_counts_as_half_as_fast():
    found = measure_latency({"one": lambda: time.sleep(0.01), "two": lambda: time.sleep(0.02)}, seconds=0.1)
    assert found["one"].times_faster_than(found["two"]) == pytest.approx(2, rel=0.2)
    assert found["one"].median >= 0.01


def test_all_calls_have_the_same_number_of_rounds_and_take_turns():
    order = []
    found = measure_latency({name: lambda name=name: order.append(name) or time.sleep(0.03) for name in "ab"}, 0)
    assert {len(latency.seconds) for latency in found.values()} == {3}
    assert "".join(order[-6:]) == "ababab"


def test_processor_time_does_not_count_waiting():
    found = measure_latency({"asleep": lambda: time.sleep(0.05)}, 0, cpu_time=True)
    assert found["asleep"].median < 0.02


def test_gradients_are_off():
    seen = []
    measure_latency({"look": lambda: seen.append(torch.is_inference_mode_enabled())}, 0, min_rounds=1)
    assert all(seen)


def test_a_ratio_is_the_median_of_the_rounds_ratios():
    slow = Latency((4.0, 40.0, 8.0))
    assert Latency((1.0, 10.0, 1.0)).times_faster_than(slow) == 4.0
