from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dedicate_operator.drift import find_drift

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "args", "limits"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("desired", "observed", "path"),
    [
        ({"a": 1}, {"a": 1, "b": 2}, None),
        ({"a": 1}, {"a": 2}, "a"),
        ({"a": 1}, {}, "a"),
        ({"a": {"b": 1}}, {"a": {"b": 1, "c": 2}}, None),
        ({"a": {"b": 1}}, {"a": None}, "a"),
        ({"a": {"b": 1}}, {"a": "text"}, "a"),
        ({"a": {}, "b": "", "c": 0, "d": False, "e": []}, {}, None),
        ({"a": False}, {"a": True}, "a"),
        ({"args": ["x", "y"]}, {"args": ["x", "y"]}, None),
        ({"args": ["x", "y"]}, {"args": ["y", "x"]}, "args.0"),
        ({"args": ["x"]}, {"args": ["x", "y"]}, "args"),
        ({"args": ["x"]}, {"args": "x"}, "args"),
        # Others may add items to lists that merge by key, in any order.
        ({"env": [{"name": "A", "value": "1"}]}, {"env": [{"name": "B"}, {"name": "A", "value": "1"}]}, None),
        ({"env": [{"name": "A", "value": "1"}]}, {"env": [{"name": "A", "value": "2"}]}, "env.0.value"),
        ({"env": [{"name": "A", "value": "1"}]}, {"env": [{"name": "B"}]}, "env.0"),
        ({"env": [{"name": "A", "value": ""}]}, {"env": [{"name": "A"}]}, None),
        ({"ports": [{"name": "http", "port": 80}]}, {"ports": [{"name": "http", "port": 81}]}, "ports.0.port"),
        # A key that somebody adds to a selector changes what it selects.
        ({"selector": {"a": "1"}}, {"selector": {"a": "1", "b": "2"}}, "selector"),
        ({"nodeSelector": {"a": "1"}}, {"nodeSelector": {"a": "1", "b": "2"}}, "nodeSelector"),
        ({"podSelector": {"matchLabels": {"a": "1"}}}, {"podSelector": {"matchLabels": {"a": "1"}}}, None),
        ({"podSelector": {"a": {}}}, {"podSelector": {"a": {}, "b": {}}}, "podSelector"),
        ({"matchLabels": {"a": "1"}}, {"matchLabels": {"a": "1", "b": "2"}}, "matchLabels"),
        # A rule that has one field more is another rule.
        ({"ingress": [{"ports": [1]}]}, {"ingress": [{"ports": [1], "from": [2]}]}, "ingress"),
        ({"egress": []}, {}, None),
        ({"egress": []}, {"egress": [{}]}, "egress"),
        ({"egress": [{"to": [{"a": {}}]}]}, {"egress": [{"to": [{}]}]}, "egress"),
        # The API server writes quantities in its own way.
        ({"limits": {"memory": "1024Mi"}}, {"limits": {"memory": "1Gi"}}, None),
        ({"requests": {"cpu": "0.5"}}, {"requests": {"cpu": "500m"}}, None),
        ({"requests": {"cpu": "1000m"}}, {"requests": {"cpu": "1"}}, None),
        ({"emptyDir": {"sizeLimit": "1000M"}}, {"emptyDir": {"sizeLimit": "1G"}}, None),
        ({"limits": {"memory": "1G"}}, {"limits": {"memory": "1Gi"}}, "limits.memory"),
        ({"limits": {"memory": "1Gi"}}, {"limits": {"memory": "other"}}, "limits.memory"),
        ({"args": ["1000m"]}, {"args": ["1"]}, "args.0"),
    ],
)
def test_find_drift(desired, observed, path):
    assert find_drift(desired, observed) == path


@given(st.dictionaries(st.sampled_from(["spec", "metadata", "env"]), JSON))
def test_nothing_drifts_from_itself(document):
    assert find_drift(document, copy.deepcopy(document)) is None


@given(st.dictionaries(st.sampled_from(["spec", "metadata"]), JSON), st.dictionaries(st.sampled_from(["x", "y"]), JSON))
def test_what_others_add_is_no_drift(document, more):
    assert find_drift(document, copy.deepcopy(document) | more) is None
