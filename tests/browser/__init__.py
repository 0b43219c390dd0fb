"""The live page in a real Chromium, against a real server on a run that nobody trains."""
