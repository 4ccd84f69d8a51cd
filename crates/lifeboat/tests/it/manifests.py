"""Holds manifests against the schemas of Kubernetes, strictly, and prints them as JSON lines.

usage: manifests.py VERSION,VERSION... FILE...   (- reads from standard input)

Ends with 1, and says what is wrong, if one does not fit.
"""

import json
import sys

import kubernetes_validate
import yaml


def main():
    versions, files = sys.argv[1].split(","), sys.argv[2:]
    wrong = 0
    for name in files:
        with sys.stdin if name == "-" else open(name, encoding="utf-8") as file:
            documents = list(yaml.safe_load_all(file))
        for document in documents:
            for version in versions:
                try:
                    kubernetes_validate.validate(document, version, strict=True)
                except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
                    wrong += 1
                    print(f"{name} {document.get('kind')} {version}: {error}", file=sys.stderr)
            print(json.dumps(document))
    sys.exit(1 if wrong else 0)


main()
