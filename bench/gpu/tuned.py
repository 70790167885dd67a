"""Copy the tuning table of this GPU and torch from the user's cache: python -m bench.gpu.tuned FOLDER

`python -m atrous tune` writes it there layer by layer, so the table of an interrupted run is copied too.
"""

import shutil
import sys

import torch

from atrous import tuning
from atrous.tuning import device_id


def main(folder: str) -> int:
    tables = tuning.user_folder()
    table = tables and tables / device_id.file_name(torch.device("cuda", torch.cuda.current_device()))
    if table is None or not table.exists():
        print(f"tuned.py: expected a table that tune wrote, got none: {table}", file=sys.stderr)
        return 1
    print(shutil.copy(table, folder))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
