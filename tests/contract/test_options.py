"""The options of runtime and download are those of docs/contract.md, from the command line and the environment."""

import argparse
from enum import Enum

import pytest

from dedicate_runtime.download.options import build_parser
from dedicate_runtime.settings import _build_parser, parse_settings


def variable_of(option):
    return f"DEDICATE_{option.removeprefix('--').replace('-', '_').upper()}"


class TestRuntimeOptions:
    @pytest.fixture
    def options(self):
        actions = _build_parser({})._actions
        return {action.option_strings[-1]: action for action in actions if action.dest != "help"}

    @pytest.fixture
    def rows(self, contract):
        return {row["option"].strip("`"): row for row in contract.table("Arguments of the runtime")}

    def test_names(self, options, rows):
        assert list(options) == list(rows)

    def test_defaults(self, options, rows):
        for name, row in rows.items():
            action, told = options[name], row["default"]
            if told == "required":
                assert action.required, name
            elif told == "off":
                assert isinstance(action, argparse._StoreTrueAction), name
                assert action.default is False, name
            elif action.default is None:
                # What is worked out from elsewhere is described in words.
                assert told.split()[0] in {"none", "derived", "the", "sized"}, name
            else:
                assert told.strip("`") == str(action.default), name

    def test_choices_are_all_told(self, options, rows):
        chosen = set()
        for name, action in options.items():
            for choice in getattr(action.type, "__closure__", None) or ():
                kind = choice.cell_contents
                if isinstance(kind, type) and issubclass(kind, Enum):
                    chosen.add(name)
                    for member in kind:
                        assert f"`{member.value}`" in rows[name]["default"] + rows[name]["meaning"], name
        assert chosen >= {"--dtype", "--device", "--auth", "--log-level"}

    def test_each_may_come_from_the_environment(self, options, tmp_path):
        """By variable it means what it means as an argument, and neither is the default."""
        keys, other_keys = tmp_path / "keys", tmp_path / "other"
        keys.mkdir()
        other_keys.mkdir()
        start = {"--model": "hf://a/b", "--dedicate": "chat", "--auth": "none", "--api-keys-dir": str(keys)}
        values = {
            "--model": "hf://a/c",
            "--dedicate": "other",
            "--dtype": "float16",
            "--quantization": "int8",
            "--attention-backend": "torch",
            "--device": "cpu",
            "--sampling-defaults": "model",
            "--auth": "api-key",
            "--api-keys-dir": str(other_keys),
            "--log-level": "debug",
        }
        default = parse_settings([], {variable_of(option): value for option, value in start.items()})
        for name, action in options.items():
            is_flag = action.nargs == 0
            value = "true" if is_flag else values.get(name, "64")
            arguments = start | {name: value}
            by_argument = [word for option, given in arguments.items() for word in (option, given)]
            by_variable = {variable_of(option): given for option, given in arguments.items()}
            if is_flag:
                by_argument.pop()
            found = parse_settings([], by_variable)
            assert found == parse_settings(by_argument, {}), name
            assert found != default, name


class TestDownloadOptions:
    @pytest.fixture
    def options(self):
        actions = build_parser({})._actions
        return {action.option_strings[-1]: action for action in actions if action.dest != "help"}

    @pytest.fixture
    def rows(self, contract):
        return {row["option"].strip("`"): row["default"] for row in contract.table("Arguments of the download")}

    def test_names(self, options, rows):
        assert list(options) == list(rows)

    def test_defaults(self, options, rows):
        for name, told in rows.items():
            default = options[name].default
            if default is None:
                assert told in {"none", "the default branch", "required"}, name
            else:
                assert told.strip("`") == ("off" if default is False else default), name

    def test_each_may_come_from_the_environment(self, options):
        examples = {"--model": "hf://a/b", "--verify": "all", "--log-level": "debug"}
        for name in options:
            found = build_parser({variable_of(name): examples.get(name, "1")}).parse_args([])
            assert str(getattr(found, name.removeprefix("--").replace("-", "_"))) in {examples.get(name, "1"), "True"}
