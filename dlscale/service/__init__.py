"""The HTTP API and the jobs page: a thin face on the files of a workspace. No database; a restart loses nothing."""
