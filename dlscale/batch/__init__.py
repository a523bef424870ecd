"""Jobs: spec, plan, run, certify, publish."""
