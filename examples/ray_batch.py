"""A list of jobs over a Ray cluster; here the cluster is this machine, with one worker.

    pip install '.[ray]'
    python examples/ray_batch.py jobs.jsonl [MODEL]

On a cluster, call ray.init(address="auto"), raise num_workers and gpus_per_worker, and keep list,
inputs and output folder on a disk that all machines share. Killed at any moment, the same call with
resume=True makes what is left.
"""

import sys
from pathlib import Path

import ray

import cosmos_fast as cf
from cosmos_fast.jobs.on_ray import run_batch_on_ray

jobs = sys.argv[1]
model = sys.argv[2] if len(sys.argv) > 2 else "ballworld"


def make_engine() -> cf.Video2World:
    return cf.Video2World.from_pretrained(model)


ray.init(num_cpus=2, include_dashboard=False)
summary = run_batch_on_ray(
    make_engine,
    jobs,
    Path("ray_batch"),
    num_workers=1,
    gpus_per_worker=0,
    model=model,
    resume=Path("ray_batch").exists(),
)
print(summary)
for row in summary.failures:
    print(row)
