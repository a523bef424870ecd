"""The scaling laboratory: what this machine can do, how jobs scale on it, and how they would scale on a larger one."""
