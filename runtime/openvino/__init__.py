"""OpenVINO: sessions on processors, with the operators of this package inside where their library is installed."""

from na_deploy.runtime.openvino.session import OpenVinoSession, open_session

__all__ = ["OpenVinoSession", "open_session"]
