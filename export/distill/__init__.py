"""The student's training from photos and from a one-step teacher."""
