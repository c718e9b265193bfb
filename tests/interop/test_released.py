"""Published files: fetched once, put in place when whole, or one line that says what to do."""

import hashlib
import io
from urllib.response import addinfourl

import pytest

from vlm_jax.interop import released
from vlm_jax.interop.rules import ConversionError


def test_a_file_is_fetched_once(tmp_path):
    (tmp_path / "there").mkdir()
    source = tmp_path / "there" / "TALL.pdparams"
    source.write_bytes(b"content")
    path = released.fetch(source.as_uri(), tmp_path / "cache", "them")
    assert (path, path.read_bytes()) == (tmp_path / "cache" / "TALL.pdparams", b"content")
    source.unlink()
    assert released.fetch(source.as_uri(), tmp_path / "cache", "them") == path
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == ["TALL.pdparams"]


def test_without_a_network_it_says_what_to_put_where(tmp_path):
    url = (tmp_path / "absent" / "TALL.pdparams").as_uri()
    with pytest.raises(ConversionError) as said:
        released.fetch(url, tmp_path / "cache", "them")
    assert str(said.value).startswith(f"{url}: cannot be fetched (")
    assert str(said.value).endswith(f"; fetch it elsewhere and put it at {tmp_path / 'cache' / 'TALL.pdparams'}")
    assert "\n" not in str(said.value)


def test_half_a_file_is_none(tmp_path, monkeypatch):
    answer = addinfourl(io.BytesIO(b"half"), {"Content-Length": "100"}, "")
    monkeypatch.setattr(released.urllib.request, "urlopen", lambda url, timeout: answer)
    with pytest.raises(ConversionError, match="4 of 100 bytes came"):
        released.fetch("https://example.org/TALL.pdparams", tmp_path, "them")
    assert not list(tmp_path.iterdir())


def test_a_file_without_an_address_may_be_put_there(tmp_path):
    with pytest.raises(ConversionError) as said:
        released.fetch("groundnlq.pth.tar", tmp_path, "houzhijian/GroundNLQ")
    place = tmp_path / "groundnlq.pth.tar"
    assert str(said.value) == (
        f"groundnlq.pth.tar: no program can fetch it; get it from houzhijian/GroundNLQ and put it at {place}"
    )
    place.write_bytes(b"content")
    assert released.fetch("groundnlq.pth.tar", tmp_path, "houzhijian/GroundNLQ") == place


def test_a_page_is_not_taken_for_a_file(tmp_path):
    url = "https://drive.google.com/file/d/abc"
    with pytest.raises(ConversionError) as said:
        released.fetch(url, tmp_path / "tacos", "jiyanggao/TALL", "windows")
    place = tmp_path / "tacos" / "windows"
    expected = f"windows: no program can fetch it; get it from jiyanggao/TALL, {url}, and put it at {place}"
    assert str(said.value) == expected


@pytest.mark.parametrize("url", ["https://example.org/TALL.pdparams", "TALL.pdparams"])
@pytest.mark.parametrize("as_address", [True, False])
def test_a_mirror_has_what_the_network_has_not(tmp_path, monkeypatch, url, as_address):
    (tmp_path / "mirror" / "ctrl").mkdir(parents=True)
    (tmp_path / "mirror" / "ctrl" / "TALL.pdparams").write_bytes(b"content")
    mirror = tmp_path / "mirror"
    monkeypatch.setenv("VLM_JAX_MIRROR", mirror.as_uri() + "/" if as_address else str(mirror))
    path = released.fetch(url, tmp_path / "cache" / "ctrl", "them")
    assert path.read_bytes() == b"content"
    with pytest.raises(ConversionError, match=r"mirror/ctrl/other[.]npy: cannot be fetched"):
        released.fetch("https://example.org/other.npy", tmp_path / "cache" / "ctrl", "them")


def test_a_file_of_another_digest_is_none(tmp_path):
    (tmp_path / "file.pth").write_bytes(b"content")
    digest = hashlib.sha256(b"content").hexdigest()
    url, folder = (tmp_path / "file.pth").as_uri(), tmp_path / "cache"
    with pytest.raises(ConversionError, match=f"its sha256 is {digest}, expected {'0' * 64}"):
        released.fetch(url, folder, "them", sha256="0" * 64)
    assert not list(folder.iterdir())
    assert released.fetch(url, folder, "them", sha256=digest).read_bytes() == b"content"
