"""The web page of `gdposr serve`: its files, a server for this machine, and a folder for any host."""
