"""Studies of finished pictures: which scores agree with people's votes, and the values of these scores for candidates."""
