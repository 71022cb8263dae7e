"""How a run is kept: files, locks, states, phases, logs, checkpoints. Knows no equation."""
