"""Validates an RO-Crate by the shapes of its profiles; run by an interpreter that has roc-validator.

It cannot be among the other packages: it wants an older rich. The documents that say what terms mean are on the web;
what is asked for there is answered here, by the terms that reports use.
"""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any

from rdflib.plugins.shared.jsonld import context
from rocrate_validator import models, services
from rocrate_validator.utils import http

SCHEMA = "http://schema.org/"
OTHERS = {
    "File": f"{SCHEMA}MediaObject",
    "conformsTo": "http://purl.org/dc/terms/conformsTo",
    "ComputationalWorkflow": "https://bioschemas.org/ComputationalWorkflow",
}
TERMS = (
    "CreateAction", "CreativeWork", "Dataset", "Person", "SoftwareApplication", "SoftwareSourceCode",
    "about", "actionStatus", "agent", "author", "contentSize", "datePublished", "description", "encodingFormat",
    "endTime", "hasPart", "instrument", "license", "mainEntity", "mentions", "name", "programmingLanguage", "result",
    "softwareRequirements", "softwareVersion", "startTime", "url", "version", "ComputerLanguage",
)  # fmt: skip
MEANINGS = {
    "https://w3id.org/ro/crate/1.1/context": {term: f"{SCHEMA}{term}" for term in TERMS} | OTHERS,
    "https://w3id.org/ro/terms/workflow-run/context": {},
}


def answer(url: str) -> dict[str, Any]:
    return {"@context": MEANINGS[url.rstrip("/")]}


def main(crate: str, profile: str) -> None:
    context.source_to_json = lambda source, *_, **__: (answer(str(source)), None)
    kind = {"Content-Type": "application/ld+json"}
    http.HttpRequester.get = lambda _, url, **__: SimpleNamespace(
        status_code=200, headers=kind, json=lambda: answer(url)
    )
    wanted = services.ValidationSettings(
        rocrate_uri=crate, profile_identifier=profile, requirement_severity=models.Severity.REQUIRED
    )
    found = services.validate(wanted)
    checked = sorted({one.identifier for one in found.executed_checks})
    issues = [f"{one.check.identifier}: {one.message}" for one in found.get_issues()]
    print(json.dumps({"checked": checked, "issues": issues}))


if __name__ == "__main__":
    main(*sys.argv[1:])
