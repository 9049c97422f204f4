"""An archive enlarged on a Ray cluster: listing, the workers, rounds of work, the report."""
