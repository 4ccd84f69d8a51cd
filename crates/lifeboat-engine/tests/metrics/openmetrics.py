"""Reads OpenMetrics on standard input as strictly as its specification, and prints every series as a line of JSON: labels, value."""

import json
import sys

from prometheus_client.openmetrics.parser import text_string_to_metric_families

for family in text_string_to_metric_families(sys.stdin.buffer.read().decode()):
    for sample in family.samples:
        print(json.dumps([{"__name__": sample.name, **sample.labels}, float(sample.value)]))
