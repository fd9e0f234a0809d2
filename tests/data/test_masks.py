"""Images with masks: folders and tables, what is wrong with a mask, and the labels that masks give."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.config import DataConfig
from sightline.data.checks.audit import Audit, quick_audit
from sightline.data.dataset import check_classes
from sightline.data.indexing import build_index
from sightline.data.masks import VOID, MaskClasses, choose_labels, load_masks, read_mask_classes
from sightline.data.targets import LABEL_SETS
from sightline.datasets import coffee_beans
from sightline.errors import DataError, ImageError
from sightline.preprocessing import PreprocessingSpec
from sightline.preprocessing.masks import decode_mask
from sightline.tasks.protocol import find_task
from synthetic_images import encode_png, write_files

CLASSES = b"value,name\n0,sky\n1,road\n7,car\n11,void\n"


def encode_mask(values: object, mode: str = "L", file_format: str = "PNG") -> bytes:
    image = Image.fromarray(np.array(values, np.uint8))
    if mode == "P":
        image.putpalette([200, 10, 10] * 256)
    elif mode != "L":
        image = image.convert(mode)
    file = io.BytesIO()
    image.save(file, file_format)
    return file.getvalue()


def fill_mask(*values: int, size: int = 16) -> bytes:
    """Return a mask with bands of `values`."""
    return encode_mask(np.repeat(np.resize(values, size)[:, None], size, 1))


def write_pairs(folder: Path, **files: bytes) -> Path:
    write_files(
        folder,
        {
            "classes.csv": CLASSES,
            "images/a.png": encode_png(1), "masks/a.png": fill_mask(0, 1),
            "images/b.png": encode_png(2), "masks/b.png": fill_mask(0, 7, 11),
        }
        | files,
    )  # fmt: skip
    return folder


def read_labels(source: Path) -> dict[str, tuple[str, str | None]]:
    return {image.path: (image.label, image.split) for image in build_index(source).images}


def list_findings(audit: Audit) -> dict[str, tuple[str, ...]]:
    return {finding.kind: finding.paths for finding in audit.findings}


def test_the_shortest_complete_lists_give_the_splits_of_images_with_masks(tmp_path: Path) -> None:
    """As in Pascal VOC, whose other lists also name images without masks."""
    names = [f"2007_{i}" for i in range(8)]
    with_masks, validation = names[:4], names[3:4]
    write_files(
        tmp_path,
        {f"JPEGImages/{name}.png": encode_png(i) for i, name in enumerate(names)}
        | {f"SegmentationClass/{name}.png": fill_mask(0, 1) for name in with_masks}
        | {
            "classes.csv": CLASSES,
            "ImageSets/Main/train.txt": "\n".join(names[::2]).encode(),
            "ImageSets/Main/val.txt": "\n".join(names[1::2]).encode(),
            "ImageSets/Main/cat_train.txt": "\n".join(f"{name} -1" for name in names[::2]).encode(),
            "ImageSets/Main/cat_val.txt": "\n".join(f"{name}  1" for name in names[1::2]).encode(),
            "ImageSets/Segmentation/train.txt": "\n".join(names[:3]).encode(),
            "ImageSets/Segmentation/trainval.txt": "\n".join(with_masks).encode(),
            "ImageSets/Segmentation/val.txt": "\n".join(validation).encode(),
        },
    )
    index = build_index(tmp_path)
    assert [image.split for image in index.images] == ["train"] * 3 + ["validation"]
    assert {note.path.rpartition("/")[0] for note in index.notes if note.kind == "splits-from-lists"} == {
        "ImageSets/Segmentation"
    }


def test_the_label_of_an_image_is_the_classes_in_its_mask(tmp_path: Path) -> None:
    index = build_index(write_pairs(tmp_path))
    assert [(image.path, image.label) for image in index.images] == [
        ("images/a.png", "road;sky"), ("images/b.png", "car;sky"),
    ]  # fmt: skip
    assert [image.mask.path for image in index.images if image.mask] == ["masks/a.png", "masks/b.png"]
    assert (index.other_files, index.unreadable) == ((), ())
    check_classes(index, LABEL_SETS)
    with pytest.raises(DataError, match=r"^images/a.png and 1 other have masks.* --set model.task=segmentation, or"):
        check_classes(index)


def test_the_doctor_states_the_classes_of_masks_and_what_has_none(tmp_path: Path) -> None:
    write_pairs(tmp_path, **{"classes.csv": CLASSES.replace(b"void", b"Unlabeled")})
    findings = {finding.kind: finding for finding in quick_audit(build_index(tmp_path)).findings}
    masks = findings["masks"]
    assert masks.description == "images have masks of 3 classes; pixels of the value 11 have no class"
    assert "model.task=segmentation" in masks.advice
    assert "unlabeled is left out" in masks.advice
    assert not findings.keys() & {"several-labels", "labels-never-alone"}
    (tmp_path / "classes.csv").write_bytes(b"value,name\n0,sky\n1,road\n7,car\n11,bus\n")
    masks = next(f for f in quick_audit(build_index(tmp_path)).findings if f.kind == "masks")
    assert (masks.description, "unlabeled" in masks.advice) == ("images have masks of 4 classes", False)


def test_the_values_without_a_class_are_listed_as_the_table_writes_them() -> None:
    assert read_mask_classes(b"value,name\n0,sky\n7,void\n", "classes.csv").list_void() == ["7"]
    blue = read_mask_classes(b"value,name\n#808080,sky\n#0000ff,void\n", "classes.csv")  # as a number 255
    assert blue.list_void() == ["#0000ff"]


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("train/images/a.png", "train/masks/a.png"),
        ("images/train/a.png", "masks/train/a.png"),
        ("set/train/JPEGImages/x/a.png", "set/train/GT/x/a_L.png"),
        ("train/img/a.png", "train/annotations/a_mask.png"),
    ],
)
def test_images_and_masks_are_paired_by_name_in_each_split(tmp_path: Path, image: str, mask: str) -> None:
    val_image, val_mask = image.replace("train", "val"), mask.replace("train", "val")
    files = {
        "classes.csv": CLASSES, image: encode_png(1), mask: fill_mask(0),
        val_image: encode_png(2), val_mask: fill_mask(1),
    }  # fmt: skip
    write_files(tmp_path / "scenes", files)
    expected = {image: ("sky", "train"), val_image: ("road", "validation")}
    assert read_labels(tmp_path / "scenes") == expected
    with zipfile.ZipFile(tmp_path / "scenes.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    assert read_labels(tmp_path / "scenes.zip") == expected
    if image.startswith("train/"):  # a split by itself finds the table beside it
        assert list(read_labels(tmp_path / "scenes" / "train").values()) == [("sky", None)]


def test_masks_that_cannot_be_used_are_findings_and_their_images_are_left_out(tmp_path: Path) -> None:
    write_pairs(
        tmp_path,
        **{
            "images/big.png": encode_png(3), "masks/big.png": fill_mask(0, size=20),
            "images/odd.png": encode_png(4), "masks/odd.png": fill_mask(0, 5, 9),
            "images/rgb.png": encode_png(5), "masks/rgb.png": encode_png(5),
            "images/lossy.png": encode_png(6),
            "masks/lossy.jpg": encode_mask(np.zeros((16, 16)), file_format="JPEG"),
            "images/turned.png": encode_png(9, 0, 8, 9), "masks/turned.png": encode_mask(np.zeros((8, 9))),
            "images/cut.png": encode_png(8), "masks/cut.png": b"",
            "images/alone.png": encode_png(7), "masks/unused.png": fill_mask(0),
        },
    )  # fmt: skip
    index = build_index(tmp_path)
    reasons = {image.path: image.reason for image in index.unreadable}
    assert len(index.images) == 2
    assert reasons["images/big.png"] == "its mask masks/big.png: is 20x20 pixels, but its image is 16x16"
    assert reasons["images/odd.png"] == "its mask masks/odd.png: has the values 5, 9, which classes.csv does not name"
    assert "pixels of mode RGB: expected an indexed or grayscale PNG" in reasons["images/rgb.png"]
    assert "is JPEG, not PNG" in reasons["images/lossy.png"]
    assert reasons["images/turned.png"].endswith("if the image has an EXIF orientation, save the mask upright too")
    assert reasons["images/cut.png"] == "its mask masks/cut.png: empty file"
    assert reasons["images/alone.png"] == "has no mask"
    findings = list_findings(quick_audit(index))
    assert set(findings["invalid-masks"]) == set(reasons) - {"images/alone.png"}
    assert (findings["missing-masks"], findings["unused-masks"]) == (("images/alone.png",), ("masks/unused.png",))
    assert "unreadable" not in findings


def test_images_or_masks_of_one_name_are_left_out_and_named(tmp_path: Path) -> None:
    write_pairs(
        tmp_path,
        **{
            "images/a.jpg": encode_png(3),
            "images/c.png": encode_png(4), "masks/c.png": fill_mask(0), "masks/c.bmp": fill_mask(1),
        },
    )  # fmt: skip
    index = build_index(tmp_path)
    assert [image.path for image in index.images] == ["images/b.png"]
    assert {image.path: image.reason for image in index.unreadable} == {
        "images/a.jpg": "has the name of images/a.png, so masks/a.png may be the mask of either",
        "images/a.png": "has the name of images/a.jpg, so masks/a.png may be the mask of either",
        "images/c.png": "has 2 masks, masks/c.bmp and masks/c.png",
    }
    assert list_findings(quick_audit(index))["ambiguous-masks"] == ("images/a.jpg", "images/a.png", "images/c.png")
    assert index.other_files == ()
    (tmp_path / "images" / "b.jpg").write_bytes(encode_png(5))
    with pytest.raises(DataError, match=r"images/a.jpg: has the name of images/a.png"):
        build_index(tmp_path)


def test_training_masks_without_classes_are_refused_with_the_reason(tmp_path: Path) -> None:
    segmentation = find_task("segmentation").targets
    for split, values in (("train", (11,)), ("test", (0, 1))):
        for name in ("a", "b"):
            write_files(
                tmp_path, {f"{split}/images/{name}.png": encode_png(len(name + split)), "classes.csv": CLASSES}
                | {f"{split}/masks/{name}.png": fill_mask(*values)},
            )  # fmt: skip
    with pytest.raises(DataError, match=r"masks of the 2 training images of .* has a class: all of them are void"):
        check_classes(build_index(tmp_path, targets=segmentation), segmentation)
    with pytest.raises(DataError, match="no class to learn, since none of the 2 training images"):
        check_classes(build_index(tmp_path), LABEL_SETS)
    for split in ("train", "test"):
        write_files(tmp_path, {f"{split}/masks/{name}.png": fill_mask(7, 11) for name in ("a", "b")})
    with pytest.raises(DataError, match=r"masks of .* have pixels of one class only, 'car'.* against classes.csv"):
        check_classes(build_index(tmp_path, targets=segmentation), segmentation)


def test_masks_without_a_table_of_classes_are_not_classes(tmp_path: Path) -> None:
    (write_pairs(tmp_path) / "classes.csv").unlink()
    finding = quick_audit(build_index(tmp_path)).findings[0]
    assert (finding.kind, finding.severity) == ("mask-folders", "error")
    assert "write a table classes.csv" in finding.advice


def test_folders_that_the_user_reads_as_classes_stay_classes(tmp_path: Path) -> None:
    index = build_index(write_pairs(tmp_path), options=DataConfig(allow_findings=("mask-folders",)))
    assert {image.label for image in index.images} == {"images", "masks"}


def test_a_table_names_the_mask_of_each_image(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    table = tmp_path / "scenes.csv"
    table.write_text("image,mask,split,place\nimages/a.png,masks/a.png,train,x\nimages/b.png,masks/b.png,val,y\n")
    index = build_index(table)
    assert [(p.path, p.label, p.split, dict(p.extra)) for p in index.images] == [
        ("images/a.png", "road;sky", "train", {"place": "x"}),
        ("images/b.png", "car;sky", "validation", {"place": "y"}),
    ]
    table.write_text(
        "image,mask\nimages/a.png,masks/a.png\nimages/b.png,\nimages/a.png,masks/b.png\nimages/b.png,no.png\n"
    )
    index = build_index(table)
    findings = list_findings(quick_audit(index))
    assert len(index.images) == 1
    assert findings["missing-masks"] == ("images/b.png", "images/b.png")
    assert findings["conflicting-rows"] == ("images/a.png",)
    table.write_text("image,mask\nimages/a.png,masks/a.png\nimages/no.png,masks/b.png\n")
    assert [(file.path, file.label) for file in build_index(table).unreadable] == [("images/no.png", "")]
    table.write_text("image,mask\nimages/a.png,no.png\n")
    with pytest.raises(DataError, match=r"lists 1 file in column 'mask', none of which exists: looked for no\.png in"):
        build_index(table)
    (tmp_path / "classes.csv").unlink()
    with pytest.raises(DataError, match=r"has masks, but .* has no classes.csv.* such as 0,sky"):
        build_index(table)


@pytest.mark.parametrize("mode", ["L", "P"])
def test_the_values_of_a_mask_are_those_of_its_file(mode: str) -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(decode_mask(encode_mask(values, mode)), values)


def test_the_values_of_a_bit_mask_are_0_and_1() -> None:
    np.testing.assert_array_equal(decode_mask(encode_mask([[0, 255]], "1")), [[0, 1]])


def encode_colors(values: object, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.array(values, np.uint8), mode).save(file, "PNG")
    return file.getvalue()


def test_colors_name_classes_in_masks_of_any_mode(tmp_path: Path) -> None:
    sky, road, void = (128, 128, 192), (128, 64, 128), (0, 0, 0)
    colors = np.array([[sky, sky], [road, void]], np.uint8)
    indexed = Image.fromarray(np.array([[0, 0], [1, 2]], np.uint8))
    indexed.putpalette([*sky, *road, *void])
    file = io.BytesIO()
    indexed.save(file, "PNG")
    transparent = np.dstack([colors, np.full((2, 2), 255, np.uint8)])
    transparent[1, 1] = (9, 9, 9, 0)
    partly = transparent.copy()
    partly[0, 0, 3] = 128
    odd = colors.copy()
    odd[0, 1] = (129, 128, 192)
    masks = {
        "rgb": encode_colors(colors), "indexed": file.getvalue(), "rgba": encode_colors(transparent, "RGBA"),
        "partly": encode_colors(partly, "RGBA"), "odd": encode_colors(odd),
    }  # fmt: skip
    images = {f"images/{name}.png": encode_png(i, width=2) for i, name in enumerate(masks)}
    write_files(tmp_path, images | {f"masks/{name}.png": content for name, content in masks.items()})
    for table in (
        "value,name\n#8080c0,sky\n#804080,road\n#000000,void\n",
        "name,r,g,b\nsky,128,128,192\nroad,128,64,128\nvoid,0,0,0\n",
    ):
        (tmp_path / "classes.csv").write_text(table)
        index = build_index(tmp_path)
        assert {image.path: image.label for image in index.images} == {
            f"images/{name}.png": "road;sky" for name in ("rgb", "indexed", "rgba")
        }
        reasons = {image.path: image.reason for image in index.unreadable}
        assert "has the color #8180c0, which classes.csv does not name" in reasons["images/odd.png"]
        assert "partly transparent" in reasons["images/partly.png"]
        assert len(list_findings(quick_audit(index))["invalid-masks"]) == 2
        loaded = load_masks(index, [0, 1, 2], PreprocessingSpec(2, 2), ["road", "sky"])
        np.testing.assert_array_equal(loaded, [[[1, 1], [0, VOID]]] * 3)


@pytest.mark.parametrize(
    ("folders", "table"),
    [
        (("701_StillsRaw_full", "LabeledApproved_full"), ("label_colors.txt", "128 128 192\tSky\n128 64 128\t\tRoad")),
        (("train", "train_labels"), ("class_dict.csv", "name,r,g,b\nSky,128,128,192\nRoad,128,64,128\n")),
        (("train", "trainannot"), ("classes.csv", "value,name\n#8080c0,Sky\n#804080,Road\n")),
    ],
)  # fmt: skip
def test_the_releases_of_camvid_are_read_as_they_are(
    tmp_path: Path, folders: tuple[str, str], table: tuple[str, str]
) -> None:
    mask = encode_colors([[(128, 128, 192), (128, 64, 128)]] * 2)
    suffix = "" if folders[1].endswith("annot") else "_L"
    write_files(
        tmp_path,
        {
            f"{folders[0]}/0001TP_006690.png": encode_png(1, width=2), f"{folders[1]}/0001TP_006690{suffix}.png": mask,
            table[0]: table[1].encode(),
        },
    )  # fmt: skip
    split = "train" if folders[0] == "train" else None
    assert read_labels(tmp_path) == {f"{folders[0]}/0001TP_006690.png": ("Road;Sky", split)}


@pytest.mark.parametrize("content", [fill_mask(0)[:45], b"", b"GIF89a"])
def test_a_damaged_mask_is_refused(content: bytes) -> None:
    with pytest.raises(ImageError):
        decode_mask(content)


def test_void_pixels_have_no_class() -> None:
    classes = read_mask_classes(CLASSES, "classes.csv")
    assert classes == MaskClasses({0: "sky", 1: "road", 7: "car"}, frozenset({11, 255}))
    assert classes.read_label(np.array([[11, 255]], np.uint8)) == ""
    named = read_mask_classes(b"name;value\nbackground;0\nobject;255\n", "classes.csv")
    assert named.read_label(np.array([[0, 255]], np.uint8)) == "background;object"
    with pytest.raises(ImageError, match="has the value 3, which"):
        named.read_label(np.array([[0, 3]], np.uint8))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,label\n0,sky\n", "has the columns id, label: expected value and name"),
        ("value,name\n0,sky\n300,road\n", "line 3: the value is '300', expected an integer from 0 to 255"),
        ("value,name\n-1,sky\n", "the value is '-1'"),
        ("value,name\n#12,sky\n#804080,road\n", "the value is '#12', expected an integer from 0 to 255, or a color"),
        ("value,name\n0,sky\n#804080,road\n", "line 3: '#804080' is a color or a value, unlike the rows above"),
        ("value,name\n#804080,sky\n#804080,road\n", "the value #804080 or the class 'road' occurs a second time"),
        ("name,r,g,b\nsky,0,0,300\n", "the value is '0,0,300', expected a color such as #804080"),
        ("value,name\n0,sky\n0,road\n", "line 3: the value 0 or the class 'road' occurs a second time"),
        ("value,name\n0,sky\n1,sky\n", "the class 'sky' occurs a second time"),
        ('value,name\n0,"a;b"\n', "the name is 'a;b', expected that of a class, without ';'"),
        ("value,name\n0,\n", "the name is ''"),
        ("value,name\n0,void\n", "names no class"),
    ],
)
def test_a_table_of_classes_that_cannot_be_used(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message.replace("(", r"\(")):
        read_mask_classes(text.encode(), "classes.csv")


def test_real_scenes_have_the_classes_in_their_masks(shared: Path) -> None:
    index = build_index(shared / "data" / "camvid")
    audit = quick_audit(index)
    assert (audit.count, audit.splits, audit.errors) == (468, {"train": 367, "validation": 101}, 0)
    assert len(audit.classes) == 11
    assert "void" not in audit.classes


def test_drawn_beans_have_a_roast_and_a_mask() -> None:
    index = build_index("beans:12@32")
    assert {image.label for image in index.images} == {"Dark", "Green", "Light", "Medium"}
    assert index.several_labels == ""
    assert choose_labels(index, find_task("single_label").targets) is index
    masked = choose_labels(index, find_task("segmentation").targets)
    assert {image.label for image in masked.images} == {"background;bean"}
    assert "beans[0] and 11 others have masks" in masked.several_labels
    masks = load_masks(masked, [0, 5], PreprocessingSpec(32, 32), ["background", "bean"])
    np.testing.assert_array_equal(masks[1], coffee_beans.draw_mask(5, 32))
