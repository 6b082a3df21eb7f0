"""A small stand-in for the W&B server, on 127.0.0.1: what wandb 0.31 and its service ask for, recorded.

    python stub.py PORT

GET /state tells the runs and artifacts. POST /control {"fail": STATUS} answers all further requests with an HTTP status,
{"fail_query": NAME} those that ask for the GraphQL field NAME.
"""

import base64
import gzip
import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote

ENTITY = "stub"
KEY = "0123456789abcdef" * 2 + "deadbeef"
LOCK = threading.RLock()
RUNS = {}
ARTIFACTS = {}
CONTROL = {}


class QueryError(Exception):
    pass


def find_run(entity, project, name):
    return RUNS.get(f"{entity or ENTITY}/{project or 'uncategorized'}/{name}")


def project_of(entity, name):
    return {"id": f"project-{name}", "name": name, "entity": {"id": f"entity-{entity}", "name": entity}}


# GraphQL: an operation is recognized by the field that it asks for.


def op_viewer(values):
    return {
        "id": "user-1", "entity": ENTITY, "username": ENTITY, "email": "stub@localhost", "admin": False, "name": ENTITY,
        "flags": "{}", "teams": {"edges": []}, "apiKeys": {"edges": []}, "defaultEntity": {"name": ENTITY},
    }  # fmt: skip


def op_serverInfo(values):
    return {
        "features": [], "cliVersionInfo": {"max_cli_version": "0.31.0"}, "latestLocalVersionInfo": None,
        "exposesExplicitFileUpload": False, "frontendHost": BASE,
    }  # fmt: skip


def op_model(values):
    """What a run that is resumed holds already."""
    entity, project = values.get("entity") or ENTITY, values.get("project")
    run = find_run(entity, project, values["name"])
    bucket = run and {
        "id": run["id"], "name": run["name"], "displayName": run["displayName"], "tags": [], "notes": None,
        "summaryMetrics": json.dumps(run["summary"]), "config": json.dumps(run["config"]), "wandbConfig": "{}",
        "historyLineCount": len(run["history"]), "eventsLineCount": 0, "logLineCount": 0, "eventsTail": "[]",
        "historyTail": json.dumps([json.dumps(row) for row in run["history"][-1:]]),
    }  # fmt: skip
    return project_of(entity, project) | {"bucket": bucket}


def op_upsertBucket(values):
    entity, project, name = values.get("entity") or ENTITY, values.get("project"), values.get("name")
    run = next((run for run in RUNS.values() if values.get("id") == run["id"]), None) or find_run(entity, project, name)
    inserted = run is None
    if inserted:
        run = {"id": f"run-{len(RUNS)}", "name": name, "entity": entity, "project": project or "uncategorized"}
        run |= {"config": {}, "summary": {}, "history": [], "state": "running", "exit_code": None, "displayName": name}
        RUNS[f"{entity}/{run['project']}/{name}"] = run
    run["config"] |= json.loads(values.get("config") or "{}")
    for key in ("groupName", "jobType", "displayName", "sweep"):
        if values.get(key) is not None:
            run[key] = values[key]
    if values.get("summaryMetrics"):
        run["summary"] = json.loads(values["summaryMetrics"])
    bucket = {
        "id": run["id"], "name": run["name"], "displayName": run["displayName"], "description": "",
        "config": json.dumps(run["config"]), "sweepName": run.get("sweep"), "historyLineCount": len(run["history"]),
        "project": project_of(run["entity"], run["project"]),
    }  # fmt: skip
    return {"inserted": inserted, "bucket": bucket}


def op_createRunFiles(values):
    files = [{"name": f, "uploadUrl": f"{BASE}/storage/{values['run']}/{quote(f)}"} for f in values["files"]]
    return {"runID": values["run"], "uploadHeaders": [], "files": files}


def op_createArtifact(values):
    given, key = values["input"], f"artifact-{len(ARTIFACTS)}"
    name = given.get("artifactCollectionName") or given["artifactCollectionNames"][0]
    ARTIFACTS[key] = {"id": key, "name": name, "type": given["artifactTypeName"], "state": "PENDING", "files": []}
    return {"artifact": {"id": key, "state": "PENDING", "artifactSequence": {"latestArtifact": None}}}


def op_createArtifactManifest(values):
    url = f"{BASE}/storage/{values['artifactID']}/{quote(values['name'])}"
    file = {"id": "file", "uploadUrl": url, "uploadHeaders": []}
    return {"artifactManifest": {"id": f"manifest-{values['artifactID']}", "file": file}}


