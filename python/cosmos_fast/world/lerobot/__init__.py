"""LeRobot datasets, v3.0: start frames, actions and statistics in; rollouts out.

Needs the extra ``lerobot`` (``pip install '.[lerobot]'``: pyarrow); nothing of LeRobot itself. A
dataset is a folder: ``meta`` (info.json, stats.json, tasks and episodes as Parquet), ``data`` (a
row a frame), ``videos`` (one folder a camera, several episodes in each mp4).
"""

from cosmos_fast.world.lerobot.reading import Dataset, Episode
from cosmos_fast.world.lerobot.writing import DatasetWriter, save_dataset

__all__ = ["Dataset", "DatasetWriter", "Episode", "save_dataset"]
