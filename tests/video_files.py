"""Unusual video files that several tests need."""

from pathlib import Path

import av
import numpy as np


def write_audio(path: Path) -> None:
    """Write a file with sound and no video."""
    with av.open(path, "w") as container:
        stream = container.add_stream("aac", rate=8000)
        for number in range(16):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 8000, 1024 * number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
