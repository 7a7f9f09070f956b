"""Serve until interrupted: `python -m tests.loopback_hub FOLDER`; the user "alice" has the token "hf_alice"."""

import sys
import threading
from pathlib import Path

from . import Hub

if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
    sys.exit(__doc__)
hub = Hub(Path(sys.argv[1]), users={"alice": "hf_alice"}).start()
print(f"export HF_ENDPOINT={hub.endpoint} HF_TOKEN=hf_alice HF_HUB_DISABLE_XET=1 NO_PROXY=127.0.0.1", flush=True)
try:
    threading.Event().wait()
except KeyboardInterrupt:
    hub.stop()
