"""The server under overload, for a long time, and among bad requests: scenarios with a real `assay serve`.

Each scenario is a function from a server's URL and process id to a report; `problems` says what did not hold.
"""
