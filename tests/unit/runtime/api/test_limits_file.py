"""The file of limits: what it means, each way in which it can be wrong, and how it is read again."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from dedicate_runtime.api.limits import LimitPolicy, Limits
from dedicate_runtime.api.limits_file import LimitsError, LimitsFile, parse_limits

NO_TAG = "could not determine a constructor for the tag"
HIGHEST = 10**9
FIELDS = "there are requestsPerMinute, tokensPerMinute, concurrentRequests"
WHOLE = f"must be a whole number from 1 to {HIGHEST}, or unlimited"


def test_a_clients_entry_overrides_the_default_field_by_field():
    policy = parse_limits(
        b"""
        default: {requestsPerMinute: 60, tokensPerMinute: 20000, concurrentRequests: 4}
        keys:
          alice: {tokensPerMinute: 100000}
          bob: {requestsPerMinute: unlimited}
          "42": {}
        """
    )
    default = Limits(requests_per_minute=60, tokens_per_minute=20000, concurrent_requests=4)
    assert policy.of("alice") == Limits(requests_per_minute=60, tokens_per_minute=100000, concurrent_requests=4)
    assert policy.of("bob") == Limits(tokens_per_minute=20000, concurrent_requests=4)
    assert policy.of("42") == policy.of("anybody else") == policy.of("") == default


@pytest.mark.parametrize("content", ["{}", "default: {}", "keys: {}", "# nothing\n{}"])
def test_nothing_in_it_limits_nothing(content):
    assert parse_limits(content.encode()).of("alice") == Limits()


def test_anchors_and_merges_are_yaml_too():
    policy = parse_limits(b"default: &team {requestsPerMinute: 5}\nkeys: {a: {<<: *team, tokensPerMinute: 7}}")
    assert policy.of("a") == Limits(requests_per_minute=5, tokens_per_minute=7)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "it is empty; write {} for no limits."),
        ("# only a comment", "it is empty; write {} for no limits."),
        ("[]", "the document must be a mapping, not []."),
        ("60", "the document must be a mapping, not 60."),
        ("defaults: {}", "defaults is no field; there are default, keys."),
        ("default:", "default must be a mapping, not None."),
        ("default: 60", "default must be a mapping, not 60."),
        ("keys: [alice]", "keys must be a mapping, not ['alice']."),
        ("keys: {alice: 60}", "keys.alice must be a mapping, not 60."),
        ("keys: {alice:}", "keys.alice must be a mapping, not None."),
        ("keys: {42: {}}", "keys: 42 must be a string: put it in quotes."),
        ("keys: {no: {}}", "keys: False must be a string: put it in quotes."),
        (
            "default: {requests_per_minute: 1}",
            f"default.requests_per_minute is no field; {FIELDS}.",
        ),
        (
            "keys: {a: {requestsperminute: 1}}",
            f"keys.a.requestsperminute is no field; {FIELDS}.",
        ),
        ("default: {requestsPerMinute: 0}", f"default.requestsPerMinute {WHOLE}, not 0."),
        ("default: {requestsPerMinute: -1}", f"default.requestsPerMinute {WHOLE}, not -1."),
        ("default: {requestsPerMinute: 1.5}", f"default.requestsPerMinute {WHOLE}, not 1.5."),
        ("default: {requestsPerMinute: .inf}", f"default.requestsPerMinute {WHOLE}, not inf."),
        ("default: {requestsPerMinute: true}", f"default.requestsPerMinute {WHOLE}, not True."),
        ("default: {requestsPerMinute: '60'}", f"default.requestsPerMinute {WHOLE}, not '60'."),
        ("default: {requestsPerMinute: 1e3}", f"default.requestsPerMinute {WHOLE}, not '1e3'."),
        ("default: {requestsPerMinute:}", f"default.requestsPerMinute {WHOLE}, not None."),
        ("default: {tokensPerMinute: 1000000001}", f"default.tokensPerMinute {WHOLE}, not 1000000001."),
        ("keys: {a: {concurrentRequests: []}}", f"keys.a.concurrentRequests {WHOLE}, not []."),
        ("default: {tokensPerMinute: 1, tokensPerMinute: 2}", "line 1 is no valid YAML: tokensPerMinute stands twice."),
        ("keys:\n  a: {}\n  b: {}\n  a: {}\n", "line 4 is no valid YAML: a stands twice."),
        ("default: {}\ndefault: {}", "line 2 is no valid YAML: default stands twice."),
        ("default: {\nkeys", "line 2 is no valid YAML: expected ',' or '}', but got '<stream end>'."),
        ("--- {}\n--- {}", "line 2 is no valid YAML: but found another document."),
        ("!!python/name:os.getcwd []", f"line 1 is no valid YAML: {NO_TAG} 'tag:yaml.org,2002:python/name:os.getcwd'."),
        ("[" * 100_000, "it is nested too deeply."),
        ("default: {a: 2001-99-99}", "it is no valid YAML."),
        ("\x00", "it is no valid YAML."),
        (b"\xff\xfe{}", "it is not UTF-8."),
        (b"#" * (1024 * 1024 + 1), "it is larger than 1048576 bytes."),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_wrong_is_told_in_a_sentence_that_names_it(content, sentence):
    with pytest.raises(LimitsError) as caught:
        parse_limits(content if isinstance(content, bytes) else content.encode())
    assert str(caught.value) == sentence


def test_a_sentence_never_quotes_more_than_a_little():
    with pytest.raises(LimitsError) as caught:
        parse_limits(b"default: {requestsPerMinute: " + b"x" * 100_000 + b"}")
    assert len(str(caught.value)) < 300


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "limits.yaml"
    path.write_text("default: {requestsPerMinute: 1}")
    return path


def test_it_is_read_when_it_changes(path):
    file = LimitsFile(path)
    assert file.read_if_changed() == LimitPolicy(default=Limits(requests_per_minute=1))
    assert file.read_if_changed() is None
    path.write_text("default: {requestsPerMinute: 2}")
    assert file.read_if_changed() == LimitPolicy(default=Limits(requests_per_minute=2))
    assert file.read_if_changed() is None


def test_the_same_size_and_time_does_not_hide_a_change(path):
    file = LimitsFile(path)
    file.read_if_changed()
    times = path.stat()
    path.write_text("default: {requestsPerMinute: 3}")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert file.read_if_changed().default.requests_per_minute == 3


def test_what_is_wrong_is_told_once_and_what_is_right_again_is_read(path):
    file = LimitsFile(path)
    file.read_if_changed()
    good = path.read_text()
    path.write_text("default: {requestsPerMinute: 0}")
    with pytest.raises(LimitsError, match=r"^--limits-file /.*/limits.yaml: default.requestsPerMinute must be"):
        file.read_if_changed()
    assert file.read_if_changed() is None
    path.write_text(good)
    assert file.read_if_changed() is not None


def test_it_may_vanish_and_come_back(path):
    file = LimitsFile(path)
    file.read_if_changed()
    elsewhere = path.rename(path.with_suffix(".moved"))
    with pytest.raises(LimitsError, match="it cannot be read: No such file or directory"):
        file.read_if_changed()
    assert file.read_if_changed() is None
    elsewhere.rename(path)
    assert file.read_if_changed() is not None


def test_it_follows_a_kubelet_swap(tmp_path):
    """A mounted ConfigMap: a link to `..data`, which is a link to a folder that is swapped as a whole."""
    for version in (1, 2):
        (tmp_path / f"..v{version}").mkdir()
        (tmp_path / f"..v{version}" / "limits.yaml").write_text(f"default: {{requestsPerMinute: {version}}}")
    (tmp_path / "..data").symlink_to("..v1")
    (tmp_path / "limits.yaml").symlink_to("..data/limits.yaml")
    file = LimitsFile(tmp_path / "limits.yaml")
    assert file.read_if_changed().default.requests_per_minute == 1
    (tmp_path / "..next").symlink_to("..v2")
    (tmp_path / "..next").replace(tmp_path / "..data")
    assert file.read_if_changed().default.requests_per_minute == 2


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_what_is_no_file_is_not_waited_for(tmp_path, make):
    make(tmp_path / "limits.yaml")
    with pytest.raises(LimitsError, match="it is no file"):
        LimitsFile(tmp_path / "limits.yaml").read_if_changed()


def test_the_documented_file_means_what_is_said():
    page = (Path(__file__).parents[4] / "docs" / "api.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", page.split("\n## Limits\n")[1].split("\n## ")[0], re.DOTALL)
    policy = parse_limits(block.encode())
    assert policy.of("alice") == Limits(requests_per_minute=60, tokens_per_minute=200000, concurrent_requests=8)
    assert policy.of("nightly-batch") == Limits(tokens_per_minute=40000, concurrent_requests=2)
