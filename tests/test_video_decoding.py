"""Decoding: every container gives the frame that was asked for, and nothing in a file is trusted."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import intaglio.data.videos.decoding as decoding
from intaglio.data.videos import count_frames, read_clip, write_ffv1
from intaglio.data.videos.framing import as_grey, covering, framed
from intaglio.errors import DataError
from video_files import FORMATS, SHAPE, encode, level, noise, places


def everything(count: int) -> Sequence[int]:
    return range(count)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One video of 30 frames in every format."""
    root = tmp_path_factory.mktemp("videos")
    return {
        kind: encode(root / str(number) / name, codec=codec, pixels=pixels, options=options)
        for number, (kind, (name, codec, pixels, options)) in enumerate(FORMATS.items())
    }


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_every_frame_in_order(videos: dict[str, Path], kind: str) -> None:
    frames = read_clip(videos[kind], everything)
    assert frames.dtype == torch.uint8
    assert frames.shape == (30, 3, *SHAPE)
    assert places(frames) == list(range(30))
    assert count_frames(videos[kind]) == 30


@pytest.mark.parametrize("kind", FORMATS)
def test_a_few_frames_are_the_same_as_among_all(videos: dict[str, Path], kind: str) -> None:
    whole = read_clip(videos[kind], everything)
    for wanted in ([0], [29], [7], [8], [9], [16, 17, 18], [25, 3], [12, 12, 12], [5, 28]):
        few = read_clip(videos[kind], lambda _, wanted=wanted: wanted)  # type: ignore[misc]
        assert torch.equal(few, whole[wanted]), wanted


@pytest.mark.parametrize("channels", [1, 3])
def test_ffv1_brings_every_bit_back(tmp_path: Path, channels: int) -> None:
    clip = noise(5, channels)
    write_ffv1(tmp_path / "v.mkv", clip)
    assert torch.equal(read_clip(tmp_path / "v.mkv", everything), clip)
    write_ffv1(tmp_path / "w.mkv", clip.float() / 255)
    assert (tmp_path / "v.mkv").stat().st_size == (tmp_path / "w.mkv").stat().st_size
    assert torch.equal(read_clip(tmp_path / "w.mkv", everything), clip)


