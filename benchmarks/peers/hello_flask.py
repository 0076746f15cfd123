"""A Flask application that says hello, for gunicorn."""

from flask import Flask


def hello() -> str:
    """Say it."""
    return "Hello, World!"


app = Flask(__name__)
app.add_url_rule("/", view_func=hello)
