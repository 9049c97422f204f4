"""Studies over finished pictures: which score agrees with people's votes, and what the scores that do say about candidates."""