def op_updateArtifactManifest(values):
    file = {"id": "file", "uploadUrl": f"{BASE}/storage/{values['artifactManifestID']}", "uploadHeaders": []}
    return {"artifactManifest": {"id": values["artifactManifestID"], "file": file}}


def op_createArtifactFiles(values):
    edges = []
    for given in values["input"]["artifactFiles"]:
        name, key = given["name"], given["artifactID"]
        ARTIFACTS[key]["files"].append(name)
        file = {"id": name, "name": name, "displayName": name, "storagePath": name, "uploadHeaders": []}
        file |= {
            "uploadUrl": f"{BASE}/storage/{key}/{quote(name)}",
            "uploadMultipartUrls": None,
            "artifact": {"id": key},
        }
        edges.append({"node": file})
    return {"files": {"edges": edges}}


def op_commitArtifact(values):
    artifact = ARTIFACTS[values["artifactID"]]
    artifact["state"] = "COMMITTED"
    return {"artifact": {"id": artifact["id"], "digest": ""}}


def op_project(values):
    if "artifact(name" in values["query"]:
        name = values["name"].split(":")[0]
        found = next((artifact for artifact in ARTIFACTS.values() if artifact["name"] == name), None)
        return {"artifact": found and {"artifactType": {"name": found["type"]}}}
    return {"artifactType": None, "run": None}


OPERATIONS = {name[3:]: value for name, value in globals().items() if name.startswith("op_")}
OPERATIONS |= {
    "entity": lambda values: {"xxhashDigestsEnabled": False, "organization": None},
    "organization": lambda values: {"featureFlags": []},
    "markRunFilesUploaded": lambda values: {"success": True},
    "clientIDMapping": lambda values: {"serverID": None},
}


def answer(body):
    query = body.get("query", "")
    field = re.search(r"\{\s*(?:\w+\s*:\s*)?(\w+)", re.sub(r"\([^(){}]*\)", "", query, count=1)).group(1)
    if field not in OPERATIONS or CONTROL.get("fail_query") == field:
        raise QueryError(f"no answer for {field}")
    with LOCK:
        return {field: OPERATIONS[field]((body.get("variables") or {}) | {"query": query})}


def stream(run, body):
    """One part of a run's log: rows of its history, its summary, or its end."""
    for file, part in (body.get("files") or {}).items():
        if file == "wandb-summary.json":
            run["summary"] = json.loads(part["content"][-1])
        elif file == "wandb-history.jsonl":
            run["history"][part["offset"] :] = map(json.loads, part["content"])
    if body.get("complete"):
        run["exit_code"] = body.get("exitcode")
        run["state"] = "finished" if run["exit_code"] == 0 else "failed"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, status, content=None):
        data = json.dumps(content or {}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def body(self):
        data = b""
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline().split(b";")[0], 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data

    def do_POST(self):
        data = self.body()
        given = self.headers.get("Authorization", "")[6:]
        if self.path == "/control":
            CONTROL.update(json.loads(data))
            self.reply(200)
        elif self.path.startswith("/sdk/otel/"):  # telemetry; 404 tells the client to keep it
            self.reply(404)
        elif CONTROL.get("fail"):
            self.reply(CONTROL["fail"])
        elif base64.b64decode(given).decode() != f"api:{KEY}":
            self.reply(401, {"errors": [{"message": "user is not logged in", "path": ["viewer"]}]})
        elif self.path.startswith("/graphql"):
            try:
                self.reply(200, {"data": answer(json.loads(data))})
            except Exception as error:
                self.reply(200, {"data": None, "errors": [{"message": str(error)}]})
        else:
            match = re.fullmatch(r"/files/([^/]+)/([^/]+)/([^/]+)/file_stream", self.path)
            with LOCK:
                stream(find_run(*map(unquote, match.groups())), json.loads(data or b"{}"))
            self.reply(200)

    def do_PUT(self):
        self.body()
        self.reply(CONTROL.get("fail") or 200)

    def do_GET(self):
        with LOCK:
            self.reply(200, {"runs": list(RUNS.values()), "artifacts": list(ARTIFACTS.values())})


if __name__ == "__main__":
    port = int(sys.argv[1])
    BASE = f"http://127.0.0.1:{port}"
    ThreadingHTTPServer.request_queue_size = 128
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
