"""The pilot's data: MRPC as it is, and 8,000 of SST-2's training rows, drawn with a fixed seed.

python experiments/pilot/sample.py GLUE OUT [ROWS]    (GLUE: a folder with MRPC/ and SST-2/ in the official layout)
"""

import random
import shutil
import sys
from pathlib import Path

ROWS, SEED = 8000, 0


def main(source: Path, target: Path, count: int = ROWS) -> None:
    shutil.copytree(source / "MRPC", target / "MRPC", dirs_exist_ok=True)
    (target / "SST-2").mkdir(exist_ok=True)
    shutil.copy(source / "SST-2" / "dev.tsv", target / "SST-2" / "dev.tsv")
    header, *rows = (source / "SST-2" / "train.tsv").read_text(encoding="utf-8").splitlines(keepends=True)
    chosen = sorted(random.Random(SEED).sample(range(len(rows)), count))
    (target / "SST-2" / "train.tsv").write_text(header + "".join(rows[i] for i in chosen), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
