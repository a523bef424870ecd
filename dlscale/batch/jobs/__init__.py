"""The files of jobs, and who may change them."""
