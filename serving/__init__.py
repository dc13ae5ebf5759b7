"""Serving exported models: the Open Inference Protocol v2 over HTTP and gRPC, in one process.

From the wire inwards: ``http_app`` and ``grpc_server`` answer calls, ``json_codec`` and ``grpc_codec`` turn bytes into
:mod:`~na_deploy.serving.requests` and back, ``service`` carries them out, ``repository`` holds the models, ``batcher``
runs what waits together. Nothing here builds or exports models, and importing the package imports no web server.
"""
