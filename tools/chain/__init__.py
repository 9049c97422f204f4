"""What each stage of `make chain` brought, measured on photos that no stage has trained on."""
