"""What follows from tensors that do not change is computed once, and never from other tensors."""

from __future__ import annotations

import gc
import subprocess
import sys

import torch

from unmask.derived import derived


def test_computed_once_for_the_same_tensors() -> None:
    a, b, made = torch.zeros(3), torch.zeros(3), []

    def make() -> int:
        made.append(1)
        return len(made)

    assert [derived("x", make, a, b) for _ in range(3)] == [1, 1, 1]
    assert derived("y", make, a, b) == 2  # another key
    assert derived("x", make, b, a) == 3  # other tensors, equal in value
    assert derived("x", make, a) == 4
    assert derived("x", make, a, b) == 1


def test_a_tensor_that_was_written_to_is_another() -> None:
    a, b = torch.zeros(3), torch.zeros(3)
    first = derived("sum", lambda: float(a.sum() + b.sum()), a, b)
    a[0] = 1
    second = derived("sum", lambda: float(a.sum() + b.sum()), a, b)
    b[0] = 5
    assert (first, second, derived("sum", lambda: float(a.sum() + b.sum()), a, b)) == (0.0, 1.0, 6.0)


def test_a_tensor_that_died_is_never_mistaken_for_a_new_one() -> None:
    a = torch.zeros(3)
    for value in range(200):  # the allocator gives many of these the same address
        other = torch.full((2,), float(value))
        assert derived("value", lambda other=other: float(other[0]), a, other) == value
        del other
        gc.collect(0)


def test_values_die_with_their_tensor() -> None:
    class Value:
        pass

    import weakref

    a = torch.zeros(3)
    ref = weakref.ref(derived("value", Value, a))
    assert ref() is not None
    del a
    gc.collect()
    assert ref() is None


def test_inference_tensors_are_not_remembered() -> None:
    with torch.inference_mode():
        a = torch.zeros(3)
        assert derived("x", lambda: 1, a) == 1
        assert derived("x", lambda: 2, a) == 2


def test_a_program_that_ends_says_nothing_of_what_was_remembered() -> None:
    """Tensors that outlive the module at the end of a program are forgotten without an error."""
    program = (
        "import sys, torch; from unmask.derived import derived; sys.kept = torch.zeros(1); derived(1, list, sys.kept)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
