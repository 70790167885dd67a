"""Read an image file of the user's, for which Pillow must be installed, and make one of a figure."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from ..core.checks import UsageError
from ..core.files import reason


def read_rgb(path: Path) -> Any:
    """The image that --image names, in RGB. Raises UsageError for a file that is none or cannot be read."""
    from PIL import Image

    try:
        with Image.open(path) as opened:
            return opened.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UsageError(f"--image: cannot read {path}: {reason(error)}") from error


def png(figure: Any) -> bytes:
    """The PNG of one of matplotlib's figures."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()
