"""The prior: a published network that the student's core learns from, and its pictures on disk."""
