"""Degradation in batches on a device, with the distributions of the CPU's."""
