"""What all factorizations by panels share."""
