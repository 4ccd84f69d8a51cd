"""Somebody who has the credentials and wants every backup gone: with plain S3 calls, and without lifeboat.

Every third object is written over with garbage, the others are deleted; then every version is to be destroyed. Prints what came of it."""

import json
import sys

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

endpoint, bucket, access_key, secret_key = sys.argv[1:]
s3 = boto3.client(
    "s3",
    endpoint_url=endpoint,
    region_name="us-east-1",
    aws_access_key_id=access_key,
    aws_secret_access_key=secret_key,
    config=Config(request_checksum_calculation="when_required", s3={"addressing_style": "path"}),
)
keys = []
for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
    keys += [item["Key"] for item in page.get("Contents", [])]
for number, key in enumerate(keys):
    if number % 3 == 1:
        s3.put_object(Bucket=bucket, Key=key, Body=b"garbage")
    else:
        s3.delete_object(Bucket=bucket, Key=key)
versions = []
for page in s3.get_paginator("list_object_versions").paginate(Bucket=bucket):
    versions += [(item["Key"], item["VersionId"]) for item in page.get("Versions", [])]
refused = destroyed = 0
for key, version in versions:
    try:
        s3.delete_object(Bucket=bucket, Key=key, VersionId=version)
        destroyed += 1
    except ClientError as error:
        if error.response["Error"]["Code"] != "AccessDenied":
            raise
        refused += 1
print(json.dumps({"keys": len(keys), "refused": refused, "destroyed": destroyed}))
