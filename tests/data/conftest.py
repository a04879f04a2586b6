"""Fixtures of the tests of data."""

from s3_server import s3_server as s3_server
from s3_server import s3_store as s3_store
