"""Access control for images: which places the rows of a manifest may name.

A manifest may come from anybody, and its rows pick files that the machines of a run open.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from sgi2v.errors import ErrorCode, SampleError
from sgi2v.locations import is_chained, is_web, local_path, split_protocol
from sgi2v.wording import escaped

PROTOCOLS = frozenset(
    {"file", "local", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "http", "https", "hf", "memory", "data"}
)
"""The fsspec protocols that a row may use. Remote shells, archives and caches are left out."""
_MAX_URI_CHARS = 300
"""Characters of a URI in a message."""
# A user with a password, or any user on the web, up to the last @ before a slash, because a password may contain an @.
# Off the web, a name without a colon is a container (abfs://box@account), not a user.
_USER = re.compile(r"(\b(?:(?i:https?)://|[a-zA-Z][a-zA-Z0-9+.-]{0,31}://(?=[^/\s\"@:]*:)))[^/\s\"]+@")
# A password that contains a slash, as keys of AWS do, up to the next @. A port is no password.
_USER_WITH_SLASH = re.compile(
    r"(\b[a-zA-Z][a-zA-Z0-9+.-]{0,31}://)[^/\s\"'@:]{2,128}:(?!\d{1,5}(?:[/?#\s]|$))[^\s@]{1,256}@"
)
# The same in a URL whose scheme is cut off: `Invalid bucket name "KEY:SECRET@bucket"`.
_BARE_USER = re.compile(
    r"(?<![^\s\"'=(\[])[^\s:/@\"'=(\[]{1,128}:(?!\d{1,5}(?:[/?#\s]|$))[^\s/:@\"'](?:(?!://)[^\s@\"']){0,256}@(?=[\w.\[-])"
)
_SIGNED = r"(?i:https?|az|abfss?|adl|wasbs?)://"
"""Where the query of a URL may sign it: the web and Azure."""
# There all of a query, up to the end of the word, or to the quote that closes one before the URL: a secret may contain
# any other character. The URL is the last one of the word, else text with many URLs would be searched to its end once
# for each of them.
_SIGNED_QUERY = re.compile(
    rf"(?P<quote>['\"`])?(?P<url>\b{_SIGNED}(?:(?!{_SIGNED})[^\s?])*)"
    r"\?(?P<query>(?(quote)(?:(?!(?P=quote)(?:[]),;:.}>\s]|$))\S)+|\S+))"
)
# Elsewhere a query is told from a question mark in a name by its first parameter.
_OTHER_QUERY = re.compile(r"(?P<url>)\?(?P<query>(?=[^\s?&=\"']{1,64}=)\S+)")
_FRAGMENT = re.compile(rf"(\b{_SIGNED}(?:(?!{_SIGNED})[^\s#])*#)(?=[^\s&=\"']{{1,64}}=)[^\s\"']+")
# `token=...`, in a query that was cut from its URL or is escaped, in a list of variables, and as JSON.
_SECRET_NAME = (
    r"(?:token|secret(?:[_-]?(?:access[_-]?)?key)?|passw(?:or)?d|signature|credentials?|authorization|api[_-]?key|access[_-]?key(?:[_-]?id)?|"
    r"account[_-]?key|private[_-]?key|(?<![a-z])(?:sig|sas|pwd|auth|jwt))"
)
_ASSIGNMENT = re.compile(rf"(?i)({_SECRET_NAME}(?:=|%3D)[\"']?)(?!\*\*\*)[^\s&\"']+")
# Headers of HTTP, and lines of configuration files.
_HEADER = re.compile(
    r"(?i)(authorization:\s?(?:basic|bearer|token)\s|authorization:\s?(?!basic|bearer|token)|x-api-key:\s?"
    r"|(?:secret|access)[_-](?:access[_-])?key:\s?)(?!\*\*\*)[^\s\"']+"
)
_JSON_ASSIGNMENT = re.compile(rf"(?i)({_SECRET_NAME}[\"']\s?:\s?[\"'])(?!\*\*\*)[^\"'\n]+")
# Tokens that are known by how they begin: of Hugging Face, GitHub, GitLab, AWS, JSON Web Tokens, and of HTTP's header.
_TOKEN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|(?:AKIA|ASIA)[A-Z0-9]{16}|"
    r"eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*|(?<=Bearer )[^\s\"']{8,})"
)
_ENDS_A_SENTENCE = "]),;:.}>'\"`"
"""What may follow a URL in a message without being part of it."""


@dataclass(frozen=True)
class Access:
    """Where images may lie."""

    roots: tuple[str, ...] | None = None
    """Allowed folders and URL prefixes; None allows every place that PROTOCOLS reach."""

    @property
    def follows_redirects(self) -> bool:
        """Whether HTTP redirects are followed. They may lead outside the roots."""
        return self.roots is None

    def check(self, uri: str, manifest_uri: str) -> None:
        """Raise SampleError(image_missing) if `uri`, an absolute location, is not allowed.

        With roots, the manifest's own folder and inline `data:` are allowed as well. Symbolic links and `..` are
        resolved before the comparison.
        """
        protocol, _ = split_protocol(uri)
        if protocol not in PROTOCOLS:
            raise _refused(
                uri, f"images may not use {protocol}://: copy them to a folder, a bucket or a web server and name that"
            )
        if self.roots is None or protocol == "data":
            return
        try:
            location = _canonical(uri)
        except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a NUL in the name
            raise _refused(uri, f"its path cannot be resolved ({error}): check the path") from error
        roots = [_canonical(root) for root in (_folder(manifest_uri), *self.roots)]
        if not any(location == root or location.startswith(f"{root.rstrip('/')}/") for root in roots):
            raise _refused(
                uri, "it is outside the manifest's folder and under no --root: add a --root that holds it, or move it"
            )


def without_secrets(text: str) -> str:
    """The text with user names, passwords, signatures and tokens replaced by `***`; the rest of each URL stays."""
    text = _BARE_USER.sub("***@", _USER_WITH_SLASH.sub(r"\1***@", _USER.sub(r"\1***@", text)))
    text = _OTHER_QUERY.sub(_without_query, _SIGNED_QUERY.sub(_without_query, text))
    text = _FRAGMENT.sub(r"\1***", text)
    text = _HEADER.sub(r"\1***", _JSON_ASSIGNMENT.sub(r"\1***", _ASSIGNMENT.sub(r"\1***", text)))
    return _TOKEN.sub("***", text)


def stored_uri(uri: str) -> str:
    """A location as it is stored, without its secrets: user names and passwords, and on the web and Azure the query.

    In other stores and on disks, text such as `?x=1` or `token=a` is a part of the name, and is kept.
    """
    if is_chained(uri) or re.match(_SIGNED, uri):
        return without_secrets(uri)
    return uri if local_path(uri) is not None else _USER_WITH_SLASH.sub(r"\1***@", _USER.sub(r"\1***@", uri))


def _without_query(match: re.Match[str]) -> str:
    """The URL with its query masked. The punctuation at the end of a word belongs to the sentence, if no quote does."""
    query = match["query"]
    end = query[len(query.rstrip(_ENDS_A_SENTENCE)) :]
    before = match[0][: match.start("query") - match.start()]
    return f"{before}***{end}"


def without_secrets_in(value: Any) -> Any:
    """Plain values (mappings, sequences, texts, numbers) with the secrets of every text replaced.

    Apply it to the values, not to their JSON: there, quotes and escapes would be taken for parts of a URL.
    """
    if isinstance(value, Mapping):
        return {key: without_secrets_in(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_secrets_in(item) for item in value]
    return without_secrets(value) if isinstance(value, str) else value


def display_uri(uri: str) -> str:
    """The URI for a message: in one line, without secrets, and cut. A cut password would still be a secret."""
    place, mark, query = uri.partition("?")
    if mark and is_web(place):
        uri = f"{place}?{'***' if query else ''}"  # all of it: it may contain spaces, which end a URL in a text
    return without_secrets(escaped(uri))[:_MAX_URI_CHARS]


def without_dot_parts(path: str, folder: Sequence[str] = ()) -> str:
    """A path below a folder, without its `.` and `..`. Empty parts stay, since `a//b` and `a/b` are two keys.

    folder: its parts, which stay as they are where no `..` takes one away.
    """
    parts = list(folder)
    for part in path.split("/"):
        if part == "..":
            del parts[-1:]
        elif part != ".":
            parts.append(part)
    return "/".join(parts)


def _folder(uri: str) -> str:
    """The folder that a file lies in."""
    path = local_path(uri)
    if path is not None:
        return str(path.parent)
    return (uri.partition("?")[0].partition("#")[0] if is_web(uri) else uri).rpartition("/")[0]


def _canonical(uri: str) -> str:
    """The one name of a location: `file:///real/path`, or `s3://bucket/key` without `..` and escapes.

    Raises ValueError for `a//../b`, which some servers take for `b` and others for `a/b`.
    """
    local = local_path(uri)
    if local is not None:
        return f"file://{local.resolve()}"
    protocol, rest = split_protocol(uri)
    path = rest.partition("?")[0].partition("#")[0] if protocol in ("http", "https") else rest
    # Split before unescaping: an escaped slash does not end the host, so https://host%2Fpictures%2F@evil/ names `evil`.
    host, _, key = path.partition("/")
    while unquote(key) != key:
        key = unquote(key)
    if "//" in key and ".." in key.split("/"):
        raise ValueError("`..` beside an empty part")
    return f"{protocol}://{host}/{without_dot_parts(key)}"


def _refused(uri: str, message: str) -> SampleError:
    return SampleError(ErrorCode.IMAGE_MISSING, f"{display_uri(uri)} is refused: {message}")
