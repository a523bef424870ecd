"""What a kind of job is, declared once: its options with their bounds and words, its inputs, how it is planned and computed."""
