"""Copies the table that `python -m atrous tune` filled for this GPU and torch from the user's cache: tuned.py FOLDER

tune leaves it where the later steps find it, and saves it layer by layer: one that was cut off is in there too.
"""

import shutil
import sys

import torch

from atrous import tuning, tuning_device

if __name__ == "__main__":
    folder = tuning.user_folder()
    table = folder and folder / tuning_device.file_name(torch.device("cuda", torch.cuda.current_device()))
    if table is None or not table.exists():
        sys.exit(f"tuned.py: expected a table that tune wrote, found none: {table}")
    print(shutil.copy(table, sys.argv[1]))
