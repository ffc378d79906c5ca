"""Train all pocket models, each in a process of its own, as many at a time as do not wait for each other.

    python models/pocket/train/all.py --out build --minutes 7

The VAE comes first, then both picture models, then the film model once more with pictures that
the keyframe model drew; the script model runs beside them. `--minutes` is about the time spent in training steps on a
GPU, where the shares below were chosen; drawing the data and measuring the results takes two minutes more.
"""

import argparse
import subprocess
import sys
import tarfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
# Of the whole time. VAE, film model and its second part wait for each other; the others run beside them.
SHARES = {"vae": 0.25, "glm": 0.72, "keyframe": 0.42, "svd": 0.45, "svd-tuned": 0.22}
TUNING = ("--rate", "4e-4", "--films", "8000")


def main() -> None:
    """Run the scripts; exit with 1 if any of them failed."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", type=Path, required=True)
    arguments.add_argument("--minutes", type=float, default=7.0)
    arguments.add_argument("--processes", type=int, default=14, help="that write the script model's examples")
    arguments.add_argument("--pack", type=Path, help="folder for a tar file of each model as soon as it is trained")
    arguments.add_argument(
        "--also", action="append", default=[], metavar="NAME:OPTION", help="an option more for a script: svd:--films=64"
    )
    read = arguments.parse_args()
    out = read.out
    out.mkdir(parents=True, exist_ok=True)

    def train(name: str, *options: str) -> bool:
        more = [each.partition(":")[2] for each in read.also if each.partition(":")[0] == name.partition("-")[0]]
        command = [sys.executable, str(HERE / f"{name.partition('-')[0]}.py"), "--out", str(out / name), *options]
        limits = ("--minutes", str(SHARES[name] * read.minutes), "--steps", "1000000")
        log = out / f"{name}.log"
        with log.open("wb") as lines:
            passed = subprocess.run([*command, *limits, *more], stdout=lines, stderr=lines, check=False).returncode == 0
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:]
        print("\n".join([f"== {name}{'' if passed else ' FAILED'}", *tail]), flush=True)
        if read.pack and (out / name).is_dir():
            with tarfile.open(read.pack / f"{name}.tar", "w") as tar:
                tar.add(log, log.name)
                tar.add(out / name, name, filter=lambda item: None if "checkpoint" in item.name else item)
        return passed

    vae = ("--vae", str(out / "vae"))
    with ThreadPoolExecutor() as threads:
        results: list[Future[bool]] = [threads.submit(train, "glm", "--processes", str(read.processes))]
        passed = train("vae")
        if passed:
            keyframe = threads.submit(train, "keyframe", *vae)
            results.append(keyframe)
            passed = train("svd", *vae)
            if passed and keyframe.result():
                drawn = ("--keyframe", str(out / "keyframe"), "--start", str(out / "svd"))
                passed = train("svd-tuned", *vae, *drawn, *TUNING)
    sys.exit(0 if passed and all(result.result() for result in results) else 1)


if __name__ == "__main__":
    main()
