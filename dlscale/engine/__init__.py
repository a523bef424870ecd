"""The patterns of parallel work, and where they run."""

#: The form in which plans are written; a plan of another one is not read.
PLAN_VERSION = 2
