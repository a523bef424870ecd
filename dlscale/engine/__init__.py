"""The patterns of parallel work, and where they run."""
