"""The effect of each stage of `make chain`, measured on photos that no stage has trained on."""
