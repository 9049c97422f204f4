"""The degradations of `training.data.everyday` in batches on a device."""
