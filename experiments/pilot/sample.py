"""The pilot's data: MRPC as it is, if GLUE has it, and some of SST-2's training rows, drawn with a fixed seed."""

import argparse
import random
import shutil
from pathlib import Path

ROWS, SEED = 8000, 0


def main(source: Path, target: Path, count: int = ROWS) -> None:
    if (source / "MRPC").is_dir():
        shutil.copytree(source / "MRPC", target / "MRPC", dirs_exist_ok=True)
    (target / "SST-2").mkdir(parents=True, exist_ok=True)
    shutil.copy(source / "SST-2" / "dev.tsv", target / "SST-2" / "dev.tsv")
    header, *rows = (source / "SST-2" / "train.tsv").read_text(encoding="utf-8").splitlines(keepends=True)
    chosen = sorted(random.Random(SEED).sample(range(len(rows)), count))
    (target / "SST-2" / "train.tsv").write_text(header + "".join(rows[i] for i in chosen), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", metavar="GLUE", type=Path, help="a folder with SST-2/ in the official layout")
    parser.add_argument("target", metavar="OUT", type=Path)
    parser.add_argument("count", metavar="ROWS", type=int, nargs="?", default=ROWS, help="of SST-2 (%(default)s)")
    arguments = parser.parse_args()
    main(arguments.source, arguments.target, arguments.count)
