"""A stand-in of Modal's control plane on 127.0.0.1, so that the unmodified `modal` command runs without Modal.

    server.py      what tests use: starts the rest in a thread, runs `modal`, waits
    plane.py       the requests of the `modal` client: apps, images, files, volumes, functions, calls
    containers.py  the containers that run the function bodies for real, and what those ask for

It speaks the client's own protocol with the classes that come with the client, so it holds for the modal version that
constraints.txt pins. What it does not know about Modal is a list in the README: scheduling, image builds, what the
server refuses, how volumes really synchronise.
"""
