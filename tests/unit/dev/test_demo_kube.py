"""What is told when something waited for does not come about."""

import pytest

from dev.demo.errors import DemoError
from dev.demo.kube import await_value


def test_the_message_tells_what_was_seen_in_the_wait():
    seen = []
    with pytest.raises(DemoError, match=r"a sign, saw \['none'.*\]: not so after 0 s"):
        await_value(lambda: f"a sign, saw {seen}", lambda: seen.append("none"), deadline_s=0)


def test_an_answer_that_is_false_is_one():
    assert await_value("an answer", lambda: False, deadline_s=0) is False
