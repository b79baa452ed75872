"""Videos with labels: decoding, choosing clips, the layouts of data sets, and storing clips without loss."""

from intaglio.data.videos.dataset import Skips, VideoDataset, open_videos
from intaglio.data.videos.decoding import count_frames, read_clip
from intaglio.data.videos.layouts import holds_videos, list_videos
from intaglio.data.videos.lists import Entry, VideoList
from intaglio.data.videos.sampling import Sampling
from intaglio.data.videos.storage import Clip, ClipWriter, StoredClips, save_video_folder, to_bytes, write_ffv1
from intaglio.data.videos.video_data import VideoData

__all__ = [
    "Clip",
    "ClipWriter",
    "Entry",
    "Sampling",
    "Skips",
    "StoredClips",
    "VideoData",
    "VideoDataset",
    "VideoList",
    "count_frames",
    "holds_videos",
    "list_videos",
    "open_videos",
    "read_clip",
    "save_video_folder",
    "to_bytes",
    "write_ffv1",
]
