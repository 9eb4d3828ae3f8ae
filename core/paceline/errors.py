"""Every error Paceline raises on purpose.

PacelineError
  + UsageError            what the user asked for makes no sense
  + NotFoundError         a model, release or runtime of that name does not exist
  + AmbiguousError        a name means several things
  + PluginError           a plugin broke its contract
  + RegistryError         the registry cannot be read
  + InstallError          a runtime could not be installed
      + NoSolutionError       what it needs is not in the package index, or does not fit together
      + IncompatibleError     this machine cannot run the release
      + UnpinnedError         its packages have no published hashes
      + BuildError            the packages could not be built or fetched
      + DownloadError         a file could not be fetched
      + ArchiveError          a wheel or bundle is damaged or hostile
      + SmokeTestError        the installed engine does not start
  + OfflineError          a request was needed and Paceline is offline
  + StoreError            the state on disk cannot be read or written
  + InUseError            what should change is in use
  + ModelFileError        a model file is truncated, hostile or of an unknown format
  + PairError             the draft cannot propose for the main model
  + DoesNotFitError       a model needs more memory than there is
  + RequestError          a generation request the model cannot serve
      + UnsupportedError      the loaded engine lacks what it needs
  + TemplateError         the chat template failed or refused the messages
  + OverloadedError       more requests wait for a model than its queue holds
  + WorkerError           a worker did not do what the protocol says
      + WorkerDied            its process ended

Each carries a sentence for people (`message`), the way out (`help`, may be None) and, where a client can
act on it, a machine-readable `code` and the request field it is about (`param`).
"""

from __future__ import annotations

from typing import Any, ClassVar


class PacelineError(Exception):
    """Base of the tree. `str(error)` is the message alone; callers print `help` on a line of its own.

    `exit_status` is that of a command which the error ends: 2 for wrong usage, 3 where nothing matches or nothing that
    does runs here, and 1 for all else.
    """

    code: ClassVar[str] = "paceline_error"
    exit_status: ClassVar[int] = 1

    def __init__(self, message: str, *, help: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.help = help
        self.param = param

    def describe(self) -> dict[str, Any]:
        """As JSON."""
        return {"code": self.code, "message": self.message, "help": self.help, "param": self.param}


class UsageError(PacelineError):
    code = "invalid_request"
    exit_status = 2


class NotFoundError(PacelineError):
    code = "not_found"
    exit_status = 3


class AmbiguousError(PacelineError):
    code = "ambiguous"


class PluginError(PacelineError):
    code = "plugin_error"


class RegistryError(PacelineError):
    code = "registry_error"


class InstallError(PacelineError):
    code = "install_failed"


class NoSolutionError(InstallError):
    """A package index answered, and has nothing that would do."""


class IncompatibleError(InstallError):
    code = "incompatible"
    exit_status = 3


class UnpinnedError(InstallError):
    """Only what has packages without published hashes could be installed, and nobody has accepted that."""

    code = "unpinned_packages"


class BuildError(InstallError):
    code = "build_failed"


class ArchiveError(InstallError):
    code = "bad_archive"


class DownloadError(InstallError):
    """`status` is what the server answered, where that is the reason."""

    code = "download_failed"

    def __init__(self, message: str, *, help: str | None = None, status: int | None = None) -> None:
        super().__init__(message, help=help)
        self.status = status


class SmokeTestError(InstallError):
    code = "smoke_test_failed"


class OfflineError(PacelineError):
    code = "offline"


class StoreError(PacelineError):
    code = "store_error"


class InUseError(PacelineError):
    code = "in_use"


class ModelFileError(PacelineError):
    code = "model_file_error"


class PairError(PacelineError):
    code = "incompatible_draft"


class DoesNotFitError(PacelineError):
    code = "insufficient_memory"


class RequestError(PacelineError):
    code = "invalid_request"


class UnsupportedError(RequestError):
    code = "unsupported_parameter"


class TemplateError(PacelineError):
    code = "chat_template_error"


class OverloadedError(PacelineError):
    code = "overloaded"


class WorkerError(PacelineError):
    code = "worker_error"


class WorkerDied(WorkerError):
    """The worker's process ended. `log_tail` holds the last lines it wrote to stderr."""

    code = "worker_died"

    def __init__(self, message: str, *, log_tail: str = "", help: str | None = None) -> None:
        super().__init__(message, help=help)
        self.log_tail = log_tail
