"""What `make serve` reads from the environment."""

from __future__ import annotations

import socket

import pytest

from dev.serve import ServeError, read_options


def test_defaults_are_the_small_model_on_a_free_port_with_a_key_of_its_own():
    options = read_options({"MODEL": "", "PORT": "", "KEY": "", "DEDICATE": ""})
    assert (options.model, options.dedicate) == (None, "smollm")
    assert options.port >= 8000
    assert options.key != read_options({}).key


def test_a_taken_default_port_gives_the_next_one():
    taken = read_options({}).port
    with socket.create_server(("127.0.0.1", taken)):
        assert read_options({}).port > taken


def test_a_taken_port_that_was_asked_for_is_told():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ServeError, match=f"Port {port} is taken"):
            read_options({"PORT": str(port)})


def test_a_port_that_is_no_number_is_told():
    with pytest.raises(ServeError, match="PORT"):
        read_options({"PORT": "http"})


def test_everything_can_be_chosen():
    options = read_options({"MODEL": "hf://a/b", "KEY": "sk-1", "DEDICATE": "chat"})
    assert (options.model, options.key, options.dedicate) == ("hf://a/b", "sk-1", "chat")
