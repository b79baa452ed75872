"""Data: images and videos with labels, from IDX files, folders, lists, NumPy archives and bundled tasks."""

from intaglio.data.images import (
    UNLABELLED,
    Data,
    ImageData,
    check_answerable,
    check_images,
    check_labelled,
    classes_in_turn,
    evenly_spaced,
    image_data,
    images_alone,
)
from intaglio.data.opening import open_data
from intaglio.data.tasks import TASKS, Task
from intaglio.data.videos.dataset import VideoDataset, open_videos
from intaglio.data.videos.sampling import Sampling
from intaglio.data.videos.video_data import VideoData

__all__ = [
    "TASKS",
    "UNLABELLED",
    "Data",
    "ImageData",
    "Sampling",
    "Task",
    "VideoData",
    "VideoDataset",
    "check_answerable",
    "check_images",
    "check_labelled",
    "classes_in_turn",
    "evenly_spaced",
    "image_data",
    "images_alone",
    "open_data",
    "open_videos",
]
