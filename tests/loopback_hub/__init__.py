"""A Hub on 127.0.0.1 for tests: the protocol that huggingface_hub speaks, on real git repositories.

    hub = Hub(folder, users={"alice": "hf_alice"}).start()
    ...  # clients in processes of their own, with the environment `hub.environment(home)`
    hub.stop()

`python -m tests.loopback_hub FOLDER` serves until it is interrupted. It was written from the clients' source: it shows
that they and this project agree on the protocol, not what the public Hub would accept.
"""

from .repositories import HubError
from .server import Hub

__all__ = ["Hub", "HubError"]