def test_channels(tmp_path: Path) -> None:
    clip = noise(3)
    write_ffv1(tmp_path / "v.mkv", clip)
    grey = read_clip(tmp_path / "v.mkv", everything, channels=1)
    exact = (clip.double() * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    assert grey.shape == (3, 1, *SHAPE)
    assert (grey - exact).abs().max() <= 0.5 + 1e-5
    write_ffv1(tmp_path / "g.mkv", clip[:, :1])
    assert torch.equal(read_clip(tmp_path / "g.mkv", everything, channels=3), clip[:, :1].expand(-1, 3, -1, -1))


def test_size_and_fit(tmp_path: Path) -> None:
    """A frame that is black, white and black from left to right: a crop to a square keeps the white middle only."""
    clip = torch.zeros(2, 3, 32, 96, dtype=torch.uint8)
    clip[..., 32:64] = 255
    write_ffv1(tmp_path / "v.mkv", clip)
    squashed = read_clip(tmp_path / "v.mkv", everything, size=(32, 24))
    assert squashed.shape == (2, 3, 32, 24)
    assert [int(value) for value in squashed[0, 0, 0, [0, 3, 12, 20, 23]]] == [0, 0, 255, 0, 0]
    cropped = read_clip(tmp_path / "v.mkv", everything, size=(16, 16), fit="crop")
    assert cropped.shape == (2, 3, 16, 16)
    assert int(cropped[..., 1:-1].min()) >= 250
    assert torch.equal(read_clip(tmp_path / "v.mkv", everything, size=(32, 96)), clip)


@given(st.tuples(st.integers(1, 400), st.integers(1, 400)), st.tuples(st.integers(1, 200), st.integers(1, 200)))
def test_what_is_cropped_covers_the_size(shape: tuple[int, int], size: tuple[int, int]) -> None:
    assert covering(shape, size, "squash") == size
    scaled = covering(shape, size, "crop")
    assert all(found >= wanted for found, wanted in zip(scaled, size, strict=True))
    assert any(found == wanted for found, wanted in zip(scaled, size, strict=True))
    assert framed(np.zeros((*scaled, 1), np.uint8), size).shape == (*size, 1)


def test_grey_is_rounded() -> None:
    assert as_grey(np.array([[[255, 255, 255], [0, 1, 0], [0, 0, 5], [1, 2, 3]]], np.uint8)).ravel().tolist() == [
        255, 1, 1, 2,
    ]  # fmt: skip


# --- folders of pictures -----------------------------------------------------------------------------------------


def frame_folder(root: Path, count: int = 12, shape: tuple[int, int] = (6, 9)) -> Path:
    root.mkdir(parents=True)
    for place in range(count):
        Image.fromarray(np.full((*shape, 3), level(place), np.uint8)).save(root / f"img_{place}.png")
    return root


def test_frames_in_a_folder_go_by_their_numbers(tmp_path: Path) -> None:
    folder = frame_folder(tmp_path / "v")
    (folder / "notes.txt").write_text("not a frame")
    frames = read_clip(folder, everything)
    assert places(frames) == list(range(12))  # and not 0, 1, 10, 11, 2, ...
    assert frames.shape == (12, 3, 6, 9)
    assert count_frames(folder) == 12
    assert places(read_clip(folder, lambda _: [11, 2])) == [11, 2]
    assert read_clip(folder, everything, size=(4, 4), channels=1).shape == (12, 1, 4, 4)
    assert read_clip(folder, everything, size=(3, 3), fit="crop").shape == (12, 3, 3, 3)


def test_bad_folders_of_frames(tmp_path: Path) -> None:
    folder = frame_folder(tmp_path / "v", 2)
    (folder / "img_1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"img_1\.png: not a picture"):
        read_clip(folder, everything)
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(folder / "img_1.png")
    with pytest.raises(DataError, match="the size of its frames changes"):
        read_clip(folder, everything)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="without a single picture"):
        read_clip(tmp_path / "empty", everything)


# --- what is wrong with files ------------------------------------------------------------------------------------

BAD = {
    "no such file": None,
    "not a video that can be read": b"hello",
    "damaged": b"",
}


@pytest.mark.parametrize(("message", "content"), BAD.items())
@pytest.mark.parametrize("name", ["v.mp4", "v.avi", "v.mkv", "v.webm"])
def test_what_is_no_video(tmp_path: Path, name: str, message: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"v\.\w+: .*{message}") as caught:
        read_clip(tmp_path / name, everything)
    assert "\n" not in str(caught.value)


def test_a_play_list_can_not_name_other_files(tmp_path: Path) -> None:
    """FFmpeg would follow each of these to a file, or to an address, that the user never named."""
    other = encode(tmp_path / "other.mp4", 5)
    lists = {
        "hls.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{other}\n#EXT-X-ENDLIST\n",
        "concat.mkv": f"ffconcat version 1.0\nfile {other.name}\n",
        "sdp.avi": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n",
    }
    for name, content in lists.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match="not a video that can be read"):
            read_clip(tmp_path / name, everything)


