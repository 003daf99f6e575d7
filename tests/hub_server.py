"""A small Hub on loopback for the tests. It answers the requests of huggingface_hub's client over plain HTTP.

It has model repos with one branch. Files with a suffix in LFS_SUFFIXES travel by Git LFS, in one part or several, all
others in the commit. There is no Xet: set HF_HUB_DISABLE_XET, because the client prefers Xet if hf_xet is installed.
"""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import yaml
from huggingface_hub.repocard_data import model_index_to_eval_results
from huggingface_hub.utils import validate_repo_id

USER = "tester"
WRITER, READER = "hf_test_writer", "hf_test_reader"
LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".npy", ".journal")


class File(NamedTuple):
    content: bytes
    is_lfs: bool

    @property
    def oid(self) -> str:
        head = b"blob %d\0" % len(self.content)
        return (
            hashlib.sha256(self.content).hexdigest() if self.is_lfs else hashlib.sha1(head + self.content).hexdigest()
        )


class Repo:
    """A repo of one branch: the titles of its commits, and all files after each commit."""

    def __init__(self, private: bool) -> None:
        self.private = private
        self.titles: list[str] = ["initial commit"]
        self.trees: list[dict[str, File]] = [{}]

    @property
    def files(self) -> dict[str, File]:
        return self.trees[-1]

    def sha(self, index: int) -> str:
        return hashlib.sha1(f"{id(self)} {index}".encode()).hexdigest()

    def at(self, revision: str) -> tuple[str, dict[str, File]] | None:
        shas = [self.sha(index) for index in range(len(self.trees))]
        index = len(shas) - 1 if revision == "main" else shas.index(revision) if revision in shas else None
        return None if index is None else (shas[index], self.trees[index])


class Hub:
    """The server. `with Hub() as hub:` serves at `hub.url` until the block ends.

    Attributes:
        repos: The repos by id.
        refused: Repo ids that nobody may write to.
        requests: The method and path of each request, in order.
        part_bytes: Larger LFS files are uploaded in parts of this size.
        uploads_until_gone: How many more LFS uploads succeed. The server hangs up on the next one and on every later
            request; None: never.
    """

    def __init__(self, part_bytes: int = 1 << 30) -> None:
        self.repos: dict[str, Repo] = {}
        self.refused: set[str] = set()
        self.requests: list[tuple[str, str]] = []
        self.part_bytes = part_bytes
        self.uploads_until_gone: int | None = None
        self.is_gone = False
        self.lfs: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()

    def listing(self, repo: str = f"{USER}/model") -> set[str]:
        return set(self.repos[repo].files)


class _RefusedError(Exception):
    def __init__(self, status: int, message: str, code: str = "") -> None:
        self.status, self.message, self.code = status, message, code


