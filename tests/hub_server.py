"""A stand-in for Hugging Face's hub: the part of its HTTP interface that an upload and a download of a model use."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub(ThreadingHTTPServer):
    """Repositories in memory, at ``address``; ``refuse`` makes every request one that is not allowed."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories = {}
        self.unknown = []
        self.refuse = False
        self.address = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def commit(self, name):
        content = json.dumps({file: hashlib.sha1(data).hexdigest() for file, data in self.repositories[name].items()})
        return hashlib.sha1(content.encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *words):
        pass

    def _answer(self, values, status=200, headers=()):
        body = values if isinstance(values, bytes) else json.dumps(values).encode()
        self.send_response(status)
        for name, value in (("Content-Length", str(len(body))), *headers):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self):
        hub, body = self.server, self._body()
        if hub.refuse:
            self._answer({"error": "You may not do this"}, 403)
        elif self.path == "/api/repos/create":
            values = json.loads(body)
            name = f"{values.get('organization') or 'user'}/{values['name']}"
            hub.repositories.setdefault(name, {})
            self._answer({"url": f"{hub.address}/{name}", "name": name})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", self.path):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for file in json.loads(body)["files"]
            ]
            self._answer({"files": files})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", self.path):
            for line in body.splitlines():
                part = json.loads(line)
                if part["key"] == "file":
                    content = base64.b64decode(part["value"]["content"])
                    hub.repositories[match[1]][part["value"]["path"]] = content
            commit = hub.commit(match[1])
            self._answer(
                {"success": True, "commitOid": commit, "commitUrl": f"{hub.address}/{match[1]}/commit/{commit}"}
            )
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        else:
            hub.unknown.append(self.path)
            self._answer({"error": "no such thing"}, 404)

    def do_GET(self):
        hub, path = self.server, self.path.partition("?")[0]
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/[^/]+)?", path):
            if match[1] in hub.repositories:
                files = [{"rfilename": file} for file in hub.repositories[match[1]]]
                self._answer(
                    {"id": match[1], "sha": hub.commit(match[1]), "siblings": files, "private": False, "tags": []}
                )
                return
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            content = hub.repositories.get(match[1], {}).get(match[2])
            if content is not None:
                tag = f'"{hashlib.sha1(content).hexdigest()}"'
                self._answer(content, headers=(("ETag", tag), ("X-Repo-Commit", hub.commit(match[1]))))
                return
        elif path != "/api/agent-harnesses":  # asked by the client for its own sake
            hub.unknown.append(path)
        self._answer({"error": "Repository not found"}, 404, [("X-Error-Code", "RepoNotFound")])

    do_HEAD = do_GET
