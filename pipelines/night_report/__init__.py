"""What a night leaves for people: its page, its summary, the table `metrics` and the drift that it shows."""
