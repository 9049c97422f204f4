"""Shows a file or folder in the system's viewer."""

import os
import shutil
import subprocess
import sys
from pathlib import Path


def show(path: Path) -> str | None:
    """Start the system's viewer without waiting for it. Returns None, or the error as a sentence."""
    place = os.path.abspath(path)
    try:
        if sys.platform == "win32":
            os.startfile(place)
            return None
        opener = "open" if sys.platform == "darwin" else "xdg-open"
        if shutil.which(opener) is None:
            return f"{place} cannot be shown: expected the program {opener}, got none; open the file yourself"
        subprocess.Popen(
            [opener, place],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C here does not close it
        )
    except OSError as error:
        return f"{place} cannot be shown ({error.strerror or error}): open the file yourself"
    return None
