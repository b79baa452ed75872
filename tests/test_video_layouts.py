"""Layouts: miniature folders like those of UCF-101, HMDB-51 and others, with all that is odd about them."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intaglio.data.videos import holds_videos, list_videos
from intaglio.data.videos.layouts import is_video_list
from intaglio.data.videos.lists import Row, number_labels, read_rows
from intaglio.errors import DataError

VIDEO = b"not decoded here"


def write(root: Path, files: Mapping[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def listed(root: Path, split: str = "train", fold: int = 1) -> dict[str, int]:
    """Path below the folder -> label."""
    base = root if root.is_dir() else root.parent
    found = list_videos(root, split, fold=fold)
    return {entry.path.relative_to(base).as_posix(): entry.label for entry in found.entries}


def ucf_name(name: str, group: int, clip: int = 1) -> str:
    return f"v_{name}_g{group:02}_c{clip:02}.avi"


UCF = {
    "ucfTrainTestlist/classInd.txt": "1 ApplyEyeMakeup\r\n2 HandstandPushups\r\n3 YoYo\r\n",
    "ucfTrainTestlist/trainlist01.txt": "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\r\n"
    "HandstandPushups/v_HandStandPushups_g08_c01.avi 2\r\n\r\nYoYo/v_YoYo_g09_c01.avi 3\r\n",
    "ucfTrainTestlist/testlist01.txt": "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi\r\n"
    "HandStandPushups/v_HandstandPushups_g01_c01.avi\r\n",
    "ucfTrainTestlist/trainlist02.txt": "YoYo/v_YoYo_g01_c01.avi 3\n",
    "ucfTrainTestlist/testlist02.txt": "YoYo/v_YoYo_g09_c01.avi\n",
}


@pytest.mark.parametrize("base", ["", "UCF-101/", "videos/"])
def test_ucf101(tmp_path: Path, base: str) -> None:
    videos = [
        f"ApplyEyeMakeup/{ucf_name('ApplyEyeMakeup', 8)}", f"ApplyEyeMakeup/{ucf_name('ApplyEyeMakeup', 1)}",
        f"HandstandPushups/{ucf_name('HandStandPushups', 8)}", f"HandstandPushups/{ucf_name('HandStandPushups', 1)}",
        f"YoYo/{ucf_name('YoYo', 1)}", f"YoYo/{ucf_name('YoYo', 9)}",
    ]  # fmt: skip
    write(tmp_path, {**UCF, **{base + name: VIDEO for name in videos}})
    assert holds_videos(tmp_path)
    assert list_videos(tmp_path, "train").classes == ("ApplyEyeMakeup", "HandstandPushups", "YoYo")
    assert listed(tmp_path) == {base + videos[0]: 0, base + videos[2]: 1, base + videos[5]: 2}
    assert listed(tmp_path, "test") == {base + videos[1]: 0, base + videos[3]: 1}  # in spite of the other spelling
    assert listed(tmp_path, fold=2) == {base + videos[4]: 2}


def test_ucf101_as_folders_of_frames(tmp_path: Path) -> None:
    write(tmp_path, {**UCF, "frames/YoYo/v_YoYo_g09_c01/img_1.jpg": b"", "frames/YoYo/v_YoYo_g09_c01/img_2.jpg": b""})
    assert listed(tmp_path)["frames/YoYo/v_YoYo_g09_c01"] == 2


def test_ucf101_without_class_list_or_videos(tmp_path: Path) -> None:
    write(tmp_path, {name: content for name, content in UCF.items() if "classInd" not in name})
    found = list_videos(tmp_path, "train")
    assert [name.lower() for name in found.classes] == ["applyeyemakeup", "handstandpushups", "yoyo"]
    assert [entry.label for entry in found.entries] == [0, 1, 2]
    assert not any(entry.path.exists() for entry in found.entries)  # left to whoever decodes: missing files are skipped


def test_groups_on_both_sides_are_warned_of(tmp_path: Path) -> None:
    write(tmp_path, {"trainlist01.txt": "A/v_A_g01_c01.avi 1\n", "testlist01.txt": "A/v_A_g01_c02.avi\n"})
    with pytest.warns(UserWarning, match="1 groups of videos are on both sides of the split"):
        assert listed(tmp_path) == {"A/v_A_g01_c01.avi": 0}


@pytest.mark.parametrize(
    ("files", "split", "message"),
    [
        ({"trainlist01.txt": "A/v.avi 1\n"}, "test", "testlist01.txt: no such list"),
        ({"trainlist01.txt": "B/v.avi 1\n", "classInd.txt": "1 A\n"}, "train", "the class of 'B/v.avi'"),
        ({"trainlist01.txt": "A/v.avi 2\n", "classInd.txt": "1 A\n"}, "train", "the class of 'A/v.avi'"),
        ({"trainlist01.txt": "A/v.avi 1\n", "classInd.txt": "A\n"}, "train", "lines of a number and a class"),
        ({"trainlist01.txt": "../A/v.avi 1\n"}, "train", r"names '\.\./A/v\.avi', which is outside its own folder"),
        ({"trainlist01.txt": "A/../../v.avi 1\n"}, "train", "outside its own folder"),
        ({"trainlist01.txt": "/etc/passwd 1\n"}, "train", "outside its own folder"),
        ({"trainlist01.txt": b"\xff\xfe1"}, "train", "not a list in UTF-8"),
        ({"a_test_split1.txt": "../v.avi 1\n"}, "train", r"names 'a/\.\./v\.avi', which is outside"),
        ({"a_test_split1.txt": "v.avi\n"}, "train", "does not end with 0, 1 or 2"),
        ({"a_test_split1.txt": "v.avi 1\n"}, "test", "no videos in it"),
    ],
)
def test_bad_split_lists(tmp_path: Path, files: dict[str, str | bytes], split: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list_videos(write(tmp_path, files), split)


def test_hmdb51(tmp_path: Path) -> None:
    odd = "#437_How_To_Ride_A_Bike_(HQ)_&_more!_ride_bike_f_cm_np1_ba_med_0.avi"
    write(
        tmp_path,
        {
            "testTrainMulti_7030_splits/brush_hair_test_split1.txt": "a.avi 1 \r\nb.avi 2 \r\nc.avi 0 \r\n",
            "testTrainMulti_7030_splits/ride_bike_test_split1.txt": f"{odd} 1 \r\nd.avi 2 \r\n",
            "testTrainMulti_7030_splits/ride_bike_test_split2.txt": f"{odd} 2 \r\nd.avi 1 \r\n",
            **{f"videos/brush_hair/{name}.avi": VIDEO for name in "abc"},
            f"videos/ride_bike/{odd}": VIDEO,
            "videos/ride_bike/d.avi": VIDEO,
        },
    )
    assert holds_videos(tmp_path)
    assert list_videos(tmp_path, "train").classes == ("brush_hair", "ride_bike")
    assert listed(tmp_path) == {"videos/brush_hair/a.avi": 0, f"videos/ride_bike/{odd}": 1}
    assert listed(tmp_path, "test") == {"videos/brush_hair/b.avi": 0, "videos/ride_bike/d.avi": 1}
    assert listed(tmp_path, "test", fold=2) == {f"videos/ride_bike/{odd}": 0}


# --- lists -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("l.csv", "path,label,split\na.mp4,run,train\n", [("a.mp4", "run", "train")]),
        ("l.csv", "\ufefflabel;video\r\nrun;a b.mp4\r\n", [("a b.mp4", "run", "")]),
        ("l.csv", "a.mp4\t3\nb.mp4\t0\n", [("a.mp4", "3", ""), ("b.mp4", "0", "")]),
        ("l.csv", '"a,b.mp4",run,TEST\n\n,x\n', [("a,b.mp4", "run", "test")]),
        ("l.csv", "a.mp4\n", [("a.mp4", "", "")]),
        ("l.txt", "some name.mp4 4\r\nb.mp4 2\n", [("some name.mp4", "4", ""), ("b.mp4", "2", "")]),
        ("l.txt", "frames/a 120 4\n", [("frames/a", "4", "")]),
        ("l.txt", "a b.mp4\n", [("a b.mp4", "", "")]),
    ],
)
def test_rows(tmp_path: Path, name: str, content: str, rows: list[tuple[str, str, str]]) -> None:
    write(tmp_path, {name: content})
    assert [tuple(row) for row in read_rows(tmp_path / name)] == rows


def test_a_list_with_names_and_splits(tmp_path: Path) -> None:
    path = write(tmp_path, {"l.csv": "path,label,split\na.mp4,walk,train\nb.mp4,run,val\nc.mp4,,train\n"}) / "l.csv"
    assert list_videos(path, "train").classes == ("run", "walk")
    assert listed(path) == {"a.mp4": 1, "c.mp4": -1}
    assert listed(path, "test") == {"b.mp4": 0}


def test_a_folder_of_lists_shares_its_classes(tmp_path: Path) -> None:
    write(tmp_path, {"train.csv": "sub/a.mp4,walk\n", "val.csv": "b.mp4,run\n"})
    assert listed(tmp_path) == {"sub/a.mp4": 1}
    assert listed(tmp_path, "test") == {"b.mp4": 0}
    (tmp_path / "val.csv").unlink()
    with pytest.raises(DataError, match="has lists of train, but none of test"):
        list_videos(tmp_path, "test")


@pytest.mark.parametrize(
    "name", ["../secret.mp4", "/secret.mp4", "a/../../b.mp4", "..\\b.mp4", "C:/b.mp4", "link/b.mp4"]
)
def test_a_list_can_not_leave_its_folder(tmp_path: Path, name: str) -> None:
    home = write(tmp_path / "home", {"l.csv": f'path,label\n"{name}",0\n'})
    (home / "link").symlink_to(tmp_path)
    with pytest.raises(DataError, match="which is outside its own folder"):
        list_videos(home / "l.csv", "train")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.csv", "", "no videos in this list"),
        ("l.csv", ".", "names '.', which is no video but its own folder"),
        ("l.csv", "label,split\n1,train\n", "no column with the path"),
        ("l.csv", "a.mp4,-2\n", r"labels span -2\.\.-2"),
        ("l.csv", "a.mp4,100001\n", r"labels span 100001\.\."),
        ("l.csv", b"a.mp4\0,1\n", "binary"),
        ("l.csv", "path,split\na.mp4,test\n", "no videos of the split train"),
        ("l.csv", 'a.mp4,"' + "x" * 200_000 + '"\n', "damaged list"),
        ("missing.txt", None, "No such file"),
    ],
)
def test_bad_lists(tmp_path: Path, name: str, content: str | bytes | None, message: str) -> None:
    if content is not None:
        write(tmp_path, {name: content})
    with pytest.raises(DataError, match=message):
        list_videos(tmp_path / name, "train")


def test_a_list_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("intaglio.data.videos.lists.MAX_LIST_BYTES", 10)
    with pytest.raises(DataError, match="a list of over 10 bytes"):
        read_rows(write(tmp_path, {"l.csv": "a.mp4,100000\n"}) / "l.csv")


@settings(max_examples=100)
@given(content=st.binary(max_size=60), suffix=st.sampled_from([".csv", ".txt"]))
def test_any_bytes_are_a_list_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"list{suffix}"
    path.write_bytes(content)
    try:
        found = list_videos(path, "train")
    except DataError:
        return
    assert all(entry.path.is_relative_to(path.parent) and entry.label >= -1 for entry in found.entries)


def test_which_text_files_list_videos(tmp_path: Path) -> None:
    write(tmp_path, {"a.csv": "x.avi,1\n", "b.csv": "1,2\n", "c.txt": "frames/x 12 1\n", "d.json": "{}"})
    (tmp_path / "frames/x").mkdir(parents=True)
    assert [is_video_list(tmp_path / name) for name in ("a.csv", "b.csv", "c.txt", "d.json")] == [
        True, False, True, False,
    ]  # fmt: skip


# --- class folders -----------------------------------------------------------------------------------------------


def test_class_folders(tmp_path: Path) -> None:
    write(
        tmp_path, {"walk/b.MP4": VIDEO, "walk/a.avi": VIDEO, "run/c.mkv": VIDEO, "run/.d.mkv": VIDEO, "run/e.txt": ""}
    )
    assert holds_videos(tmp_path)
    assert list_videos(tmp_path, "train").classes == ("run", "walk")
    assert listed(tmp_path) == listed(tmp_path, "test") == {"run/c.mkv": 0, "walk/a.avi": 1, "walk/b.MP4": 1}


def test_folders_of_splits_share_their_classes(tmp_path: Path) -> None:
    write(tmp_path, {"train/walk/a.avi": VIDEO, "train/run/b.avi": VIDEO, "val/walk/c/1.png": b"", "docs/x.txt": ""})
    assert listed(tmp_path) == {"train/run/b.avi": 0, "train/walk/a.avi": 1}
    assert listed(tmp_path, "test") == {"val/walk/c": 1}
    write(tmp_path / "only", {"train/walk/a.avi": VIDEO})
    with pytest.raises(DataError, match="has train, but no folder test"):
        list_videos(tmp_path / "only", "test")


def test_videos_named_as_in_ucf101_are_split_by_their_groups(tmp_path: Path) -> None:
    names = {group: f"YoYo/{ucf_name('YoYo', group)}" for group in (1, 7, 8, 14, 15, 25)}
    write(tmp_path, dict.fromkeys(names.values(), VIDEO))
    for fold, test in ((1, (1, 7)), (2, (8, 14)), (3, (15,))):
        assert set(listed(tmp_path, "test", fold)) == {names[group] for group in test}
        assert set(listed(tmp_path, "train", fold)) == {names[group] for group in names if group not in test}


def test_one_video_and_a_folder_of_videos_have_no_labels(tmp_path: Path) -> None:
    write(tmp_path, {"b.avi": VIDEO, "a.mp4": VIDEO})
    assert listed(tmp_path) == {"a.mp4": -1, "b.avi": -1}
    assert listed(tmp_path / "b.avi") == {"b.avi": -1}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["cat/1.png", "dog/1.png"], False),
        (["train/cat/1.png", "test/cat/1.png"], False),
        (["train/cat/1.png", "test/cat/1.png", "docs/x.txt"], False),
        (["train/1.png", "bus/1.png"], False),  # classes called train and bus
        (["1.png"], False),
        (["walk/a/1.png", "walk/b/1.png"], True),
        (["train/walk/a/1.png"], True),
        (["walk/a.avi"], True),
        (["a.avi"], True),
        (["x.txt"], False),
    ],
)
def test_pictures_and_videos_are_told_apart(tmp_path: Path, files: list[str], expected: bool) -> None:
    write(tmp_path, dict.fromkeys(files, b""))
    assert holds_videos(tmp_path) is expected


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no videos in it"):
        list_videos(tmp_path, "train")


def test_labels_that_only_look_like_numbers_are_names() -> None:
    rows = [Row("a.mp4", "--5", ""), Row("b.mp4", "\N{SUPERSCRIPT TWO}", ""), Row("c.mp4", "1", "")]
    assert number_labels(rows, Path("l.csv")) == ([0, 2, 1], ("--5", "1", "\N{SUPERSCRIPT TWO}"))
