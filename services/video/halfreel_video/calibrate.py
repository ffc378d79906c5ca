"""Measures this machine's card with the model as it is configured: `python -m halfreel_video.calibrate [settings]`.

Takes the server's own settings. Keeps the coefficients in the user's cache, where the server finds them when it starts.
Needs the card for itself: what other processes take of it meanwhile would be counted.
"""

from __future__ import annotations

import json
import os
import sys

from halfreel_runtime.settings import load_settings
from halfreel_video.quiet import quiet_libraries
from halfreel_video.settings import SERVICE, VideoSettings

EXIT_USAGE = 2


def main(argv: list[str]) -> int:
    """Calibrates; a line of JSON for each sample and one for the result. Returns the exit code."""
    settings = load_settings(VideoSettings, SERVICE, argv)
    # As the server sets them, before torch is imported.
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    quiet_libraries()

    import torch

    from halfreel_runtime.device import find_device
    from halfreel_runtime.errors import HalfreelError
    from halfreel_runtime.memory import MemoryMonitor
    from halfreel_video.calibration import Sample, as_json, calibrate
    from halfreel_video.coefficients import save
    from halfreel_video.model import load_model

    torch.backends.cudnn.deterministic = True

    def told(sample: Sample) -> None:
        sys.stdout.write(json.dumps({"sample": as_json(sample)}) + "\n")
        sys.stdout.flush()

    try:
        device = find_device(settings.device)
        if device.kind != "cuda":
            sys.stderr.write("a calibration needs a GPU; on a CPU nothing is reserved, and there is nothing to learn\n")
            return EXIT_USAGE
        memory = MemoryMonitor(device)
        model = load_model(settings, device)

        def context_bytes() -> int:
            with memory.phase("calibrate"):
                pass
            return int(memory.report().devices[0].context_bytes)

        found = calibrate(model, context_bytes, told)
        file = save(found, model.svd_folder.model_id, model.dtype_name)
    except HalfreelError as error:
        sys.stderr.write(f"{error.message}\n")
        return EXIT_USAGE
    sys.stdout.write(json.dumps({"file": str(file), "card": found.card, "dtype": model.dtype_name}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
