"""One video on several devices: guidance branches and tokens shared out over torch.distributed.

Everything moves through one collective of one process group, an all-to-all with sizes per rank:
subgroups, rings, broadcasts and gathers are all-to-alls in which most sizes are zero. So a group
that a host program lends is used as it is, and no other group is made, not even the default one.

Ranks of one machine can write into each other's memory. There the heads of self-attention, nearly
all that moves, go without messages: into windows (``windows.py``, ``heads.py``).
"""

from cosmos_fast.parallel.ranks import Ranks
from cosmos_fast.parallel.rendezvous import LOOPBACK, join, leave, serve_store
from cosmos_fast.parallel.settings import Parallel

__all__ = ["LOOPBACK", "Parallel", "Ranks", "join", "leave", "serve_store"]
