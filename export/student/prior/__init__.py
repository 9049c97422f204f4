"""A published network as the student's teacher, and its pictures on disk."""
