"""ROS 2 image messages in and out, without depending on ROS: whatever has these fields will do.

Rows of a message may be padded: ``step`` bytes each, of which 3 * width count.
python examples/worlds/ros_images.py [MODEL]
"""

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np

import cosmos_fast as cf


def picture_of(message: Any) -> np.ndarray:
    """uint8 (H, W, 3), RGB, of a sensor_msgs/Image in rgb8 or bgr8."""
    rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
    picture = rows[:, : 3 * message.width].reshape(message.height, message.width, 3)
    return picture[..., ::-1] if message.encoding == "bgr8" else picture


def fill(message: Any, picture: np.ndarray, stamp: float) -> Any:
    """Writes a picture into a message, rows without padding."""
    message.height, message.width, _ = picture.shape
    message.encoding, message.is_bigendian, message.step = "rgb8", 0, 3 * message.width
    message.header.stamp.sec = int(stamp)
    message.header.stamp.nanosec = round(stamp % 1 * 1e9)
    message.data = picture.tobytes()
    return message


def empty() -> Any:
    """sensor_msgs.msg.Image() where ROS is installed."""
    return SimpleNamespace(header=SimpleNamespace(stamp=SimpleNamespace(sec=0, nanosec=0)))


engine = cf.Video2World.from_pretrained(sys.argv[1] if len(sys.argv) > 1 else "pusherworld")
spec, (height, width) = engine.profile.actions, engine.profile.size
assert spec is not None
camera = empty()
camera.height, camera.width, camera.step, camera.encoding = height, width, 3 * width + 4, "bgr8"
camera.data = bytes(range(256)) * (camera.step * height // 256 + 1)
camera.data = camera.data[: camera.step * height]

with cf.World(engine) as world:
    world.reset(picture_of(camera)[None])
    step = world.step(np.zeros((1, spec.chunk, spec.dim)))
for number, picture in enumerate(np.asarray(step.frames)[0], 1):
    message = fill(empty(), picture, number / spec.fps)
stamp, shape = message.header.stamp, f"{message.width}x{message.height}"
print(f"{number} messages of {shape}, the last at {stamp.sec}.{stamp.nanosec:09d} s")
