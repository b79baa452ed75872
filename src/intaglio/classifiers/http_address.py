"""Addresses of remote models: which are accepted, and which two lie on the same host."""

import re

import httpx

from intaglio.errors import ModelError

_PORTS = {"http": 80, "https": 443}


def is_address(name: str) -> bool:
    """Whether `name` looks like a URL of any scheme, not like a path."""
    return re.match(r"[a-z][a-z0-9+.-]*://", name, re.IGNORECASE) is not None


def checked_address(address: str) -> str:
    """An http or https URL without a fragment.

    Raises:
        ModelError: not such a URL, or with a user's name or password in it, which would be shown in reports.
    """
    shown = address if "@" not in address else f"{address.split('://')[0]}://..."
    try:
        url = httpx.URL(address)
        url.raw_host.decode("ascii").encode("idna")  # as the resolver will, and refuses empty and overlong labels
        host = url.host  # read here, for it is decoded: "xn--" alone is no name
    except (httpx.InvalidURL, UnicodeError) as error:
        raise ModelError(f"{shown}: not a URL ({error})") from error
    if url.scheme not in _PORTS:
        raise ModelError(f"{shown}: only http:// and https:// are asked over the network, not {url.scheme}://")
    if url.userinfo:
        raise ModelError(f"{shown}: holds a user name or password; put an Authorization header into a mapping instead")
    if not host:
        raise ModelError(f"{shown}: names no host")
    return str(url.copy_with(fragment=None))


def origin_of(url: httpx.URL) -> tuple[str, str, int | None]:
    """Scheme, host and port: equal for addresses that one server answers."""
    return url.scheme, url.host.lower().rstrip("."), url.port or _PORTS.get(url.scheme)
