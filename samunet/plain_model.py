"""Models of JSON files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from samunet.files import write_json


class PlainModel(BaseModel):
    """Frozen data with the form of a JSON file, whose every key is known."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)

    def changed(self, **changes: Any) -> Self:
        """A copy with other values, which are not checked."""
        return self.model_copy(update=changes)

    def write(self, path: Path) -> None:
        """Write as JSON, atomically."""
        write_json(path, self.model_dump())
