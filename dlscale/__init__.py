"""Large linear algebra as batch jobs: planned, checkpointed, certified."""
