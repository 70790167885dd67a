"""Data that is missing or malformed: one error with a sentence for every file."""

import re

import numpy as np
import pytest
from PIL import Image
from test_data_layouts import DISC, PHOTO, TRUTH, drive, write

from examples.vessels.data import DataError, load


@pytest.fixture
def folder(tmp_path):
    for name in "abcd":
        write(tmp_path / f"images/{name}.png", PHOTO)
        write(tmp_path / f"masks/{name}.png", TRUTH)
        write(tmp_path / f"fields/{name}.png", DISC)
    return tmp_path


def error(folder, split="train"):
    with pytest.raises(DataError) as caught:
        load(folder, split)
    return str(caught.value)


def save(path, values):
    Image.fromarray(values).save(path)


def test_all_problems_stand_in_one_error(folder):
    (folder / "masks/a.png").unlink()
    save(folder / "masks/b.png", np.zeros((40, 40), np.uint8))
    (folder / "fields/b.png").write_bytes(b"nothing")
    (folder / "images/c.png").write_bytes((folder / "images/c.png").read_bytes()[:300])
    lines = error(folder).splitlines()
    assert lines[0] == f"{folder}: 4 problems"
    assert lines[1] == "  masks/a.*: the annotation of images/a.png is missing"
    assert "  masks/b.png: is 40x40 pixels, its image is 48x40" in lines
    assert any(re.match(r"  fields/b.png: cannot be read: it is no image of a known format$", line) for line in lines)
    assert any(re.match(r"  images/c.png: cannot be read: .*truncated", line) for line in lines)


def test_masks_that_are_not_binary(folder):
    save(folder / "masks/a.png", (np.arange(1920) % 256).reshape(40, 48).astype(np.uint8))
    save(folder / "masks/b.png", np.zeros((40, 48), np.uint8))
    save(folder / "masks/c.png", np.full((40, 48), 255, np.uint8))
    save(folder / "fields/c.png", np.zeros((40, 48), np.uint8))
    text = error(folder)
    assert re.search(r"masks/a.png: is not binary: \d\d.\d% of its pixels are between black and white", text)
    assert "masks/b.png: is a mask (annotation) without a white pixel" in text
    assert "masks/c.png: is an annotation without a black pixel" in text
    assert "fields/c.png: is a mask (field of view) without a white pixel" in text


def test_masks_that_are_nearly_binary(folder):
    noise = np.random.default_rng(0).integers(0, 20, TRUTH.shape)
    save(folder / "masks/a.png", np.where(TRUTH, 255 - noise, noise).astype(np.uint8))
    save(folder / "masks/b.png", TRUTH.astype(np.uint8))  # 0 and 1
    save(folder / "masks/c.png", np.repeat(TRUTH[..., None] * np.uint8(255), 3, 2))
    assert all(np.array_equal(sample.truth, TRUTH) for sample in load(folder, "train"))


def test_images_of_other_kinds(folder):
    save(folder / "images/a.png", PHOTO[..., 1])
    image = load(folder, "train")[0].image
    assert image.shape == (40, 48, 3) and np.array_equal(image[..., 0], PHOTO[..., 1])
    save(folder / "images/b.png", PHOTO[..., 1].astype(np.uint16) * 256)
    assert "images/b.png: has pixels of mode I;16; an image has 8 bits a channel" in error(folder)


def test_some_fields_or_test_annotations_are_missing(folder):
    (folder / "fields/b.png").unlink()
    assert "fields/b.*: the field of view of images/b.png is missing" in error(folder)
    (folder / "masks/d.png").unlink()
    assert load(folder, "test")[0].truth is None  # the only one of the test split


def test_drive_lacks_some(tmp_path):
    drive(tmp_path, annotated=False)
    (tmp_path / "training/1st_manual/21_manual1.gif").unlink()
    (tmp_path / "training/images/22_training.tif").unlink()
    text = error(tmp_path)
    assert "training/1st_manual/21_manual1.*: the annotation of training/images/21_training.tif is missing" in text
    assert "training/images/22_training.*: the image is missing" in text and "2 problems" in text


def test_two_files_for_one_image(folder):
    write(folder / "images/a.tif", PHOTO)
    write(folder / "masks/b.gif", TRUTH)
    text = error(folder)
    assert "a has 2 images: images/a.png, images/a.tif" in text
    assert "b has more than one: masks/b.gif, masks/b.png" in text


def test_folders_without_a_layout(tmp_path):
    assert error(tmp_path / "nowhere") == f"{tmp_path / 'nowhere'}: no such folder"
    assert "has no image files" in error(tmp_path) and "CHASE_DB1: Image_01L.jpg" in error(tmp_path)
    drive(tmp_path / "deep")
    assert f"{tmp_path / 'deep'} looks like DRIVE: pass that folder" in error(tmp_path)
    write(tmp_path / "other/a.png", PHOTO)
    assert "no known layout" in error(tmp_path / "other")
    with pytest.raises(ValueError, match="split is 'train' or 'test', not 'validation'"):
        load(tmp_path, "validation")


def test_a_split_without_images(tmp_path):
    write(tmp_path / "train/images/a.png", PHOTO)
    write(tmp_path / "train/masks/a.png", TRUTH)
    assert "test/images/{name}.*: no image for the test split" in error(tmp_path, "test")
