"""Tools for a clone of the repository, not part of the installed package.

The demonstration (`demo`), the gallery (`gallery`), the runtime on emulated ARM64 (`arm`), test cases for other runtimes (`vectors`),
benches of the page (`web_bench`), the server (`server_load`) and the cluster (`fleet_bench`), Stable Diffusion 2.1's size
(`sd21_size`), the table of `make chain` (`chain`), and a GPU run (`gpu_run.sh`).
"""
