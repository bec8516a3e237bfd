"""The hub of this tier: a server on this machine that speaks the hub's protocol, with the small real model."""

from __future__ import annotations

from dev.demo.model_folder import MODEL_FOLDER, ensure_models_folder
from tests.hub_server import HubServer, Repository

# The commits of each repository; `main` is at the first.
FIRST, SECOND = "1" * 40, "2" * 40
# The small model stands for those that the examples name.
EXAMPLES = ("HuggingFaceTB/SmolLM2-135M-Instruct", "SeaLLMs/SeaLLMs-v3-1.5B-Chat")


def build_hub(address):
    """Return the server, which does not run yet, at an address of this machine that pods reach."""
    folder = ensure_models_folder() / MODEL_FOLDER
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    moved = files | {"README.txt": b"the branch has moved\n"}
    hub = HubServer(address, has_content_network=False)
    accesses = {"org/open": "open", "org/gated": "gated"} | dict.fromkeys(EXAMPLES, "open")
    for name, access in accesses.items():
        hub.repositories[name] = Repository({FIRST: files, SECOND: moved}, {"main": FIRST}, access)
    return hub
