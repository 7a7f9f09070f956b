"""What a user runs: a file for every verb of `redundancy-hf`."""
