"""The shipped student: its network and the stages that train it."""
