"""Studies behind a choice: scores against people's votes, the sample to keep, detail, and variants of preference tuning."""
