"""Folders of model files: local, or remote by URL (gs://, s3://, memory://, ...) through fsspec.

The Hugging Face hub's cache keeps links, models--NAME/snapshots/HASH/FILE -> ../../blobs/DIGEST,
and may keep a blob as a link too, to its store for all models, blobs/NN/DIGEST. Those are followed.
No other link out of a folder is: what it holds could be any file of this machine, and an export
copies files.
"""

import contextlib
import errno
import json
import os
import pathlib
import re
import shutil
import tempfile

import fsspec

from flow_grpo_jax.bounds import files as bounded
from flow_grpo_jax.bounds import json_text

UNFINISHED = ".unfinished"
SNAPSHOT = re.compile(r"(.*/)models--[^/]+(?=/snapshots/[^/]+(?:/|$))")
SHARED_BLOB = re.compile(r"blobs/[0-9a-f]{2}/[0-9a-f]{64}")  # in the cache, for all models


class Folder:
    """The files of one folder, by name.

    Attributes:
      location: path or URL, as given.
      remote: whether fsspec reaches it over a protocol.
      made: whether what it holds is not on the disk in this form.
    """

    made = False

    def __init__(self, location):
        """Opens nothing; the folder need not exist.

        Raises:
          ImportError: the package for the URL's protocol is not installed.
        """
        self.location = str(location)
        self.remote = "://" in self.location
        if not self.remote:
            self.files, self._root = fsspec.filesystem("file"), os.path.abspath(self.location)
            return
        try:
            self.files, root = fsspec.url_to_fs(self.location)
        except ImportError as error:
            raise ImportError(
                f"{self.location} cannot be reached: {error}. For gs:// install "
                "'flow-grpo-jax[gcs]', for others the fsspec package of the protocol, e.g. s3fs."
            ) from error
        self._root = root.rstrip("/")

    def __str__(self):
        return self.location

    def path(self, name):
        """Returns the path of a file for `self.files`, to write it."""
        return f"{self._root}/{name}"

    def source(self, name):
        """Returns the path of a file for `self.files`, to read it: links are followed.

        Raises:
          ValueError: a link leads out of the folder and, in the hub's cache, of the model's part.
          FileNotFoundError: a link leads to nothing, or in a circle.
        """
        path = self.path(name)
        return path if self.remote else _follow(path, self._root)

    def names(self):
        """Returns the sorted names of the files and links; empty if the folder does not exist."""
        if not self.files.isdir(self._root):
            return []
        entries = {e["name"].rsplit("/", 1)[-1]: e for e in self.files.ls(self._root, detail=True)}
        is_file = lambda name: entries[name]["type"] == "file" or not self.remote and self.has(name)
        return sorted(filter(is_file, entries))

    def has(self, name):
        """Whether there is a file, or a link that leads to anything but a folder."""
        path = self.path(name)
        if self.remote or not os.path.islink(path):
            return self.files.isfile(path)
        return not os.path.isdir(path)

    def read(self, name):
        """Returns the content of a file as bytes.

        Raises:
          ValueError: it has more than `files.MAX_BYTES`, as no file but weights has.
        """
        path = self.source(name)
        if not self.remote:
            return bounded.read_bytes(path)
        if (size := self.files.size(path)) > bounded.MAX_BYTES:
            raise ValueError(f"{self}/{name} has {size:,} bytes, over {bounded.MAX_BYTES:,}.")
        return self.files.cat_file(path)

    def read_json(self, name):
        """Returns the object in a JSON file; {} if there is no file.

        Raises:
          ValueError: it is damaged, or holds something else.
        """
        if not self.has(name):
            return {}
        return json_text.as_object(self.read(name), f"{self}/{name}", advice=json_text.DOWNLOAD)

    def write(self, name, content):
        """Writes a file of bytes or text; makes the folder."""
        with self.writing(name) as file:
            file.write(content.encode() if isinstance(content, str) else content)

    def write_json(self, name, values):
        self.write(name, json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n")

    @contextlib.contextmanager
    def writing(self, name):
        """Yields a binary file to write; it is on the disk, or stored remotely, at the end."""
        self.files.makedirs(self._root, exist_ok=True)
        with self.files.open(self.path(name), "wb") as file:
            yield file
            if not self.remote:
                file.flush()
                os.fsync(file.fileno())

    def remove(self, name):
        """Removes a file, if there is one."""
        if self.has(name):
            self.files.rm_file(self.path(name))


def _follow(path, root):
    """Returns the file that a path in the folder `root` leads to; see `Folder.source`."""
    try:
        real = os.path.realpath(path, strict=True)
    except OSError as error:
        if not os.path.lexists(path):
            return path
        why = "in a circle" if error.errno == errno.ELOOP else "to a file that does not exist"
        raise FileNotFoundError(
            f"{path} is a link that leads {why}. Download the model again."
        ) from error
    tree = os.path.realpath(root)
    snapshot = SNAPSHOT.match(tree)
    tree = snapshot[0] if snapshot else tree
    if os.path.commonpath((tree, real)) == tree:
        return real
    if snapshot and SHARED_BLOB.fullmatch(os.path.relpath(real, snapshot[1])):
        return real
    raise ValueError(
        f"{path} is a link to {real}, which is outside {tree}. If the file belongs to the model, "
        "replace the link by a copy of it."
    )


@contextlib.contextmanager
def replacing(location, *, last, stale=lambda name: False):
    """Yields a Folder to write a set of files to; at the end all of them are in `location`.

    A crash leaves the old set, or a folder without the file `last`: never a mixed set that looks
    complete. Locally the files lie in a subfolder until the end; remotely they are written in
    place, `last` and what is stale removed before.

    Args:
      location: path or URL.
      last: name of the file that makes the folder usable; write it last.
      stale: whether an old file of this name must be removed.
    """
    target = Folder(location)
    if target.remote:
        _remove_old(target, last, stale)
        yield target
        return
    unfinished = pathlib.Path(location) / UNFINISHED
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        stage = Folder(unfinished)
        yield stage
        _remove_old(target, last, stale)
        for name in sorted(stage.names(), key=lambda name: name == last):
            os.replace(stage.path(name), target.path(name))
    finally:
        shutil.rmtree(unfinished)


def _remove_old(target, last, stale):
    target.remove(last)
    for name in target.names():
        if stale(name):
            target.remove(name)


@contextlib.contextmanager
def local_copy(folder, names):
    """Yields a pathlib.Path with these files of a Folder: the folder itself, or a copy.

    Files that do not exist are left out.

    Raises:
      ValueError, FileNotFoundError: one is a link that `Folder.source` refuses.
    """
    present = [name for name in names if folder.has(name)]
    if not (folder.remote or folder.made):
        for name in present:
            folder.source(name)
        yield pathlib.Path(folder.location)
        return
    with tempfile.TemporaryDirectory() as copy:
        for name in present:
            path = pathlib.Path(copy, name)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(folder.read(name))
        yield pathlib.Path(copy)
