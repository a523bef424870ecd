"""Workspaces in an object store: a folder of this machine that mirrors the small files, and the objects that others go by."""
