"""Where the clips of a long video wait until it is whole: a hidden folder beside it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from cosmos_fast import Video2World
    from cosmos_fast.jobs.kept import KeptClips


class Keeping:
    """The folders of the long videos that one command makes."""

    def __init__(self, videos: Sequence[Path], num_clips: int, *, resume: bool) -> None:
        """
        Args:
            num_clips: of each video.
            resume: go on behind what is there; else it is replaced.
        """
        self._folders: Final = [_folder_of(video) for video in videos]
        self._num_clips, self._resume = num_clips, resume
        self._kept: list[KeptClips] = []

    def words(self) -> str:
        """What to add to the news that the command ends early; nothing where nothing is kept."""
        kept = sum(one.clips for one in self._kept)
        of = f"{kept} of {len(self._folders) * self._num_clips} clips"
        return f"{of} are kept: the same command with --resume goes on" if kept else ""

    def refuse_taken(self) -> None:
        """To be asked before anything heavy is loaded.

        Raises:
            InputError: another process makes one of the videos.
            MediaError: a folder cannot be used.
        """
        from cosmos_fast.jobs.kept import KeptClips

        for folder in self._folders:
            if folder.exists():
                with KeptClips(folder):
                    pass

    @contextlib.contextmanager
    def opened(
        self, engine: Video2World, say: Callable[[str], None]
    ) -> Iterator[Sequence[KeptClips | Path]]:
        """What to keep the clips of each video in, while the block runs.

        The first rank's are folders in its hands; the others' are names. A block that comes to its
        end has published the videos: the folders go.

        Raises:
            InputError, MediaError: as above.
        """
        from cosmos_fast.errors import MediaError
        from cosmos_fast.jobs.kept import KeptClips

        with contextlib.ExitStack() as stack:

            def take() -> None:
                for folder in self._folders:
                    kept = KeptClips(folder, begin_again="leave --resume out")
                    self._kept.append(stack.enter_context(kept))
                    self._tell(kept, say)

            with engine.together(("keep clips", len(self._folders))) as ranks:
                ranks.on_first(take)
            yield self._kept or self._folders
            for kept in self._kept:
                try:
                    kept.remove()
                except MediaError as error:  # the videos are there all the same
                    say(f"note: {error}")

    def _tell(self, kept: KeptClips, say: Callable[[str], None]) -> None:
        if self._resume and kept.found:
            say(f"clips that are kept: {kept.found}; going on behind them")
        elif replaced := kept.clear():
            say(f"note: clips of an earlier run replaced: {replaced}; --resume goes on behind them")


def _folder_of(video: Path) -> Path:
    from cosmos_fast.clip import companions
    from cosmos_fast.files import TEMPORARY_PREFIX
    from cosmos_fast.jobs.job import digest

    place = companions(video)[0].parent
    name = video.relative_to(place).as_posix()
    return place / f"{TEMPORARY_PREFIX}clips-{digest(name.encode())[:16]}"