class _GoneError(Exception):
    """The server hangs up in the middle of a request."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # it would hold the body back until the head is acknowledged
    hub: Hub

    def _serve(self) -> None:
        length = self.headers.get("Content-Length")
        url = urlsplit(self.path)
        path = [unquote(part) for part in url.path.strip("/").split("/")]
        with self.hub.lock:
            self.hub.requests.append((self.command, "/".join(path)))
            try:
                self._hang_up_when_gone(path[0] == "lfs" and self.command == "PUT")
                self.body = (
                    self._chunks() if "Transfer-Encoding" in self.headers else self.rfile.read(int(length or 0))
                )
                self._route(path)
            except _RefusedError as refusal:
                self._reply({"error": refusal.message}, refusal.status, {"X-Error-Code": refusal.code})
            except _GoneError:
                self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = _serve  # noqa: N815

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _hang_up_when_gone(self, is_upload: bool) -> None:
        left = self.hub.uploads_until_gone
        if left is not None and is_upload and left:
            self.hub.uploads_until_gone = left - 1
        elif left == 0 and (is_upload or self.hub.is_gone):
            self.hub.is_gone = True
            raise _GoneError

    def _route(self, path: list[str]) -> None:
        match path:
            case ["api", "whoami-v2"]:
                self._token()
                self._reply({"name": USER, "type": "user", "orgs": []})
            case ["api", "repos", "create"]:
                self._create(json.loads(self.body))
            case ["api", "validate-yaml"]:
                self._validate(json.loads(self.body)["content"])
            case ["api", "models", owner, name, "preupload", _]:
                self._preupload(self._writable(owner, name), json.loads(self.body)["files"])
            case ["api", "models", owner, name, "commit", _]:
                self._commit(self._writable(owner, name), f"{owner}/{name}")
            case ["api", "models", owner, name, "tree", revision, *_]:
                self._tree(*self._readable(owner, name, revision))
            case ["api", "models", owner, name] | ["api", "models", owner, name, "revision", _]:
                sha, files = self._readable(owner, name, path[5] if len(path) > 5 else "main")
                siblings = [{"rfilename": file} for file in files]
                private = self.hub.repos[f"{owner}/{name}"].private
                self._reply(
                    {"id": f"{owner}/{name}", "sha": sha, "siblings": siblings, "private": private, "tags": []}
                )
            case [owner, name, "info", "lfs", "objects", "batch"]:
                self._writable(owner, name.removesuffix(".git"))
                self._batch(json.loads(self.body)["objects"])
            case ["lfs", oid, *part]:
                self._receive(oid, part)
            case [owner, name, "resolve", revision, *file]:
                self._resolve(*self._readable(owner, name, revision), "/".join(file))
            case _:
                raise _RefusedError(404, f"No such route: {self.command} {'/'.join(path)}")

    # ---- permissions

    def _token(self) -> str:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in (WRITER, READER):
            raise _RefusedError(401, "Invalid username or password.")
        return token

    def _writable(self, owner: str, name: str) -> Repo:
        repo = self.hub.repos.get(f"{owner}/{name}")
        if self._token() != WRITER or owner != USER or f"{owner}/{name}" in self.hub.refused:
            raise _RefusedError(403, f"Forbidden: you don't have the rights to write to {owner}/{name}.")
        if repo is None:
            raise _RefusedError(404, "Repository not found", "RepoNotFound")
        return repo

    def _readable(self, owner: str, name: str, revision: str) -> tuple[str, dict[str, File]]:
        repo = self.hub.repos.get(f"{owner}/{name}")
        if repo is None or (repo.private and not self.headers.get("Authorization")):
            raise _RefusedError(404, "Repository not found", "RepoNotFound")
        found = repo.at(revision)
        if found is None:
            raise _RefusedError(404, "Revision not found", "RevisionNotFound")
        return found

    # ---- writing

    def _create(self, wanted: dict[str, Any]) -> None:
        owner = wanted.get("organization") or USER
        repo = f"{owner}/{wanted['name']}"
        if self._token() != WRITER or owner != USER:
            raise _RefusedError(403, f"Forbidden: you don't have the rights to create a model under {owner!r}.")
        if repo in self.hub.repos:
            self._reply({"error": "You already created this model repo", "url": f"{self.hub.url}/{repo}"}, 409)
            return
        self.hub.repos[repo] = Repo(wanted.get("visibility") == "private" or bool(wanted.get("private")))
        self._reply({"url": f"{self.hub.url}/{repo}", "name": repo})

    def _validate(self, card: str) -> None:
        """Replies with what the Hub's own check of a model card would refuse in its metadata."""
        errors = []
        try:
            metadata = yaml.safe_load(card.split("---")[1])
            if "model-index" in metadata:
                model_index_to_eval_results(metadata["model-index"])
            if "base_model" in metadata:
                validate_repo_id(metadata["base_model"])
        except (IndexError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
            errors = [{"message": repr(error)}]
        self._reply({"errors": errors, "warnings": []}, 400 if errors else 200)

    def _preupload(self, repo: Repo, files: list[dict[str, Any]]) -> None:
        self._reply(
            {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular",
                        "shouldIgnore": False,
                        "oid": repo.files[file["path"]].oid if file["path"] in repo.files else None,
                    }
                    for file in files
                ]
            }
        )

    def _batch(self, objects: list[dict[str, Any]]) -> None:
        def actions(oid: str, size: int) -> dict[str, Any]:
            if oid in self.hub.lfs:
                return {}
            url, part = f"{self.hub.url}/lfs/{oid}", self.hub.part_bytes
            upload: dict[str, Any] = {"href": url}
            if size > part:
                numbers = range(1, -(-size // part) + 1)
                upload["header"] = {"chunk_size": str(part), **{str(number): f"{url}/{number}" for number in numbers}}
            return {"actions": {"upload": upload, "verify": {"href": f"{url}/verify"}}}

        self._reply(
            {"transfer": "basic", "objects": [file | actions(file["oid"], file["size"]) for file in objects]},
            headers={"Content-Type": "application/vnd.git-lfs+json"},
        )

    def _receive(self, oid: str, part: list[str]) -> None:
        if self.command == "PUT" and part:
            self.hub.parts[oid, int(part[0])] = self.body
            self._reply({}, headers={"ETag": f'"{part[0]}"'})
            return
        if part == ["verify"]:
            if len(self.hub.lfs.get(oid, b"")) != json.loads(self.body)["size"]:
                raise _RefusedError(404, "The object is not there, or of another size.")
        else:
            content = self.body
            if self.command == "POST":  # all parts have been sent
                numbers = [entry["partNumber"] for entry in json.loads(self.body)["parts"]]
                content = b"".join(self.hub.parts[oid, number] for number in numbers)
            if hashlib.sha256(content).hexdigest() != oid:
                raise _RefusedError(400, "The content does not match its SHA-256.")
            self.hub.lfs[oid] = content
        self._reply({})

    def _commit(self, repo: Repo, name: str) -> None:
        files, title = dict(repo.files), ""
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            match entry["key"]:
                case "header":
                    title = value["summary"]
                case "file":
                    files[value["path"]] = File(base64.b64decode(value["content"]), False)
                case "lfsFile":
                    if value["oid"] not in self.hub.lfs:
                        raise _RefusedError(400, f"The LFS object of {value['path']} was not uploaded.")
                    files[value["path"]] = File(self.hub.lfs[value["oid"]], True)
                case "deletedFile":
                    del files[value["path"]]
                case key:
                    raise _RefusedError(400, f"Unknown operation {key!r}.")
        repo.titles.append(title)
        repo.trees.append(files)
        sha = repo.sha(len(repo.trees) - 1)
        self._reply({"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{name}/commit/{sha}"})

    # ---- reading

    def _tree(self, sha: str, files: dict[str, File]) -> None:
        def described(path: str, file: File) -> dict[str, Any]:
            size = len(file.content)
            entry = {"type": "file", "path": path, "oid": hashlib.sha1(file.content).hexdigest(), "size": size}
            return entry | ({"lfs": {"oid": file.oid, "size": size, "pointerSize": 130}} if file.is_lfs else {})

        self._reply([described(path, file) for path, file in files.items()])

    def _resolve(self, sha: str, files: dict[str, File], path: str) -> None:
        if path not in files:
            raise _RefusedError(404, f"Entry not found: {path}", "EntryNotFound")
        file = files[path]
        headers = {"ETag": f'"{file.oid}"', "X-Repo-Commit": sha, "Content-Type": "application/octet-stream"}
        if file.is_lfs:
            headers |= {"X-Linked-Etag": f'"{file.oid}"', "X-Linked-Size": str(len(file.content))}
        self._send(file.content, 200, headers)

    # ---- replies

    def _reply(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json"} | (headers or {}))

    def _send(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        if status >= 400 and "error" in (error := content[:500].decode(errors="replace")):
            self.send_header("X-Error-Message", " ".join(json.loads(error).get("error", "").split()))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Logs nothing: the tests read `Hub.requests`."""
