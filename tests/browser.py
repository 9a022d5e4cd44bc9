"""A real browser for tests of pages."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("CI"), reason="no Chromium on this machine (Debian's package: chromium)"
)
OFFLINE = "--disable-background-networking --disable-component-update --disable-sync --disable-quic --no-first-run"


def rendered(address: str, folder: Path) -> str:
    """The page's HTML once its scripts have run. folder: of the browser's profile."""
    assert CHROMIUM is not None
    call = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", *OFFLINE.split(), "--window-size=1600,2000"]
    call += [f"--user-data-dir={folder}", "--virtual-time-budget=60000", "--dump-dom", address]
    found = subprocess.run(call, capture_output=True, text=True, timeout=240, check=True)
    return found.stdout
