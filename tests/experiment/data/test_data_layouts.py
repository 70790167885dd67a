"""Each published layout, and plain folders, in miniature: recognised, split as usual, read in every format."""

import gzip
import io

import numpy as np
import pytest
from PIL import Image

from examples.vessels.data import DataError, Layout, describe, hold_out, load
from examples.vessels.data.layouts import STARE_NAMES

H, W = 40, 48
RNG = np.random.default_rng(0)
DISC = np.hypot(*(np.mgrid[:H, :W] - np.array([19.5, 23.5])[:, None, None])) < 18
TRUTH = DISC & (np.mgrid[:H, :W][0] % 8 < 2)
SECOND = DISC & (np.mgrid[:H, :W][0] % 8 < 3)
PHOTO = (np.where(DISC, 120, 3)[..., None] + RNG.integers(0, 20, (H, W, 3))).astype(np.uint8)


def write(path, values):
    """Writes an image (H, W, 3), or a mask (H, W) as 0 and 255; .gz compresses."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values if values.ndim == 3 else (values * 255).astype(np.uint8))
    if path.suffix != ".gz":
        image.save(path)
        return
    stream = io.BytesIO()
    image.save(stream, {"ppm": "PPM"}[path.name.split(".")[-2]])
    path.write_bytes(gzip.compress(stream.getvalue()))


def drive(root, annotated=True):
    for number in range(1, 41):
        split = "training" if number > 20 else "test"
        write(root / split / f"images/{number:02d}_{split}.tif", PHOTO)
        write(root / split / f"mask/{number:02d}_{split}_mask.gif", DISC)
        if split == "training" or annotated:
            write(root / split / f"1st_manual/{number:02d}_manual1.gif", TRUTH)
        if split == "test" and annotated:
            write(root / split / f"2nd_manual/{number:02d}_manual2.gif", SECOND)


def chase(root):
    for number in range(1, 15):
        for eye in "LR":
            write(root / f"Image_{number:02d}{eye}.jpg", PHOTO)
            for end, mask in (("1stHO", TRUTH), ("2ndHO", SECOND)):
                path = root / f"Image_{number:02d}{eye}_{end}.png"
                Image.fromarray((mask * 255).astype(np.uint8)).convert("1").save(path)  # 1 bit, as published


def stare(root, flat=False, end=".ppm.gz"):
    for name in STARE_NAMES:
        write(root / ("" if flat else "stare-images") / f"{name}{end}", PHOTO)
        write(root / ("" if flat else "labels-ah") / f"{name}.ah{end}", TRUTH)
        write(root / ("" if flat else "labels-vk") / f"{name}.vk{end}", SECOND)
    write(root / ("" if flat else "stare-images") / f"im0399{end}", PHOTO)  # one of the others, without a label


def hrf(root):
    for number in range(1, 16):
        for group in ("dr", "g", "h"):
            suffix = "JPG" if group == "dr" else "jpg"  # as published
            write(root / f"images/{number:02d}_{group}.{suffix}", PHOTO)
            write(root / f"manual1/{number:02d}_{group}.tif", TRUTH)
            write(root / f"mask/{number:02d}_{group}_mask.tif", np.repeat(DISC[..., None], 3, 2).astype(np.uint8) * 255)


LAYOUTS = {  # builder, images of each split, first name of each, a second annotator in each, fields estimated
    "DRIVE": (drive, (20, 20), ("DRIVE_21", "DRIVE_01"), (False, True), False),
    "CHASE_DB1": (chase, (20, 8), ("CHASE_DB1_01L", "CHASE_DB1_11L"), (True, True), True),
    "STARE": (stare, (10, 10), ("STARE_im0001", "STARE_im0002"), (True, True), True),
    "HRF": (hrf, (15, 30), ("HRF_01_dr", "HRF_06_dr"), (False, False), False),
}


@pytest.mark.parametrize("title", LAYOUTS)
def test_published_layouts(tmp_path, title):
    build, sizes, first, second, estimated = LAYOUTS[title]
    build(tmp_path)
    for split, size, name, both in zip(("train", "test"), sizes, first, second):
        samples = load(tmp_path, split)
        assert len(samples) == len({sample.name for sample in samples}) == size and samples[0].name == name
        for sample in samples:
            assert np.abs(sample.image.astype(int) - PHOTO).max() <= (60 if title in ("CHASE_DB1", "HRF") else 0)
            np.testing.assert_array_equal(sample.truth, TRUTH)
            assert (sample.second is not None) == both and (not both or np.array_equal(sample.second, SECOND))
            assert sample.field_estimated == estimated and not sample.synthetic
            assert (sample.field ^ DISC).mean() < (0.06 if estimated else 1e-9)
        text = describe(samples)
        assert text.startswith(f"{title}, {split}: {size} images of 48x40 pixels") and "SYNTHETIC" not in text
        assert ("ESTIMATED from the luminance for all images" in text) == estimated
        assert ("second annotator" in text) == both


@pytest.mark.parametrize("flat, end", [(True, ".ppm.gz"), (True, ".ppm"), (False, ".ppm")])
def test_stare_in_one_folder_or_unpacked(tmp_path, flat, end):
    stare(tmp_path, flat, end)
    assert [len(load(tmp_path, split)) for split in ("train", "test")] == [10, 10]


def test_drive_without_test_annotations(tmp_path):
    drive(tmp_path, annotated=False)
    samples = load(tmp_path, "test")
    assert len(samples) == 20 and all(sample.truth is None and sample.second is None for sample in samples)
    assert "no annotation for 20 images: prediction is possible, evaluation is not; the validation part" in describe(
        samples
    )
    assert all(sample.truth is not None for sample in load(tmp_path, "train"))


def test_hold_out_keeps_patients_apart(tmp_path):
    chase(tmp_path)
    train, validation = hold_out(load(tmp_path, "train"))
    names = ([sample.name[-3:] for sample in part] for part in (train, validation))
    assert [len(train), len(validation)] == [16, 4]
    assert list(names)[1] == ["09L", "09R", "10L", "10R"]
    with pytest.raises(ValueError, match="cannot hold out 20 of 20"):
        hold_out([*train, *validation], 20)


@pytest.mark.parametrize("folders", [False, True])
def test_plain_folders(tmp_path, folders):
    for number in range(8):
        part = tmp_path / (("test" if number > 5 else "train") if folders else "")
        write(part / f"images/eye{number}.png", PHOTO)
        write(part / f"masks/eye{number}.gif", TRUTH)
        if number % 2:
            write(part / f"notes/eye{number}.png", PHOTO)
    train, test = (load(tmp_path, split) for split in ("train", "test"))
    last = ["eye6", "eye7"] if folders else ["eye3", "eye7"]
    assert [sample.name for sample in test] == last and len(train) == 6
    assert not {sample.name for sample in train} & set(last)
    assert test[0].field_estimated and test[0].second is None


def test_patterns_of_ones_own(tmp_path):
    for name in "abcd":
        write(tmp_path / f"{name}.tif", PHOTO)
        write(tmp_path / f"{name}_vessels.png", TRUTH)
        write(tmp_path / f"more/{name}-fov.bmp", DISC)
    patterns = Layout("{name}.*", "{name}_vessels.png", field="more/{name}-fov.*", title="my eyes")
    samples = load(tmp_path, "train", patterns=patterns)
    assert [sample.name for sample in samples] == ["a", "b", "c"]
    assert all(np.array_equal(sample.field, DISC) and not sample.field_estimated for sample in samples)
    assert describe(samples).startswith("my eyes, train: 3 images")
    assert len(load(tmp_path, "train", patterns=patterns, count=2)) == 2


def test_part_of_a_published_set(tmp_path):
    hrf(tmp_path)
    (tmp_path / "images/02_g.jpg").unlink()
    with pytest.raises(DataError, match=r"1 problem\n  images/02_g.\*: the image is missing\npartial=True"):
        load(tmp_path, "train")
    assert len(load(tmp_path, "train", partial=True)) == 14
    assert len(load(tmp_path, "test")) == 30
