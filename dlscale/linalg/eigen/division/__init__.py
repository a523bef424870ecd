"""All eigenpairs of a symmetric matrix that no worker holds: spectral divide and conquer."""
