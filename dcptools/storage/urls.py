"""URLs of fsspec: ``s3://bucket/step-100`` and the like, and the libraries behind them.

fsspec finds the library of a scheme, which has its own configuration, credentials and retries. None of that passes
through here, and what such a library raises becomes an OSError that says it in one line.
"""

from __future__ import annotations

import errno
import importlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dcptools._paths import expanded
from dcptools.errors import DcptoolsError, UsageError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_PASSWORD = re.compile(r"(?<=://)[^/@\s]*:[^/\s]*@")  # of somebody, in front of the host
_SIGNATURE = re.compile(r"([?&][^=&\s]*(?:sig|token|key|secret|password|credential)[^=&\s]*=)[^&\s]+", re.IGNORECASE)
_S3, _GCS, _AZURE = "dcptools[remote]", "gcsfs", "adlfs"
_PACKAGES = {"s3": _S3, "s3a": _S3, "gs": _GCS, "gcs": _GCS, "abfs": _AZURE, "abfss": _AZURE, "az": _AZURE}
_PACKAGES |= {"hf": "huggingface_hub"}
_SCHEMES = "s3://, gs://, abfs://, hf:// (to read) and memory://"  # that were tried
CONNECTIONS = 48  # reads in flight, and uploads beside them; botocore's own limit is 10
MAX_MESSAGE = 300  # characters of what a library says
CONNECT_ADVICE = "Check the network, the endpoint and the credentials in the library's configuration."


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether that is a URL, not a path.

    >>> is_url("s3://bucket/step-100"), is_url("step-100")
    (True, False)
    """
    return isinstance(path, str) and _URL.match(path) is not None


def meant_url(path: str | os.PathLike[str]) -> str:
    """The URL that a path was meant as, which lacks a slash or has one too many; "" for any other path.

    >>> meant_url("s3:/bucket/step-100"), meant_url("C:/step-100")
    ('s3://bucket/step-100', '')
    """
    scheme, _, rest = os.fspath(path).partition(":/")
    return f"{scheme}://{rest.lstrip('/')}" if scheme in _PACKAGES and rest and not is_url(path) else ""


def path_on_disk(path: str | os.PathLike[str], what: str) -> Path:
    """The path of a file that must be on the disk; raises UsageError for a URL."""
    if is_url(path):
        raise UsageError(
            f"{what} cannot be at a URL: {without_password(os.fspath(path))}.\nGive a path on the disk of this machine."
        )
    return Path(expanded(path))


def join(place: str | os.PathLike[str], name: str) -> str:
    """What a person calls something inside a place, which is a path or a URL.

    >>> join("s3://bucket/step-100/", "hf_ckpt")
    's3://bucket/step-100/hf_ckpt'
    """
    return f"{os.fspath(place).rstrip('/')}/{name}" if is_url(place) else os.path.join(place, name)


def parent(place: str | os.PathLike[str]) -> str:
    """The directory that a place is in; a bucket is not in one.

    >>> parent("s3://bucket/step-100"), parent("s3://bucket")
    ('s3://bucket', 's3://bucket')
    """
    if not is_url(place):
        return os.path.dirname(os.path.abspath(place))
    above = os.fspath(place).rstrip("/").rpartition("/")[0]
    return os.fspath(place) if above.endswith("/") else above


def without_password(text: str) -> str:
    """The text without what may be names and passwords in its URLs.

    >>> without_password("sftp://me:secret@host/step-100")
    'sftp://***@host/step-100'
    >>> without_password("https://host/step-100?sig=secret&part=1")
    'https://host/step-100?sig=***&part=1'
    """
    return _SIGNATURE.sub(r"\1***", _PASSWORD.sub("***@", text))


def open_url(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it.

    Raises
    ------
    UsageError
        The library is not installed, does not know the URL, or the URL holds a password.
    """
    shown = without_password(url)
    if shown != url:
        raise UsageError(
            f"{shown}: a URL must not hold a password: it would appear in messages and reports.\n"
            "Give the URL without it, and put the credentials into the library's configuration."
        )
    scheme = url.partition("://")[0]
    try:
        registry = importlib.import_module("fsspec.registry")
        if scheme not in {*registry.registry, *registry.known_implementations}:
            raise UsageError(
                f"{shown} cannot be opened: no file system is called {scheme}.\n"
                f"Check the URL. Among those that fsspec knows are {_SCHEMES}; or give a path."
            )
        core = importlib.import_module("fsspec.core")
        fs, path = core.url_to_fs(url, use_listings_cache=False, **_connections(scheme))
    except ImportError as error:
        package = _PACKAGES.get(scheme) or error.name
        raise UsageError(
            f"{shown} cannot be opened: a package for {scheme}:// is missing ({str(error).splitlines()[0]}).\n"
            + (f"Install it: pip install '{package}'." if package else "Install that package.")
        ) from None
    except UsageError:
        raise
    except Exception as error:  # a library may raise anything
        raise UsageError(f"{shown} cannot be opened: {said(error)}.\nCheck the URL. {CONNECT_ADVICE}") from None
    return fs, path.rstrip("/")


def _connections(scheme: str) -> dict[str, Any]:
    """What makes the library of a scheme open as many connections as are used, in addition to its configuration."""
    if scheme not in ("s3", "s3a"):
        return {}
    configured = importlib.import_module("fsspec.config").conf.get(scheme, {}).get("config_kwargs", {})
    return {"config_kwargs": {"max_pool_connections": CONNECTIONS, **configured}}


def said(error: BaseException) -> str:
    """What a library says, in one line and without passwords."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    line = " ".join(without_password(text).split()).rstrip(".")
    return line[:MAX_MESSAGE] or type(error).__name__


@contextmanager
def as_system_errors(where: str) -> Iterator[None]:
    """Make an OSError from whatever the library of a URL raises."""
    try:
        yield
    except DcptoolsError:
        raise
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, said(error), where) from error
    except PermissionError as error:
        raise PermissionError(errno.EACCES, said(error), where) from error
    except Exception as error:
        raise OSError(errno.ENETUNREACH, said(error), where) from error
