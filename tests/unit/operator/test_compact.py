from __future__ import annotations

import json

from dedicate_operator.compact import compact

TEXT = json.dumps({"metadata": {"name": "chat-with-a-name", "managedFields": [{}]}, "spec": [{"policy": "Always-so"}]})


def test_bookkeeping_is_left_out_and_all_else_kept():
    resource = json.loads(TEXT)
    assert compact(resource) == {"metadata": {"name": "chat-with-a-name"}, "spec": [{"policy": "Always-so"}]}
    assert "managedFields" in resource["metadata"]


def test_equal_texts_are_held_once():
    one, other = (compact(json.loads(TEXT)) for _ in range(2))
    assert one["spec"][0]["policy"] is other["spec"][0]["policy"]
    assert next(iter(one["spec"][0])) is next(iter(other["spec"][0]))
    assert one["spec"] is not other["spec"]
