"""A Core ML package read: its program in MIL, its weights, its inputs and outputs, and their types."""
