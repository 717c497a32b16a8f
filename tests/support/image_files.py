"""Small image folders and tars for the tests; every image has its own grey level."""

import io
import tarfile

from PIL import Image


def write_images(folder, counts, *, first=0):
    """One class folder of grey PNGs per entry of counts; image i of the tree has the grey level first + i."""
    level = first
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (7, 5), (level,) * 3).save(folder / name / f"{number}.png")
            level += 1
    return folder


def write_tar(path, counts):
    level = 0
    with tarfile.open(path, "w") as tar:
        for name, count in counts.items():
            for number in range(count):
                buffer = io.BytesIO()
                Image.new("RGB", (7, 5), (level,) * 3).save(buffer, "PNG")
                member = tarfile.TarInfo(f"{name}/{number}.png")
                member.size = buffer.tell()
                buffer.seek(0)
                tar.addfile(member, buffer)
                level += 1
    return path
