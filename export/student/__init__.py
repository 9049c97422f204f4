"""The shipped student: its network, the stages that train it, and the pictures it is trained on."""
