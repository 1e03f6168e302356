"""Manifests and the discovery of slides."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from encoder.errors import UsageError
from indexer.manifest import SlideEntry, discover, read_manifest
from indexer.slide_files import dicom_series, fingerprint, series_name


def touch(folder: Path, *names: str) -> list[Path]:
    files = []
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(name.encode())
        files.append(file)
    return files


def write(file: Path, text: str) -> Path:
    file.write_text(text, encoding="utf-8")
    return file


def dicom(file: Path, uid: str) -> Path:
    """A DICOM header with a nested sequence of undefined length before the series' own UID."""

    def element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
        long = vr in {b"SQ", b"OB"}
        size = struct.pack("<HI", 0, len(value)) if long else struct.pack("<H", len(value))
        return struct.pack("<HH", group, number) + vr + size + value

    nested = element(0x0020, 0x000E, b"UI", b"9.9.9\0")
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + nested + struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
    sequence = struct.pack("<HH2sHI", 0x0008, 0x1115, b"SQ", 0, 0xFFFFFFFF) + item
    sequence += struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    body = element(0x0008, 0x0060, b"CS", b"SM") + sequence + element(0x0020, 0x000E, b"UI", uid.encode())
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(bytes(128) + b"DICM" + body + file.name.encode())
    return file


