"""The command `redundancy-hf share`, for whoever works in a clone."""

from redundancy_hf.__main__ import run_verb

if __name__ == "__main__":
    run_verb("share")
