"""Where the kernels come from, and what is said where they cannot be had."""

from __future__ import annotations

import pytest

from dedicate_runtime.worker.native.build import INSTRUCTION_SETS, CompileError, compile_library, library_name
from dedicate_runtime.worker.native.library import NativeUnavailableError, load_kernels, usable_instruction_sets


def test_the_best_usable_library_is_loaded():
    assert load_kernels().instruction_set == usable_instruction_sets()[0].name


def test_an_instruction_set_of_another_machine_is_refused():
    usable = {one.name for one in usable_instruction_sets()}
    foreign = next(one.name for one in INSTRUCTION_SETS if one.name not in usable)
    with pytest.raises(NativeUnavailableError, match=f"no instruction set {foreign}"):
        load_kernels(foreign)


def test_every_library_has_a_name_of_its_own():
    assert len({library_name(one) for one in INSTRUCTION_SETS}) == len(INSTRUCTION_SETS)


def test_a_library_that_is_there_is_not_compiled_again(tmp_path, monkeypatch):
    instructions = usable_instruction_sets()[0]
    (tmp_path / library_name(instructions)).write_bytes(b"compiled")
    monkeypatch.setenv("CXX", "/nowhere/c++")
    assert compile_library(instructions, tmp_path).read_bytes() == b"compiled"


@pytest.mark.parametrize(("compiler", "told"), [("/nowhere/c++", "No such file"), ("false", "failed: exit code 1")])
def test_a_compiler_that_fails_leaves_nothing_behind(tmp_path, monkeypatch, compiler, told):
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(CompileError, match=told):
        compile_library(usable_instruction_sets()[0], tmp_path)
    assert not list(tmp_path.iterdir())


def test_no_compiler_is_told(tmp_path, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CompileError, match=r"none of c\+\+, g\+\+, clang\+\+ is installed"):
        compile_library(usable_instruction_sets()[0], tmp_path / "libraries")
