"""Checksums of blocks are read once on a node, not once by every process."""

import os
import tempfile

import numpy as np
import pytest
from made_up_logits import ids, inputs

from raykd.common.atomic import write_atomically
from raykd.logits import block as block_module
from raykd.logits import verified as verified_module
from raykd.logits.block import DamagedBlock, block_parts, open_block
from raykd.logits.verified import VerifiedFiles


@pytest.fixture(autouse=True)
def node(tmp_path, monkeypatch):
    """A node's temporary folder."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def block(tmp_path):
    """The path and the key of a block."""
    values = [np.ones((1, 3), np.float16)] * 4
    write_atomically(tmp_path / "b", *block_parts("k", ids(range(4)), inputs(range(4)), values))
    return tmp_path / "b", "k"


@pytest.fixture
def read(monkeypatch):
    """The files whose checksums are computed."""
    found = []
    real = block_module._checksum
    monkeypatch.setattr(block_module, "_checksum", lambda fields: found.append(fields["key"]) or real(fields))
    return found


def as_new_process(monkeypatch):
    monkeypatch.setattr(block_module, "_verified", VerifiedFiles())


def test_another_process_does_not_read_it_again(block, read, monkeypatch):
    for _ in range(3):
        as_new_process(monkeypatch)
        assert open_block(*block).values.tolist() == [1] * 12
    assert len(read) == 1


def test_processes_that_started_before_see_what_the_others_add(tmp_path):
    first, second = VerifiedFiles(), VerifiedFiles()
    files = []
    for name in "abc":
        (tmp_path / name).write_text(name)
        files.append((tmp_path / name).stat())
    assert files[0] not in second
    first.add(files[0])
    second.add(files[1])
    assert all(files[i] in process for i in (0, 1) for process in (first, second))
    assert files[2] not in first


def test_a_file_that_was_written_to_is_read_again_whatever_its_time(block, monkeypatch):
    path, key = block
    open_block(path, key)
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    for _ in range(2):
        with pytest.raises(DamagedBlock):
            open_block(path, key)
        as_new_process(monkeypatch)


def test_a_record_holds_until_the_node_starts_anew(block, read, monkeypatch):
    open_block(*block)
    monkeypatch.setattr(verified_module, "_boot_id", lambda: "after a power cut")
    as_new_process(monkeypatch)
    open_block(*block)
    assert len(read) == 2


def test_a_record_holds_for_a_day(block, read, node, monkeypatch):
    open_block(*block)
    today = verified_module.time.time()
    monkeypatch.setattr(verified_module.time, "time", lambda: today + 86400)
    as_new_process(monkeypatch)
    open_block(*block)
    assert len(read) == 2
    assert len(list(node.rglob("verified-*"))) == 1, "the old one is gone"


@pytest.mark.parametrize("spoil", ["open to others", "a link", "a file"])
def test_a_folder_that_others_could_write_to_has_no_say(block, read, node, monkeypatch, spoil):
    folder = node / f"raykd-{os.getuid()}"
    if spoil == "open to others":
        folder.mkdir()
        folder.chmod(0o777)
    elif spoil == "a link":
        (node / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(node / "elsewhere")
    else:
        folder.write_text("")
    for _ in range(2):
        as_new_process(monkeypatch)
        open_block(*block)
    assert len(read) == 2
    assert not list(node.rglob("verified-*"))
