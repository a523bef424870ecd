"""What is asked of the API: a file for each family of addresses."""