def test_folder_is_searched_for_slides_only(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs", "deep/b.TIF", "deep/notes.txt", "thumb.png", ".hidden.svs", "c.mrxs", "c/Data0001.dat")
    assert [entry.slide_id for entry in discover([tmp_path])] == ["a", "c", "b"]


def test_manifest_describes_slides_and_keeps_other_columns(tmp_path: Path) -> None:
    touch(tmp_path / "slides", "a.svs", "b.svs")
    touch(tmp_path, "a.geojson")
    manifest = write(
        tmp_path / "m.csv",
        "path,slide_id,mpp,patient_id,site_id,cohort,mask,grade,code,stain\n"
        "slides/a.svs,A,0.25,P1,S1,train,a.geojson,2.5,007,HE\n"
        "slides/b.svs,,,NA,,,,,12,\n",
    )
    a, b = discover([], manifest)
    assert a == SlideEntry(
        "A",
        tmp_path / "slides/a.svs",
        0.25,
        "P1",
        "S1",
        "train",
        tmp_path / "a.geojson",
        {"grade": 2.5, "code": "007", "stain": "HE"},
    )
    assert (b.slide_id, b.mpp, b.patient_id, b.mask) == ("b", None, None, None)
    # `grade` is numeric; `code` holds 007 and stays text; blanks are None in both.
    assert b.extra == {"grade": None, "code": "12", "stain": None}


def test_rows_match_files_by_path_or_id_and_other_files_stay(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs", "b.svs", "c.svs")
    by_id = write(tmp_path / "id.csv", "slide_id;mpp\nb;0.5\n")
    assert [(e.slide_id, e.mpp) for e in discover([tmp_path], by_id)] == [("a", None), ("b", 0.5), ("c", None)]
    by_path = write(tmp_path / "path.csv", "path,slide_id,mpp\nc.svs,renamed,1\n")
    assert [e.slide_id for e in discover([tmp_path], by_path)] == ["a", "b", "renamed"]


def test_a_manifest_in_the_folder_is_not_used_unasked(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs")
    write(tmp_path / "manifest.csv", "path,mpp\na.svs,0.5\n")
    assert discover([tmp_path])[0].mpp is None
    assert discover([tmp_path], tmp_path / "manifest.csv")[0].mpp == 0.5


def test_plain_pictures_are_slides_where_the_manifest_gives_their_mpp(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs", "field.png", "other.png", "photo.jpg")
    manifest = write(tmp_path / "m.csv", "path,mpp\nfield.png,0.5\nphoto.jpg,\n")
    assert [e.slide_id for e in discover([tmp_path], manifest)] == ["a", "field"]
    assert [e.slide_id for e in discover([tmp_path / "other.png"])] == ["other"]


def test_a_file_named_twice_is_one_slide(tmp_path: Path) -> None:
    (file,) = touch(tmp_path, "a.svs")
    assert len(discover([tmp_path, file])) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("path,mpp\ngone.svs,0.5\n", r"gone\.svs does not exist"),
        ("name,mpp\na,0.5\n", "neither a path nor a slide_id"),
        ("path,mpp\na.svs,half\n", "mpp `half`"),
        ("path,mpp\na.svs,-1\n", "mpp `-1`"),
        ("path,mpp\na.svs\n", "1 values for 2 columns"),
        ("path,mpp\n", "no rows"),
        ('path,note\na.svs,"' + "x" * 140_000 + "\n", "line 2: this is no CSV"),
        ("path,mpp\na.svs,1\na.svs,2\n", "lines 2 and 3"),
        ("path,slide_id\n,\nb.svs,\n", r"b\.svs"),
        ("path,mask\na.svs,gone.geojson\n", r"gone\.geojson does not exist"),
        ("path,slide_id\na.svs,x/y\n", "slash"),
        ("path,mpp,mpp\na.svs,1,1\n", "two columns mpp"),
        ("slide_id,mpp\ntypo,1\n", "no slide file has the id typo"),
    ],
)
def test_wrong_manifests_are_refused(tmp_path: Path, text: str, said: str) -> None:
    touch(tmp_path, "a.svs")
    manifest = write(tmp_path / "m.csv", text)
    with pytest.raises(UsageError, match=said):
        discover([tmp_path], manifest)


def test_only_plain_decimal_numbers_are_numbers(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs", "b.svs")
    manifest = write(
        tmp_path / "m.csv",
        f"path,well,block,huge,long,plain\na.svs,E1,12E45,1e999,{'9' * 400},-0.5\nb.svs,E2,3E1,2,1,3.\n",
    )
    rows = read_manifest(manifest).rows
    assert rows[0].extra == {"well": "E1", "block": "12E45", "huge": "1e999", "long": "9" * 400, "plain": -0.5}
    assert rows[1].extra["plain"] == 3.0


def test_an_id_that_a_single_file_lacks_was_not_asked_for(tmp_path: Path) -> None:
    (file, _) = touch(tmp_path, "a.svs", "b.svs")
    manifest = write(tmp_path / "m.csv", "slide_id,mpp\na,0.5\nb,0.25\n")
    assert [(e.slide_id, e.mpp) for e in discover([file], manifest)] == [("a", 0.5)]


def test_missing_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        discover([tmp_path / "gone"])
    with pytest.raises(UsageError, match="holds no slides"):
        discover([tmp_path])
    with pytest.raises(UsageError, match="No slides"):
        discover([])
    with pytest.raises(UsageError, match="does not exist"):
        read_manifest(tmp_path / "gone.csv")


def test_two_files_with_one_id_are_refused_naming_both(tmp_path: Path) -> None:
    touch(tmp_path, "one/a.svs", "two/a.tif")
    with pytest.raises(UsageError, match=r"one/a\.svs.*two/a\.tif"):
        discover([tmp_path])


def test_a_dicom_series_is_one_slide(tmp_path: Path) -> None:
    for name in ("b.dcm", "a.dcm"):
        dicom(tmp_path / "case 7" / name, "1.2.34\0")
    dicom(tmp_path / "mixed/x.dcm", "1.2.5")
    dicom(tmp_path / "mixed/y.dcm", "1.2.6")
    entries = discover([tmp_path])
    assert [(e.slide_id, e.path.name) for e in entries] == [("case 7", "a.dcm"), ("x", "x.dcm"), ("y", "y.dcm")]
    assert len(discover([tmp_path / "case 7/b.dcm", tmp_path / "case 7/a.dcm"])) == 1
    assert series_name(tmp_path / "case 7/b.dcm") == "case 7"
    broken = touch(tmp_path, "broken.dcm")
    assert dicom_series(broken) == [broken]


def test_fingerprint_sees_ends_size_and_companions(tmp_path: Path) -> None:
    file = tmp_path / "a.svs"
    data = bytearray(3 << 20)
    file.write_bytes(data)
    first = fingerprint(file)
    copy = tmp_path / "copy.svs"
    copy.write_bytes(data)
    assert fingerprint(copy) == first
    for position in (0, len(data) - 1):
        changed = data.copy()
        changed[position] = 1
        file.write_bytes(changed)
        assert fingerprint(file) != first
    file.write_bytes(data + b"\0")
    assert fingerprint(file) != first
    (mrxs, companion) = touch(tmp_path, "m.mrxs", "m/Data0001.dat")
    before = fingerprint(mrxs)
    companion.write_bytes(b"other")
    assert fingerprint(mrxs) != before


@pytest.mark.shared_data
def test_real_folders(shared_data: Path) -> None:
    entries = discover([shared_data / "slides"], shared_data / "slides/manifest.csv")
    assert {e.slide_id: e.mpp for e in entries}["oral_squamous_cell_carcinoma"] == 0.9
    assert {e.extra["organ"] for e in entries} >= {"colon", "breast"}
    odd = {e.slide_id for e in discover([shared_data / "slides_odd"])}
    # boxes_0.dcm and boxes_1.dcm are one series among other slides.
    assert "boxes_0" in odd and "boxes_1" not in odd
