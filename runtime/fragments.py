"""Reading a fragmented MP4 that a run still writes, and may begin again when it is resumed."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

HEADER = (b"ftyp", b"moov")
KINDS = (*HEADER, b"moof", b"mdat", b"mfra")  # that our writer uses


@dataclass(frozen=True)
class Fragment:
    """Frames that can be decoded on their own: `samples` of them, from `start` on, which counts in
    the track's time base."""

    data: bytes
    start: int
    samples: int


class GrowingVideo:
    """Hands on what a `runtime.video.Mp4Writer` has written, each frame once.

    A run that is resumed begins its file again, and writes the same frames. A fragment that was cut
    short by the end of the earlier run is longer in the new file, so it is handed on only when
    it can't grow any more: it is full, another follows, or the run is over.
    """

    def __init__(self, path: Path, full: int) -> None:
        """`full` is how many frames a fragment has at most: those of a second."""
        self._path, self._full = path, full
        self._file: FileIO | None = None
        self._position = 0
        self._handed_header = False
        self._next = 0  # time of the first frame that was not handed on
        self.frames = 0  # that were handed on

    @property
    def opened(self) -> bool:
        """Whether there was a file to read; what is in it can be read to its end, even if it is
        removed."""
        return self._file is not None

    def take(self, over: bool = False, enough: int = 1 << 20) -> bytes:
        """What is new: the header first, then whole fragments; a player takes the pieces one after
        the other, as a file or with Media Source Extensions.

        Args:
            over: nothing will be written any more.
            enough: no further fragment is taken where there are so many bytes.

        Returns:
            Nothing where nothing is new.
        """
        self._reopen()
        if self._file is None:
            return b""
        taken = bytearray()
        held: Fragment | None = None
        held_end = self._position
        for kind, item in self._boxes(self._file):
            if isinstance(item, Fragment):
                if held is not None:
                    taken += self._hand_on(held)
                held, held_end = item, self._position
                if len(taken) >= enough:
                    break
            elif kind in HEADER and not self._handed_header:
                taken += item
                self._handed_header = kind == b"moov"
        if held is not None and (over or held.samples >= self._full):
            taken += self._hand_on(held)
        elif held is not None:
            self._position = held_end - len(held.data)
        return bytes(taken)

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _hand_on(self, fragment: Fragment) -> bytes:
        if fragment.start < self._next:  # the file was begun again
            return b""
        self._next = fragment.start + 1
        self.frames += fragment.samples
        return fragment.data

    def _reopen(self) -> None:
        """Begin at the start where the file was begun again, as another or in place."""
        try:
            there = self._path.stat()
        except FileNotFoundError:  # before its beginning, or after its end
            there = None
        if self._file is not None:
            here = os.fstat(self._file.fileno())
            if there is None or (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino):
                if not self._in_step(self._file, here.st_size):
                    self._position = 0
                return
            self._file.close()
        if there is not None:
            self._file, self._position = self._path.open("rb", buffering=0), 0  # nothing stale

    def _in_step(self, file: FileIO, size: int) -> bool:
        """Whether the file may go on at the position."""
        file.seek(self._position)
        kind = file.read(8)[4:]
        return self._position <= size and (len(kind) < 4 or kind in KINDS)

    def _boxes(self, file: FileIO) -> Iterator[tuple[bytes, bytes | Fragment]]:
        """Header and fragments from the position on, which moves behind each that is whole."""
        size = os.fstat(file.fileno()).st_size
        moof = b""
        end = self._position
        while (box := _box_at(file, end, size)) is not None:
            kind, length = box
            file.seek(end)
            data = file.read(length)
            end += length
            if kind == b"moof":
                moof = data
            elif kind == b"mdat":
                self._position = end
                yield kind, Fragment(moof + data, *_timing(moof))
            elif kind in HEADER:
                self._position = end
                yield kind, data


def _box_at(file: FileIO, start: int, size: int) -> tuple[bytes, int] | None:
    """Kind and length of the box there, None where it is not whole yet."""
    file.seek(start)
    head = file.read(16)
    if len(head) < 8:
        return None
    length, kind = struct.unpack(">I4s", head[:8])
    if length == 1 and len(head) == 16:
        (length,) = struct.unpack(">Q", head[8:])
    return (kind, length) if 8 <= length <= size - start else None


def _timing(moof: bytes) -> tuple[int, int]:
    """Start and number of the samples that a moof of one track tells of (ISO 14496-12)."""
    start = samples = 0
    for kind, content in _children(dict(_children(moof[8:]))[b"traf"]):
        if kind == b"tfdt":
            (start,) = struct.unpack_from(">Q" if content[0] else ">I", content, 4)
        elif kind == b"trun":
            samples += struct.unpack_from(">I", content, 4)[0]
    return start, samples


def _children(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    while content:
        length, kind = struct.unpack_from(">I4s", content)
        yield kind, content[8:length]
        content = content[length:]