def test_a_name_is_never_taken_for_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode(tmp_path / "v.mp4", 3)
    (tmp_path / "v.mp4").rename(tmp_path / "concat:v.mp4")
    monkeypatch.chdir(tmp_path)
    assert count_frames(Path("concat:v.mp4")) == 3


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    import av

    with av.open(str(tmp_path / "v.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        assert isinstance(stream, av.AudioStream)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    with pytest.raises(DataError, match="has no video in it"):
        read_clip(tmp_path / "v.mkv", everything)


@pytest.mark.parametrize("kind", ["mp4, H.264", "avi, MPEG-4", "mkv, FFV1", "webm, VP9"])
def test_limits(videos: dict[str, Path], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = videos[kind]
    monkeypatch.setattr(decoding, "MAX_CLIP_PIXELS", 2 * 32 * 48)
    assert len(read_clip(path, lambda _: [0, 1])) == 2
    with pytest.raises(DataError, match=r"3 frames of 48 x 32 are over 3072 pixels; take fewer, or resize them"):
        read_clip(path, lambda _: [0, 1, 2])
    assert len(read_clip(path, lambda _: [0, 1, 2], size=(16, 24))) == 3
    monkeypatch.setattr(decoding, "MAX_FRAMES", 29)
    with pytest.raises(DataError, match="has over 29 frames"):
        count_frames(path)
    monkeypatch.setattr(decoding, "MAX_PIXELS", 32 * 48 - 1)
    with pytest.raises(DataError, match="of over 1535 pixels"):
        read_clip(path, lambda _: [0])


def test_absurd_dimensions_in_a_header_allocate_nothing(tmp_path: Path) -> None:
    """An AVI that says 60,000 x 60,000, with a few bytes behind it."""
    content = bytearray(encode(tmp_path / "v.avi", 3, codec="ffv1", pixels="bgr0").read_bytes())
    header = content.index(b"strf") + 8  # BITMAPINFOHEADER: size, width, height
    content[header + 4 : header + 12] = (60_000).to_bytes(4, "little") * 2
    (tmp_path / "v.avi").write_bytes(content)
    with pytest.raises(DataError, match=r"v\.avi: .*(of over 67108864 pixels|damaged)"):
        read_clip(tmp_path / "v.avi", everything)


@pytest.mark.parametrize("wanted", [[], [-1], [30], [0, 31]])
def test_frames_that_are_not_there(videos: dict[str, Path], wanted: list[int]) -> None:
    with pytest.raises(DataError, match="but it has 30"):
        read_clip(videos["mp4, H.264"], lambda _: wanted)


def test_packets_that_hold_no_frame(tmp_path: Path) -> None:
    import av

    path = encode(tmp_path / "v.avi", 30, codec="mjpeg", pixels="yuvj420p")
    with av.open(str(path)) as container:
        spans = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    for position, size in spans[-10:]:
        assert position is not None
        content[position + 8 : position + 8 + size] = bytes(size)
    path.write_bytes(content)
    assert places(read_clip(path, lambda _: [0, 19])) == [0, 19]
    with pytest.raises(DataError, match="damaged"):
        read_clip(path, everything)


@pytest.mark.parametrize(
    ("found", "result"), [(range(30), 29), (range(29), 28), (range(26), 25), (range(24), None), ((), None)]
)
def test_frames_that_a_container_only_claims(found: Sequence[int], result: int | None) -> None:
    """Some players' last packets hold no frame: the last one that there is stands for it, but not for many."""
    frames = {place: np.full((2, 2, 1), place, np.uint8) for place in found}
    if result is None:
        with pytest.raises(DataError, match="damaged; the last of its 30 frames"):
            decoding._stacked(frames, list(range(30)), 30, Path("v.avi"))
    else:
        clip = decoding._stacked(frames, list(range(30)), 30, Path("v.avi"))
        assert clip[:, 0, 0, 0].tolist() == [min(place, result) for place in range(30)]


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(list(FORMATS)), place=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255),
       cut=st.booleans())  # fmt: skip
def test_damage_is_a_data_error_or_no_harm(
    videos: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, kind: str, place: float, value: int, cut: bool
) -> None:
    content = videos[kind].read_bytes()
    position = int(place * len(content))
    damaged = content[:position] + (b"" if cut else bytes([value]) + content[position + 1 :])
    path = tmp_path_factory.getbasetemp() / f"damaged{videos[kind].suffix}"
    path.write_bytes(damaged)
    try:
        frames = read_clip(path, everything)
    except DataError:
        return
    assert frames.dtype == torch.uint8
    assert frames.ndim == 4


def test_without_pyav_one_line_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DataError, match=r"videos need PyAV: pip install 'intaglio\[video\]'"):
        read_clip(encode_nothing(tmp_path), everything)


def encode_nothing(folder: Path) -> Path:
    path = folder / "v.mp4"
    path.write_bytes(b"x")
    return path
