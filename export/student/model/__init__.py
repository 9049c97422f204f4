"""The student itself: its network, its checkpoints, and how one shape grows from another."""
