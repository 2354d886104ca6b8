"""An output on its way: a folder OUT.partial that survives any crash, and becomes OUT in one step.

    OUT.partial/lock        held while a run writes
    OUT.partial/job.json    what the output depends on, and how far it is; replaced as a whole
    OUT.partial/data        the output so far; what lies behind job.json's `size` is from a run that was killed

Knows no rows and no model.
"""

import fcntl
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, TextIO

from assay.errors import ConfigError
from assay.files.fingerprint import differences


@dataclass
class State:
    """How far a job is. size: bytes of `data` that count. blocks: those of the input that are in it.

    rows: read. tokens: scored. errors: rows without a score. labels: how often each was predicted. done: all of it.
    """

    size: int = 0
    blocks: int = 0
    rows: int = 0
    tokens: int = 0
    errors: int = 0
    labels: dict[str, int] = field(default_factory=dict)
    done: bool = False


class Unfinished:
    """The folder, locked for this run. A context manager: at its end the folder stays, where there is work in it.

    resumed: an earlier run began it. published: and had given OUT its name, but not cleaned up.
    """

    def __init__(self, out: Path, fingerprint: Mapping[str, Any], overwrite: bool) -> None:
        """Takes up what an earlier run left. Raises ConfigError where it is of another job, or somebody is at it."""
        self.out = out
        self.folder = _folder_of(out)
        self.resumed = False
        self.published = False
        self._fingerprint = json.loads(json.dumps(fingerprint))
        check_output(out, overwrite)
        self._lock = self._locked()
        try:
            check_output(out, overwrite)  # another run may have ended since
            self.state = self._read_state(overwrite)
            self._check_data(overwrite)
            self._data: BinaryIO = self.data.open("ab")
            self._data.truncate(self.state.size)
        except BaseException:
            if not (self.folder / "job.json").exists():
                self._empty_folder()
            self._lock.close()
            raise

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def append(self, piece: bytes) -> None:
        """Counts from the next `commit` on."""
        self._data.write(piece)
        self.state.size += len(piece)

    def commit(self) -> None:
        """From now on a crash, even of the machine, loses nothing that was appended."""
        self._data.flush()
        os.fsync(self._data.fileno())
        new = self.folder / "job.json.new"
        with new.open("w") as file:
            json.dump({"fingerprint": self._fingerprint, "state": asdict(self.state)}, file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.folder / "job.json")
        _sync_folder(self.folder)

    def publish(self, finished: Path) -> None:
        """The finished file takes OUT's name; nothing else is left."""
        with finished.open("rb") as file:
            os.fsync(file.fileno())
        finished.replace(self.out)
        _sync_folder(self.out.parent)
        self.remove()

    def remove(self) -> None:
        self._data.close()
        self._empty_folder()
        self._lock.close()

    def _empty_folder(self) -> None:
        for name in ("data", "table", "job.json.new", "job.json", "lock"):  # the lock last: whoever has it is alone
            with suppress(FileNotFoundError):
                (self.folder / name).unlink()
        with suppress(OSError):  # another run has made a new lock
            self.folder.rmdir()

    def close(self) -> None:
        try:
            self._data.close()
        finally:
            self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._data.closed and not self.state.blocks:
            self.remove()
        self.close()

    def _locked(self) -> TextIO:
        """The lock's file, in the folder. Another run may remove both at any moment: then they are made again."""
        while True:
            self.folder.mkdir(exist_ok=True)
            path = self.folder / "lock"
            try:
                lock = path.open("w")
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                    return lock
            except BlockingIOError:
                lock.close()
                raise ConfigError(f"Another run is writing {self.out}; wait for it.") from None
            except FileNotFoundError:
                pass
            lock.close()

    def _check_data(self, overwrite: bool) -> None:
        """It is shorter than it was where it is OUT by now, or was OUT and is removed, or where somebody has cut it."""
        there = self.data.exists()
        if self.state.size <= (self.data.stat().st_size if there else 0):
            return
        self.published = self.state.done and self.out.exists()
        removed = self.state.done and not there
        if not self.published and (removed or overwrite):
            self.state = State()
        elif not self.published:
            raise ConfigError(f"{self.data} is shorter than it was left; start anew with --overwrite.")

    def _read_state(self, overwrite: bool) -> State:
        path = self.folder / "job.json"
        if not path.exists():
            return State()
        try:
            left = json.loads(path.read_text())
        except ValueError as error:
            raise ConfigError(f"{path} is damaged ({error}); remove {self.folder} to start anew.") from error
        changed = differences(left["fingerprint"], self._fingerprint)
        if not changed:
            self.resumed = True
            return State(**left["state"])
        if overwrite or not left["state"]["blocks"]:  # nothing of it is lost
            path.unlink()
            return State()
        raise ConfigError(
            f"{self.folder} holds an unfinished output of another job: {'; '.join(changed)}. Put that back to continue "
            "it, or start anew with --overwrite."
        )


def check_output(out: Path, overwrite: bool) -> None:
    """Raises ConfigError where a job cannot begin or continue to write there."""
    if out.is_dir():
        raise ConfigError(f"{out} is a folder; name a file in it.")
    if not out.parent.is_dir():
        raise ConfigError(f"There is no folder {out.parent}; make it first.")
    if out.exists() and not out.is_file():
        raise ConfigError(f"{out} is no regular file, and cannot be replaced in one step; write to stdout with -o -.")
    if out.exists() and not overwrite and not (_folder_of(out) / "job.json").exists():
        raise ConfigError(f"{out} exists; remove it, or replace it with --overwrite.")


def _folder_of(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
