"""What decides which environment is used, and how a failed install is told."""

import dataclasses
import json

import pytest

from dev.environments import EnvironmentUnavailableError, NodeEnvironment, PythonEnvironment


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dedicate" / "environments"


@pytest.fixture
def python(tmp_path, cache):
    lock = tmp_path / "lock.txt"
    lock.write_text("")
    return PythonEnvironment(name="none", lock=lock, module="json")


@pytest.fixture
def node(tmp_path, python):
    source = tmp_path / "node"
    source.mkdir()
    (source / "package.json").write_text(json.dumps({"name": "none", "private": True}))
    (source / "package-lock.json").write_text("{}")
    return NodeEnvironment(name="node", source=source, python=python)


def test_the_lock_decides_the_folder(python, cache):
    before = python.folder
    assert before.parent == cache
    python.lock.write_text("# changed\n")
    assert python.folder != before


def test_what_else_decides_the_folder(python, tmp_path):
    header, constraints = tmp_path / "header.h", tmp_path / "build.txt"
    header.write_text("#pragma once\n")
    constraints.write_text("# none\n")
    changes = (
        {"build_files": (header,)},
        {"build_constraints": constraints},
        {"build_settings": {"JOBS": "1"}},
        {"known_as": ("other", "1")},
    )
    folders = [python.folder, *(dataclasses.replace(python, **change).folder for change in changes)]
    assert len(set(folders)) == len(folders)


def test_node_packages_depend_on_both_locks(node):
    folders = [node.folder]
    (node.source / "package-lock.json").write_text("{} ")
    folders.append(node.folder)
    node.python.lock.write_text("# another Node\n")
    folders.append(node.folder)
    assert len(set(folders)) == 3


def test_an_environment_is_made_once(python, capsys):
    """An empty lock: a bare interpreter, which takes no network."""
    folder = python.ensure()
    assert python.python.exists()
    assert "Installing none" in capsys.readouterr().err
    assert python.ensure() == folder
    assert capsys.readouterr().err == ""


def test_a_module_that_does_not_load_makes_it_unavailable(python):
    broken = dataclasses.replace(python, module="no_such_module")
    with pytest.raises(EnvironmentUnavailableError, match="no_such_module"):
        broken.ensure()


def test_an_interrupted_install_is_begun_again(python):
    python.folder.mkdir(parents=True)
    (python.folder / "half").touch()
    python.ensure()
    assert not (python.folder / "half").exists()


def test_a_missing_node_makes_it_unavailable(node):
    with pytest.raises(EnvironmentUnavailableError, match="node cannot be installed"):
        node.ensure()
