"""Training the student from photos and a one-step teacher: teacher, cache, pairs, stage, command."""
