"""Train all pocket models, each in a process of its own, as many at a time as do not wait for each other.

    python models/pocket/train/all.py --out build --minutes 8

The VAE comes first, then both picture models; the script model runs beside them. `--minutes` is about the whole time on
a GPU, where the shares below were chosen; it takes a minute more to draw the data and to measure the results.
"""

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
# Of the whole time. VAE, film model and its second part wait for each other; the others run beside them.
SHARES = {"vae": 0.25, "glm": 0.85, "keyframe": 0.33, "svd": 0.45, "svd-tuned": 0.25}


def main() -> None:
    """Run the scripts; exit with 1 if any of them failed."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", type=Path, required=True)
    arguments.add_argument("--minutes", type=float, default=8.0)
    arguments.add_argument("--processes", type=int, default=8, help="that write the script model's examples")
    read = arguments.parse_args()
    out = read.out
    out.mkdir(parents=True, exist_ok=True)

    def start(name: str, *options: str) -> subprocess.Popen[bytes]:
        minutes = SHARES[name] * read.minutes
        command = [sys.executable, str(HERE / f"{name.split('-')[0]}.py"), "--out", str(out / name)]
        with (out / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                [*command, "--minutes", str(minutes), "--steps", "1000000", *options], stdout=log, stderr=log
            )

    glm = start("glm", "--processes", str(read.processes))
    vae = ("--vae", str(out / "vae"))
    failed = start("vae").wait() != 0
    if not failed:
        keyframe, svd = start("keyframe", *vae), start("svd", *vae)
        failed = [keyframe.wait(), svd.wait()] != [0, 0]
        if not failed:
            drawn = ("--keyframe", str(out / "keyframe"), "--start", str(out / "svd"), "--rate", "4e-4")
            failed = start("svd-tuned", *vae, *drawn).wait() != 0
    failed = glm.wait() != 0 or failed
    for name in SHARES:
        log = out / f"{name}.log"
        if log.is_file():
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            sys.stdout.write("\n".join([f"== {name}", *lines[-8:], ""]))
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
