"""boto3: S3 with its transfer threads, SQS and DynamoDB. Argument: the address of moto's server."""

from __future__ import annotations

import io
import sys
import urllib.request
from typing import Any

import boto3
from at_once import MANY, at_once, report
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import ClientError

options: dict[str, Any] = {
    "endpoint_url": sys.argv[1],
    "region_name": "us-east-1",
    "aws_access_key_id": "test",
    "aws_secret_access_key": "test",
    "config": Config(max_pool_connections=MANY, retries={"max_attempts": 0}),
}
s3, sqs, dynamodb = (boto3.client(name, **options) for name in ("s3", "sqs", "dynamodb"))
MIB = 1 << 20


def objects(n: int) -> list[Any]:
    s3.put_object(Bucket="bucket", Key=f"key{n}", Body=bytes([n]) * n)
    found: list[Any] = [len(s3.get_object(Bucket="bucket", Key=f"key{n}")["Body"].read())]
    try:
        s3.get_object(Bucket="bucket", Key="missing")
    except ClientError as error:
        found.append(str(error))
    return found


def transfers(n: int) -> bool:
    """In parts, on threads of boto3's own."""
    if n % 10:
        return True
    data = bytes([n]) * (11 * MIB)
    config = TransferConfig(multipart_threshold=5 * MIB, multipart_chunksize=5 * MIB, max_concurrency=3)
    s3.upload_fileobj(io.BytesIO(data), "bucket", f"large{n}", Config=config)
    got = io.BytesIO()
    s3.download_fileobj("bucket", f"large{n}", got, Config=config)
    return got.getvalue() == data


def messages(n: int) -> list[Any]:
    url = sqs.create_queue(QueueName=f"queue{n}")["QueueUrl"]
    sqs.send_message(QueueUrl=url, MessageBody=f"hello {n}")
    return [each["Body"] for each in sqs.receive_message(QueueUrl=url, WaitTimeSeconds=1)["Messages"]]


def items(n: int) -> Any:
    dynamodb.put_item(TableName="table", Item={"id": {"S": str(n)}, "value": {"N": str(n * n)}})
    return dynamodb.get_item(TableName="table", Key={"id": {"S": str(n)}})["Item"]


urllib.request.urlopen(f"{sys.argv[1]}/moto-api/reset", data=b"").close()
s3.create_bucket(Bucket="bucket")
dynamodb.create_table(
    TableName="table",
    KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
    AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
    BillingMode="PAY_PER_REQUEST",
)
results = {each.__name__: at_once(each) for each in (objects, transfers, messages, items)}
report(**results, keys=sorted(each["Key"] for each in s3.list_objects_v2(Bucket="bucket")["Contents"]))
