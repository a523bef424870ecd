"""Parameter sweeps: a job file with ``matrix:`` as an array of ordinary jobs, with one table of what they found."""
